"""Housekeeping of spool and store: mending at start what a crash left, purging bytes past their retention.

Knows alone: which bytes may go. Bytes go when nothing can need them any more; history stays.
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from functools import partial

from sqlite_utils import Database

from relay import clock, ged, log
from relay.commit import Writer
from relay.config import Config
from relay.spool import Spool
from relay.store import connections, retention
from rules.deposit import Known

HASHING = 5.0  # seconds of a run spent on the hashes of the baseline
PURGED_AT_ONCE = 500


async def mend(spool: Spool, db: Database) -> None:
    """At start, before anything is accepted: files that no row refers to are what a crash left before its commit.

    Rows in flight are put back by whoever takes the run lock, or the filing worker's place.
    """
    orphans = await asyncio.to_thread(lambda: [key for key in spool.files() if not retention.is_referred_to(db, key)])
    for key in orphans:
        spool.remove(key)
    if orphans:
        log.recovered(0, len(orphans))


async def after_run(config: Config, db: Database, *, spool: Spool, writer: Writer, deadline: datetime) -> None:
    """What a run leaves time for."""
    await _purge(config, db, spool, writer)
    if clock.now() < deadline:
        await _hash_baseline(config, db, writer)


async def _purge(config: Config, db: Database, spool: Spool, writer: Writer) -> None:
    """Rows first, then bytes: a crash between the two leaves a file that the next start removes."""
    before = clock.stamp(clock.now() - config.relay.keep_bodies)
    at = clock.stamp(clock.now())
    while keys := await writer.write(lambda db_, _: retention.forget_bodies(db_, before, at, PURGED_AT_ONCE)):
        for key in keys:
            await asyncio.to_thread(spool.remove, key)
        if len(keys) < PURGED_AT_ONCE:
            break
    for segment in spool.segments(older_than=config.relay.keep_bodies.total_seconds()):
        if retention.is_segment_free(db, segment):
            await asyncio.to_thread(spool.remove_segment, segment)
    await asyncio.to_thread(spool.remove_empty_days)


async def _hash_baseline(config: Config, db: Database, writer: Writer) -> None:
    """Fills in the hashes of the baseline, a little at each run, so that a file moved later is known for sure."""
    end = time.monotonic() + HASHING
    for connection in connections.connections(db):
        tree = ged.Tree(config.ged.root).within(connection.client_folder).within(connection.folder)
        while time.monotonic() < end and (rows := connections.unhashed(db, connection.id, 100)):
            found = await asyncio.to_thread(_hashes, tree, rows)
            await writer.write(partial(retention.put_hashes, number=connection.id, found=found))


def _hashes(tree: ged.Tree, rows: Sequence[Known]) -> list[tuple[str, str]]:
    """(path, SHA-256), "" where the file is not as it was: the next scan says what it is then."""
    found = []
    for row in rows:
        copied = tree.read_deposit(row.path, _nowhere)
        same = isinstance(copied, ged.Copied) and (copied.seen.size, copied.seen.mtime_ns) == (row.size, row.mtime_ns)
        found.append((row.path, copied.sha256 if isinstance(copied, ged.Copied) and same else ""))
    return found


def _nowhere(chunk: bytes) -> None:
    pass
