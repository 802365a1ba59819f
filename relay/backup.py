"""A copy of everything the relay keeps, taken while mail flows, and put back where nothing is.

Knows alone: the order. The store first, as it is at one instant; then the bytes its rows speak of, which are durable by
then, never change, and are removed by nobody meanwhile, since removing takes the run lock and so does a backup. A backup
bears its name only once all of it is on the disk; a restoration begins to count with the last rename, the store's.
Limits: the GED is not in it (its own backup is), nor are the certificates named in the settings.
"""

import errno
import hashlib
import json
import os
import shutil
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from relay import clock, lock
from relay.config import Config
from relay.store import audit, database, restore

FORMAT = 1
MANIFEST = "manifest.json"
PIECE = 1 << 20


class BackupError(RuntimeError):
    """It cannot be done; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Made:
    """`missing`: keys whose bytes are not in the spool, or not whole."""

    folder: Path
    files: int
    size: int
    missing: tuple[str, ...]


def alone(data: Path) -> AbstractContextManager[int]:
    """No daemon serves from `data`, for the life of the block. Raises BackupError where one does."""
    return lock.held(data / "serve.lock", BackupError(f"{data}: a relay serves from here. Remedy: stop it first."))


# --- taking one -----------------------------------------------------------------------------------------------------


def backup(config: Config, target: Path) -> Made:
    """Into `target`, which must not exist. The caller holds the run lock."""
    if not target.name:
        raise BackupError(f"{target}: no name for a new folder. Remedy: give one, like backup-2026-11-24.")
    partial = target.with_name(f"{target.name}.partial")
    for place in (target, partial):
        if os.path.lexists(place):
            raise BackupError(f"{place}: exists already. Remedy: give another name, or move it away.")
    partial.mkdir(mode=0o700)
    at = clock.stamp(clock.now())
    _snapshot(config.database, partial / "relay.db")
    missing = _copy_bytes(config, partial)
    _copy_around(config, partial)
    files = _listed(partial)
    text = json.dumps({"format": FORMAT, "at": at, "schema": database.SCHEMA, "missing": missing, "files": files})
    _write(partial / MANIFEST, text.encode())
    _sync_tree(partial)
    partial.rename(target)
    _sync(target.absolute().parent)
    return Made(target, len(files), sum(file["size"] for file in files), tuple(missing))


def _snapshot(source: Path, target: Path) -> None:
    """In one step, under one read transaction: whoever writes meanwhile is not kept waiting, nor seen."""
    os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with closing(database.open_for_listing(source)) as reader, closing(database.plain(target)) as copy:
        reader.conn.backup(copy)
        if (found := copy.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise BackupError(f"{source}: {found}. Remedy: stop the relay and restore an earlier backup.")
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, whole by itself


def _copy_bytes(config: Config, partial: Path) -> list[str]:
    """Segments as far as the rows go, and files of their own; the keys of what is not there."""
    spool, copied = config.relay.data / "spool", partial / "spool"
    ends: dict[str, int] = {}
    missing = []
    with closing(database.open_for_listing(partial / "relay.db")) as reader:
        for row in {row.key: row for row in audit.needed(reader)}.values():  # a resend shares its bytes
            kind, first, *rest = row.key.split("/")
            if kind == "s":
                ends[first] = max(ends.get(first, 0), sum(map(int, rest)))
            elif not _copy(spool / "files" / first / rest[0], copied / "files" / first / rest[0], row.size):
                missing.append(row.key)
    for segment, end in ends.items():
        if not _copy(spool / "segments" / segment, copied / "segments" / segment, end):
            missing.append(f"s/{segment}")
    return missing


def _copy_around(config: Config, partial: Path) -> None:
    """Keys, and the settings and rules in force, for whoever builds the machine again."""
    data = config.relay.data
    for name in ("token.key", "token.key.old"):
        _copy(data / name, partial / name)
    for path in sorted((data / "dkim").glob("*")):
        _copy(path, partial / "dkim" / path.name)
    for name, text in (("relay.toml", config.source), ("rules.toml", config.relay.rules)):
        if text and Path(text).is_file():
            _copy(Path(text), partial / "settings" / name)


def _copy(source: Path, target: Path, end: int | None = None) -> bool:
    """Up to `end`, else whole. False where the source is not there, or shorter."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with source.open("rb") as read, target.open("xb") as written:
            os.fchmod(written.fileno(), 0o600)
            left = os.fstat(read.fileno()).st_size if end is None else end
            while left and (piece := read.read(min(left, PIECE))):
                written.write(piece)
                left -= len(piece)
            return not left
    except FileNotFoundError:
        return False


