"""What every test has: the `debian` marker."""

import pytest

from tests.support import debian


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("debian"):
        debian.require(*marker.args)
