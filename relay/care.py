"""Housekeeping of spool and store: mending at start what a crash left, purging bytes past their retention, erasing bytes
on request, and looking whether every row has its bytes and every file its row.

Knows alone: which bytes may go. Bytes go when nothing can need them any more; history stays.
"""

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

from sqlite_utils import Database

from relay import clock, ged, log, outgoing
from relay.body import decoded
from relay.commit import Writer
from relay.config import Config
from relay.mime import Span
from relay.spool import Spool, SpoolError
from relay.store import audit, connections, erasure, intake, retention, throttles
from relay.store.audit import Needed, Problem
from relay.store.database import Store, transaction
from rules.deposit import Known

HASHING = 5.0  # seconds of a run spent on the hashes of the baseline
PURGED_AT_ONCE = 500
YOUNG = 3600.0  # seconds: a file that was written to since may be a mail that still comes in
ZEROS = bytes(1 << 18)


async def mend(spool: Spool, db: Database) -> None:
    """At start, before anything is accepted: files that no row refers to are what a crash left before its commit.

    Rows in flight are put back by whoever takes the run lock, or the filing worker's place.
    """
    orphans = await asyncio.to_thread(lambda: [key for key in spool.files() if not retention.is_referred_to(db, key)])
    for key in orphans:
        spool.remove(key)
    if orphans:
        log.recovered(0, len(orphans))


async def after_run(config: Config, db: Database, *, spool: Spool, writer: Writer, until: datetime) -> None:
    """What a run leaves time for: with the lock held past `until`, the next one would not take place."""
    await _purge(config, db, spool=spool, writer=writer, until=until)
    if clock.now() + timedelta(seconds=HASHING) < until:
        await _hash_baseline(config, db, writer)


async def _purge(config: Config, db: Database, *, spool: Spool, writer: Writer, until: datetime) -> None:
    """Rows first, then bytes: a crash between the two leaves a file that the next start removes."""
    before = clock.stamp(clock.now() - config.relay.keep_bodies)
    at = clock.stamp(clock.now())
    while clock.now() < until:
        keys = await writer.write(lambda db_, _: retention.forget_bodies(db_, before, at, PURGED_AT_ONCE))
        await asyncio.to_thread(_remove, spool, keys)
        if not keys:
            break
    for segment in spool.segments(older_than=config.relay.keep_bodies.total_seconds()):
        if clock.now() < until and retention.is_segment_free(db, segment):
            await asyncio.to_thread(spool.remove_segment, segment)
    await asyncio.to_thread(spool.remove_empty_days)
    await writer.write(lambda db_, _: _forget(db_, at))


def _forget(db: Database, at: str) -> None:
    """Whom we turned away, once that is long ago."""
    throttles.forget(db, at, PURGED_AT_ONCE)
    intake.forget_refusals(db, at, PURGED_AT_ONCE)


def _remove(spool: Spool, keys: Sequence[str]) -> None:
    for key in keys:
        spool.remove(key)


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


# --- looking --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bare:
    """A row whose bytes are not there, not whole, or not what it says. `sure` is false where they cannot be read now."""

    row: Needed
    found: str
    sure: bool


def rows_without_bytes(db: Store, spool: Spool) -> Iterator[Bare]:
    """Each is asked again before it is told: a run may have purged it meanwhile, rows first."""
    suspects = [bare for row in audit.needed(db) if (bare := _bare(spool, row))]
    for bare in suspects:  # after the statement, which saw one instant
        if audit.still_needed(db, bare.row):
            yield bare


def _bare(spool: Spool, row: Needed) -> Bare | None:
    try:
        with spool.open(row.key) as body:
            return None if body.size == row.size else Bare(row, f"{row.key}: {row.size} → {body.size}", sure=True)
    except SpoolError as error:
        cause = error.__cause__
        return Bare(row, str(error), sure=not isinstance(cause, OSError) or cause.errno in outgoing.GONE)


def altered_documents(db: Store, spool: Spool) -> Iterator[Problem]:
    """Documents whose bytes are not those that were accepted, by their SHA-256. Reads the whole spool."""
    suspects = [
        (row, document)
        for row in audit.needed(db)
        if row.table == "message"
        for document, sha256, spans in audit.documents(db, row.id)
        if not _is_same(spool, row.key, spans, sha256)
    ]
    for row, document in suspects:
        if audit.still_needed(db, row):
            yield Problem("altered", document, row.key)


def _is_same(spool: Spool, key: str, spans: str, sha256: str) -> bool:
    digest = hashlib.sha256()
    try:
        with spool.open(key) as body:
            for piece in decoded(body.read, tuple(Span(*span) for span in json.loads(spans))):
                digest.update(piece)
    except SpoolError:
        return True  # it is told already: its bytes are missing
    return digest.hexdigest() == sha256


def files_without_row(db: Database, data: Path, *, older_than: float) -> list[str]:
    """Keys of files that no row speaks of and that nobody has written to for `older_than` seconds."""
    latest = time.time() - older_than
    files = data / "spool" / "files"
    found = [(path, f"f/{path.parent.name}/{path.name}") for path in sorted(files.glob("*/*"))]
    return [key for path, key in found if _written(path) <= latest and not retention.is_referred_to(db, key)]


def _written(path: Path) -> float:
    """When it was last written to; for one that is gone meanwhile, never long enough ago."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def segments_without_row(db: Database, data: Path, *, older_than: float) -> list[str]:
    latest = time.time() - older_than
    found = sorted((data / "spool" / "segments").glob("*"))
    return [path.name for path in found if _written(path) <= latest and retention.is_segment_free(db, path.name)]


# --- erasing --------------------------------------------------------------------------------------------------------


def erase_bytes(db: Database, data: Path) -> int:
    """Finishes what an erasure began; how many bodies. The caller holds the run lock.

    A file of its own is removed. In a segment the range is overwritten with zeros where it lies: no row speaks of it any
    more, so no reader comes, its neighbours do not move, and a segment may live for as long as one of them is held.
    """
    spool = Spool.existing(data / "spool")
    keys = erasure.unfinished(db)
    for key in keys:
        if key.startswith("s/"):
            _zero(data / "spool", key)
        elif not retention.is_referred_to(db, key):
            spool.remove(key)
    with transaction(db):
        erasure.finished(db)
    db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()  # what was overwritten in the file stands in the WAL
    return len(keys)


def _zero(root: Path, key: str) -> None:
    _, segment, offset, length = key.split("/")
    try:
        fd = os.open(root / "segments" / segment, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        end = min(int(offset) + int(length), os.fstat(fd).st_size)
        for at in range(int(offset), end, len(ZEROS)):
            os.pwrite(fd, ZEROS[: end - at], at)
        os.fdatasync(fd)
    finally:
        os.close(fd)
