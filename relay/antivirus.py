"""A mail, shown to clamd before it is answered 250: clean, infected, or nobody there to say.

Knows alone: clamd's INSTREAM (clamd(8)): chunks with their length before them, an empty one at the end, one line of answer.
A client of our own: the libraries for it hold the whole stream, or block. The mail is read from the spool piece by piece.
Limits: what clamd finds inside archives, and up to which size, is in its own settings. Where its answer is not plain we
say Away, never Clean.
"""

import asyncio
import os
import re
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from relay.config import Antivirus, endpoint
from rules.replies import to_ascii

AT_ONCE = 10  # scans; clamd's own MaxThreads, beyond which it only queues
PIECE = 1 << 18
MAX_ANSWER = 4096
LAST = 5.0  # seconds for a scan, once the relay stops
_END = bytes(4)  # a chunk of no octets
_FOUND = re.compile(r"stream: (.+) FOUND")


@dataclass(frozen=True, slots=True)
class Clean:
    pass


@dataclass(frozen=True, slots=True)
class Infected:
    """`name` is the signature's, as clamd has it."""

    name: str


@dataclass(frozen=True, slots=True)
class Away:
    """No answer, or none that says something of the mail. `why` is fit for a log; so is the remedy."""

    why: str
    remedy: str


Answer = Clean | Infected | Away
Read = Callable[[int, int], bytes]  # offset, length → octets, as relay.spool.Incoming has it

_NOT_THERE = "start clamav-daemon, or mend [antivirus] clamd"
_TOO_SLOW = "see what keeps clamd busy, or raise [antivirus] timeout"
_TOO_SMALL = "set StreamMaxLength in clamd.conf to [smtp] max_message_size at least"
_READ_ITS_LOG = "see the log of clamd"


class Clamd:
    """The scanner. As many connections at once as it has threads; the time limit counts the wait for one of them."""

    def __init__(self, settings: Antivirus) -> None:
        self.settings = settings
        self._where = settings.clamd
        self._timeout = settings.timeout.total_seconds()
        self._room = asyncio.Semaphore(AT_ONCE)
        self._limits: set[asyncio.Timeout] = set()  # of those under way

    def hurry(self) -> None:
        """The relay stops: what is not known soon is not known, and the mail comes again."""
        self._timeout = min(self._timeout, LAST)
        soon = asyncio.get_running_loop().time() + self._timeout
        for limit in self._limits:
            if not limit.expired():
                limit.reschedule(min(limit.when() or soon, soon))

    async def scan(self, size: int, read: Read) -> Answer:
        """What clamd says of the mail of `size` octets that `read` reads."""
        said = await self._asked(b"zINSTREAM\0", size, read)
        return said if isinstance(said, Away) else _understood(said)

    async def version(self) -> str | Away:
        """Which clamd it is, with the age of its signatures."""
        pong = await self._asked(b"zPING\0")
        if isinstance(pong, Away):
            return pong
        if pong != "PONG":
            return Away(f"it says {_shown(pong)}", _NOT_THERE)
        said = await self._asked(b"zVERSION\0")
        return said if isinstance(said, Away) else _shown(said)

    async def _asked(self, command: bytes, size: int = 0, read: Read | None = None) -> str | Away:
        try:
            async with asyncio.timeout(self._timeout) as limit:
                self._limits.add(limit)
                try:
                    async with self._room:
                        return await self._converse(command, size, read)
                finally:
                    self._limits.discard(limit)
        except TimeoutError:
            return Away("no answer in time", _TOO_SLOW)
        except OSError as error:
            return Away(os.strerror(error.errno) if error.errno else type(error).__name__, _NOT_THERE)

    async def _converse(self, command: bytes, size: int, read: Read | None) -> str:
        loop = asyncio.get_running_loop()
        family, address = place(self._where)
        # A bare socket: a stream of asyncio forgets what was said before the far side hung up on us.
        with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
            await loop.sock_connect(sock, address)
            await loop.sock_sendall(sock, command)
            if read is not None:
                try:
                    await self._stream(sock, size, read)
                except ConnectionError:
                    pass  # it has had enough, and has said why before it hung up
            return await _line(sock)

    async def _stream(self, sock: socket.socket, size: int, read: Read) -> None:
        loop, offset = asyncio.get_running_loop(), 0
        while offset < size:
            piece = read(offset, PIECE)
            if not piece:
                raise EOFError("the mail is shorter than it was")
            await loop.sock_sendall(sock, struct.pack(">I", len(piece)) + piece)
            offset += len(piece)
        await loop.sock_sendall(sock, _END)


async def _line(sock: socket.socket) -> str:
    said = b""
    while b"\0" not in said and len(said) <= MAX_ANSWER:
        more = await asyncio.get_running_loop().sock_recv(sock, MAX_ANSWER)
        if not more:
            raise ConnectionAbortedError("no whole answer")
        said += more
    return said.partition(b"\0")[0].decode("utf-8", "replace").strip()


def _understood(said: str) -> Answer:
    if said == "stream: OK":
        return Clean()
    if found := _FOUND.fullmatch(said):
        return Infected(found[1])
    if "size limit exceeded" in said:
        return Away("the mail exceeds what clamd takes", _TOO_SMALL)
    return Away(f"it says {_shown(said)}", _READ_ITS_LOG)


def _shown(said: str) -> str:
    return to_ascii(said)[:100]


def place(clamd: str) -> tuple[int, str | tuple[str, int]]:
    """ "unix:/run/clamav/clamd.ctl" or "tcp:127.0.0.1:3310" → socket family and address. ValueError otherwise."""
    kind, _, rest = clamd.partition(":")
    if kind == "unix" and rest.startswith("/"):
        return socket.AF_UNIX, rest
    if kind != "tcp":
        raise ValueError(clamd)
    host, port = endpoint(rest)
    return socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port)
