"""The store, on real SQLite files: what is committed, claimed, recorded, changed and listed.

Long because it is one table of small stories, grouped by the module that tells them.
"""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database

from relay import clock
from relay.store import (
    connections,
    delivery,
    deposits,
    directory,
    intake,
    listing,
    notices,
    restore,
    retention,
    throttles,
)
from relay.store.connections import Connection
from relay.store.database import (
    CHECKPOINT,
    SCHEMA,
    NoStore,
    StoreError,
    one,
    open_existing,
    open_for_listing,
    open_for_reading,
    open_for_writing,
    rows,
    transaction,
)
from relay.store.delivery import Claimed, Result
from relay.store.deposits import Made, NewDeposit
from relay.store.directory import Client, Folder
from relay.store.events import VOCABULARY, Event, write
from relay.store.intake import Accepted
from relay.store.listing import Filter
from relay.store.restore import Restored
from rules.attachment import Content
from rules.bounce import Action, Bounce
from rules.deposit import Seen
from rules.lifecycle import Change, State
from rules.replies import Reason
from tests.support.records import COLLECTOR, NOON, ORIGINS, PACE, mail, order, rcpt, sha

QUARTER = timedelta(minutes=15)
OTHER = "durand@factures-meg.fr"
SENDER = "compta@cabinet.example"


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = open_for_writing(tmp_path / "relay.db")
    yield db
    db.close()


def put(db: Database, accepted: Accepted) -> intake.Committed:
    with transaction(db):
        return intake.commit(db, accepted, spool="s/seg/0/5000")


def claim(
    db: Database, run: int = 1, at: datetime = NOON, *, target: str = COLLECTOR, limit: int = 10
) -> list[Claimed]:
    group = (target.rpartition("@")[2], target)
    with transaction(db):
        return delivery.claim(db, group, kind="send", run=run, horizon=clock.stamp(at), limit=limit, now=at, pace=PACE)


def record(db: Database, taken: Claimed, result: Result, *, run: int = 1, at: datetime = NOON) -> State | None:
    with transaction(db):
        return delivery.record(db, taken, result, run=run, now=at, pace=PACE).state


def change(db: Database, what: Change, *ids: str, at: datetime = NOON) -> list[str]:
    with transaction(db):
        return delivery.change(db, ids, what, order(at))


def sent(db: Database, at: datetime = NOON) -> None:
    for taken in claim(db, at=at):
        assert record(db, taken, Result(Change.SUCCEED_SEND, reply="250 ok", code=250), at=at) is State.SENT


def states(db: Database) -> dict[str, str]:
    return {str(i): str(s) for i, s in rows(db, "SELECT id, state FROM delivery ORDER BY id")}


def told(db: Database, delivery_id: str) -> list[str]:
    return [str(r[0]) for r in rows(db, "SELECT event FROM event WHERE delivery = ? ORDER BY id", (delivery_id,))]


def column(db: Database, name: str, delivery_id: str = "m1-1") -> Any:
    found = one(db, f"SELECT {name} FROM delivery WHERE id = ?", (delivery_id,))
    assert found is not None
    return found[0]


# --- the file ---------------------------------------------------------------------------------------------------------


def test_only_its_owner_may_read_it(tmp_path: Path) -> None:
    open_for_writing(tmp_path / "data/relay.db")
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0
    assert {p.stat().st_mode & 0o077 for p in (tmp_path / "data").iterdir()} == {0}


def test_where_there_is_no_store_nothing_is_made(tmp_path: Path) -> None:
    for opener in (open_existing, open_for_reading, open_for_listing):
        with pytest.raises(NoStore, match=r"no store yet\. Remedy: "):
            opener(tmp_path / "data/relay.db")
    assert list(tmp_path.iterdir()) == []


def test_a_path_with_odd_characters(tmp_path: Path) -> None:
    odd = tmp_path / "a?b#c%d é.db"
    open_for_writing(odd)
    assert odd.exists()
    assert rows(open_for_reading(odd), "SELECT count(*) FROM message") == [(0,)]


def test_a_listing_cannot_write_and_a_writer_does_not_disturb_it(tmp_path: Path, db: Database) -> None:
    reader = open_for_reading(tmp_path / "relay.db")
    with pytest.raises(Exception, match="readonly"):
        reader.conn.execute("DELETE FROM message")
    with transaction(db):
        intake.commit(db, mail("m1", COLLECTOR), spool="s/seg/0/5000")
        assert list(listing.queue(reader, Filter())) == []
    assert [row["id"] for row in listing.queue(reader, Filter())] == ["m1-1"]


def test_a_store_of_an_older_release_is_not_listed(tmp_path: Path, db: Database) -> None:
    assert rows(db, "PRAGMA user_version") == [(SCHEMA,)]
    assert len(rows(db, "SELECT * FROM _sqlite_migrations")) == SCHEMA
    db.execute(f"PRAGMA user_version = {SCHEMA - 1}")
    for opener in (open_for_reading, open_for_listing):
        with pytest.raises(StoreError, match=r"older release\. Remedy: "):
            opener(tmp_path / "relay.db")


def test_a_listing_starts_without_what_makes_stores() -> None:
    code = "import sys, relay.cli.queue, relay.cli.trace, relay.store.listing; sys.exit('sqlite_utils' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_commit_is_durable_and_checkpoints_are_rare(db: Database) -> None:
    pragmas = {name: rows(db, f"PRAGMA {name}")[0][0] for name in ("journal_mode", "synchronous", "wal_autocheckpoint")}
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "wal_autocheckpoint": CHECKPOINT}


