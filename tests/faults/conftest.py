"""The relay of a bad day; what it wrote is shown where a test failed. FAULTS=long has every form of every fault."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.door import PROCESSES
from tests.faults.far import Placed, collectors
from tests.support.relay import Relay


@pytest.fixture
def new_relay(tmp_path: Path) -> Iterator[Callable[..., Relay]]:
    """Makes the relay, not yet started, with one client, Martin; arguments as for Relay."""
    made: list[Relay] = []

    def make(settings: dict[str, Any] | None = None, **more: Any) -> Relay:
        made.append(Relay(tmp_path, settings, **more))
        made[-1].client("Martin")
        made[-1].configure({"run": {"settle": "0 s"}})
        return made[-1]

    yield make
    for relay in made:
        relay.kill()


@pytest.fixture(params=PROCESSES)
def processes(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings: two processes take the mail, or (FAULTS=long) one does everything."""
    return {"smtp": {"processes": request.param}}


@pytest.fixture
def far() -> Iterator[Placed]:
    """A collector that takes everything."""
    with collectors({"far": {}}) as found:
        yield found["far"]
