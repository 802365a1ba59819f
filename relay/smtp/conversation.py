"""A conversation in lines (RFC 5321 §2.3.8): bytes to lines, lines to answers, answers to as few packets as can be.

A subclass of aiosmtpd's SMTP, which gives the transport, the STARTTLS upgrade and the end of a connection. Its command
loop waits for each line in a task; here a line is answered where its bytes arrive, and only what must wait (a commit, a
handshake) becomes a task: meanwhile further lines wait too, so answers come in order.
Knows alone: pipelining, timeouts, and the mail data that takes the place of lines. What a line means is its subclass's.
"""

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from functools import lru_cache
from typing import Any

from aiosmtpd.smtp import SMTP, TLSSetupException

from relay import clock, ids, log
from relay.smtp.reception import Reception
from rules import replies
from rules.replies import Reply

MAX_LINE = 4096  # RFC 5321 §4.5.3.1.4 asks for 512 and more with extensions
MAX_WAITING = 1 << 18  # bytes of pipelined commands kept while one is served
MAX_ERRORS = 20  # as Postfix's smtpd_hard_error_limit
COMMAND_TIMEOUT = 300.0  # seconds; RFC 5321 §4.5.3.2.7
CHUNK_TIMEOUT = 180.0  # between two pieces of mail data; §4.5.3.2.5
DATA_TIMEOUT = 3600.0  # for a whole mail

Waiting = Coroutine[Any, Any, "Reply | None"]
Answer = Reply | Waiting | asyncio.Task[Reply] | None  # at once, when it is known, or nothing