def test_the_states_of_the_rules_are_those_of_the_schema(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    for state in State:
        db.conn.execute("UPDATE delivery SET state = ?", (state,))
    with pytest.raises(Exception, match="CHECK constraint"):
        db.conn.execute("UPDATE delivery SET state = 'lost'")


def test_a_row_that_refers_to_nothing_is_refused(db: Database) -> None:
    with pytest.raises(Exception, match="FOREIGN KEY"):
        db.conn.execute("INSERT INTO delivery_document VALUES ('none', 'none', '', '')")


def test_an_event_outside_the_vocabulary_is_our_own_mistake(db: Database) -> None:
    with pytest.raises(AssertionError), transaction(db):
        write(db, clock.stamp(NOON), "smtp", [Event("lost")])
    assert all(words and words == words.strip(".") for words in VOCABULARY.values())


# --- intake: a repeat adds nothing ------------------------------------------------------------------------------------


def test_a_mail_is_rows_and_an_event(db: Database) -> None:
    assert put(db, mail("m1", COLLECTOR, OTHER, documents=("a", "b"))) == intake.Committed("m1", added=True)
    assert states(db) == {"m1-1": "waiting", "m1-2": "waiting"}
    assert rows(db, "SELECT count(*) FROM delivery_document") == [(4,)]
    assert [(e["event"], e["message"]) for e in listing.trace(db, "m1")] == [("accepted", "m1")]


def test_the_same_mail_again_is_answered_with_the_first_and_adds_nothing(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    before = {t: one(db, f"SELECT count(*) FROM {t}") for t in ("message", "recipient", "document", "delivery")}
    assert put(db, mail("m2", COLLECTOR, at=NOON + QUARTER)) == intake.Committed("m1", added=False)
    assert {t: one(db, f"SELECT count(*) FROM {t}") for t in before} == before
    assert [e["event"] for e in listing.trace(db, "m1")] == ["accepted", "repeated"]


@pytest.mark.parametrize(
    "other",
    [
        mail("m2", COLLECTOR, message_id="<2@cabinet.example>"),
        mail("m2", COLLECTOR, sender="autre@cabinet.example"),
        mail("m2", COLLECTOR, content="another"),
        mail("m2", OTHER),
        mail("m2", COLLECTOR, at=NOON + timedelta(days=7, seconds=1)),
    ],
    ids=["Message-ID", "sender", "content", "recipient", "after a week"],
)
def test_another_mail_is_no_repeat(db: Database, other: Accepted) -> None:
    put(db, mail("m1", COLLECTOR))
    assert put(db, other) == intake.Committed("m2", added=True)


def test_without_a_message_id_nothing_is_a_repeat(db: Database) -> None:
    put(db, mail("m1", COLLECTOR, message_id=""))
    assert put(db, mail("m2", COLLECTOR, message_id="")).added


@pytest.mark.parametrize("state", State)
def test_a_repeat_counts_unless_the_first_came_to_nothing(db: Database, state: State) -> None:
    put(db, mail("m1", COLLECTOR))
    db.conn.execute("UPDATE delivery SET state = ?", (state,))
    nothing = state in (State.REFUSED, State.FAILED, State.DROPPED, State.BOUNCED, State.HANDED)
    assert put(db, mail("m2", COLLECTOR)).added is nothing


def test_only_the_recipients_served_already_are_left_out(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    assert put(db, mail("m2", COLLECTOR, OTHER)) == intake.Committed("m2", added=True)
    assert [row["target"] for row in listing.queue(db, Filter(ids=("m2",)))] == [OTHER]


def test_a_repeat_in_the_same_batch_is_one_too(db: Database) -> None:
    with transaction(db):
        intake.commit(db, mail("m1", COLLECTOR), spool="s/seg/0/5000")
        assert not intake.commit(db, mail("m2", COLLECTOR), spool="s/seg/5000/5000").added


def test_a_document_mailed_again_is_sent_and_flagged(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    sent(db)
    put(db, mail("m2", COLLECTOR, message_id="<2@cabinet.example>"))
    assert states(db)["m2-1"] == "waiting"
    assert told(db, "m2-1") == ["again"]


def test_what_came_from_the_application_is_held_and_so_is_a_copy(db: Database) -> None:
    put(db, mail("m1", COLLECTOR, origin="factures-meg.fr", message_id="<1@factures-meg.fr>"))
    put(db, mail("m2", COLLECTOR, documents=("other", "invoice"), message_id="<2@x>"))
    put(db, mail("m3", COLLECTOR, documents=("other2",), message_id="<3@x>"))
    assert states(db) == {"m1-1": "held", "m2-1": "held", "m3-1": "waiting"}
    assert '"origin"' in column(db, "reason")


# --- intake: bounces --------------------------------------------------------------------------------------------------


FAILED = Bounce(Action.FAILED, "5.1.1", "550 no such user", COLLECTOR)


def bounced(db: Database, bounce: Bounce | None, id: str = "b1") -> None:
    token = f"{'m1':a<16}"
    put(db, mail(id, documents=(), message_id=f"<{id}@far>", bounces=[(token, bounce)]))


def test_a_failure_withdraws_validated_and_shows_its_text(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    sent(db)
    bounced(db, FAILED)
    (row,) = listing.documents(db, Filter(ids=("m1",)))
    assert listing.status(row) == "bounced"
    assert "550 no such user" in row["reason"]
    assert told(db, "m1-1")[-1] == "bounced"
    bounced(db, FAILED, "b2")  # a second one changes nothing more
    assert told(db, "m1-1")[-2:] == ["bounced", "reported"]


@pytest.mark.parametrize(
    "bounce", [None, replace(FAILED, action=Action.DELAYED), replace(FAILED, action=Action.DELIVERED)]
)
def test_anything_else_joins_the_history(db: Database, bounce: Bounce | None) -> None:
    put(db, mail("m1", COLLECTOR))
    sent(db)
    bounced(db, bounce)
    assert states(db) == {"m1-1": "sent"}
    assert told(db, "m1-1")[-1] == "reported"


def test_of_several_deliveries_the_one_named_is_withdrawn(db: Database) -> None:
    """One token a transaction: the report says which of its recipients failed."""
    put(db, mail("m1", COLLECTOR, OTHER))
    db.conn.execute("UPDATE delivery SET state = 'sent'")
    bounced(db, replace(FAILED, final_recipient=OTHER.upper()))
    assert states(db) == {"m1-1": "sent", "m1-2": "bounced"}


def test_of_several_deliveries_none_is_guessed(db: Database) -> None:
    put(db, mail("m1", COLLECTOR, OTHER))
    db.conn.execute("UPDATE delivery SET state = 'sent'")
    bounced(db, replace(FAILED, final_recipient="quelquun@ailleurs.example"))
    assert states(db) == {"m1-1": "sent", "m1-2": "sent"}
    assert [told(db, d)[-1] for d in ("m1-1", "m1-2")] == ["reported", "reported"]


def test_a_failure_of_what_was_not_sent_yet_changes_nothing(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    bounced(db, FAILED)
    assert states(db) == {"m1-1": "waiting"}


# --- claims and results -----------------------------------------------------------------------------------------------


def test_the_attempt_and_the_next_are_written_before_anyone_connects(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    (taken,) = claim(db)
    assert (taken.id, taken.attempts, taken.original_sender) == ("m1-1", 1, "compta@cabinet.example")
    assert (column(db, "state"), column(db, "attempts")) == ("sending", 1)
    assert column(db, "due_at") == clock.stamp(NOON + QUARTER)
    assert told(db, "m1-1") == ["attempted"]


def test_a_delivery_is_claimed_once(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    assert len(claim(db, run=1)) == 1
    assert claim(db, run=1) == claim(db, run=2) == []


def test_a_run_tries_a_delivery_once(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    (taken,) = claim(db, run=1)
    record(db, taken, Result(Change.DEFER, reply="450 later"))
    much_later = NOON + timedelta(days=1)
    assert delivery.groups(db, "send", clock.stamp(much_later), 1) == []
    assert delivery.groups(db, "send", clock.stamp(much_later), 2) == [("factures-meg.fr", COLLECTOR)]


def test_groups_are_those_with_something_due(db: Database) -> None:
    put(db, mail("m1", COLLECTOR, OTHER, "x@dext.cc"))
    put(db, mail("m2", "later@dext.cc", message_id="<2@x>", at=NOON + QUARTER))
    domains = delivery.groups(db, "send", clock.stamp(NOON), 1)
    assert domains == [("dext.cc", "x@dext.cc"), ("factures-meg.fr", COLLECTOR), ("factures-meg.fr", OTHER)]
    assert delivery.groups(db, "file", clock.stamp(NOON), 1) == []


def test_what_a_dead_run_left_is_waiting_again_and_its_word_no_longer_counts(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    (taken,) = claim(db, run=1)
    with transaction(db):
        assert delivery.recover(db, "send", clock.stamp(NOON)) == 1
    assert (column(db, "state"), column(db, "uncertain")) == ("waiting", 1)
    assert record(db, taken, Result(Change.SUCCEED_SEND), run=1) is None
    (again,) = claim(db, run=2, at=NOON + QUARTER)
    assert again.attempts == 2
    assert record(db, taken, Result(Change.SUCCEED_SEND), run=1) is None
    assert record(db, again, Result(Change.SUCCEED_SEND), run=2) is State.SENT


def test_results_keep_what_the_far_side_said(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    (taken,) = claim(db)
    result = Result(
        Change.SUCCEED_SEND, reply="250 2.0.0 ok A1", code=250, mx="mx.far.test[192.0.2.1]:25", tls="TLSv1.3"
    )
    assert record(db, taken, result) is State.SENT
    (row,) = listing.queue(db, Filter())
    assert (row["reply"], row["mx"], row["tls"]) == ("250 2.0.0 ok A1", "mx.far.test[192.0.2.1]:25", "TLSv1.3")
    assert listing.trace(db, "m1-1")[-1]["detail"] == {
        "code": 250,
        "reply": "250 2.0.0 ok A1",
        "mx": "mx.far.test[192.0.2.1]:25",
        "tls": "TLSv1.3",
    }


def attempts(db: Database, until: timedelta, *, step: timedelta = QUARTER) -> list[datetime]:
    """When a delivery that never succeeds is tried, by runs on the quarter."""
    tried, now, run = [], NOON, 1
    while now - NOON <= until:
        for taken in claim(db, run=run, at=now):
            tried.append(now)
            record(db, taken, Result(Change.DEFER, reply="450 later", code=450), run=run, at=now)
        now, run = now + step, run + 1
    return tried


def test_attempts_warning_and_giving_up_over_five_days(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    tried = attempts(db, timedelta(days=6))
    waits = [(b - a) // timedelta(minutes=1) for a, b in pairwise(tried)]
    assert waits[:5] == [15, 15, 30, 60, 60]
    assert tried[-1] == NOON + timedelta(days=5)
    events = told(db, "m1-1")
    assert (events.count("warned"), events[-1]) == (1, "failed")
    (row,) = listing.queue(db, Filter())
    assert (row["state"], row["reason"]) == ("failed", '{"code": "expired", "days": 5, "reply": "450 later"}')


def put_off(db: Database, first: str = "") -> delivery.PutOff:
    return delivery.defer_domain(
        *(db, "factures-meg.fr"), first=first, run=1, horizon=clock.stamp(NOON), reply="refused", now=NOON, pace=PACE
    )


def test_a_host_that_is_away_puts_off_all_that_is_due_for_it(db: Database) -> None:
    put(db, mail("m1", COLLECTOR, OTHER, "x@dext.cc"))
    with transaction(db):
        assert put_off(db) == delivery.PutOff(OTHER, 2, (), ())
        assert put_off(db, OTHER) == delivery.PutOff(None, 0, (), ())
    assert states(db) == {"m1-1": "waiting", "m1-2": "waiting", "m1-3": "waiting"}
    due = [column(db, "due_at", f"m1-{n}") for n in (1, 2, 3)]
    assert due == [clock.stamp(NOON + QUARTER)] * 2 + [clock.stamp(NOON)]
    assert column(db, "attempts") == 0


def test_what_is_put_off_is_put_off_a_little_at_a_time(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "PUT_OFF_AT_ONCE", 2)
    put(db, mail("m1", *(f"client-{number}@factures-meg.fr" for number in range(5))))
    sizes, first = [], ""
    with transaction(db):
        while (some := put_off(db, first)).last is not None:
            sizes.append(some.waiting)
            first = some.last
    assert sizes == [2, 2, 1]
    assert {row[0] for row in rows(db, "SELECT due_at FROM delivery")} == {clock.stamp(NOON + QUARTER)}


# --- the postmaster's word --------------------------------------------------------------------------------------------


def test_hold_release_and_the_clock_that_stands_still(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    assert change(db, Change.HOLD, "m1-1") == ["m1-1"]
    assert claim(db) == []
    assert change(db, Change.RELEASE, "m1-1", at=NOON + timedelta(days=30)) == ["m1-1"]
    assert column(db, "expires_at") == clock.stamp(NOON + timedelta(days=35))
    assert column(db, "due_at") == clock.stamp(NOON + timedelta(days=30) + QUARTER)
    assert told(db, "m1-1") == ["held", "released"]


def test_retry_begins_afresh(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    (taken,) = claim(db)
    record(db, taken, Result(Change.FAIL, reply="550 no"))
    later = NOON + timedelta(days=9)
    assert change(db, Change.RETRY, "m1-1", at=later) == ["m1-1"]
    assert (column(db, "attempts"), column(db, "warned"), column(db, "reason")) == (0, 0, None)
    assert column(db, "expires_at") == clock.stamp(later + timedelta(days=5))
    assert len(claim(db, run=2, at=later + QUARTER)) == 1


@pytest.mark.parametrize("what", [Change.HOLD, Change.RELEASE, Change.DROP, Change.RETRY])
@pytest.mark.parametrize("state", State)
def test_an_order_does_what_the_table_says_and_else_nothing(db: Database, what: Change, state: State) -> None:
    from rules.lifecycle import after

    put(db, mail("m1", COLLECTOR))
    db.conn.execute("UPDATE delivery SET state = ?", (state,))
    target = after(state, what)
    assert change(db, what, "m1-1", "unknown-1") == (["m1-1"] if target else [])
    assert column(db, "state") == (target or state)
    assert len(told(db, "m1-1")) == bool(target)


def test_resend_is_a_new_delivery_of_the_same(db: Database) -> None:
    put(db, mail("m1", COLLECTOR, OTHER))
    sent(db)
    with transaction(db):
        assert delivery.resend(db, "m1-2", order(), token="again") is None  # it waits still
        assert delivery.resend(db, "none-1", order(), token="again") is None
        assert delivery.resend(db, "m1-1", order(), token="again") == "m1-3"
        assert delivery.resend(db, "m1-1", order(), token="again") == "m1-4"
    new, old = listing.queue(db, Filter(ids=("m1-3",))), listing.queue(db, Filter(ids=("m1-1",)))
    a, b = next(new), next(old)
    same = ("message", "message_id", "documents", "kind", "route", "recipient", "target", "size")
    assert {key: a[key] for key in same} == {key: b[key] for key in same}
    assert (a["state"], a["attempts"]) == ("waiting", 0)
    assert told(db, "m1-3") == ["resent"]


def test_a_report_on_the_first_sending_says_nothing_of_the_second(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    sent(db)
    with transaction(db):
        assert delivery.resend(db, "m1-1", order(), token="b" * 16) == "m1-2"
    db.conn.execute("UPDATE delivery SET state = 'sent'")
    assert column(db, "sender", "m1-2") == f"retours+{'b' * 16}@welyb.fr"
    bounced(db, FAILED)
    assert states(db) == {"m1-1": "bounced", "m1-2": "sent"}
    put(db, mail("b2", documents=(), message_id="<b2@far>", bounces=[("b" * 16, FAILED)]))
    assert states(db) == {"m1-1": "bounced", "m1-2": "bounced"}


def test_what_left_with_the_null_sender_does_so_again(db: Database) -> None:
    (given,) = mail("m1", COLLECTOR).deliveries
    with transaction(db):
        intake.add_own(db, replace(given, sender="", token="", state=State.SENT, documents=()), "s/seg/0/9")
        assert delivery.resend(db, "m1-1", order(), token="b" * 16) == "m1-2"
    assert (column(db, "sender", "m1-2"), column(db, "token", "m1-2")) == ("", "")


def test_a_report_on_an_earlier_attempt_joins_the_history(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    (taken,) = claim(db)
    with transaction(db):
        delivery.renew_token(db, taken, "b" * 16)
    record(db, taken, Result(Change.SUCCEED_SEND))
    bounced(db, FAILED)
    assert (states(db), told(db, "m1-1")[-1]) == ({"m1-1": "sent"}, "reported")
    put(db, mail("b2", documents=(), message_id="<b2@far>", bounces=[("b" * 16, FAILED)]))
    assert states(db) == {"m1-1": "bounced"}


def test_what_has_no_bytes_left_is_not_sent_again(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    sent(db)
    with transaction(db):
        retention.forget_bodies(db, clock.stamp(NOON + QUARTER), clock.stamp(NOON + QUARTER), 10)
        assert delivery.resend(db, "m1-1", order(), token="again") is None


# --- deposits and their twins -----------------------------------------------------------------------------------------


@pytest.fixture
def connected(db: Database) -> Connection:
    new = Connection(
        *(0, "meg", "dupont", "Achats", rcpt(COLLECTOR), COLLECTOR, clock.stamp(NOON), "active", None, (1, 2)),
        client_folder="Dupont",
    )
    with transaction(db):
        number = connections.add(db, new, [("", [("old.pdf", 1, 9, 5, 5, 5)])], "root")
    return replace(new, id=number)


def deposit(db: Database, link: Connection, base: str, path: str, content: str = "invoice", **more: Any) -> Made:
    seen = Seen(path, 1, int(base[1:]), 100, 1, 1)
    folder, _, name = path.rpartition("/")
    known = connections.known(db, link.id, folder, [name])
    new = NewDeposit(
        base=base,
        connection=link,
        seen=seen,
        content=Content(100, sha(content), "application/pdf"),
        origins=ORIGINS,
        at=clock.stamp(NOON),
        expires_at=clock.stamp(NOON + timedelta(days=5)),
        token=f"{base:a<16}",
        sender=f"retours+{base:a<16}@welyb.fr",
        message_id=f"<{base}@welyb.fr>",
        size=500,
        spool=f"s/seg/0/{base[1:]}",
        known=known[0] if known else None,
    )
    with transaction(db):
        return deposits.add_deposit(db, replace(new, **more))


def test_the_same_bytes_under_the_same_name_go_once(db: Database, connected: Connection) -> None:
    assert deposit(db, connected, "d1", "a.pdf") is Made.WAITING
    assert deposit(db, connected, "d2", "2026/a.pdf") is Made.DUPLICATE
    assert deposit(db, connected, "d3", "b.pdf") is Made.WAITING
    assert told(db, "d3-1") == ["deposited", "again"]
    assert deposit(db, connected, "d4", "2025/a.pdf", "other bytes") is Made.WAITING


def test_a_mailed_document_counts_too(db: Database, connected: Connection) -> None:
    put(db, mail("m1", COLLECTOR))
    assert deposit(db, connected, "d1", "2026/invoice.pdf") is Made.DUPLICATE


@pytest.mark.parametrize("ending", ["failed", "dropped", "replaced"])
def test_the_twin_goes_when_the_first_comes_to_nothing(db: Database, connected: Connection, ending: str) -> None:
    deposit(db, connected, "d1", "a.pdf")
    deposit(db, connected, "d2", "x/a.pdf")
    deposit(db, connected, "d3", "y/a.pdf")
    if ending == "failed":
        (taken,) = claim(db)
        record(db, taken, Result(Change.FAIL, reply="550 no"))
    elif ending == "dropped":
        change(db, Change.DROP, "d1-1")
    else:
        deposit(db, connected, "d4", "a.pdf", "new bytes")
    assert {d: states(db)[d] for d in ("d2-1", "d3-1")} == {"d2-1": "waiting", "d3-1": "duplicate"}
    assert told(db, "d2-1")[-1] == "revived"
    change(db, Change.DROP, "d2-1")
    assert states(db)["d3-1"] == "waiting"


LOSS = Restored(clock.stamp(NOON - QUARTER), clock.stamp(NOON), "root", "disque perdu", "copie")


def test_the_twin_of_what_a_restoration_held_is_held_too(db: Database, connected: Connection) -> None:
    """The first may have left between the backup and the loss: dropped because it had, it takes no other along."""
    deposit(db, connected, "d1", "a.pdf")
    deposit(db, connected, "d2", "x/a.pdf")
    deposit(db, connected, "d3", "y/a.pdf")
    with transaction(db):
        assert restore.hold_all(db, LOSS) == ["d1-1"]
    change(db, Change.DROP, "d1-1")
    change(db, Change.DROP, "d2-1")
    assert states(db) == {"d1-1": "dropped", "d2-1": "dropped", "d3-1": "held"}
    assert told(db, "d3-1")[-2:] == ["revived", "held"]
    change(db, Change.RELEASE, "d3-1")
    assert states(db)["d3-1"] == "waiting"


def test_a_deposit_is_in_doubt_until_its_folder_was_seen_whole(db: Database, connected: Connection) -> None:
    before, after = (int((NOON + step).timestamp() * 1e9) for step in (-QUARTER, QUARTER))
    assert restore.doubt(db, connected.id, before) is None
    with transaction(db):
        restore.hold_all(db, LOSS)
    assert restore.doubt(db, connected.id, after)
    restore.seen(db, connected.id)
    assert restore.doubt(db, connected.id, after) is None
    assert restore.doubt(db, connected.id, before)


def test_new_bytes_before_sending_go_instead_and_stay_held(db: Database, connected: Connection) -> None:
    deposit(db, connected, "d1", "a.pdf")
    change(db, Change.HOLD, "d1-1")
    assert deposit(db, connected, "d2", "a.pdf", "new bytes") is Made.HELD
    assert states(db) == {"d1-1": "dropped", "d2-1": "held"}
    assert told(db, "d1-1")[-1] == "replaced"


def test_a_refusal_a_version_and_an_origin(db: Database, connected: Connection) -> None:
    assert deposit(db, connected, "d1", "a.zip", "z", refused=Reason("zip"), spool="") is Made.REFUSED
    assert deposit(db, connected, "d2", "b.pdf", "v2", version=True) is Made.HELD
    put(db, mail("m1", documents=("from meg",), origin="factures-meg.fr"))
    assert deposit(db, connected, "d3", "c.pdf", "from meg") is Made.HELD
    statuses = {row["name"]: listing.status(row) for row in listing.documents(db, Filter(client="dupont"))}
    assert statuses == {"a.zip": "refused", "b.pdf": "modified", "c.pdf": "held", "old.pdf": "baseline"}


def test_another_address_takes_what_waits_and_nothing_that_left(db: Database, connected: Connection) -> None:
    deposit(db, connected, "d1", "a.pdf", "1")
    sent(db)
    deposit(db, connected, "d2", "b.pdf", "2")
    deposit(db, connected, "d3", "c.pdf", "3")
    change(db, Change.HOLD, "d3-1")
    from rules.address import Pair
    from rules.ruleset import Pattern, Rule

    new = "dupont@achats.factures-meg.fr"
    pair = Pair(Rule("meg-achats", Pattern("meg+achats+", "name", "")), "meg+achats+dupont@welyb.fr", new, exact=True)
    with transaction(db):
        assert connections.readdress(db, connected, pair, at=clock.stamp(NOON), actor="root", why="") == 2
    assert [column(db, "target", f"d{n}-1") for n in (1, 2, 3)] == [COLLECTOR, new, new]
    assert [column(db, "domain", f"d{n}-1") for n in (1, 2)] == ["factures-meg.fr", "achats.factures-meg.fr"]


# --- the list of clients ----------------------------------------------------------------------------------------------


def merge(db: Database, **folders: str) -> dict[str, Client]:
    with transaction(db):
        listed = [Folder(name.replace("_", " "), f"1:{inode}") for name, inode in folders.items()]
        directory.merge_listing(db, "1:1", listed, clock.stamp(NOON))
    return {client.slug: client for client in directory.clients(db)}


def test_a_renamed_folder_keeps_its_old_slug_as_an_alias(db: Database) -> None:
    merge(db, Dupont="1", Durand="2", Martin="3")
    clients = merge(db, Dupont_SARL="1", Durand="2", Martin="3")
    assert (clients["dupont-sarl"].aliases, clients["dupont-sarl"].folder) == (("dupont",), "Dupont SARL")
    found = directory.find_client(db, "dupont")
    assert found is not None
    assert found.slug == "dupont-sarl"


def test_two_folders_with_one_slug_are_nobody(db: Database) -> None:
    assert merge(db, Dupont="1", DUPONT="2")["dupont"].state == "ambiguous"


def test_a_root_that_lost_over_half_its_clients_says_nothing(db: Database) -> None:
    merge(db, A="1", B="2", C="3")
    assert {c.state for c in merge(db).values()} == {"listed"}
    assert {s: c.state for s, c in merge(db, A="1", B="2").items()} == {"a": "listed", "b": "listed", "c": "gone"}


def test_every_change_of_the_lists_is_told_to_other_processes(db: Database, connected: Connection) -> None:
    before = directory.meta(db, directory.GENERATION)
    merge(db, A="1")
    assert directory.meta(db, directory.GENERATION) != before
    assert directory.registered(db)["meg+dupont"].collector == COLLECTOR


def test_the_first_listing_is_a_change_even_of_an_empty_root(db: Database) -> None:
    merge(db)
    assert directory.meta(db, directory.GENERATION) == "1"


def test_a_root_that_is_as_it_was_writes_no_client_and_tells_nobody(db: Database) -> None:
    merge(db, A="1", B="2", C="3", D="4")
    merge(db, A="1", B="2", C="3")  # one is gone, and stays so
    before, written = directory.meta(db, directory.GENERATION), []
    db.conn.set_trace_callback(written.append)
    merge(db, A="1", B="2", C="3")
    db.conn.set_trace_callback(None)
    assert directory.meta(db, directory.GENERATION) == before
    assert not [sql for sql in written if re.match(r"INSERT INTO client|UPDATE client", sql)]


# --- listings ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def many(db: Database, connected: Connection) -> Database:
    """12 mails of 1 to 3 documents for 1 or 2 places, a deposit, a skipped part; 14 baseline files."""
    for n in range(12):
        places = (COLLECTOR, OTHER)[: 1 + n % 2]
        documents = [f"doc{n}-{k}" for k in range(1 + n % 3)]
        put(db, mail(f"m{n:02}", *places, documents=documents, message_id=f"<{n}@x>", at=NOON + n * QUARTER))
    deposit(db, connected, "d1", "depot.pdf", "depot")
    skipped = mail("m90", COLLECTOR, documents=("logo",), message_id="<90@x>")
    logo = replace(skipped.documents[0], skipped=Reason("skip-image", {"size": 9}))
    no_documents = tuple(replace(d, documents=()) for d in skipped.deliveries)
    put(db, replace(skipped, documents=(logo,), deliveries=no_documents))
    with transaction(db):
        for folder in ("2024", "2025"):
            entries = [(f"f{n}.pdf", 1, n, 5, 5, 5) for n in range(6)]
            connections.put_entries(db, connected.id, folder, entries, role="baseline")
        connections.put_entries(db, connected.id, "2024", [("odd n%_'.pdf", 1, 1, 1, 1, 1)], role="baseline")
    return db


def pages(db: Database, kind: str, size: int, wanted: Filter) -> list[list[dict[str, Any]]]:
    lists, key = {"queue": (listing.queue, "id"), "documents": (listing.documents, "key")}[kind]
    found: list[list[dict[str, Any]]] = []
    after = ""
    while page := list(lists(db, replace(wanted, limit=size, after=after))):
        found.append(page)
        after = page[-1][key]
        assert len(found) < 200, "it goes round in circles"
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    "wanted",
    [
        *(Filter(), Filter(client="dupont"), Filter(states=("waiting",)), Filter(collector=OTHER)),
        *(Filter(states=("waiting", "held", "sent")), Filter(sender=SENDER), Filter(sender=SENDER, collector=OTHER)),
        *(Filter(sender=SENDER, states=("held", "waiting")), Filter(sender="x@y.fr")),
    ],
    ids=["all", "client", "state", "collector", "states", "sender", "both", "sender's states", "nothing"],
)
@pytest.mark.parametrize("kind", ["queue", "documents"])
def test_pages_cover_everything_once(many: Database, kind: str, size: int, wanted: Filter) -> None:
    whole = list(listing.queue(many, wanted) if kind == "queue" else listing.documents(many, wanted))
    found = pages(many, kind, size, wanted)
    assert [row for page in found for row in page] == whole
    assert all(len(page) == size for page in found[:-1])


def test_documents_are_deliveries_then_what_was_skipped_then_the_baseline(many: Database) -> None:
    statuses = [listing.status(row) for row in listing.documents(many, Filter())]
    assert statuses == ["pending"] * 37 + ["skipped"] + ["baseline"] * 14
    assert len({row["key"] for row in listing.documents(many, Filter())}) == len(statuses)


def test_a_page_may_also_begin_after_a_documents_id(many: Database) -> None:
    whole = [row["id"] for row in listing.documents(many, Filter())]
    after = whole[2]
    rest = [row["id"] for row in listing.documents(many, Filter(after=after))]
    assert rest == whole[len(whole) - whole[::-1].index(after) :]


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (Filter(), 20),
        (Filter(client="dupont"), 1),
        (Filter(collector=OTHER), 6),
        (Filter(sender=SENDER), 19),
        (Filter(sender=SENDER, states=("waiting", "modified")), 19),
        (Filter(sender=SENDER, collector=OTHER), 6),
        (Filter(since=clock.stamp(NOON + 10 * QUARTER)), 3),
        (Filter(ids=("m01", "d1-1", "m02.1", "none")), 4),
        (Filter(states=("held", "waiting")), 20),
        (Filter(states=("sent",)), 0),
        (Filter(collector=OTHER, since=clock.stamp(NOON + 10 * QUARTER)), 1),
    ],
)
def test_filters(many: Database, wanted: Filter, count: int) -> None:
    assert len(list(listing.queue(many, wanted))) == count


@pytest.mark.parametrize(
    "query",
    [
        *("m1", "m1.1", "m1-1", "invoice.pdf", sha("invoice"), sha("invoice").upper(), "<1@cabinet.example>"),
        *("1@cabinet.example", "compta@cabinet.example", COLLECTOR),
    ],
)
def test_trace_finds_the_story_by_whatever_is_known(db: Database, query: str) -> None:
    put(db, mail("m1", COLLECTOR))
    sent(db)
    put(db, mail("m2", OTHER, documents=("x",), message_id="<2@x>", sender="autre@cabinet.example"))
    assert [e["event"] for e in listing.trace(db, query)] == ["accepted", "attempted", "sent"]


def test_trace_by_hash_finds_what_was_not_delivered_too(db: Database) -> None:
    put(db, mail("m1", COLLECTOR, documents=("invoice", "logo")))
    db.conn.execute("DELETE FROM delivery_document WHERE document = 'm1.2'")
    db.conn.execute("UPDATE document SET skipped = '{}' WHERE id = 'm1.2'")
    bounce = mail("m2", documents=("report",), message_id="")
    put(
        db, replace(bounce, recipients=(intake.NewRecipient("retours+x@welyb.fr", "retours+x@welyb.fr", "bounce", ""),))
    )
    assert [e["message"] for name in ("logo", "report") for e in listing.trace(db, sha(name))] == ["m1", "m2"]


def test_trace_of_a_client_and_of_a_deposits_path(db: Database, connected: Connection) -> None:
    deposit(db, connected, "d1", "2026/a.pdf")
    for query in ("dupont", "Dupont/Achats/2026/a.pdf", "a.pdf"):
        assert [e["event"] for e in listing.trace(db, query)] == ["deposited"]
    assert listing.trace(db, "inconnu") == []


@pytest.mark.parametrize(
    "query",
    ["r1", "facture.zip", sha("zip"), "<9@x>", "9@x", "fournisseur@far.test", "meg+dupont@welyb.fr"],
)
def test_a_refused_mail_answers_too(db: Database, query: str) -> None:
    document = {"name": "facture.zip", "sha256": sha("zip"), "size": 5, "type": "application/zip", "reason": {}}
    refusal = intake.Refusal(
        *("r1", clock.stamp(NOON), "192.0.2.1", "far.test", "fournisseur@far.test", ("meg+dupont@welyb.fr",), "<9@x>"),
        documents=(document,),
        reply="554 5.6.1 facture.zip : archive ZIP",
    )
    with transaction(db):
        intake.record_refusal(db, refusal)
    (event,) = listing.trace(db, query)
    assert (event["event"], event["message"]) == ("refused", "r1")
    assert event["detail"]["reply"].startswith("554")
    assert listing.trace(db, "%") == listing.trace(db, "") == []


# --- retention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
def test_bytes_stay_while_anything_may_still_need_them(db: Database, state: State) -> None:
    put(db, mail("m1", COLLECTOR, OTHER))
    db.conn.execute("UPDATE delivery SET state = 'sent' WHERE id = 'm1-2'")
    db.conn.execute("UPDATE delivery SET state = ? WHERE id = 'm1-1'", (state,))
    key, late = "s/seg/0/5000", clock.stamp(NOON + timedelta(days=31))
    with transaction(db):
        gone = retention.forget_bodies(db, clock.stamp(NOON + timedelta(days=1)), late, 10)
    alive = state in (State.WAITING, State.SENDING, State.FILING, State.HELD)
    assert gone == ([] if alive else [key])
    assert retention.is_referred_to(db, key) is alive
    assert retention.is_segment_free(db, "seg") is not alive
    assert len(list(listing.queue(db, Filter()))) == 2, "history stays"


def test_what_is_sent_again_keeps_the_bytes_it_shares(db: Database, connected: Connection) -> None:
    deposit(db, connected, "d1", "facture.pdf")
    db.conn.execute("UPDATE delivery SET state = 'sent', spool = 's/seg/0/5' WHERE id = 'd1-1'")
    assert delivery.resend(db, "d1-1", order(), token="again")
    db.conn.execute("UPDATE delivery SET created_at = '2020' WHERE id = 'd1-1'")
    with transaction(db):
        assert retention.forget_bodies(db, "2021", "2026", 10) == [], "the second still needs them"


def test_a_duplicate_keeps_its_bytes_while_its_twin_lives(db: Database, connected: Connection) -> None:
    assert deposit(db, connected, "d1", "facture.pdf") is Made.WAITING
    assert deposit(db, connected, "d2", "copie/facture.pdf") is Made.DUPLICATE
    late = clock.stamp(NOON + timedelta(days=31))
    db.conn.execute("UPDATE delivery SET spool = 's/seg/' || id || '/5'")
    with transaction(db):
        assert retention.forget_bodies(db, late, late, 10) == []
    change(db, Change.DROP, "d1-1")
    assert states(db) == {"d1-1": "dropped", "d2-1": "waiting"}
    with transaction(db):
        assert retention.forget_bodies(db, late, late, 10) == ["s/seg/d1-1/5"]


def test_what_has_no_bytes_left_is_not_retried(db: Database) -> None:
    put(db, mail("m1", COLLECTOR))
    db.conn.execute("UPDATE delivery SET state = 'failed'")
    db.conn.execute("UPDATE message SET purged_at = '2026'")
    assert change(db, Change.RETRY, "m1-1") == []
    assert states(db) == {"m1-1": "failed"}


# --- cost -------------------------------------------------------------------------------------------------------------


def plan(db: Database, sql: str, parameters: Sequence[object] | dict[str, object]) -> str:
    return "; ".join(str(row[3]) for row in rows(db, f"EXPLAIN QUERY PLAN {sql}", parameters))


def test_claims_and_pages_walk_an_index_however_long_the_queue(db: Database) -> None:
    asked: list[tuple[str, str]] = []
    db.conn.set_trace_callback(lambda sql: asked.append((sql, plan(db, sql, ()))) if "EXPLAIN" not in sql else None)
    claim(db)
    delivery.groups(db, "send", clock.stamp(NOON), 1)
    put(db, mail("m1", COLLECTOR))
    list(listing.queue(db, Filter(after="m9", limit=10)))
    list(listing.documents(db, Filter(after="m9-1/m9.1", limit=10)))
    for wanted in (Filter(states=("waiting", "sending", "modified")), Filter(sender=SENDER), Filter(client="dupont")):
        list(listing.queue(db, replace(wanted, after="m9", limit=10)))
        list(listing.documents(db, replace(wanted, after="m9-1/m9.1", limit=10)))
    listing.trace(db, "m1")
    listing.trace(db, sha("invoice"))
    retention.forget_bodies(db, clock.stamp(NOON), clock.stamp(NOON), 10)
    listing.body_key(db, "m1-1")
    retention.is_referred_to(db, "s/seg/0/1")
    delivery.resend(db, "m1-1", order(), token="again")
    bounced(db, FAILED)
    db.conn.set_trace_callback(None)
    assert len(asked) > 10
    small = ("SCAN c", "SCAN connection", "SCAN step", "SCAN i USING", "SCAN CONSTANT ROW", "SCAN (subquery")
    small += ("SCAN r USING COVERING INDEX recipient_of_bounces", "SCAN refusal", "SCAN json_each")
    for sql, found in asked:
        scans = [part for part in found.split("; ") if part.startswith("SCAN") and not part.startswith(small)]
        in_order = re.search(r"ORDER BY ([df]\.id DESC|i\.connection).*LIMIT", sql) and "TEMP B-TREE FOR" not in found
        assert not scans or in_order, f"{sql}\n{found}"


def test_what_a_run_asks_last_walks_an_index_however_long_the_history(db: Database) -> None:
    asked: list[tuple[str, str]] = []
    at = clock.stamp(NOON)
    notices.begin(db)
    db.conn.set_trace_callback(lambda sql: asked.append((sql, plan(db, sql, ()))) if "EXPLAIN" not in sql else None)
    put_off(db)
    notices.untold(db)
    retention.forget_bodies(db, at, at, 10)
    retention.is_segment_free(db, "seg")
    throttles.forget(db, at, 10)
    intake.forget_refusals(db, at, 10)
    db.conn.set_trace_callback(None)
    assert len(asked) > 5
    for sql, found in asked:
        assert not re.search(r"SCAN (?!CONSTANT ROW)|TEMP B-TREE", found), f"{sql}\n{found}"
    (untold,) = (found for sql, found in asked if "'failed'" in sql)
    assert untold.startswith("SEARCH e USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"), "by what happened since"
