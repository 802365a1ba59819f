"""Deliveries: claimed by a run, recorded by whoever holds the claim, changed by the postmaster.

Knows alone: how the transition table of rules.lifecycle is held to in the database. Every UPDATE names the states it may
come from, so that of two who want to change a delivery one finds it changed. The attempt and the time of the next one are
written before anyone connects. Long because whoever changes a delivery is here: runs, results, the postmaster.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from sqlite_utils import Database

from relay import clock
from relay.store.database import Store, marks, one, rows
from relay.store.events import Event, write
from relay.store.intake import reason_facts, reason_text
from rules import lifecycle
from rules.address import BOUNCE_PREFIX
from rules.lifecycle import TRANSITIONS, Change, State
from rules.replies import Reason


@dataclass(frozen=True, slots=True)
class Pace:
    """The settings that time an attempt."""

    every: timedelta
    warn_after: timedelta


@dataclass(frozen=True, slots=True)
class Carried:
    """A document of a mail that leaves in a message of ours. `spans` say where it lies in the mail, as stored."""

    id: str
    name: str
    type: str
    size: int
    sha256: str
    spans: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery in the hands of a run, with what composing it needs. Times are stamps."""

    id: str
    kind: str
    route: str
    client: str
    recipient: str
    target: str
    sender: str
    spool: str  # of the bytes to send or to file from
    size: int
    attempts: int
    created_at: str
    expires_at: str
    warned: int
    message: str | None
    received_at: str
    peer: str
    helo: str
    protocol: str
    eight_bit: int
    tls: str
    trusted: int
    original_sender: str
    authentication: str | None = None  # of the mail, as stored
    author: str = ""  # From of the message of ours that `carried` leave in; "" = as it came
    outbound_message_id: str = ""
    carried: tuple[Carried, ...] = ()


_TAKEN = """
SELECT d.id, d.kind, d.route, d.client, d.recipient, d.target, d.sender,
  CASE WHEN d.spool = '' THEN coalesce(m.spool, '') ELSE d.spool END, d.size, d.attempts + 1, d.created_at, d.expires_at,
  d.warned, d.message, coalesce(m.received_at, ''), coalesce(m.peer, ''), coalesce(m.helo, ''), coalesce(m.protocol, ''),
  coalesce(m.body = '8bit', 0), coalesce(m.tls, ''), coalesce(m.trusted, 0), coalesce(m.sender, ''),
  m.authentication, d.author, d.outbound_message_id
FROM delivery d LEFT JOIN message m ON m.id = d.message"""

_CLAIMED = f"""{_TAKEN}
WHERE d.kind = ? AND d.domain = ? AND d.target = ? AND d.state = 'waiting' AND d.due_at <= ?
  AND (d.claim IS NULL OR d.claim <> ?)
ORDER BY d.due_at, d.id LIMIT ?"""


def groups(db: Database, kind: str, horizon: str, run: int) -> list[tuple[str, str]]:
    """(domain, target) of everything due by `horizon` and not yet tried by `run`; one index step a group, not a row."""
    sql = """
    WITH RECURSIVE step (domain, target) AS (
      SELECT * FROM (SELECT domain, target FROM delivery WHERE state = 'waiting' AND kind = :kind
                     ORDER BY domain, target LIMIT 1)
      UNION ALL
      SELECT (SELECT domain FROM delivery WHERE state = 'waiting' AND kind = :kind
                AND (domain, target) > (step.domain, step.target) ORDER BY domain, target LIMIT 1),
             (SELECT target FROM delivery WHERE state = 'waiting' AND kind = :kind
                AND (domain, target) > (step.domain, step.target) ORDER BY domain, target LIMIT 1)
      FROM step WHERE step.domain IS NOT NULL)
    SELECT domain, target FROM step WHERE domain IS NOT NULL AND EXISTS (
      SELECT 1 FROM delivery d WHERE d.state = 'waiting' AND d.kind = :kind AND d.domain = step.domain
      AND d.target = step.target AND d.due_at <= :horizon AND (d.claim IS NULL OR d.claim <> :run))"""
    found = rows(db, sql, {"kind": kind, "horizon": horizon, "run": run})
    return [(str(domain), str(target)) for domain, target in found]


