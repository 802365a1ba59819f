"""The listening sockets: how they come to be, who may connect, and how many at once.

Knows alone: the limits on connections, and who goes when there are too many. Limits: each process counts its own.
"""

import asyncio
import errno
import resource
import socket
import ssl
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from relay import clock
from relay.accept import Intake
from relay.config import Config, endpoint, submission_endpoint
from relay.passwords import Comparisons
from relay.smtp.arrival import Arrival
from relay.smtp.certificate import Certificate
from relay.smtp.door import Door, Kind
from relay.smtp.inherited import inherited
from relay.smtp.session import Session
from rules import replies
from rules.replies import Reply

MAX_CONNECTIONS = 2000
MAX_PER_PEER = 500
BACKLOG = 512
SPARE_FILES = 256  # descriptors kept for what is no connection
STOP_WITHIN = 30.0  # seconds for mail data in progress


def bind(config: Config) -> list[list[Door]]:
    """For each of [smtp] processes a door at every address of listen and submission: before privileges are dropped.

    The kernel spreads connections over the sockets of one port (SO_REUSEPORT, socket(7)). Sockets that systemd hands
    over stand in place of all addresses, and are shared as they are. Raises OSError, naming the address.
    """
    handed = inherited()
    if handed:
        _need_certificate(config, handed)
        return [handed, *([door.dup() for door in handed] for _ in range(config.smtp.processes - 1))]
    shares: list[list[Door]] = [[] for _ in range(config.smtp.processes)]
    for text, kind, (host, port) in _places(config):
        try:
            for family, type_, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                # Alone at first: who joins a port that another relay serves would take half of its mail.
                with _bound(family, type_, address) as alone:
                    address = alone.getsockname()
                for share in shares:
                    share.append(Door(_bound(family, type_, address, socket.SO_REUSEPORT), kind))
        except OSError as error:
            key = "submission" if kind.is_for_users else "listen"
            why = f"{text}: {error.strerror}. Remedy: see what listens there, or [smtp] {key}"
            raise OSError(error.errno, why) from None
    return shares


def _places(config: Config) -> Iterator[tuple[str, Kind, tuple[str, int]]]:
    for text in config.smtp.listen:
        yield text, Kind.SMTP, endpoint(text)
    for text in config.smtp.submission:
        host, port, tls_first = submission_endpoint(text)
        yield text, Kind.SUBMISSIONS if tls_first else Kind.SUBMISSION, (host, port)


def _need_certificate(config: Config, doors: Sequence[Door]) -> None:
    """For doors of [smtp] submission the settings have been asked already."""
    if not config.smtp.certificate and any(door.kind.is_for_users for door in doors):
        raise OSError(errno.EINVAL, "a socket for submission needs a certificate. Remedy: [smtp] certificate and key")


def _bound(family: int, kind: int, address: Any, *options: int) -> socket.socket:
    sock = socket.socket(family, kind)
    try:
        for option in (socket.SO_REUSEADDR, *options):
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def addresses(doors: Sequence[Door]) -> list[str]:
    """As bound, "host:port"."""
    places = [door.socket.getsockname()[:2] for door in doors]
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in places]


def _room() -> int:
    """How many connections the limit on descriptors leaves room for, each with a file of the spool besides.

    Without that a mail would fail where its file cannot be opened, and a filing with it. The soft limit is ours to raise.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    wanted = 2 * MAX_CONNECTIONS + BACKLOG + SPARE_FILES
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(1, (max(soft, most) - SPARE_FILES) // 2)


class Listener:
    """`start`, then `stop`; in between it knows every session."""

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.loop = asyncio.get_running_loop()
        self._servers: list[asyncio.Server] = []
        self._room = MAX_CONNECTIONS
        self._sessions: set[Arrival] = set()
        self._peers: defaultdict[str, set[Arrival]] = defaultdict(set)
        self.comparisons = Comparisons()
        self._certificate = Certificate()
        self._stopping = False

    async def start(self, doors: Sequence[Door]) -> None:
        """Listens on one share of what `bind` gave, or on another one too."""
        self.tls_context()
        self._room = _room()
        for door in doors:
            server = await self.loop.create_server(partial(Session, self, door.kind), sock=door.socket, backlog=BACKLOG)
            self._servers.append(server)

    async def stop(self) -> None:
        """No new connection; idle ones get 421; mail data in progress is finished and answered."""
        self._stopping = True
        self.intake.hurry()
        for server in self._servers:
            server.close()
        deadline = self.loop.time() + STOP_WITHIN
        while self._sessions and self.loop.time() < deadline:
            for session in list(self._sessions):
                session.stop()
            await asyncio.sleep(0.05)

    def now(self) -> datetime:
        return clock.now()

    @property
    def config(self) -> Config:
        return self.intake.config

    # --- sessions ---------------------------------------------------------------------------------------------------

    def opened(self, session: Arrival) -> Reply | None:
        """A new conversation; the reply that turns it away, or None."""
        if self._stopping:
            return replies.SHUTDOWN
        held = len(self._peers.get(session.peer_ip, ()))
        full = len(self._sessions) >= min(self._room, MAX_CONNECTIONS)
        if held >= MAX_PER_PEER or (full and not self._make_room(held)):
            return replies.TOO_MANY_CONNECTIONS
        self._sessions.add(session)
        self._peers[session.peer_ip].add(session)
        return None

    def _make_room(self, held: int) -> bool:
        """Full: whoever has most gives way, by the connection that was silent longest, to one that `held` fewer.

        So nobody keeps others out by opening many, from one address or from twenty.
        """
        most = max(self._peers.values(), key=len, default=set())
        silent = {each: since for each in most if (since := each.silent_since) is not None}
        if len(most) <= held + 1 or not silent:
            return False
        longest = min(silent, key=silent.__getitem__)
        self.closed(longest)
        longest.give_up(replies.TOO_MANY_CONNECTIONS)
        return True

    def closed(self, session: Arrival) -> None:
        if session not in self._sessions:
            return
        self._sessions.remove(session)
        of_peer = self._peers[session.peer_ip]
        of_peer.discard(session)
        if not of_peer:
            del self._peers[session.peer_ip]

    def tls_context(self) -> ssl.SSLContext | None:
        """The certificate as it stands on disk now; the last good one while a new one cannot be read."""
        return self._certificate.context(self.config.smtp)
