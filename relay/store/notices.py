"""What a notification is decided by, and made of, besides the delivery itself.

Knows alone: that having queued a notification counts as having told: whether it arrived is nobody's to know.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlite_utils import Database

from relay import clock
from relay.store.database import one


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
