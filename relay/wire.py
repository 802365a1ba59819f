"""The octets of one client connection: lines in, octets out, each within a time limit.

Knows alone: sockets, TLS handshakes, flow control, how octets leave from their file without passing through here, and the
dots of RFC 5321 §4.5.2. What goes wrong on the far side is `Trouble`, whatever asyncio or OpenSSL call it; a line that had
arrived whole before the end is still read.
Limits: one reader and one writer, which take turns.
"""

import asyncio
import os
import ssl

from rules.outcome import Fault

MAX_LINE = 4096  # RFC 5321 §4.5.3.1.5 says 512; some say more
MAX_PENDING = 64 * 1024  # of what nobody asked for
HIGH_WATER = 512 * 1024
STEP = 1 << 20  # octets of a file in one call: the loop is others' too
MANY_DOTS = 1000


class Trouble(Exception):
    """The far side, or the way there, failed us."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


class Line(asyncio.Protocol):
    """A connection, once `connect` has returned. `lost` is true before that, and again when it has ended."""

    def __init__(self) -> None:
        self.lost = True
        self._end = ""  # why
        self._buffer = bytearray()
        self._arrival: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    async def connect(self, address: str, port: int, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await asyncio.get_running_loop().create_connection(lambda: self, address, port)
        except TimeoutError:
            raise Trouble(Fault.TIMEOUT, f"no connection within {seconds:g} s") from None
        except OSError as error:
            raise Trouble(Fault.REFUSED, error.strerror or str(error)) from None

    async def secure(self, context: ssl.SSLContext, name: str | None, *, seconds: float) -> ssl.SSLObject:
        """Starts TLS with `name` as SNI. What came in clear and unasked is forgotten (CVE-2011-0411)."""
        assert self._transport is not None
        self._buffer.clear()
        try:
            async with asyncio.timeout(seconds):
                transport = await asyncio.get_running_loop().start_tls(
                    self._transport, self, context, server_hostname=name
                )
        except TimeoutError:
            raise Trouble(Fault.TLS, f"no handshake within {seconds:g} s") from None
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError; ValueError: of a name that is none
            raise Trouble(Fault.TLS, str(error) or type(error).__name__) from None
        if transport is None:
            raise Trouble(Fault.TLS, "the line went down during the handshake")
        self.connection_made(transport)
        secured: ssl.SSLObject = transport.get_extra_info("ssl_object")
        return secured

    def write(self, octets: bytes) -> None:
        """Hands over octets; that they did not arrive shows in the next `read` or `drain`."""
        if self._transport is not None and not self.lost:
            self._transport.write(octets)

    async def drain(self, seconds: float) -> None:
        """Waits until there is room for more."""
        if self._room is not None:
            await _within(self._room, seconds)
        elif self._transport is not None and self._transport.is_closing():
            await asyncio.sleep(0)  # lets the end be told
        if self.lost:
            raise Trouble(Fault.LOST, self._end)

    async def send_file(self, fd: int, offset: int, *, size: int, seconds: float) -> None:
        """Has the kernel send octets of a file, which do not pass through here. In clear only.

        Each step has `seconds`. Ends early where the far side says something: look at `pending`.
        """
        assert self._transport is not None
        await self._emptied(self._transport, seconds)
        # The transport will not let its own descriptor be watched by another.
        out = os.dup(self._transport.get_extra_info("socket").fileno())
        try:
            while size and not self._buffer:
                sent = await self._step(out, fd, offset=offset, size=min(size, STEP), seconds=seconds)
                offset, size = offset + sent, size - sent
        finally:
            os.close(out)

    async def _emptied(self, transport: asyncio.Transport, seconds: float) -> None:
        """Waits until all that was written is with the kernel."""
        transport.set_write_buffer_limits(0)
        try:
            await self.drain(seconds)
        finally:
            transport.set_write_buffer_limits(HIGH_WATER)

    async def _step(self, out: int, fd: int, *, offset: int, size: int, seconds: float) -> int:
        if self.lost:
            raise Trouble(Fault.LOST, self._end)
        try:
            sent = os.sendfile(out, fd, offset, size)
        except BlockingIOError:
            await self._writable(out, seconds)
            return 0
        except OSError as error:
            await asyncio.sleep(0)  # what the far side said before it hung up is read first
            raise Trouble(Fault.LOST, error.strerror or str(error)) from None
        if not sent:
            raise EOFError("the file is shorter than it was")
        return sent

    async def _writable(self, out: int, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._room = loop.create_future()
        loop.add_writer(out, _wake, self._room)
        try:
            await _within(self._room, seconds)
        finally:
            loop.remove_writer(out)
            self._room = None

    async def read(self, seconds: float) -> bytes:
        """The next line, with its LF."""
        while (line := self.next()) is None:
            if self.lost:
                raise Trouble(Fault.LOST, self._end)
            self._arrival = asyncio.get_running_loop().create_future()
            await _within(self._arrival, seconds)
        return line

    def next(self) -> bytes | None:
        """The next line, if it is there."""
        end = self._buffer.find(b"\n") + 1
        if (end or len(self._buffer)) > MAX_LINE:
            raise Trouble(Fault.PROTOCOL, "line too long")
        if not end:
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[:end]
        return line

    @property
    def pending(self) -> bool:
        """Has anything come in that was not read?"""
        return bool(self._buffer)

    def abort(self) -> None:
        """Ends the connection now; what was not sent yet is not sent."""
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.lost = False
        transport.set_write_buffer_limits(HIGH_WATER)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if len(self._buffer) > MAX_PENDING:
            self._ended("flooded")
            self.abort()
        _wake(self._arrival)

    def eof_received(self) -> None:
        self._ended("connection closed by the far side")

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(str(exc) if exc else "connection closed")

    def pause_writing(self) -> None:
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        _wake(self._room)
        self._room = None

    def _ended(self, why: str) -> None:
        self.lost = True
        self._end = self._end or why
        _wake(self._arrival)
        _wake(self._room)
        self._room = None


async def _within(future: asyncio.Future[None], seconds: float) -> None:
    # Half of what asyncio.timeout costs, and it is twice a mail.
    alarm = asyncio.get_running_loop().call_later(seconds, _expire, future, seconds)
    try:
        await future
    finally:
        alarm.cancel()


def _expire(future: asyncio.Future[None], seconds: float) -> None:
    if not future.done():
        future.set_exception(Trouble(Fault.TIMEOUT, f"no progress within {seconds:g} s"))


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


class DotStuffer:
    """Doubles the dot that begins a line (RFC 5321 §4.5.2), wherever the chunks are cut."""

    def __init__(self) -> None:
        self._last = b"\r\n"  # the last two octets so far: a message begins at the beginning of a line

    def feed(self, chunk: bytes) -> bytes:
        last = self._last
        self._last = (last + chunk[-2:])[-2:]
        if last == b"\r\n" and chunk.startswith(b"."):
            chunk = b"." + chunk
        elif last.endswith(b"\r") and chunk.startswith(b"\n."):
            chunk = b"\n." + chunk[1:]
        return chunk.replace(b"\r\n.", b"\r\n..")

    def end(self) -> bytes:
        """The end of the message; with the CRLF before it where the message lacks its own."""
        return b".\r\n" if self._last == b"\r\n" else b"\r\n.\r\n"


class LineDots:
    """Where the dots are that begin a line, for a message that is to leave from its file; wherever the chunks are cut.

    `last` are the last two octets so far, at first those before the first chunk. `found` counts from there, and is None
    where there are too many to remember.
    """

    def __init__(self, last: bytes) -> None:
        self.last = last
        self._at = 0
        self._found: list[int] = []

    @property
    def found(self) -> tuple[int, ...] | None:
        return tuple(self._found) if len(self._found) <= MANY_DOTS else None

    def feed(self, chunk: bytes) -> None:
        if b"." in chunk and len(self._found) <= MANY_DOTS:  # base64 has none: then this is all
            seen = self.last + chunk
            start = self._at - len(self.last) + 2
            at = seen.find(b"\r\n.")
            while at >= 0 and len(self._found) <= MANY_DOTS:
                self._found.append(start + at)
                at = seen.find(b"\r\n.", at + 3)
        self._at += len(chunk)
        self.last = (self.last + chunk[-2:])[-2:]
