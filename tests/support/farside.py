"""A scripted SMTP server: says what it is told to each verb, odd or not, and keeps what it hears.

    async with listening(Far({"RCPT": b"550 5.1.1 unknown\\r\\n"})) as where:
        ...

For what is ordinary use stock aiosmtpd; this is for what no real server can be made to do.
"""

import asyncio
import ssl
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from relay.deliver import Destination

Say = bytes | None | Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]
HANG_UP = b""
SILENT = None
USUAL: Mapping[str, Say] = {
    "BANNER": b"220 mx.meg.test\r\n",
    "EHLO": b"250-mx.meg.test\r\n250-PIPELINING\r\n250-SIZE 20000000\r\n250 8BITMIME\r\n",
    "HELO": b"250 mx.meg.test\r\n",
    "MAIL": b"250 2.1.0 ok\r\n",
    "RCPT": b"250 2.1.5 ok\r\n",
    "DATA": b"354 go\r\n",
    "DOT": b"250 2.0.0 queued as A1\r\n",
    "RSET": b"250 ok\r\n",
    "QUIT": b"221 bye\r\n",
}


@dataclass
class Far:
    """Says what `script` says to each verb. A list gives one answer after another; HANG_UP closes, SILENT waits."""

    script: Mapping[str, Say | list[Say]] = field(default_factory=dict)
    context: ssl.SSLContext | None = None
    commands: list[str] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)  # with their dots, without the last
    connections: int = 0

    def __post_init__(self) -> None:
        self._asked: Counter[str] = Counter()

    def answer(self, verb: str) -> Say:
        say = self.script.get(verb, USUAL.get(verb, b"500 what?\r\n"))
        self._asked[verb] += 1
        return say[min(self._asked[verb], len(say)) - 1] if isinstance(say, list) else say

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            await self._converse(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            pass  # the test is over for this connection
        finally:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        verb, line = "BANNER", b""
        while True:
            say = self.answer(verb)
            if say is SILENT:
                await reader.read()
                return
            if say == HANG_UP:
                return
            if callable(say):
                await say(reader, writer)
            else:
                assert isinstance(say, bytes)
                writer.write(say)
                if verb == "STARTTLS" and say.startswith(b"220"):
                    assert self.context
                    await writer.start_tls(self.context)
                if verb == "DATA" and say.startswith(b"354"):
                    verb = "DOT"
                    self.messages.append(await content(reader))
                    continue
            line = await reader.readuntil(b"\r\n")
            self.commands.append(line.decode().rstrip())
            verb = line.split()[0].decode().upper()


async def content(reader: asyncio.StreamReader) -> bytes:
    lines = []
    while (line := await reader.readuntil(b"\r\n")) != b".\r\n":
        lines.append(line)
    return b"".join(lines)


@asynccontextmanager
async def listening(far: Far) -> AsyncIterator[Destination]:
    server = await asyncio.start_server(far.serve, "127.0.0.1", 0, limit=1 << 20)
    async with server:
        yield Destination("mx.meg.test", "127.0.0.1", server.sockets[0].getsockname()[1])


@contextmanager
def in_a_thread(hosts: Iterable[Far]) -> Iterator[list[int]]:
    """Their ports, while all listen in a thread of their own: the command that speaks to them is run and waited for."""
    loop = asyncio.new_event_loop()
    starting = [asyncio.start_server(far.serve, "127.0.0.1", 0, limit=1 << 20) for far in hosts]
    servers = [loop.run_until_complete(server) for server in starting]
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield [server.sockets[0].getsockname()[1] for server in servers]
    finally:
        asyncio.run_coroutine_threadsafe(_end(servers), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end(servers: list[asyncio.Server]) -> None:
    for server in servers:
        server.close()
    under_way = asyncio.all_tasks() - {asyncio.current_task()}
    for task in under_way:
        task.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)
