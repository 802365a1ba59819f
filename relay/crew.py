"""The workers of a daemon: started, given their orders, their changes written, and missed when they die.

Knows alone: how a worker is started, and what becomes of its sockets without it: the daemon takes mail there itself, for
a connection that the kernel has put into the queue of a socket must not wait for ever.
Limits: a worker that died is not started again before the daemon is: it is an error in the log, and mail goes on.
"""

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from relay import log
from relay.channel import Channel
from relay.commit import Writer
from relay.smtp.door import Door
from relay.store.intake import Committed
from relay.worker import Done, Job, Orders, Ready, Stop

READY_WITHIN = 30.0  # seconds
STOP_WITHIN = 40.0  # a little longer than a worker gives the mail that is coming in
_START = "import sys; sys.path[:] = {path!r}; from relay.worker import main; main()"

Doors = Sequence[Door]


class Crew:
    """`start` it once for each share of sockets. `lost` is given the share of a worker that is gone."""

    def __init__(
        self, writer: Writer, *, on_filings: Callable[[], None], lost: Callable[[Doors], Awaitable[object]]
    ) -> None:
        self._writer = writer
        self._on_filings = on_filings
        self._lost = lost
        self._members: list[_Member] = []
        self._adoptions: set[asyncio.Future[object]] = set()
        self._stopping = False

    async def start(self, shares: Sequence[Doors], orders: Orders, *, lock: int) -> None:
        """One worker a share; each keeps the daemon's `lock` on the data folder, for as long as it lives."""
        self._members = [_Member(self, share) for share in shares]
        for member in self._members:
            await member.start(orders, lock)
        await asyncio.gather(*(member.ready() for member in self._members))

    def tell(self, orders: Orders) -> None:
        for member in self._members:
            member.say(orders)

    async def stop(self) -> None:
        """Every worker finishes what it has, and ends."""
        self._stopping = True
        for member in self._members:
            member.say(Stop())
        await asyncio.gather(*(member.ended() for member in self._members), *self._adoptions)

    def gone(self, member: "_Member") -> None:
        if not self._stopping:
            log.worker_lost(member.pid)
            adoption = asyncio.ensure_future(self._lost(member.doors))
            self._adoptions.add(adoption)
            adoption.add_done_callback(self._adoptions.discard)

    def write(self, job: Job, answer: Callable[[Done], None]) -> None:
        def written(future: "asyncio.Future[Any]") -> None:
            if error := future.exception():
                answer(Done(job.number, None, log.described(error)))
                return
            result = future.result()
            answer(Done(job.number, result))
            if isinstance(result, Committed) and result.filings:
                self._on_filings()

        self._writer.write(job.change, job.body).add_done_callback(written)


class _Member:
    """One worker, from here."""

    def __init__(self, crew: Crew, doors: Doors) -> None:
        self.doors = doors
        self._crew = crew
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._ready = asyncio.Event()
        self._gone = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    async def start(self, orders: Orders, lock: int) -> None:
        ours, its = socket.socketpair()
        numbers = [door.socket.fileno() for door in self.doors]
        told = [f"{door.kind}={number}" for door, number in zip(self.doors, numbers, strict=True)]
        command = [sys.executable, "-c", _START.format(path=sys.path), str(its.fileno()), *told]
        with its:
            descriptors = (its.fileno(), *numbers, lock)
            self._process = subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL)
        self._channel = await Channel.open(ours, self._hear, self._lost)
        self._channel.say(orders)

    async def ready(self) -> None:
        """Until mail is taken, by the worker or, where it is gone, by the daemon in its place."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_WITHIN):
                await self._ready.wait()
                return
        if self._process is not None:
            self._process.kill()

    def say(self, thing: object) -> None:
        if self._channel is not None:
            self._channel.say(thing)

    async def ended(self) -> None:
        if self._process is None:
            return  # the start failed before it came to this one
        try:
            async with asyncio.timeout(STOP_WITHIN):
                await self._gone.wait()
        except TimeoutError:
            self._process.kill()
        await asyncio.to_thread(self._process.wait)

    def _hear(self, said: Sequence[Any]) -> None:
        for thing in said:
            match thing:
                case Job():
                    self._crew.write(thing, self.say)
                case Ready():
                    self._ready.set()

    def _lost(self) -> None:
        self._channel = None
        self._gone.set()
        self._ready.set()
        self._crew.gone(self)
