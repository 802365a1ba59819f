"""What every test has: the `debian` marker; and where one failed, what the programs under its folder had to say."""

from collections.abc import Generator

import pytest

from tests.support import debian
from tests.support.program import tail


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("debian"):
        debian.require(*marker.args)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    folder = getattr(item, "funcargs", {}).get("tmp_path")
    if report.failed and folder is not None:
        for log in sorted([*folder.rglob("*.err"), *folder.rglob("maillog")]):
            report.sections.append((str(log.relative_to(folder)), tail(log)))
    return report
