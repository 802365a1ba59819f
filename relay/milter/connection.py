"""One connection of the MTA: octets to commands, each to the session, and how it ends.

Knows alone: that a command is answered where its octets arrive, and that behind one which must be waited for (a commit, a
listing of the GED) all others wait; that a connection which cannot be understood, or in which we fail, is closed without a
verdict: the MTA then does what its settings say of a filter that is away, which is to be "try again later" and never
"accept".
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

from relay import log
from relay.accept import Intake
from relay.milter.answers import Answer, render
from relay.milter.commands import Command, Packets, ProtocolError, Quit
from relay.milter.session import Session

SILENT_AT_MOST = 7210.0  # seconds; libmilter's own, longer than an SMTP client may be silent (RFC 5321 §4.5.3.2)


class Connection(asyncio.Protocol):
    """`begun` is asked whether there is room for it, `ended` told once nothing of it is left."""

    def __init__(
        self, intake: Intake, *, begun: Callable[["Connection"], bool], ended: Callable[["Connection"], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._session = Session(intake, self._say)
        self._begun, self._ended = begun, ended
        self._packets = Packets()
        self._waiting: deque[Command | ProtocolError] = deque()
        self._under_way: asyncio.Task[Any] | None = None
        self._transport: asyncio.Transport | None = None
        self._heard = self._loop.time()
        self._patience = self._loop.call_later(SILENT_AT_MOST, self._look_at_the_clock)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._begun(self):
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            for command in self._packets.feed(data):
                self._waiting.append(command)
        except ProtocolError as error:
            self._waiting.append(error)  # after what came before it
        self._serve()

    def pause_writing(self) -> None:
        """It leaves 64 KB of answers unread, each of which it is to wait for."""
        self._abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._patience.cancel()
        if self._under_way is None:
            self._end()

    @property
    def idle(self) -> bool:
        """Between mails: nothing is lost if the connection ends now."""
        return self._session.idle

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def give_up(self) -> None:
        """At once, whatever is under way."""
        if self._under_way is not None:
            self._under_way.cancel()
        self._abort()

    # --- one command after another ----------------------------------------------------------------------------------

    def _serve(self) -> None:
        while self._waiting and self._under_way is None and self._transport is not None:
            command = self._waiting.popleft()
            try:
                self._take(command)
            except Exception as error:
                self._fail(error)

    def _take(self, command: Command | ProtocolError) -> None:
        if isinstance(command, ProtocolError):
            raise command
        if isinstance(command, Quit):
            self._finish()
            return
        later = self._session.take(command)
        if later is not None and self._transport is not None:
            self._transport.pause_reading()
            self._under_way = self._loop.create_task(later)
            self._under_way.add_done_callback(self._taken)

    def _taken(self, task: "asyncio.Task[Any]") -> None:
        self._under_way = None
        self._heard = self._loop.time()
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if self._transport is None:
            self._end()
        elif error is not None:
            self._fail(error)
        else:
            self._transport.resume_reading()
            self._serve()

    def _say(self, answer: Answer) -> None:
        if self._transport is not None:
            self._transport.write(render(answer))

    # --- the end ----------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, ProtocolError):
            log.milter_broken(str(error))
        elif isinstance(error, Exception):
            log.trouble("milter", error)
        self._finish()

    def _finish(self) -> None:
        """Whatever was said behind it."""
        self._waiting.clear()
        self.close()

    def _end(self) -> None:
        self._session.drop_mail()
        self._ended(self)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _look_at_the_clock(self) -> None:
        now = self._loop.time()
        until = (now if self._under_way is not None else self._heard) + SILENT_AT_MOST
        if now < until:
            self._patience = self._loop.call_at(until, self._look_at_the_clock)
        else:
            self._abort()
