"""A connection from its first byte to its greeting: who it is, and TLS where that comes first.

Knows alone: the order of what precedes a greeting (PROXY header, handshake), and that until then nothing is said: who
does it wrong is cut off. A session counts as its socket's peer until a header names another.
"""

from asyncio import BaseTransport, Future, Transport, sslproto
from collections.abc import Awaitable
from ssl import SSLContext
from typing import TYPE_CHECKING, Any, cast

from aiosmtpd.smtp import TLSSetupException

from relay import log
from relay.smtp import proxied
from relay.smtp.conversation import Conversation
from relay.smtp.door import Kind
from rules import replies
from rules.peer import is_trusted, plain
from rules.replies import Reply

if TYPE_CHECKING:
    from relay.smtp.listener import Listener

HEADER_TIMEOUT = 10.0  # seconds; a proxy sends it with the connection


class Arrival(Conversation):
    """Subclasses say `welcome`, and go on from there."""

    def __init__(self, listener: "Listener", kind: Kind) -> None:
        super().__init__(listener.config.relay.hostname, listener.tls_context(), listener.loop)
        self._listener = listener
        self._kind = kind
        self._header: bytearray | None = None  # what has come of it, while it is awaited
        self._client: proxied.Client | proxied.Nobody | None = None  # as a proxy has it
        self._greeted = False
        self._shaking_hands = False

    def welcome(self) -> Reply:
        """The greeting; the peer is known now."""
        raise NotImplementedError

    @property
    def peer_ip(self) -> str:
        peer: Any = self.session.peer if self.session is not None else None
        if isinstance(self._client, proxied.Client):
            ip = self._client.ip
        else:
            ip = str(peer[0]) if isinstance(peer, tuple) else "127.0.0.1"  # a Unix socket has no address
        return plain(ip)

    @property
    def is_idle(self) -> bool:
        raise NotImplementedError

    @property
    def is_nobody(self) -> bool:
        """The proxy itself, or somebody it has no address of: in no network that could be trusted."""
        return isinstance(self._client, proxied.Nobody)

    @property
    def silent_since(self) -> float | None:
        return self._deadline - self._patience if self._shaking_hands else super().silent_since

    # --- before the greeting ------------------------------------------------------------------------------------------

    def arrived(self) -> None:
        refused = self._listener.opened(self)
        if not is_trusted(self.peer_ip, self._listener.intake.proxies):
            self._come_in(refused)
        elif refused is not None:
            self._cut()
        else:
            self._header = bytearray()
            self._patience = HEADER_TIMEOUT
            self._deadline = self.loop.time() + HEADER_TIMEOUT
            self._arm()

    def data_received(self, data: bytes) -> None:
        if self._header is None:
            super().data_received(data)
            return
        self._header += data
        found = proxied.parse(bytes(self._header))
        if isinstance(found, proxied.More):
            return
        source, length = found
        if isinstance(source, proxied.Malformed):
            log.proxy_refused(self.peer_ip, "malformed")
            self._cut()
            return
        rest, self._header = bytes(self._header[length:]), None
        self._listener.closed(self)
        self._client = source
        self.expect_commands()
        self._come_in(self._listener.opened(self), rest)

    def _come_in(self, refused: Reply | None, rest: bytes = b"") -> None:
        """`rest` is what followed the header."""
        if self._kind is not Kind.SUBMISSIONS:
            self.say(refused or self._greeting())
            super().data_received(rest)
        elif refused is not None or (context := self._listener.tls_context()) is None:
            self._cut()
        else:
            shaken = self.shake_hands(context, rest)
            self._act(lambda: self._greet_secured(shaken))

    def _greeting(self) -> Reply:
        self._greeted = True
        return self.welcome()

    async def _greet_secured(self, shaken: Awaitable[None]) -> Reply:
        await shaken
        return self._greeting()

    def shake_hands(self, context: SSLContext, rest: bytes = b"") -> Awaitable[None]:
        """From here on inside TLS, `rest` being the first of it, and to be waited for.

        aiosmtpd's own has no `rest`, and what comes before its task begins is lost.
        """
        waiter = self.loop.create_future()
        tls = sslproto.SSLProtocol(self.loop, self, context, waiter, server_side=True)
        below = cast(Transport, self.transport)
        self._tls_protocol, self._original_transport = tls, below
        below.set_protocol(tls)
        self.transport = cast(BaseTransport, tls._app_transport)  # as aiosmtpd has it
        self._shaking_hands = True
        tls.connection_made(below)
        while rest:
            buffer = tls.get_buffer(len(rest))
            size = min(len(buffer), len(rest))
            buffer[:size] = rest[:size]
            rest = rest[size:]
            tls.buffer_updated(size)
        return self._shaken(waiter)

    async def _shaken(self, waiter: Future[None]) -> None:
        try:
            await waiter
        except Exception as error:
            raise TLSSetupException from error
        finally:
            self._shaking_hands = False
        if self.session is None or self.session.ssl is None:  # cut off in the middle
            raise TLSSetupException

    # --- the end ------------------------------------------------------------------------------------------------------

    def _cut(self) -> None:
        """Without a word."""
        if self.transport is not None:
            self.transport.abort()  # type: ignore[attr-defined]  # a Transport, not the base

    def stop(self) -> None:
        """The relay stops: mail data in progress is finished, then 421."""
        if not self._greeted or self._shaking_hands:
            self._cut()
        elif self.is_idle:
            self.say(replies.SHUTDOWN)

    def give_up(self, reply: Reply) -> None:
        if self._greeted and not self._shaking_hands:
            super().give_up(reply)
            return
        if self._header is not None:
            log.proxy_refused(self.peer_ip, "no header")
        self._cut()

    def connection_lost(self, error: Exception | None) -> None:
        self._listener.closed(self)
        super().connection_lost(error)
