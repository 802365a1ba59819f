"""Which failures people have not yet been told of, and what a notification is decided by and made of.

Knows alone: how far in the history a run has told of failures, so that the run after one that was killed tells of its
failures too, and of none twice. To have queued a notification is to have told: whether it arrived is nobody's to know.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlite_utils import Database

from relay import clock
from relay.store.database import marks, one, rows
from relay.store.delivery import Claimed, as_claimed
from relay.store.directory import meta, set_meta

TOLD = "told-up-to"  # the last event that a run has looked at to its end


@dataclass(frozen=True, slots=True)
class Failure:
    taken: Claimed
    reply: str  # the far side's last, or our own words


@dataclass(frozen=True, slots=True)
class Untold:
    failures: tuple[Failure, ...]
    latest: str  # for `told`


# By the events since then (CROSS JOIN keeps that order), which are few and fresh, not by all that ever failed.
_FAILED = """SELECT e.delivery, coalesce(e.detail ->> 'reply', '') FROM event e CROSS JOIN delivery d ON d.id = e.delivery
WHERE e.id > ? AND e.id <= ? AND e.event = 'failed' AND d.state = 'failed'
AND NOT EXISTS (SELECT 1 FROM event n
                WHERE n.delivery = e.delivery AND n.id > e.id AND n.event IN ('notified', 'not-notified', 'resent'))
ORDER BY e.id"""


def untold(db: Database) -> Untold:
    """The sendings that failed since the last run that came to its end, and were not tried or sent again since.

    Reads what has happened since: for a thread.
    """
    latest = _latest(db)
    found: dict[str, str] = dict(rows(db, _FAILED, (int(meta(db, TOLD) or latest), int(latest))))
    failures = [Failure(as_claimed(db, delivery), reply) for delivery, reply in found.items()]
    return Untold(tuple(f for f in failures if f.taken.kind == "send"), latest)


def still(db: Database, failures: Sequence[Failure]) -> tuple[Failure, ...]:
    """Those that are failed now: what was tried again, or sent again, may arrive yet."""
    ids = [failure.taken.id for failure in failures]
    sql = f"""SELECT id FROM delivery d WHERE state = 'failed' AND id IN ({marks(ids)})
    AND NOT EXISTS (SELECT 1 FROM event n WHERE n.delivery = d.id AND n.event = 'resent' AND n.id >
                    (SELECT max(f.id) FROM event f WHERE f.delivery = d.id AND f.event = 'failed'))"""
    failed = {row[0] for row in rows(db, sql, ids)}
    return tuple(failure for failure in failures if failure.taken.id in failed)


def begin(db: Database) -> None:
    """Before the first run of all there is nothing to tell of; inside the caller's transaction."""
    if not meta(db, TOLD):
        told(db, _latest(db))


def told(db: Database, latest: str) -> None:
    set_meta(db, TOLD, latest)


def _latest(db: Database) -> str:
    row = one(db, "SELECT coalesce(max(id), 0) FROM event")
    return str(row[0]) if row else "0"


@dataclass(frozen=True, slots=True)
class Mail:
    """`typed` is the recipient as its sender wrote it."""

    automatic: str
    typed: str


def mail(db: Database, delivery: str) -> Mail:
    """Of the mail behind a delivery."""
    sql = """SELECT m.automatic, coalesce(r.typed, d.recipient) FROM delivery d JOIN message m ON m.id = d.message
    LEFT JOIN recipient r ON r.message = m.id AND r.address = d.recipient WHERE d.id = ?"""
    row = one(db, sql, (delivery,))
    assert row is not None, delivery
    return Mail(str(row[0]), str(row[1]))


def told_at(db: Database, sender: str, now: datetime, within: timedelta) -> datetime | None:
    """When `sender`, however spelled, was last told of a failure; None if that is longer ago than `within`."""
    sql = """SELECT max(created_at) FROM delivery INDEXED BY delivery_of_dsn
    WHERE route = 'dsn' AND created_at > ? AND lower(target) = lower(?)"""
    row = one(db, sql, (clock.stamp(now - within), sender))
    return clock.instant(str(row[0])) if row and row[0] else None
