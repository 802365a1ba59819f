"""The disk answers EIO: on write, on fsync, on read. After a sync that failed nothing is answered 250 that is not durable.

A file system may tell of a lost write only once ("fsyncgate"): the call that failed is never simply made again; what it was
about is written anew, elsewhere or over it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime

import pysqlite3.dbapi2 as sqlite3
import pytest

from tests.crash import audit
from tests.faults.door import (
    LARGE,
    LONG,
    MEG,
    PROCESSES,
    SENDER,
    content,
    data,
    halfway,
    letter,
    on_the_way,
    post,
    restarted,
    segment,
    stored,
)
from tests.faults.far import collectors
from tests.faults.inject import failing
from tests.support.clients import Dialogue
from tests.support.relay import Relay

pytestmark = pytest.mark.debian("strace", "root")


@pytest.fixture(scope="module", params=PROCESSES)
def relay(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Relay]:
    """One for all of a kind: what a test leaves there is no other's business."""
    with collectors({"far": {}}) as found:
        settings = {
            "smtp": {"processes": request.param},
            "delivery": {"routes": {"factures-meg.fr": found["far"].place}},
        }
        relay = Relay(tmp_path_factory.mktemp("bad-disk"), settings)
        relay.client("Martin")
        relay.start()
        yield relay
        relay.kill()


CALLS = [
    ("write", "segment", 0),
    ("fdatasync", "segment", 0),
    ("pwrite64", "wal", 0),
    ("fsync,fdatasync", "wal", 0),
    ("write", "file", LARGE),
    ("fdatasync", "file", LARGE),
    ("fsync", "day", LARGE),
    ("pwrite64", "wal", LARGE),
    ("fsync,fdatasync", "wal", LARGE),
]
CASES = [
    pytest.param(*case, killed, id=f"{case[0].partition(',')[0]}-{case[1]}-{case[2]}-{'killed' if killed else 'lives'}")
    for case in CALLS
    for killed in (False, True)
    if LONG or killed == (case[0] == "fsync,fdatasync")
]


@pytest.mark.parametrize(("calls", "place", "size", "killed"), CASES)
def test_a_mail_that_cannot_be_written(relay: Relay, calls: str, place: str, size: int, killed: bool) -> None:
    """Whatever becomes of the relay then: the sender was told 451, sends again, and it stands there once, whole."""
    assert post(relay, letter()).accepted  # there is a segment to append to
    assert post(relay, letter(size=LARGE)).accepted  # and a folder for today
    message = letter(size=size)
    with ExitStack() as stack:
        place_of = {
            "segment": segment(relay),
            "wal": data(relay) / "relay.db-wal",
            "day": data(relay) / "spool/files" / datetime.now(UTC).date().isoformat(),
        }
        if size:
            finish, place_of["file"] = stack.enter_context(halfway(relay, message))
        else:
            dialogue = stack.enter_context(on_the_way(relay))
        with failing(relay, calls, place_of[place]) as found:
            told = finish() if size else content(dialogue, message).code
            assert found.calls() >= 1
    assert told in (451, 452)
    if killed:
        restarted(relay)
        assert not audit.orphans(data(relay))
    assert stored(relay, message) in ((0, 1) if killed else (0,)), "told 451, it may stand; it is whole then"
    assert post(relay, message).accepted
    assert stored(relay, message) == 1
    assert [row[0] for row in audit.rows(data(relay), "PRAGMA integrity_check")] == ["ok"]


def test_a_page_of_the_store_that_cannot_be_read(relay: Relay) -> None:
    """The rows cannot be written for want of a page: 451, and the next mail is taken."""
    store = data(relay) / "relay.db"
    relay.stop()
    with closing(sqlite3.connect(str(store))) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    relay.start()
    message = letter()
    try:
        with on_the_way(relay) as dialogue, failing(relay, "pread64", store, "error=ENODEV:when=5+") as found:
            dialogue.socket.settimeout(3)
            assert content(dialogue, message).code == 451
            assert found.calls() >= 1
        with Dialogue(relay.port, timeout=3) as dialogue:
            dialogue.hello()
            dialogue.envelope(SENDER, MEG)
            assert dialogue.data(message).code == 250
    finally:
        restarted(relay)  # for the others