def waiting(db: Database, group: tuple[str, str], horizon: str, run: int, most: int) -> int:
    """How many of one group are due, counted no further than `most`."""
    sql = """SELECT count(*) FROM (SELECT 1 FROM delivery d WHERE d.kind = 'send' AND d.domain = ? AND d.target = ?
      AND d.state = 'waiting' AND d.due_at <= ? AND (d.claim IS NULL OR d.claim <> ?) LIMIT ?)"""
    row = one(db, sql, (*group, horizon, run, most))
    return int(row[0]) if row else 0


def claim(
    db: Database, group: tuple[str, str], *, kind: str, run: int, horizon: str, limit: int, now: datetime, pace: Pace
) -> list[Claimed]:
    """Takes up to `limit` due deliveries of one group, inside a transaction; the next attempt is planned here."""
    found = [_with_carried(db, Claimed(*row)) for row in rows(db, _CLAIMED, (kind, *group, horizon, run, limit))]
    state = State.SENDING if kind == "send" else State.FILING
    at = clock.stamp(now)
    # Of the schedule only the time of the next attempt counts here, and that depends on the number of this one.
    one_of_each = {taken.attempts: taken for taken in found}
    due_at = {number: clock.stamp(_schedule(taken, now, pace).due_at) for number, taken in one_of_each.items()}
    planned = [(state, run, due_at[taken.attempts], taken.id) for taken in found]
    update = "UPDATE delivery SET state = ?, claim = ?, attempts = attempts + 1, due_at = ? WHERE id = ?"
    db.conn.executemany(update, planned)
    write(
        db,
        at,
        _ACTOR[kind],
        [Event("attempted", delivery=taken.id, detail={"attempt": taken.attempts}) for taken in found],
    )
    return found


_CARRIED = """
SELECT f.id, f.name, f.type, f.size, f.sha256, f.spans FROM delivery_document dd JOIN document f ON f.id = dd.document
WHERE dd.delivery = ? ORDER BY length(f.id), f.id"""


def _with_carried(db: Database, taken: Claimed) -> Claimed:
    if not taken.author:
        return taken
    return replace(taken, carried=tuple(Carried(*row) for row in rows(db, _CARRIED, (taken.id,))))


def renew_token(db: Database, taken: Claimed, token: str) -> Claimed:
    """Another return address for a claimed delivery; inside the claim's transaction. The one before it is still known."""
    sender = _return_to(token, taken.sender)
    update = "UPDATE delivery SET former_token = token, token = ?, sender = ? WHERE id = ?"
    db.conn.execute(update, (token, sender, taken.id))
    return replace(taken, sender=sender)


def _return_to(token: str, sender: str) -> str:
    return f"{BOUNCE_PREFIX}{token}@{sender.rpartition('@')[2]}"


def _schedule(taken: Claimed, now: datetime, pace: Pace) -> lifecycle.Schedule:
    if taken.kind == "file":  # the GED is ours: it is waited for at a steady pace, and never given up
        warn = now - clock.instant(taken.created_at) >= pace.warn_after
        return lifecycle.Schedule(now + pace.every, give_up=False, warn=warn)
    return lifecycle.reschedule(
        attempts=taken.attempts,
        now=now,
        created_at=clock.instant(taken.created_at),
        expires_at=clock.instant(taken.expires_at),
        every=pace.every,
        warn_after=pace.warn_after,
    )


_ACTOR = {"send": "run", "file": "filing"}  # who is named in the history


