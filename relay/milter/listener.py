"""The milter's sockets: who may connect, how many at once, and how they end when the relay stops."""

import asyncio
import contextlib
import socket
import stat
from collections.abc import Sequence
from pathlib import Path

from relay.accept import Intake
from relay.config import Config, milter_place
from relay.milter.connection import Connection

MAX_CONNECTIONS = 1000
BACKLOG = 256
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
        self._connections: set[Connection] = set()

    async def start(self, sockets: Sequence[socket.socket]) -> None:
        """Listens on what `bind` gave."""
        loop = asyncio.get_running_loop()
        for sock in sockets:
            if sock.family == socket.AF_UNIX:
                self._paths.append(Path(sock.getsockname()))
                server = await loop.create_unix_server(self._connection, sock=sock, backlog=BACKLOG)
            else:
                server = await loop.create_server(self._connection, sock=sock, backlog=BACKLOG)
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
            for connection in list(self._connections):
                if connection.idle:
                    connection.close()
            await asyncio.sleep(0.05)
        for late in list(self._connections):
            late.give_up()

    def _connection(self) -> Connection:
        return Connection(self._intake, begun=self._begin, ended=self._connections.discard)

    def _begin(self, connection: Connection) -> bool:
        """Is there room for it?"""
        if len(self._connections) >= MAX_CONNECTIONS:
            return False
        self._connections.add(connection)
        return True
