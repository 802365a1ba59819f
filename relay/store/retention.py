"""Which bytes may go, and what is written when they do.

Knows alone: that a body is needed while any delivery of it is alive, or may still be brought back by the postmaster.
"""

from collections.abc import Iterator, Sequence

from sqlite_utils import Database

from relay.store.connections import split
from relay.store.database import Store, marks, one, rows
from relay.store.events import Event, write
from rules.lifecycle import ALIVE

_ALIVE = tuple(ALIVE)


def is_referred_to(db: Database, key: str) -> bool:
    """Does a row say that the bytes of `key` are needed?"""
    sql = """SELECT 1 WHERE EXISTS (SELECT 1 FROM message WHERE spool = :key AND purged_at IS NULL)
      OR EXISTS (SELECT 1 FROM delivery WHERE spool = :key AND spool <> '')"""
    return one(db, sql, {"key": key}) is not None


def needed(db: Store) -> Iterator[str]:
    """The keys of all bytes that rows say are needed."""
    sql = "SELECT spool FROM message WHERE purged_at IS NULL UNION ALL SELECT spool FROM delivery WHERE spool <> ''"
    for row in db.conn.execute(sql):
        yield str(row[0])


def forget_bodies(db: Database, before: str, at: str, most: int) -> list[str]:
    """Marks bodies older than `before` as purged and gives their keys; in a transaction. The caller removes the bytes."""
    alive = marks(_ALIVE)
    messages = rows(
        db,
        f"""SELECT m.id, m.spool FROM message m WHERE m.received_at < ? AND m.purged_at IS NULL AND NOT EXISTS
        (SELECT 1 FROM delivery d WHERE d.message = m.id AND d.state IN ({alive})) LIMIT ?""",
        (before, *_ALIVE, most),
    )
    db.conn.executemany("UPDATE message SET purged_at = ? WHERE id = ?", [(at, row[0]) for row in messages])
    own = rows(
        db,
        f"""SELECT d.id, d.spool FROM delivery d WHERE d.spool <> '' AND d.message IS NULL AND d.created_at < ?
        AND d.state NOT IN ({alive}) AND NOT EXISTS
        (SELECT 1 FROM delivery t WHERE t.id = d.twin AND d.state = 'duplicate' AND t.state IN ({alive})) LIMIT ?""",
        (before, *_ALIVE, *_ALIVE, most),
    )
    db.conn.executemany("UPDATE delivery SET spool = '' WHERE id = ?", [(row[0],) for row in own])
    write(db, at, "care", [Event("purged", message=row[0]) for row in messages])
    write(db, at, "care", [Event("purged", delivery=row[0]) for row in own])
    # What was sent again shares the bytes of the first time: they go with the last that refers to them.
    gone = dict.fromkeys(str(row[1]) for row in (*messages, *own))
    return [key for key in gone if not is_referred_to(db, key)]


def is_segment_free(db: Database, segment: str) -> bool:
    """Is nothing in this segment needed any more?"""
    low, high = f"s/{segment}/", f"s/{segment}0"
    sql = """SELECT 1 WHERE EXISTS (SELECT 1 FROM message WHERE spool > :low AND spool < :high AND purged_at IS NULL)
      OR EXISTS (SELECT 1 FROM delivery WHERE spool > :low AND spool < :high AND spool <> '')"""  # as its index says
    return one(db, sql, {"low": low, "high": high}) is None


def put_hashes(db: Database, _: str, *, number: int, found: Sequence[tuple[str, str]]) -> None:
    """(path, SHA-256) of baseline files; "" where it could not be had, so that it is not asked for at every run."""
    db.conn.executemany(
        "UPDATE inventory SET sha256 = ? WHERE connection = ? AND folder = ? AND name = ? AND role = 'baseline'",
        [(sha256, number, *split(path)) for path, sha256 in found],
    )