def recover(db: Database, kind: str, at: str) -> int:
    """What a dead holder left in flight goes back to waiting; in a transaction. A sending may have arrived, so it is
    flagged, and goes when its next attempt was planned; a filing is known again by its temporary, and goes at once.
    """
    state = State.SENDING if kind == "send" else State.FILING
    found = rows(db, "SELECT id, due_at FROM delivery WHERE kind = ? AND state = ?", (kind, state))
    uncertain = int(kind == "send")
    db.conn.executemany(
        "UPDATE delivery SET state = 'waiting', claim = NULL, uncertain = uncertain | ?, due_at = ? WHERE id = ?",
        [(uncertain, due_at if uncertain else at, delivery) for delivery, due_at in found],
    )
    write(db, at, "start", [Event("recovered", delivery=row[0], detail={"was": state}) for row in found])
    return len(found)


# --- results --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one attempt. `reply` is the far side's, or our own words for a fault."""

    change: Change  # SUCCEED_SEND, SUCCEED_FILE, DEFER or FAIL
    reply: str = ""
    code: int = 0
    mx: str = ""
    tls: str = ""
    uncertain: int = 0
    warn: int = 0  # waiting alone will not mend it
    reason: Reason | None = None  # in place of the one made from the reply
    target: str = ""  # where a filed document stands


@dataclass(frozen=True, slots=True)
class Recorded:
    """The state it came to, and whether the postmaster is to be warned. None for `state`: the claim was lost."""

    state: State | None
    warn: int = 0


def record(db: Database, taken: Claimed, result: Result, *, run: int, now: datetime, pace: Pace) -> Recorded:
    """Writes the outcome of one attempt, if `run` still holds it; inside a transaction."""
    if result.change in (Change.DEFER, Change.FAIL):
        return _record_failure(db, taken, result, run=run, now=now, pace=pace)
    sources, state = TRANSITIONS[result.change]
    at = clock.stamp(now)
    done = db.conn.execute(
        f"""UPDATE delivery SET state = ?, reason = NULL, finished_at = ?, reply = ?, mx = ?, tls = ?,
        uncertain = uncertain | ?, target = CASE WHEN ? = '' THEN target ELSE ? END
        WHERE id = ? AND claim = ? AND state IN ({marks(list(sources))})""",
        (
            *(state, at, result.reply, result.mx, result.tls, result.uncertain, result.target, result.target),
            *(taken.id, run, *sources),
        ),
    )
    if not done.rowcount:
        return Recorded(None)
    write(db, at, _ACTOR[taken.kind], [Event(_EVENT[result.change], delivery=taken.id, detail=_shown(result))])
    return Recorded(state)


def _shown(result: Result) -> dict[str, object]:
    detail = {"code": result.code, "reply": result.reply, "mx": result.mx, "tls": result.tls, "path": result.target}
    return {key: value for key, value in detail.items() if value}


def _record_failure(db: Database, taken: Claimed, result: Result, *, run: int, now: datetime, pace: Pace) -> Recorded:
    schedule = _schedule(taken, now, pace)
    change, reason = result.change, result.reason
    if change is Change.DEFER and schedule.give_up:
        change, reason = Change.FAIL, _expired(taken, result.reply)
    elif reason is None and change is Change.DEFER:
        reason = Reason("deferred", {"at": clock.stamp(schedule.due_at), "reply": result.reply})
    elif reason is None:
        reason = Reason("failed", {"reply": result.reply})
    sources, state = TRANSITIONS[change]
    at = clock.stamp(now)
    finished = at if state in lifecycle.FINAL else None
    late = bool(schedule.warn or result.warn) and not taken.warned
    warn = int(change is Change.DEFER and late and taken.route != "warning")  # else it would warn of itself for ever
    done = db.conn.execute(
        f"""UPDATE delivery SET state = ?, reason = ?, finished_at = ?, due_at = ?, reply = ?, mx = ?, tls = ?,
        uncertain = uncertain | ?, warned = warned | ?
        WHERE id = ? AND claim = ? AND state IN ({marks(list(sources))})""",
        (
            *(state, reason_text(reason), finished, clock.stamp(schedule.due_at), result.reply, result.mx, result.tls),
            *(result.uncertain, warn, taken.id, run, *sources),
        ),
    )
    if not done.rowcount:
        return Recorded(None)
    events = [Event(_EVENT[change], delivery=taken.id, detail=_shown(result) | reason_facts(reason))]
    if warn:
        events.append(Event("warned", delivery=taken.id))
    write(db, at, _ACTOR[taken.kind], events)
    if state is State.FAILED:
        revive_twins(db, taken.id, at, "run")
    return Recorded(state, warn)


