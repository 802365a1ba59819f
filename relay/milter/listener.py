"""The milter's sockets: who may connect, how many at once, and how a connection ends.

Knows alone: that a connection which cannot be understood, or in which we fail, is closed without a verdict: the MTA then
does what its settings say of a filter that is away, which is to be "try again later" and never "accept".
"""

import asyncio
import contextlib
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

from relay import log
from relay.accept import Intake
from relay.config import Config, milter_place
from relay.milter.answers import Answer, render
from relay.milter.commands import Packets, ProtocolError, Quit
from relay.milter.session import Session

MAX_CONNECTIONS = 1000
BACKLOG = 256
CHUNK = 1 << 16
SILENT_AT_MOST = 7210.0  # seconds; libmilter's own, longer than an SMTP client may be silent (RFC 5321 §4.5.3.2)
STOP_WITHIN = 30.0  # seconds for mails in progress


def bind(config: Config) -> list[socket.socket]:
    """A socket for each of [milter] listen. Raises OSError, naming the place."""
    bound: list[socket.socket] = []
    for text in config.milter.listen:
        try:
            place = milter_place(text)
            bound += [_unix(place)] if isinstance(place, Path) else _inet(*place)
        except OSError as error:
            remedy = "Remedy: see what listens there, or [milter] listen"
            raise OSError(error.errno, f"{text}: {error.strerror}. {remedy}") from None
    return bound


def _inet(host: str, port: int) -> list[socket.socket]:
    return [
        socket.create_server(address[:2], family=family, backlog=BACKLOG)
        for family, _, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    ]


def _unix(path: Path) -> socket.socket:
    """Open to our group, which the MTA's user is to be in. What a dead relay left there is taken away."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and sock.connect_ex(str(path)):
            path.unlink()
        sock.close()
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        path.chmod(0o660)
    except OSError:
        sock.close()
        raise
    return sock


class Milter:
    """`start`, then `stop`; in between it knows every connection."""

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._servers: list[asyncio.Server] = []
        self._paths: list[Path] = []
        self._connections: dict[asyncio.Task[None], tuple[Session, asyncio.StreamWriter]] = {}

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Listens on what `bind` gave."""
        for sock in sockets:
            if sock.family == socket.AF_UNIX:
                self._paths.append(Path(sock.getsockname()))
                server = await asyncio.start_unix_server(self._connected, sock=sock, backlog=BACKLOG, limit=CHUNK)
            else:
                server = await asyncio.start_server(self._connected, sock=sock, backlog=BACKLOG, limit=CHUNK)
            self._servers.append(server)

    async def stop(self) -> None:
        """No new connection; idle ones end; mails in progress are finished and answered."""
        for server in self._servers:
            server.close()
        for path in self._paths:
            with contextlib.suppress(OSError):
                path.unlink()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + STOP_WITHIN
        while self._connections and loop.time() < deadline:
            for session, writer in self._connections.values():
                if session.idle:
                    writer.close()
            await asyncio.sleep(0.05)
        late = list(self._connections)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        session = Session(self._intake, lambda answer: _write(writer, answer))
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._connections[task] = session, writer
        try:
            await _converse(session, reader, writer)
        except (OSError, TimeoutError):
            pass  # the MTA is gone, or silent for longer than any client may be
        except ProtocolError as error:
            log.milter_broken(str(error))
        except Exception as error:
            log.trouble("milter", error)
        finally:
            session.drop_mail()
            del self._connections[task]
            writer.close()


def _write(writer: asyncio.StreamWriter, answer: Answer) -> None:
    writer.write(render(answer))


async def _converse(session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until QUIT or the end of the connection. A connection that broke is not ended by a verdict."""
    packets = Packets()
    while True:
        async with asyncio.timeout(SILENT_AT_MOST):
            data = await reader.read(CHUNK)
        if not data:
            return
        for command in packets.feed(data):
            if isinstance(command, Quit):
                return
            await session.take(command)
        await writer.drain()
