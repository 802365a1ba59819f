"""Who was held back, and when: what `throttles` lists, and what it lets through again.

Knows alone: when one time of being held back ends and the next begins, which processes that count apart must agree on;
and how they learn that the postmaster cleared one: a counter in `meta` rises, and the row bears its number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlite_utils import Database

from relay import clock
from relay.store.database import Store, one, rows
from relay.store.directory import meta, set_meta
from rules.throttle import Subject

PEACE = timedelta(hours=1)  # without a 450, and it is another time
RECENT = timedelta(hours=24)
KEPT = timedelta(days=90)  # as refusals are
NEWS = timedelta(minutes=2)  # they come once a minute from each process
CLEARED = "throttles-cleared"  # in meta
Record = dict[str, object]


@dataclass(frozen=True, slots=True)
class Held:
    """News of one subject: `count` recipients answered 450 by `at`; `until` is when the next may come. Stamps."""

    subject: Subject
    at: str
    until: str
    count: int


def record(db: Database, news: Sequence[Held]) -> None:
    """Inside the caller's transaction."""
    for held in news:
        sql = "SELECT id, until, cleared FROM throttle WHERE kind = ? AND subject = ? ORDER BY id DESC LIMIT 1"
        last = one(db, sql, (held.subject.kind, held.subject.name))
        ended = clock.stamp(clock.instant(held.at) - PEACE)
        if last and not last[2] and last[1] >= ended:
            sql = "UPDATE throttle SET until = max(until, ?), count = count + ? WHERE id = ?"
            db.conn.execute(sql, (held.until, held.count, last[0]))
        else:
            sql = "INSERT INTO throttle (kind, subject, since, until, count) VALUES (?, ?, ?, ?, ?)"
            db.conn.execute(sql, (held.subject.kind, held.subject.name, held.at, held.until, held.count))


def listing(db: Store, since: str, now: str) -> Iterator[Record]:
    """Whoever was held back after `since`, the newest first."""
    fresh = clock.stamp(clock.instant(now) - NEWS)
    sql = "SELECT id, kind, subject, since, until, count, cleared FROM throttle WHERE until >= ? ORDER BY id DESC"
    for id_, kind, subject, began, until, count, cleared in db.conn.execute(sql, (since,)):
        state = "cleared" if cleared else "held" if until >= fresh else "past"
        row = {"id": id_, "kind": kind, "subject": subject, "state": state, "since": began, "until": until}
        yield row | {"count": count, "client": subject if kind == "client" else None}


def clear(db: Database, subject: Subject, *, since: str) -> list[int]:
    """Tells every process to let the subject through, in a transaction; the rows, none if it was not held back lately."""
    sql = "SELECT id FROM throttle WHERE kind = ? AND subject = ? AND until >= ? AND NOT cleared"
    found = [int(row[0]) for row in rows(db, sql, (subject.kind, subject.name, since))]
    if found:
        order = cleared(db) + 1
        db.conn.executemany("UPDATE throttle SET cleared = ? WHERE id = ?", [(order, id_) for id_ in found])
        set_meta(db, CLEARED, str(order))
    return found


def cleared(db: Database) -> int:
    """The number of the last order to let one through."""
    return int(meta(db, CLEARED) or 0)


def cleared_after(db: Database, order: int) -> list[Subject]:
    """Those cleared by later orders."""
    return [Subject(*row) for row in rows(db, "SELECT kind, subject FROM throttle WHERE cleared > ?", (order,))]


def forget(db: Database, now: str, most: int) -> None:
    """Removes what is past its time; in a transaction."""
    oldest = clock.stamp(clock.instant(now) - KEPT)
    db.conn.execute(
        "DELETE FROM throttle WHERE id IN (SELECT id FROM throttle WHERE until < ? LIMIT ?)", (oldest, most)
    )