_EVENT = {
    Change.SUCCEED_SEND: "sent",
    Change.SUCCEED_FILE: "filed",
    Change.DEFER: "deferred",
    Change.FAIL: "failed",
}


PUT_OFF_AT_ONCE = 500  # in one transaction: it is written where mail is taken, and a long queue would stop that


@dataclass(frozen=True, slots=True)
class PutOff:
    """What a host that is away did to some of what was due for it, up to collector `last`; None when there is no more."""

    last: str | None
    waiting: int
    given_up: tuple[Claimed, ...]
    warned: tuple[str, ...]


_DUE_THERE = """
SELECT id, target, expires_at, NOT warned AND created_at <= ? AND route <> 'warning' FROM delivery
WHERE kind = 'send' AND domain = ? AND target >= ? AND state = 'waiting' AND due_at <= ? AND (claim IS NULL OR claim <> ?)
ORDER BY target LIMIT ?"""


def defer_domain(
    db: Database, domain: str, *, first: str, run: int, horizon: str, reply: str, now: datetime, pace: Pace
) -> PutOff:
    """The host is away: all that is due for it waits without an attempt, one probe a run being enough.

    What has waited its time is given up here too. Inside a transaction; some of it, from collector `first` on.
    """
    at, since = clock.stamp(now), clock.stamp(now - pace.warn_after)
    found = rows(db, _DUE_THERE, (since, domain, first, horizon, run, PUT_OFF_AT_ONCE))
    given_up = tuple(_given_up(db, row[0], run=run, reply=reply, at=at) for row in found if row[2] <= at)
    waiting = [(str(row[0]), row[3]) for row in found if row[2] > at]
    warned = tuple(id_ for id_, late in waiting if late)
    write(db, at, "run", [Event("warned", delivery=id_) for id_ in warned])
    due_at = clock.stamp(lifecycle.next_run(now, pace.every))
    reason = reason_text(Reason("deferred", {"at": due_at, "reply": reply}))
    db.conn.executemany(
        "UPDATE delivery SET due_at = ?, claim = ?, reason = ?, reply = ?, warned = warned | ? WHERE id = ?",
        [(due_at, run, reason, reply, late, id_) for id_, late in waiting],
    )
    return PutOff(str(found[-1][1]) if found else None, len(waiting), given_up, warned)


def as_claimed(db: Database, delivery: str) -> Claimed:
    """One delivery with all that a run knows of it, whether a run has it or not."""
    return Claimed(*rows(db, f"{_TAKEN} WHERE d.id = ?", (delivery,))[0])


def _given_up(db: Database, delivery: str, *, run: int, reply: str, at: str) -> Claimed:
    taken = as_claimed(db, delivery)
    reason = _expired(taken, reply)
    db.conn.execute(
        "UPDATE delivery SET state = 'failed', claim = ?, reason = ?, finished_at = ?, reply = ? WHERE id = ?",
        (run, reason_text(reason), at, reply, delivery),
    )
    write(db, at, "run", [Event("failed", delivery=delivery, detail=reason_facts(reason))])
    revive_twins(db, delivery, at, "run")
    return taken


def _expired(taken: Claimed, reply: str) -> Reason:
    days = max(1, (clock.instant(taken.expires_at) - clock.instant(taken.created_at)).days)
    return Reason("expired", {"days": days, "reply": reply})


