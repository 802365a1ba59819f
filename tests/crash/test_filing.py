"""A document on its way into the GED, and the relay dead at each step: it is seen whole or not at all, and once."""

import pytest

from tests.crash import audit
from tests.crash.ledger import visible
from tests.crash.site import CLIENT, VENTES, Site, until
from tests.crash.strace import Point

LARGE = (600_000,)  # several pieces


@pytest.mark.parametrize(
    ("call", "place", "nth", "state", "seen"),
    [
        pytest.param("fsync", "wal", 2, "filing", 0, id="claimed"),
        pytest.param("write", "temporary", 2, "filing", 0, id="half-written"),
        pytest.param("fsync", "temporary", 1, "filing", 0, id="written"),
        pytest.param("linkat", "month", 1, "filing", 0, id="durable"),
        pytest.param("fsync", "month", 1, "filing", 1, id="named"),
        pytest.param("fsync", "wal", 3, "filed", 1, id="recorded"),
    ],
)
def test_a_document(site: Site, call: str, place: str, nth: int, state: str, seen: int) -> None:
    letter = site.ledger.letter(VENTES, sizes=LARGE)
    before = len(list(visible(site.ged)))
    with site.halfway(letter) as (half, file):
        temporary = site.month / f".welyb-{file.name}-1.part"
        with site.dies_at(Point(call, {"temporary": temporary}.get(place) or getattr(site, place), nth)):
            half.finish()
    assert site.states(letter) == [state]
    assert len(list(visible(site.ged))) == before + seen
    assert temporary.exists() == (place != "wal" or nth > 2)
    site.back()
    until(lambda: site.states(letter) == ["filed"] and not audit.temporaries(site.ged), "mend the filing")
    assert len(list(visible(site.ged))) == before + 1
    assert not audit.of_ged(site.ged, site.ledger)


def test_a_folder_that_had_to_be_made(site: Site) -> None:
    client = site.relay.client("nouveau")
    letter = site.ledger.letter("ventes+nouveau@welyb.fr")
    with site.dies_at(Point("fsync", client)):
        site.post(letter)
    assert (client / "Ventes").is_dir()
    site.back()
    until(lambda: site.states(letter) == ["filed"], "mend the filing")
    assert len(list(visible(client))) == 1


def test_death_after_death_while_it_mends(site: Site) -> None:
    arriving = site.ledger.letter(VENTES, sizes=LARGE)
    letter = site.ledger.letter(VENTES, sizes=LARGE)
    with (
        site.halfway(arriving) as (_, orphan),
        site.halfway(letter) as (half, _),
        site.dies_at(Point("fsync", site.month)),
    ):
        half.finish()
    clients_listed, claimed, recorded = 1, 2, 3
    for point in (
        Point("unlink", orphan),
        Point("fsync", site.wal, clients_listed),
        Point("fsync", site.month),
        Point("fsync", site.wal, claimed),
        Point("fsync", site.wal, recorded),
        Point("unlinkat", site.month),
    ):
        site.dies_running(point, "serve")
    assert audit.temporaries(site.ged)
    site.back()
    until(lambda: site.states(letter) == ["filed"] and not audit.temporaries(site.ged), "mend the filing")
    assert not orphan.exists()
    assert not audit.of_ged(site.ged, site.ledger)
    assert len(list((site.ged / CLIENT).rglob("facture-*"))) == len(list(visible(site.ged / CLIENT / "Ventes")))
