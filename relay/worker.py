"""A process that takes mail for the daemon: sessions, structure, verdicts, the bytes of large mails, on another core.

What is to be written goes to the daemon, which has the one writer: small bodies and rows of all processes then share
its syncs and its transactions, and SQLite has no second writer to wait for. 250 is said when the daemon says it is done.
Knows alone: what a worker is given, and that without its daemon it is nothing: it ends at once, as in a crash, and
clients that had no answer send again. Limits: signals are the daemon's to receive; it passes on what they mean.
"""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from relay import clock, ids, log, memory
from relay.accept import Intake
from relay.channel import Channel
from relay.commit import Change
from relay.config import Config
from relay.directory import Directory
from relay.smtp.door import Door, Kind
from relay.smtp.listener import Listener
from relay.spool import Spool
from relay.store.database import open_for_reading
from rules.ruleset import RuleSet

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Orders:
    """From the daemon, first of all and after every reload."""

    config: Config
    ruleset: RuleSet
    token_key: ids.TokenKey


@dataclass(frozen=True, slots=True)
class Stop:
    """From the daemon: no new mail; what is under way is finished."""


@dataclass(frozen=True, slots=True)
class Ready:
    """To the daemon: mail is taken."""


@dataclass(frozen=True, slots=True)
class Job:
    """To the daemon's writer. `change` is a function of a module, with its arguments bound."""

    number: int
    change: Change[Any]
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Done:
    """The answer to a job: durable with `result`, or `error`."""

    number: int
    result: Any
    error: str = ""


class NotWritten(RuntimeError):
    """The daemon could not make it durable."""


class _Remote:
    """The daemon's writer, from here."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._open: dict[int, asyncio.Future[Any]] = {}
        self.channel: Channel | None = None

    def write(self, change: Change[T], body: bytes | None = None) -> "asyncio.Future[T]":
        assert self.channel is not None
        self._number += 1
        future: asyncio.Future[T] = self._loop.create_future()
        self._open[self._number] = future
        self.channel.say(Job(self._number, change, body))
        return future

    def done(self, done: Done) -> None:
        future = self._open.pop(done.number)
        if future.done():
            return  # whoever waited is gone; the change stands
        if done.error:
            future.set_exception(NotWritten(done.error))
        else:
            future.set_result(done.result)


class _Worker:
    """One per process."""

    def __init__(self, doors: Sequence[Door]) -> None:
        self._doors = doors
        self._remote = _Remote()
        self._intake: Intake | None = None
        self._ordered: asyncio.Future[Orders] = asyncio.get_running_loop().create_future()
        self._stopping = asyncio.Event()

    async def work(self, channel: socket.socket) -> None:
        self._remote.channel = await Channel.open(channel, self._hear, _end)
        orders = await self._ordered
        config = orders.config
        log.set_up(config.relay.log)
        self._intake = Intake(
            config,
            orders.ruleset,
            spool=Spool(config.relay.data / "spool", lambda: ids.new(clock.now())),
            writer=self._remote,
            directory=Directory(open_for_reading(config.database), self._remote, config.ged.root),
            token_key=orders.token_key,
        )
        listener = Listener(self._intake)
        await listener.start(self._doors)
        self._remote.channel.say(Ready())
        await self._stopping.wait()
        await listener.stop()
        await self._intake.settled()

    def _hear(self, said: Sequence[Any]) -> None:
        for thing in said:
            match thing:
                case Done():
                    self._remote.done(thing)
                case Orders() if self._intake is not None:
                    self._intake.adopt(thing.config, thing.ruleset)
                case Orders():
                    self._ordered.set_result(thing)
                case Stop():
                    self._stopping.set()


def _end() -> None:
    os._exit(1)  # nothing here is worth keeping: what was answered 250 is durable, and nothing else was promised


def _door(kind: str, number: str) -> Door:
    return Door(socket.socket(fileno=int(number)), Kind(kind))


def main() -> None:
    """Arguments: the number of the channel's inherited descriptor, then the kind and number of each door's."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # a terminal or systemd signals every process
    memory.share_arenas()
    channel = socket.socket(fileno=int(sys.argv[1]))
    doors = [_door(*told.split("=")) for told in sys.argv[2:]]
    log.set_up()

    async def work() -> None:
        asyncio.get_running_loop().set_exception_handler(log.astray)
        await _Worker(doors).work(channel)

    asyncio.run(work())
