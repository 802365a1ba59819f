"""The first start of all, dead at each step: the next one finishes what it began."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash import audit
from tests.crash.site import CLIENT, VENTES, Site, until
from tests.crash.strace import Point

KEPT = {"relay.db", "relay.db-wal", "relay.db-shm", "run.lock", "serve.lock", "spool", "token.key"}


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Site]:
    """Never started."""
    site = Site(tmp_path)
    site.relay.client(CLIENT)
    yield site
    site.relay.stop()


@pytest.mark.debian("strace")
@pytest.mark.parametrize(
    ("call", "place", "nth"),
    [
        pytest.param("pwrite64", "relay.db", 1, id="store-empty"),
        pytest.param("fsync", "relay.db-wal", 1, id="store-made"),
        pytest.param("fsync", "relay.db-wal", 2, id="migrations-begun"),
        pytest.param("pwrite64", "relay.db-wal", 40, id="half-the-schema"),
        pytest.param("fsync", "relay.db-wal", 3, id="schema-written"),
        pytest.param("link", "", 1, id="key-written"),
        pytest.param("fsync", "relay.db-wal", 4, id="clients-listed"),
    ],
)
def test_a_first_start(fresh: Site, call: str, place: str, nth: int) -> None:
    fresh.dies_running(Point(call, fresh.data / place if place else None, nth), "serve")
    fresh.back()
    letter = fresh.taken(VENTES)
    until(lambda: fresh.states(letter) == ["filed"], "file")
    assert not audit.of_store(fresh.data, fresh.ledger) and not audit.of_ged(fresh.ged, fresh.ledger)
    litter = {path.name for path in fresh.data.iterdir()} - KEPT
    assert len(litter) == (place == "") and all(name.startswith("token.") for name in litter)
