"""A run, and the process dead at each step of it: every document goes, and twice only what was in the far side's hands."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash import audit
from tests.crash.site import MEG, Site, Survived, until
from tests.crash.strace import Point
from tests.support.program import Program

LARGE = 3_000_000


@pytest.mark.parametrize(
    ("call", "place", "nth", "size"),
    [
        pytest.param("read", "document", 2, LARGE, id="half-copied"),
        pytest.param("fsync", "day", 1, LARGE, id="composed"),
        pytest.param("fsync", "segments", 1, 0, id="small-composed"),
    ],
)
def test_a_deposit(site: Site, call: str, place: str, nth: int, size: int) -> None:
    document = site.ledger.deposit(site.connected, size=size)
    site.dies_running(Point(call, document if place == "document" else getattr(site, place), nth), "runs", "now")
    assert not audit.rows(site.data, "SELECT 1 FROM document WHERE name = ?", document.name)
    site.settled()


def test_at_every_commit(site: Site) -> None:
    """Each time a transaction is written, and not yet durable: what stands is the step before."""
    seen, nth = [], 0
    while True:
        site.drain()
        letter, document = site.taken(MEG), site.ledger.deposit(site.connected)
        nth += 1
        try:
            site.dies_running(Point("fsync", site.wal, nth), "runs", "now")
        except Survived:
            break
        stood = site.states(letter)[0], state_of(site, document)
        books = site.settled()
        seen.append(stood)
        assert flag(site, letter.message_id) == (stood[0] == "sending")
        assert doubled(books, letter.message_id) == (stood[0] == "sending")
    assert [state for state, _ in itertools.groupby(mail for mail, _ in seen)] == ["waiting", "sending", "sent"]
    assert [state for state, _ in itertools.groupby(file for _, file in seen)] == [None, "waiting", "sending", "sent"]


def test_in_the_middle_of_a_message(site: Site) -> None:
    letter = site.taken(MEG, sizes=(LARGE,))
    with in_hand(site, "smtpd_data_restrictions") as run:
        until(lambda: site.states(letter) == ["sending"], "claim")
        with site.dies_at(Point("sendfile", nth=2), run):
            pass
    books = site.settled()
    assert flag(site, letter.message_id)
    assert not doubled(books, letter.message_id)


def test_bytes_past_their_retention(site: Site) -> None:
    letter = site.ledger.letter(MEG, sizes=(600_000,))
    with site.halfway(letter) as (half, file):
        assert half.finish()
    site.settled()
    site.relay.configure({"relay": {"keep_bodies": "0 s"}})
    try:
        site.dies_running(Point("unlink", file), "runs", "now")
    finally:
        site.relay.configure({"relay": {"keep_bodies": "30 days"}})
    sql = "SELECT 1 FROM message WHERE message_id = ? AND purged_at IS NOT NULL"
    assert audit.rows(site.data, sql, letter.message_id)
    assert file.exists()
    site.back()
    assert not file.exists()


@contextmanager
def in_hand(site: Site, restriction: str) -> Iterator[Program]:
    """A run under way, with a collector that thinks for a second there before it answers; nothing else waits."""
    assert site.collector
    site.collector.change(main_cf={restriction: "sleep 1"})
    run = Program([*site.relay.program.command[:-1], "runs", "now"], site.relay.folder, name="runs")
    try:
        run.start(lambda: True)
        yield run
    finally:
        run.kill()
        site.collector.change(main_cf={})


def flag(site: Site, message_id: str) -> object:
    ((uncertain,),) = audit.rows(
        site.data, "SELECT uncertain FROM delivery WHERE outbound_message_id = ? AND kind = 'send'", message_id
    )
    return uncertain


def doubled(books: audit.Books, message_id: str) -> bool:
    return any(message_id in line for line in books.doubled)


def state_of(site: Site, document: Path) -> object:
    """Of a deposit's delivery; None where there is none."""
    sql = "SELECT l.state FROM delivery l JOIN delivery_document d ON d.delivery = l.id JOIN document f ON f.id = d.document"
    return next((row[0] for row in audit.rows(site.data, f"{sql} WHERE f.name = ?", document.name)), None)
