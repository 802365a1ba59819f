"""One SQLite file: how it is opened, what a transaction is, and which SQLite we trust.

Knows alone: the pragmas the promise rests on. WAL with synchronous=FULL: a committed transaction survives a power cut.
sqlite-utils makes and migrates the store; it is imported only for that, since it would be half of a listing's time.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pysqlite3.dbapi2 as sqlite3

if TYPE_CHECKING:
    from sqlite_utils import Database

SQLITE: tuple[int, ...] = sqlite3.sqlite_version_info
MINIMUM_SQLITE = (3, 51, 3)  # before it a WAL can be corrupted: sqlite.org/wal.html#walresetbug
BUSY_TIMEOUT = 10.0  # seconds a writer waits for another
SCHEMA = 1  # the user_version that the last migration leaves
# In a long queue every mail touches other pages: the more commits a checkpoint gathers, the fewer it writes, in better
# order, and the fewer syncs of the database wait in somebody's commit. 64 MB of WAL are read in 0.1 s after a crash.
CHECKPOINT = 16_000  # pages
READERS_CACHE = 4000  # KiB
PRAGMAS = (
    "synchronous=FULL",
    "foreign_keys=ON",
    "cache_size=-32000",
    "temp_store=MEMORY",
    "secure_delete=FAST",  # a row that changes leaves no copy in its page, which an erasure could not reach
    f"wal_autocheckpoint={CHECKPOINT}",
    f"journal_size_limit={2 * CHECKPOINT * 4096}",
)
Row = tuple[Any, ...]
Damaged = sqlite3.DatabaseError  # what reading a store that the disk spoiled raises


class StoreError(RuntimeError):
    """The store cannot be used; the message says what to do."""


class NoStore(StoreError):
    """There is no store yet: nothing was ever served from here."""


class LostStore(StoreError):
    """There was a store, and it is gone while its messages are there: never an empty one in its place."""


class Store(Protocol):
    """What plain SQL needs: a `Database` of sqlite-utils has it, and so has a Reader."""

    @property
    def conn(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Reader:
    """A store opened for a listing."""

    conn: Any

    def close(self) -> None:
        self.conn.close()


def plain(path: Path) -> Any:
    """A connection to a copy that nobody else knows of: for a backup's."""
    return _connect(f"file:{_quoted(path)}?mode=rw")


def open_for_writing(path: Path) -> "Database":
    """Opens the store, making or migrating it as needed. The folder and the file are the owner's alone."""
    from relay.store.schema import migrations

    _check_version()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists() or not path.stat().st_size:
        _refuse_to_forget(path)  # before SQLite makes the file, and takes a WAL that stands beside it for refuse
    previous = os.umask(0o077)
    try:
        db = _database(_connect(f"file:{_quoted(path)}?mode=rwc"))
        _check_schema(db, path)
        db.execute("PRAGMA journal_mode=WAL").fetchone()
    finally:
        os.umask(previous)
    if migrations.pending(db):
        _migrate(db)
    return db


def _check_schema(db: "Database", path: Path) -> None:
    """A store made by a newer release is not ours to write to; one without tables may be what is left of a lost one."""
    version = rows(db, "PRAGMA user_version")[0][0]
    if version > SCHEMA:
        db.close()
        raise StoreError(f"{path}: {_NEWER}")
    if version == 0:
        try:
            _refuse_to_forget(path)
        except StoreError:
            db.close()
            raise


_NEWER = "made by a newer release. Remedy: install that release again, or restore the backup made before the upgrade."


def _refuse_to_forget(path: Path) -> None:
    """Raises StoreError where the spool has messages and the store is new: they would be taken for refuse, and removed.

    The store is always made before the spool, and the first message comes after both.
    """
    spool = path.parent / "spool"
    if any(found.is_file() for part in ("segments", "files") for found in (spool / part).rglob("*")):
        raise LostStore(
            f"{path}: the store is gone, but {spool} has messages. Remedy: put the file back, or move {spool} away and "
            "`welyb-relay restore DIR` a backup; without one, move it away to begin anew."
        )


def open_existing(path: Path) -> "Database":
    """For a command that changes something: the same, but it never creates a store. Raises NoStore."""
    if not path.exists():
        _refuse_to_forget(path)
        raise NoStore(f"{path}: no store yet. Remedy: start `welyb-relay serve` once, or give --config.")
    return open_for_writing(path)


