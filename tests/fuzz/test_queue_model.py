"""Whatever is done to the queue in whatever order, the real store and a small model of it stay the same.

The model is a dict of states; it knows only the transition table. Crashes are claims whose holder is gone, and whose word
comes late. Time moves only as the machine says.
"""

import tempfile
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from relay import clock
from relay.store import connections, delivery, deposits, intake, listing, retention
from relay.store.connections import Connection
from relay.store.database import open_for_writing, rows, transaction
from relay.store.delivery import Claimed, Result
from relay.store.deposits import NewDeposit
from relay.store.listing import Filter
from rules.attachment import Content
from rules.bounce import Action, Bounce
from rules.deposit import Seen
from rules.lifecycle import ALIVE, COUNTS_NOT_AS_DONE, FINAL, POSTMASTER, Change, State, after
from tests.support.effort import steps
from tests.support.records import NOON, ORIGINS, PACE, mail, order, rcpt, sha

TARGETS = ("dupont@factures-meg.fr", "durand@factures-meg.fr", "x@dext.cc")
HELD_BY = {State.WAITING, State.HELD}
EVENT_OF = {  # the last event that may have led to a state
    State.WAITING: {
        "accepted",
        "deposited",
        "again",
        "released",
        "retried",
        "deferred",
        "recovered",
        "revived",
        "resent",
    },
    State.SENDING: {"attempted"},
    State.SENT: {"sent", "reported"},
    State.HELD: {"held", "again"},
    State.FAILED: {"failed"},
    State.DROPPED: {"dropped", "replaced"},
    State.DUPLICATE: {"duplicate"},
    State.BOUNCED: {"bounced", "reported"},
    State.REFUSED: {"refused"},
}


@dataclass
class Known:
    """What the model remembers of a delivery."""

    state: State
    target: str
    group: str  # the mail or deposit it belongs to, and whose token it has
    key: tuple[str, str, str] | None = None  # of a repeat: Message-ID, content, target
    twin: str | None = None
    in_hand: Claimed | None = None
    bytes_kept: bool = True
    at: datetime = NOON  # of the mail
    token: str = ""  # its own, once it was sent again
    stale: list[tuple[Claimed, int]] = field(default_factory=list)


_WITHOUT_BYTES = """SELECT d.id FROM delivery d LEFT JOIN message m ON m.id = d.message
WHERE m.purged_at IS NOT NULL OR (d.message IS NULL AND d.spool = '')"""