# --- the postmaster's word ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Order:
    """Who wants it, why, and when (a stamp); `due_at` is the next run."""

    actor: str
    why: str
    at: str
    due_at: str
    expires_at: str


_TO_CHANGE = """
SELECT d.state, d.held_at, d.expires_at, d.recipient <> 'erased' AND
  (d.spool <> '' OR (m.id IS NOT NULL AND m.purged_at IS NULL))
FROM delivery d LEFT JOIN message m ON m.id = d.message WHERE d.id = ?"""


def change(db: Database, ids: Iterable[str], what: Change, order: Order) -> list[str]:
    """Applies hold, release, drop or retry to those of `ids` whose state allows it; the ids changed. In a transaction."""
    sources, target = TRANSITIONS[what]
    changed = []
    for delivery in ids:
        row = one(db, _TO_CHANGE, (delivery,))
        if row is None or row[0] not in sources:
            continue
        if what is Change.RETRY and not row[3]:
            continue  # bytes or recipient are gone; or a refused deposit, judged again when its file changes
        _put(db, delivery, target, what=what, order=order, held_at=row[1], expires_at=row[2])
        changed.append(delivery)
    event = {Change.HOLD: "held", Change.RELEASE: "released", Change.DROP: "dropped", Change.RETRY: "retried"}[what]
    write(db, order.at, order.actor, [Event(event, delivery=d, detail={"why": order.why}) for d in changed])
    for delivery in changed if what is Change.DROP else ():
        revive_twins(db, delivery, order.at, order.actor)
    return changed


_RESTORED = "SELECT detail FROM event WHERE delivery = ? AND event = 'held' AND detail ->> 'code' = 'restored' LIMIT 1"


def revive_twins(db: Database, delivery: str, at: str, actor: str) -> None:
    """`delivery` came to nothing: a duplicate that waited behind it goes in its place, the oldest first."""
    row = one(db, "SELECT id FROM delivery WHERE twin = ? AND state = 'duplicate' ORDER BY id LIMIT 1", (delivery,))
    if row is None:
        return
    events = [Event("revived", delivery=row[0], detail={"twin": delivery})]
    doubt = one(db, _RESTORED, (delivery,))
    state = State.WAITING if doubt is None else State.HELD
    reason, held_at = (None, None) if doubt is None else (doubt[0], at)
    db.conn.execute(
        "UPDATE delivery SET state = ?, reason = ?, held_at = ?, finished_at = NULL, twin = NULL WHERE id = ?",
        (state, reason, held_at, row[0]),
    )
    db.conn.execute("UPDATE delivery SET twin = ? WHERE twin = ?", (row[0], delivery))
    if doubt is not None:  # the one before may have left between the backup and the loss, and this document with it
        events.append(Event("held", delivery=row[0], detail=json.loads(doubt[0])))
    write(db, at, actor, events)


def _put(
    db: Database, delivery: str, state: State, *, what: Change, order: Order, held_at: str | None, expires_at: str
) -> None:
    facts = {"actor": order.actor, "why": order.why}
    values: dict[str, object] = {"state": state, "reason": None, "finished_at": None, "held_at": None}
    if what is Change.HOLD:
        values |= {"reason": reason_text(Reason("held", facts)), "held_at": order.at}
    elif what is Change.DROP:
        values |= {"reason": reason_text(Reason("dropped", facts)), "finished_at": order.at}
    elif what is Change.RETRY:
        values |= {"due_at": order.due_at, "expires_at": order.expires_at, "attempts": 0, "warned": 0}
    elif held_at is not None:  # the give-up clock stood still meanwhile
        pause = clock.instant(order.at) - clock.instant(held_at)
        values |= {"due_at": order.due_at, "expires_at": clock.stamp(clock.instant(expires_at) + pause)}
    else:
        values |= {"due_at": order.due_at, "expires_at": order.expires_at}
    columns = ", ".join(f"{name} = ?" for name in values)
    db.conn.execute(f"UPDATE delivery SET {columns} WHERE id = ?", (*values.values(), delivery))