class Conversation(SMTP):
    """Subclasses say what a new connection deserves, what a line, and what to let go of at the end."""

    def __init__(self, hostname: str, tls_context: ssl.SSLContext | None, loop: asyncio.AbstractEventLoop) -> None:
        # aiosmtpd's constructor inspects every member of itself, a third of a millisecond: its findings are shared.
        reader = asyncio.StreamReader(loop=loop)
        asyncio.StreamReaderProtocol.__init__(self, reader, self._cb_client_connected, loop)
        self.__dict__.update(_findings(loop))
        self.hostname = hostname
        self.tls_context = tls_context
        self._input = bytearray()
        self._output: list[bytes] = []
        self._busy = False  # an answer is being waited for, or mail data is coming
        self._ended = False
        self._paused_reading = False
        self._errors = 0
        self._reception: Reception | None = None
        self._received: Callable[[], Answer] | None = None
        self._deadline = 0.0  # of the next byte
        self._data_deadline = 0.0  # of the last byte of a mail
        self._patience = COMMAND_TIMEOUT

    @property
    def silent_since(self) -> float | None:
        """The loop's time when it was last heard; None while it is we who owe an answer."""
        return None if self._busy and self._reception is None else self._deadline - self._patience

    def arrived(self) -> None:
        """A connection was made."""
        raise NotImplementedError

    def answer(self, line: bytes) -> Answer:
        raise NotImplementedError

    def drop_mail(self) -> None:
        """Lets go of a mail under way."""

    # --- in ---------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._deadline = self.loop.time() + self._patience
        if self._reception is not None:
            data = self._reception.feed(data)
            if not self._reception.complete:
                return
            self._end_reception()
        self._input += data
        if len(self._input) > MAX_WAITING and self.transport is not None and not self._paused_reading:
            self._paused_reading = True
            self.transport.pause_reading()  # type: ignore[attr-defined]  # a Transport, not the base
        self._serve()

    def eof_received(self) -> bool:
        """A client that closes its half after the dot still gets its answer."""
        self._ended = True
        if self._reception is not None:
            self._close()
        elif not self._busy:
            self._serve()
        return self._tls_protocol is None  # TLS has no half-close

    def connection_lost(self, error: Exception | None) -> None:
        self._reception = None
        self.drop_mail()  # one whose end has come is no longer the session's to drop
        super().connection_lost(error)

    def receive(self, reception: Reception, then: Callable[[], Answer]) -> None:
        """Mail data instead of lines, until `reception` is complete; what was pipelined behind the command comes first."""
        waiting, self._input = bytes(self._input), bytearray()
        self._input += reception.feed(waiting)
        self._busy, self._received = True, then
        if reception.complete:
            self.loop.call_soon(self._resume_after_reception)
            return
        self._reception = reception
        self._patience = CHUNK_TIMEOUT
        self._deadline = self.loop.time() + CHUNK_TIMEOUT
        self._data_deadline = self.loop.time() + DATA_TIMEOUT
        self._arm()

    def _end_reception(self) -> None:
        self._reception = None
        self._patience, self._data_deadline = COMMAND_TIMEOUT, 0.0
        then, self._received, self._busy = self._received, None, False
        if then is not None:
            self._act(then)

    def _resume_after_reception(self) -> None:
        self._end_reception()
        self._serve()

    # --- lines ------------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        """Answers every whole line there is, until one must be waited for."""
        while not self._busy and self.transport is not None and not self.transport.is_closing():
            end = self._input.find(b"\n")
            if end < 0:
                if len(self._input) > MAX_LINE:
                    del self._input[MAX_LINE:]  # the rest of a line too long is read away
                if self._ended:
                    self._close()
                break
            line = bytes(self._input[:end])
            del self._input[: end + 1]
            line = line.removesuffix(b"\r") if len(line) < MAX_LINE else b""
            self._act(lambda line=line: self.answer(line))  # type: ignore[misc]  # a default binds the loop's value
        self._flush()
        if self._paused_reading and not self._busy and len(self._input) < MAX_WAITING and self.transport is not None:
            self._paused_reading = False
            self.transport.resume_reading()  # type: ignore[attr-defined]

    def _act(self, call: Callable[[], Answer]) -> None:
        """Says what `call` answers, at once or when it is known."""
        try:
            answer = call()
        except Exception as error:
            self._say_trouble(error)
            return
        if answer is None:
            return
        if isinstance(answer, Reply):
            self.say(answer)
            return
        self._busy = True
        task = self.loop.create_task(answer) if isinstance(answer, Coroutine) else answer
        task.add_done_callback(self._answered)

    def _answered(self, task: "asyncio.Task[Any]") -> None:
        self._busy = False
        if task.cancelled():
            self._close()
            return
        error = task.exception()
        if isinstance(error, TLSSetupException):
            self.connection_lost(None)  # asyncio does not call it where the handshake failed
            return
        if error is not None:
            self._say_trouble(error)
        elif (reply := task.result()) is not None:
            self.say(reply)
        self._deadline = self.loop.time() + self._patience
        self._serve()

    def _say_trouble(self, error: BaseException) -> None:
        """Our own fault: 451 and no more; the log has the rest."""
        log.trouble(ids.new(clock.now()), error)
        self.drop_mail()
        self.say(replies.TROUBLE)

    # --- out --------------------------------------------------------------------------------------------------------

    def say(self, reply: Reply) -> None:
        """Kept until the input runs dry, so that pipelined commands are answered in one packet (RFC 2920 §3.2)."""
        self._output.append(rendered(reply))
        if reply.code >= 400:
            self._errors += 1
        if reply.code in (221, 421):
            self._close()
        elif self._errors > MAX_ERRORS:
            self._output.append(rendered(replies.TOO_MANY_ERRORS))
            self._close()

    def _flush(self) -> None:
        if self._output and self.transport is not None:
            self.transport.write(self._output[0] if len(self._output) == 1 else b"".join(self._output))  # type: ignore[attr-defined]
        self._output.clear()

    def _close(self) -> None:
        self._flush()
        if self.transport is not None:
            self.transport.close()

    async def push(self, status: str | bytes) -> None:
        """What aiosmtpd itself has to say (STARTTLS)."""
        self._output.append((status.encode("ascii") if isinstance(status, str) else status) + b"\r\n")
        self._flush()

    # --- the life of a connection -------------------------------------------------------------------------------------

    async def _handle_client(self) -> None:
        """aiosmtpd starts it with the connection and cancels it at its end; the work is done elsewhere."""
        self.arrived()

    def _reset_timeout(self, duration: float | None = None) -> None:
        """One timer for a connection: it looks whether the deadline has moved on."""
        self._deadline = self.loop.time() + self._patience
        if self._timeout_handle is None:
            self._arm()

    def expect_commands(self) -> None:
        """The patience of every day."""
        self._patience = COMMAND_TIMEOUT
        self._deadline = self.loop.time() + COMMAND_TIMEOUT

    def _arm(self) -> None:
        if self._timeout_handle is not None:
            self._timeout_handle.cancel()
        when = min(self._deadline, self._data_deadline or self._deadline)
        self._timeout_handle = self.loop.call_at(when, self._timeout_cb)

    def _timeout_cb(self) -> None:
        now = self.loop.time()
        if self._busy and self._reception is None:
            self._deadline = now + self._patience  # it is we who are slow
        if now < self._deadline and not (self._data_deadline and now >= self._data_deadline):
            self._arm()
        else:
            self.give_up(replies.TIMEOUT)

    def give_up(self, reply: Reply) -> None:
        """Ends the session, at once where the peer does not read: it would keep its descriptor for ever."""
        self.say(reply)
        if self.transport is not None and self.transport.get_write_buffer_size():  # type: ignore[attr-defined]
            self.transport.abort()  # type: ignore[attr-defined]


@lru_cache(maxsize=512)
def rendered(reply: Reply) -> bytes:
    """A reply as on the wire; most are among a few dozen."""
    return reply.render()


@lru_cache(maxsize=1)
def _findings(loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    """What aiosmtpd's constructor sets on a session, but for the streams."""
    # With a callback, as in the session: only then does the protocol hold its reader (_strong_reader).
    streams = vars(asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), lambda *_: None, loop))
    return {name: value for name, value in vars(SMTP(None, loop=loop)).items() if name not in streams}