class Queue(RuleBasedStateMachine):
    """The store under test on the right hand, the model on the left."""

    deliveries = Bundle("deliveries")

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.db = open_for_writing(Path(self.folder.name) / "relay.db")
        self.known: dict[str, Known] = {}
        self.now, self.run, self.serial = NOON, 1, 0
        self.link = self._connect()

    def _connect(self) -> Connection:
        at = clock.stamp(NOON)
        link = Connection(0, "meg", "dupont", "", rcpt(TARGETS[0]), TARGETS[0], at, "active", None, (1, 2), "Dupont")
        with transaction(self.db):
            return replace(link, id=connections.add(self.db, link, [], "root"))

    def teardown(self) -> None:
        if hasattr(self, "db"):
            self.db.close()
            self.folder.cleanup()

    def _next(self) -> str:
        self.serial += 1
        return f"m{self.serial:03}"

    # --- what comes in

    @rule(
        target=deliveries,
        to=st.sets(st.sampled_from(TARGETS), min_size=1),
        message_id=st.sampled_from(["", "<1@x>", "<2@x>"]),
        content=st.sampled_from(["a", "b"]),
    )
    def arrive(self, to: set[str], message_id: str, content: str) -> object:
        id_ = self._next()
        targets = sorted(to)
        fresh = [t for t in targets if not self._is_repeat((message_id, content, t))]
        new = mail(id_, *targets, documents=(content,), at=self.now, message_id=message_id, content=content)
        with transaction(self.db):
            assert intake.commit(self.db, new, spool=f"s/seg/{self.serial}/5000").added is bool(fresh)
        made = [d for d in new.deliveries if d.target in fresh]
        for d in made:
            self.known[d.id] = Known(State.WAITING, d.target, id_, (message_id, content, d.target), at=self.now)
        return multiple(*(d.id for d in made))

    def _is_repeat(self, key: tuple[str, str, str]) -> bool:
        """An earlier mail with this key serves the address, and none of its deliveries there came to nothing."""
        groups = {k.group for k in self.known.values() if k.key == key and k.at >= self.now - intake.REPEAT_WINDOW}
        there = [[k for k in self.known.values() if k.group == g and k.key == key] for g in groups]
        return bool(key[0]) and any(all(k.state not in COUNTS_NOT_AS_DONE for k in ks) for ks in there)

    @rule(target=deliveries, folder=st.sampled_from("xyz"), content=st.sampled_from(["a", "b"]))
    def deposit(self, folder: str, content: str) -> str:
        """Each in a place of its own, so that none is a change of another; named as the mailed ones are."""
        base = self._next()
        seen = Seen(f"{folder}{base}/{content}.pdf", 1, self.serial, 100, 1, 1)
        new = NewDeposit(
            base=base,
            connection=self.link,
            seen=seen,
            content=Content(100, sha(content), "application/pdf"),
            origins=ORIGINS,
            at=clock.stamp(self.now),
            expires_at=clock.stamp(self.now + timedelta(days=5)),
            token=f"{base:a<16}",
            sender=f"retours+{base:a<16}@welyb.fr",
            message_id=f"<{base}@welyb.fr>",
            size=500,
            spool=f"f/{base}",
        )
        with transaction(self.db):
            made = deposits.add_deposit(self.db, new)
        twin = self._first_with(content, TARGETS[0])
        assert made.value == ("duplicate" if twin else "waiting")
        state = State.DUPLICATE if twin else State.WAITING
        self.known[new.delivery] = Known(state, TARGETS[0], base, ("", content, TARGETS[0]), twin)
        return new.delivery

    def _first_with(self, content: str, place: str) -> str | None:
        gone = {*COUNTS_NOT_AS_DONE, State.DUPLICATE}
        same = (i for i, k in self.known.items() if k.key and k.key[1:] == (content, place) and k.state not in gone)
        return min(same, default=None)

    # --- the run

    @rule(place=st.sampled_from(TARGETS), limit=st.integers(1, 3))
    def claim(self, place: str, limit: int) -> None:
        with transaction(self.db):
            taken = delivery.claim(
                self.db,
                (place.partition("@")[2], place),
                kind="send",
                run=self.run,
                horizon=clock.stamp(self.now),
                limit=limit,
                now=self.now,
                pace=PACE,
            )
        assert len({t.id for t in taken}) == len(taken) <= limit
        for t in taken:
            known = self.known[t.id]
            assert (known.state, known.target) == (State.WAITING, place)
            known.state, known.in_hand = State.SENDING, t

    @rule(which=deliveries, change=st.sampled_from([Change.SUCCEED_SEND, Change.DEFER, Change.FAIL]))
    def outcome(self, which: str, change: Change) -> None:
        known = self.known[which]
        if known.in_hand is None:
            return
        expired = change is Change.DEFER and clock.stamp(self.now) >= known.in_hand.expires_at
        state = self._record(known.in_hand, change, self.run)
        known.in_hand = None
        self._become(which, State.FAILED if expired else after(State.SENDING, change))
        assert state is known.state

    def _record(self, taken: Claimed, change: Change, run: int) -> State | None:
        with transaction(self.db):
            return delivery.record(self.db, taken, Result(change, reply="x"), run=run, now=self.now, pace=PACE).state

    @rule(domain=st.sampled_from(["factures-meg.fr", "dext.cc"]))
    def host_is_away(self, domain: str) -> None:
        horizon = clock.stamp(self.now)
        with transaction(self.db):
            put_off = delivery.defer_domain(
                *(self.db, domain), first="", run=self.run, horizon=horizon, reply="x", now=self.now, pace=PACE
            )
        for taken in put_off.given_up:
            assert taken.expires_at <= horizon
            self._become(taken.id, State.FAILED)
        waiting = [k for k in self.known.values() if k.state is State.WAITING and k.target.endswith(f"@{domain}")]
        assert put_off.waiting <= len(waiting)

    @rule(minutes=st.sampled_from([1, 15, 60, 24 * 60, 3 * 24 * 60]))
    def the_next_run(self, minutes: int) -> None:
        if all(k.in_hand is None for k in self.known.values()):
            self.now += timedelta(minutes=minutes)
            self.run += 1

    @rule()
    def crash(self) -> None:
        """The holder is gone; the next one puts back what it held."""
        with transaction(self.db):
            recovered = delivery.recover(self.db, "send", clock.stamp(self.now))
        held = [k for k in self.known.values() if k.in_hand]
        assert recovered == len(held)
        for known in held:
            assert known.in_hand is not None
            known.stale.append((known.in_hand, self.run))
            known.state, known.in_hand = State.WAITING, None
        self.run += 1

    @rule()
    def restart(self) -> None:
        """Power and all: what stands in the store is all there is."""
        self.db.close()
        self.db = open_for_writing(Path(self.folder.name) / "relay.db")
        self.crash()

    @rule(days=st.sampled_from([0, 1, 4]))
    def purge(self, days: int) -> None:
        """Bytes past their retention go, but none that a living delivery needs."""
        before = clock.stamp(self.now - timedelta(days=days))
        with transaction(self.db):
            keys = retention.forget_bodies(self.db, before, clock.stamp(self.now), 1000)
        for key in keys:
            assert not retention.is_referred_to(self.db, key)
        gone = {str(row[0]) for row in rows(self.db, _WITHOUT_BYTES)}
        for id_ in gone:
            assert self.known[id_].state not in ALIVE or not self.known[id_].bytes_kept
            self.known[id_].bytes_kept = False

    @rule(which=deliveries, change=st.sampled_from([Change.SUCCEED_SEND, Change.DEFER, Change.FAIL]))
    def the_dead_speak(self, which: str, change: Change) -> None:
        for taken, run in self.known[which].stale:
            assert self._record(taken, change, run) is None

    # --- the postmaster

    @rule(which=st.lists(deliveries, max_size=3, unique=True), change=st.sampled_from(POSTMASTER))
    def order(self, which: list[str], change: Change) -> None:
        with transaction(self.db):
            changed = delivery.change(self.db, which, change, order(self.now))
        meant = [i for i in which if after(self.known[i].state, change)]
        assert changed == meant
        for id_ in meant:
            self.known[id_].state = after(self.known[id_].state, change) or State.WAITING
        for id_ in meant if change is Change.DROP else ():
            self._revive(id_)

    @rule(target=deliveries, which=deliveries)
    def resend(self, which: str) -> object:
        known = self.known[which]
        token = f"{len(self.known):0>16}"
        with transaction(self.db):
            new = delivery.resend(self.db, which, order(self.now), token=token)
        assert (new is not None) is (known.state in FINAL and known.bytes_kept)
        if new is None:
            return multiple()
        assert new not in self.known
        self.known[new] = Known(State.WAITING, known.target, known.group, known.key, at=known.at, token=token)
        return new

    # --- what comes back

    @precondition(lambda self: self.known)
    @rule(which=deliveries, action=st.sampled_from(Action))
    def report(self, which: str, action: Action) -> None:
        known = self.known[which]
        bounce = Bounce(action, "5.1.1", "no", known.target.upper())
        with transaction(self.db):
            intake.record_bounce(
                self.db, known.token or f"{known.group:a<16}", bounce, message="", at=clock.stamp(self.now)
            )
        same = [
            i for i, k in self.known.items() if (k.group, k.token, k.target) == (known.group, known.token, known.target)
        ]
        if action is Action.FAILED and len(same) == 1 and known.state is State.SENT:
            known.state = State.BOUNCED

    # --- the model's own consequences

    def _become(self, which: str, state: State | None) -> None:
        assert state is not None
        self.known[which].state = state
        if state is State.FAILED:
            self._revive(which)

    def _revive(self, which: str) -> None:
        """The oldest that waited behind it goes in its place; the others wait behind that one."""
        behind = sorted(i for i, k in self.known.items() if k.twin == which and k.state is State.DUPLICATE)
        for id_ in behind[1:]:
            self.known[id_].twin = behind[0]
        for id_ in behind[:1]:
            self.known[id_].state, self.known[id_].twin = State.WAITING, None

    # --- what always holds

    @invariant()
    def nothing_is_lost_or_invented(self) -> None:
        if hasattr(self, "db"):
            found = {str(i): str(s) for i, s in rows(self.db, "SELECT id, state FROM delivery")}
            assert found == {i: str(k.state) for i, k in self.known.items()}
            assert sum(row["deliveries"] for row in listing.summary(self.db)) == len(self.known)

    @invariant()
    def a_duplicate_waits_behind_something_that_counts(self) -> None:
        if hasattr(self, "db"):
            sql = """SELECT d.id, t.state FROM delivery d LEFT JOIN delivery t ON t.id = d.twin
            WHERE d.state = 'duplicate'"""
            undone = COUNTS_NOT_AS_DONE - {State.BOUNCED}  # what came back would come back again
            assert [row for row in rows(self.db, sql) if row[1] is None or State(row[1]) in undone] == []

    @invariant()
    def the_history_tells_of_every_state(self) -> None:
        if hasattr(self, "db"):
            sql = "SELECT delivery, event, max(id) FROM event WHERE delivery IS NOT NULL GROUP BY delivery"
            last = {str(row[0]): str(row[1]) for row in rows(self.db, sql)}
            for id_, known in self.known.items():
                told = last.get(id_, "accepted")
                assert told in EVENT_OF[known.state] | {"reported", "warned", "purged", "resent"}, (
                    f"{id_} is {known.state} after {told}"
                )

    @invariant()
    def a_page_covers_the_rest(self) -> None:
        if hasattr(self, "db"):
            whole = [row["id"] for row in listing.queue(self.db, Filter())]
            assert whole == sorted(self.known, reverse=True)
            for at in range(0, len(whole), 3):
                page = listing.queue(self.db, Filter(after=whole[at], limit=2))
                assert [row["id"] for row in page] == whole[at + 1 : at + 3]


TestQueue = Queue.TestCase
TestQueue.settings = settings(
    max_examples=steps(40), stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