def resend(db: Database, delivery: str, order: Order, *, token: str) -> str | None:
    """A new delivery of what `delivery` took, once it has ended; its id. None where it has not, or what it needs is gone.

    `token` is for its return address, if it has one: a report on the first sending says nothing of this one.
    """
    row = one(
        db,
        """SELECT d.state, d.token, d.sender,
          m.purged_at IS NOT NULL OR (d.spool = '' AND d.message IS NULL) OR d.recipient = 'erased'
        FROM delivery d
        LEFT JOIN message m ON m.id = d.message WHERE d.id = ?""",
        (delivery,),
    )
    if row is None or row[0] not in lifecycle.FINAL or row[3]:
        return None
    token, sender = (token, _return_to(token, row[2])) if row[1] else ("", row[2])
    base = delivery.rpartition("-")[0]
    taken = rows(db, "SELECT id FROM delivery WHERE id > ? AND id < ?", (f"{base}-", f"{base}."))
    new = f"{base}-{1 + max(int(str(taken_id[0]).rpartition('-')[2]) for taken_id in taken)}"
    db.conn.execute(
        """INSERT INTO delivery (id, message, kind, route, client, connection, recipient, target, domain, state, created_at,
          due_at, expires_at, sender, token, outbound_message_id, author, spool, size)
        SELECT ?, message, kind, route, client, connection, recipient,
          CASE kind WHEN 'file' THEN recipient ELSE target END, domain, 'waiting', ?, ?, ?, ?, ?,
          outbound_message_id, author, spool, size FROM delivery WHERE id = ?""",
        (new, order.at, order.due_at, order.expires_at, sender, token, delivery),
    )
    db.conn.execute(
        "INSERT INTO delivery_document SELECT ?, document, sha256, target FROM delivery_document WHERE delivery = ?",
        (new, delivery),
    )
    # Told of both: nobody is to hear that the first has failed, and send it a third time (`notices`).
    first, second = {"as": new, "why": order.why}, {"of": delivery, "why": order.why}
    events = [Event("resent", delivery=delivery, detail=first), Event("resent", delivery=new, detail=second)]
    write(db, order.at, order.actor, events)
    return new


# --- runs -----------------------------------------------------------------------------------------------------------

COUNTS = ("eligible", "sent", "deferred", "refused", "held", "duplicate")


def begin_run(db: Database, at: str, selectors: Sequence[str]) -> int:
    sql = "INSERT INTO run (started_at, signed) VALUES (?, ?)"
    return int(db.conn.execute(sql, (at, " ".join(selectors))).lastrowid or 0)


def last_signed(db: Store) -> dict[str, str]:
    """Selector → until when mail was signed with its key."""
    sql = "SELECT signed, max(coalesce(finished_at, started_at)) FROM run WHERE signed <> '' GROUP BY signed"
    last: dict[str, str] = {}
    for signed, at in rows(db, sql):
        for selector in signed.split():
            last[selector] = max(at, last.get(selector, ""))
    return last


def finish_run(db: Database, run: int, counts: dict[str, int], at: str) -> None:
    columns = ", ".join(f"{name} = ?" for name in COUNTS)
    db.conn.execute(
        f"UPDATE run SET finished_at = ?, {columns} WHERE id = ?", (at, *(counts[name] for name in COUNTS), run)
    )


def last_run(db: Database) -> tuple[int, str, str | None] | None:
    """(id, started_at, finished_at) of the latest run."""
    row = one(db, "SELECT id, started_at, finished_at FROM run ORDER BY id DESC LIMIT 1")
    return (int(row[0]), str(row[1]), row[2]) if row else None


def selected(db: Database, where: str, parameters: Sequence[object]) -> list[str]:
    return [str(row[0]) for row in rows(db, f"SELECT id FROM delivery d WHERE {where} ORDER BY id", parameters)]
