"""The one order nothing may break: bytes durable in the spool → one transaction → only then is anyone told.

Knows alone: that order. Whatever arrives while one batch becomes durable shares the next (group commit), so fifty
connections cost two syncs, not a hundred. The rows of a batch are written on the event loop, where no other thread
competes for the interpreter at every statement; the bytes, their sync and the COMMIT, whose sync it waits for, are one
visit to a thread. What fails in company is tried again alone, so that one bad record refuses nobody else.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlite_utils import Database

from relay.spool import Spool
from relay.store import database

T = TypeVar("T")
BATCH = 256
BUSY_STEP = 0.005  # seconds between two tries for the write lock, when another process has it
Change = Callable[[Database, str], T]


@dataclass(frozen=True, slots=True)
class _Job:
    """`change` runs inside the transaction; it is given the spool key of `body`, or "" where there is none."""

    change: Change[Any]
    body: bytes | None
    future: "asyncio.Future[Any]"


class Commits(Protocol):
    """What makes changes durable: the writer here, or a worker's way to it."""

    def write(self, change: Change[T], body: bytes | None = None) -> "asyncio.Future[T]": ...


class Writer:
    """The only writer of this process. `write` returns once the change is durable, or raises what went wrong."""

    def __init__(self, db: Database, spool: Spool) -> None:
        db.conn.execute("PRAGMA busy_timeout = 0")  # the loop must not wait for another process: it asks again
        self._db = db
        self._spool = spool
        self._loop = asyncio.get_running_loop()
        self._jobs: list[_Job] = []
        self._alone: deque[_Job] = deque()  # of a batch that failed: each is tried by itself
        self._active = False
        self._thread = ThreadPoolExecutor(1, "writer")
        self._idle = asyncio.Event()
        self._idle.set()

    def write(self, change: Change[T], body: bytes | None = None) -> "asyncio.Future[T]":
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.append(_Job(change, body, future))
        if not self._active:
            self._active = True
            self._idle.clear()
            self._loop.call_soon(self._next)
        return future

    async def close(self) -> None:
        """Finishes what was given, then stops."""
        await self._idle.wait()
        self._thread.shutdown()

    def _next(self) -> None:
        if self._alone:
            batch = [self._alone.popleft()]
        else:
            batch, self._jobs = self._jobs[:BATCH], self._jobs[BATCH:]
        if batch:
            self._begin(batch, self._loop.time() + database.BUSY_TIMEOUT)
        else:
            self._active = False
            self._idle.set()

    def _begin(self, batch: Sequence[_Job], deadline: float) -> None:
        try:
            self._db.conn.execute("BEGIN IMMEDIATE")
        except Exception as error:
            if database.is_busy(error) and self._loop.time() < deadline:
                self._loop.call_later(BUSY_STEP, self._begin, batch, deadline)
            else:
                self._failed(batch, error, again=False)
            return
        try:
            bodies = [job.body for job in batch if job.body is not None]
            keys = iter(self._spool.place(bodies))
            results = [job.change(self._db, next(keys) if job.body is not None else "") for job in batch]
        except Exception as error:
            if self._db.conn.in_transaction:  # after an I/O error SQLite has rolled back by itself
                self._db.conn.execute("ROLLBACK")
            self._failed(batch, error, again=True)
            return
        done = self._loop.run_in_executor(self._thread, self._commit, bodies)
        done.add_done_callback(lambda done: self._committed(batch, results, done))

    def _commit(self, bodies: Sequence[bytes]) -> None:
        """In the thread: the bytes, then the rows that speak of them."""
        try:
            if bodies:
                self._spool.append(bodies)
            self._db.conn.execute("COMMIT")
        except BaseException:
            if self._db.conn.in_transaction:
                self._db.conn.execute("ROLLBACK")
            raise

    def _committed(self, batch: Sequence[_Job], results: Sequence[Any], done: "asyncio.Future[None]") -> None:
        error = done.exception()
        if isinstance(error, Exception):
            self._failed(batch, error, again=True)
            return
        for job, result in zip(batch, results, strict=True):
            if not job.future.done():  # else whoever waited is gone; the change stands
                job.future.set_result(result)
        self._next()

    def _failed(self, batch: Sequence[_Job], error: Exception, *, again: bool) -> None:
        if again and len(batch) > 1:
            self._alone.extend(batch)
        else:
            for job in batch:
                if not job.future.done():
                    job.future.set_exception(error)
        self._next()
