"""The postmaster's commands, dead at each step: all of what they say is done, or nothing."""

import pytest

from tests.crash import audit
from tests.crash.ledger import digest, document
from tests.crash.site import MEG, Site, connecting
from tests.crash.strace import Point

MANY = 600


@pytest.mark.parametrize(
    ("call", "place", "state", "events"),
    [
        pytest.param("pwrite64", "wal", "waiting", 0, id="decided"),
        pytest.param("fsync", "wal", "waiting", 0, id="written"),
        pytest.param("write", "told", "held", 1, id="durable"),
    ],
)
def test_a_change_of_the_postmaster(site: Site, call: str, place: str, state: str, events: int) -> None:
    letter = site.taken(MEG)
    ((delivery,),) = audit.rows(
        site.data,
        "SELECT d.id FROM delivery d JOIN message m ON m.id = d.message WHERE message_id = ?",
        letter.message_id,
    )
    site.dies_running(Point(call, site.wal if place == "wal" else site.told("queue")), "queue", "hold", str(delivery))
    assert site.states(letter) == [state]
    assert len(audit.rows(site.data, "SELECT 1 FROM event WHERE event = 'held' AND delivery = ?", delivery)) == events
    if state == "held":
        site.relay.cli("queue", "release", str(delivery))
    assert not audit.of_store(site.data, site.ledger)


def test_a_connection(site: Site) -> None:
    folder = site.relay.client("beaucoup") / "Achats"
    folder.mkdir()
    content = document()
    site.ledger.baseline.add(digest(content))
    for number in range(MANY):
        (folder / f"ancien-{number}.pdf").write_bytes(content)
    for point in (Point("getdents64", folder), Point("pwrite64", site.wal, 30)):
        site.dies_running(point, *connecting("beaucoup", "Achats"))
        assert not audit.rows(site.data, "SELECT 1 FROM connection WHERE client = 'beaucoup'")
        assert not audit.rows(
            site.data, "SELECT 1 FROM inventory WHERE connection = (SELECT max(id) + 1 FROM connection)"
        )
    site.dies_running(Point("write", site.told("connections")), *connecting("beaucoup", "Achats"))
    sql = "SELECT count(*) FROM inventory i JOIN connection c ON c.id = i.connection WHERE client = 'beaucoup'"
    assert audit.rows(site.data, sql) == [(MANY,)]
    assert site.relay.cli(*connecting("beaucoup", "Achats"), check=False).returncode == 1
    site.ledger.deposit(folder)
    site.settled()
