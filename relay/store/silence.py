"""When documents of each client came, and who has been missed already."""

from collections.abc import Sequence
from datetime import date, datetime

from sqlite_utils import Database

from relay import ids
from relay.store.database import Store, rows
from relay.store.directory import meta, set_meta

LOOKED = "silence-looked"  # the day of the last look


def is_to_be_looked(db: Database, today: date) -> bool:
    return meta(db, LOOKED) != today.isoformat()


def days(db: Store, slug: str, since: datetime) -> list[tuple[date, int]]:
    """(day in UTC, deliveries of that client made on it), from `since` on: by their ids, which begin with the time."""
    found = rows(
        db,
        "SELECT substr(created_at, 1, 10), count(*) FROM delivery WHERE client = ? AND client <> '' AND id >= ? GROUP BY 1",
        (slug, ids.least(since)),
    )
    return [(date.fromisoformat(day), count) for day, count in found]


def missed(db: Store) -> dict[str, str]:
    """Each client that is not gone → the day since which its silence was told, "" for none."""
    return dict(rows(db, "SELECT slug, silent_since FROM client WHERE state <> 'gone'"))


def told(db: Database, found: Sequence[tuple[str, date]], today: date) -> None:
    """Inside a transaction: these have been told of, and today's look is done."""
    for slug, since in found:
        db.conn.execute("UPDATE client SET silent_since = ? WHERE slug = ?", (since.isoformat(), slug))
    set_meta(db, LOOKED, today.isoformat())
