"""The one order nothing may break: bytes durable in the spool → one transaction → only then is anyone told.

Knows alone: that order. One thread writes for the whole process; whatever arrives while it syncs shares the next sync
(group commit), so fifty connections cost two syncs, not a hundred. What fails in company is tried again alone, so that one
bad record refuses nobody else.
"""

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlite_utils import Database

from relay.spool import Spool
from relay.store.database import transaction

T = TypeVar("T")
BATCH = 256
Change = Callable[[Database, str], T]


@dataclass(frozen=True, slots=True)
class _Job:
    """`change` runs inside the transaction; it is given the spool key of `body`, or "" where there is none."""

    change: Change[Any]
    body: bytes | None
    future: "asyncio.Future[Any]"


class Writer:
    """The only writer of this process. `write` returns once the change is durable, or raises what went wrong."""

    def __init__(self, db: Database, spool: Spool) -> None:
        self._db = db
        self._spool = spool
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
        self._thread.start()

    def write(self, change: Change[T], body: bytes | None = None) -> "asyncio.Future[T]":
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(change, body, future))
        return future

    async def close(self) -> None:
        """Finishes what was given, then stops."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        stopping = False
        while not stopping:
            batch, stopping = self._gather()
            if batch:
                results = self._together(batch)
                self._loop.call_soon_threadsafe(_tell, batch, results)

    def _gather(self) -> tuple[list[_Job], bool]:
        """All that waits, up to a batch; and whether it is the last."""
        job = self._jobs.get()
        batch: list[_Job] = []
        while job is not None:
            batch.append(job)
            if len(batch) == BATCH:
                return batch, False
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return batch, False
        return batch, True

    def _together(self, batch: Sequence[_Job]) -> list[Any]:
        """One result per job: what its change returned, or the exception."""
        try:
            return self._commit(batch)
        except Exception as error:
            if len(batch) == 1:
                return [error]
        return [result for job in batch for result in self._together([job])]

    def _commit(self, batch: Sequence[_Job]) -> list[Any]:
        keys = iter(
            self._spool.append(bodies) if (bodies := [job.body for job in batch if job.body is not None]) else ()
        )
        placed = [(job, next(keys) if job.body is not None else "") for job in batch]
        with transaction(self._db):
            return [job.change(self._db, key) for job, key in placed]


def _tell(batch: Sequence[_Job], results: Sequence[Any]) -> None:
    for job, result in zip(batch, results, strict=True):
        if job.future.done():
            continue  # whoever waited is gone; the change stands
        if isinstance(result, BaseException):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)