def _listed(folder: Path) -> list[dict[str, Any]]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {"path": path.relative_to(folder).as_posix(), "size": path.stat().st_size, "sha256": _sha256(path)}
        for path in found
    ]


def _sha256(path: Path) -> str:
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


# --- putting one back -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself."""

    at: str
    files: tuple[str, ...]


def verified(source: Path) -> Manifest:
    """The manifest of `source`, once every file in it was found to be as it says. Raises BackupError."""
    try:
        told = json.loads((source / MANIFEST).read_bytes())
        wrong = next((file["path"] for file in told["files"] if not _is_whole(source, file)), None)
        manifest = Manifest(str(told["at"]), tuple(str(file["path"]) for file in told["files"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackupError(f"{source}: not a backup, or not a whole one: {error}. Remedy: give another.") from None
    if wrong is not None or "relay.db" not in manifest.files:
        raise BackupError(f"{source}: {wrong or 'relay.db'} is damaged or missing. Remedy: give another backup.")
    if told["format"] > FORMAT or told["schema"] > database.SCHEMA:
        raise BackupError(f"{source}: made by a newer release. Remedy: install that release.")
    return manifest


def _is_whole(source: Path, file: dict[str, Any]) -> bool:
    relative = PurePosixPath(file["path"])
    path = source / relative
    if relative.is_absolute() or ".." in relative.parts or not path.is_file() or path.is_symlink():
        return False
    return bool(path.stat().st_size == file["size"] and _sha256(path) == file["sha256"])


def put_back(config: Config, source: Path, *, actor: str, why: str) -> list[str]:
    """Puts the backup `source` in place; the deliveries held. The caller is `alone` in the data folder."""
    manifest = verified(source)
    data = config.relay.data
    _check_empty(data)
    made = data / "restore.partial"
    made.mkdir(mode=0o700)
    for name in manifest.files:
        if name.split("/")[0] != "settings":
            _copy(source / name, made / name)
    for part in ("segments", "files"):
        (made / "spool" / part).mkdir(parents=True, exist_ok=True, mode=0o700)
    at = clock.stamp(clock.now())
    with closing(database.open_existing(made / "relay.db")) as db:
        with database.transaction(db):
            held = restore.hold_all(db, restore.Restored(manifest.at, at, actor, why, source.name))
        db.conn.execute("PRAGMA journal_mode=DELETE")
    _sync_tree(made)
    _move_in(made, data)
    return held


def _check_empty(data: Path) -> None:
    if os.path.lexists(data / "restore.partial"):
        raise BackupError(
            f"{data}: a restoration was cut short. Remedy: remove {data}/restore.partial, and {data}/spool if there is "
            "no relay.db, then restore again."
        )
    if any(os.path.lexists(data / f"relay.db{end}") for end in ("", "-wal", "-journal")):
        raise BackupError(f"{data}: there is a store already. Remedy: move the data folder away, or give another.")
    if any(path.is_file() for path in (data / "spool").rglob("*")):
        raise BackupError(f"{data}: the spool has messages. Remedy: move {data}/spool away.")


def _move_in(made: Path, data: Path) -> None:
    """The store last: until then no relay begins here, since there are messages and no store."""
    shutil.rmtree(data / "spool", ignore_errors=True)  # empty folders
    (made / "spool").rename(data / "spool")
    for name in ("token.key", "token.key.old"):  # those that the tokens in the store were made with
        if (made / name).exists():
            (made / name).replace(data / name)
    (data / "dkim").mkdir(mode=0o700, exist_ok=True)
    for key in sorted((made / "dkim").glob("*")):
        if not (data / "dkim" / key.name).exists():
            key.rename(data / "dkim" / key.name)
    _sync(data / "dkim")
    _sync(data)
    (made / "relay.db").rename(data / "relay.db")
    _sync(data)
    shutil.rmtree(made)


def _write(path: Path, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
        opened.write(data)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has nothing to sync of a folder
            raise
    finally:
        os.close(fd)