def open_for_reading(path: Path) -> "Database":
    """Read-only, never blocks a writer. Raises NoStore.

    A daemon has four of these for as long as it lives: each with the writer's cache, memory would grow with the store.
    """
    db = _database(open_for_listing(path).conn)
    db.execute(f"PRAGMA cache_size=-{READERS_CACHE}")
    return db


def open_for_listing(path: Path) -> Reader:
    """The same for plain SQL only, which starts fast. Raises NoStore."""
    _check_version()
    if not path.exists():
        raise NoStore(f"{path}: no store yet. Remedy: start `welyb-relay serve` once, or give --config.")
    reader = Reader(_connect(f"file:{_quoted(path)}?mode=ro"))
    version = rows(reader, "PRAGMA user_version")[0][0]
    if version != SCHEMA:
        reader.close()
        if version > SCHEMA:
            raise StoreError(f"{path}: {_NEWER}")
        if version == 0:
            _refuse_to_forget(path)
        raise StoreError(f"{path}: made by an older release. Remedy: run `welyb-relay check` as its owner, once.")
    return reader


def _connect(uri: str) -> Any:
    try:
        connection = sqlite3.connect(
            uri, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False, cached_statements=512
        )
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error as error:
        raise StoreError(
            f"{uri}: cannot be opened: {error}. Remedy: look at its owner, its disk, its backup."
        ) from error
    return connection


def _database(connection: Any) -> "Database":
    from sqlite_utils import Database

    return Database(connection, execute_plugins=False)


def _quoted(path: Path) -> str:
    return str(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


def _check_version() -> None:
    if SQLITE < MINIMUM_SQLITE:
        raise StoreError(f"SQLite {sqlite3.sqlite_version} can corrupt a WAL. Remedy: install pysqlite3 >= 0.6.1.")


def _migrate(db: "Database") -> None:
    from relay.store.schema import migrations

    # Two processes may find the same migration pending: the lock is taken before looking again.
    for _ in range(2):
        try:
            with transaction(db):  # its index with it, or neither: a table without it would stay so
                migrations.ensure_migrations_table(db)
            migrations.apply(db)
            return
        except sqlite3.OperationalError:
            if not migrations.pending(db):
                return
    migrations.apply(db)


class Anchor:
    """The store's files as they are now: SQLite goes on writing into files that lost their names, and never says so."""

    def __init__(self, path: Path) -> None:
        self._files = {file: found for file in (str(path), f"{path}-wal") if (found := _identity(file))}

    def confirm(self) -> None:
        """Raises StoreError unless what is written now is where the next start will look for it."""
        for file, identity in self._files.items():
            if _identity(file) != identity:
                raise StoreError(
                    f"{file}: moved, removed or replaced while the relay serves; mail is answered 451, nothing leaves. "
                    "Remedy: stop the relay, put the file back or restore the backup, start it."
                )


def _identity(file: str) -> tuple[int, int] | None:
    """Device and inode of the file that has this name now."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_busy(error: BaseException) -> bool:
    """Does another process hold the write lock?"""
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


@contextmanager
def transaction(db: Store) -> Iterator[None]:
    """BEGIN IMMEDIATE … COMMIT. Not `db.atomic()`: its deferred BEGIN fails at once when it must turn into a write."""
    db.conn.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if db.conn.in_transaction:
            db.conn.execute("ROLLBACK")
        raise
    try:
        db.conn.execute("COMMIT")
    except BaseException:
        if db.conn.in_transaction:
            db.conn.execute("ROLLBACK")
        raise


def rows(db: Store, sql: str, parameters: Sequence[object] | dict[str, object] = ()) -> list[Row]:
    """All rows of a query, as tuples."""
    found: list[Row] = db.conn.execute(sql, parameters).fetchall()
    return found


def one(db: Store, sql: str, parameters: Sequence[object] | dict[str, object] = ()) -> Row | None:
    """The first row of a query, or None."""
    found: Row | None = db.conn.execute(sql, parameters).fetchone()
    return found


def marks(items: Sequence[object]) -> str:
    """`?, ?, ?` for an IN list."""
    return ", ".join("?" * len(items))
