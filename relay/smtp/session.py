"""One SMTP conversation (RFC 5321), with PIPELINING, CHUNKING, SIZE, 8BITMIME, ENHANCEDSTATUSCODES and STARTTLS.

A subclass of aiosmtpd's SMTP: it gives the transport, the STARTTLS upgrade and the life of a connection; the loop, the
verbs and the mail data are ours (aiosmtpd reads DATA line by line, answers 500 to its own troubles, and has no BDAT).
Knows alone: the order of verbs and the limits of a conversation. What an address or a mail deserves is asked of
relay.accept. Limits: one mail at a time per connection, as the protocol has it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aiosmtpd.smtp import SMTP, TLSSetupException

from relay import ids, log
from relay.accept import Transaction
from relay.draft import Envelope, Recipient
from relay.smtp.reception import Chunk, Data, Limits, Reception
from rules import path, replies
from rules.replies import Reply

if TYPE_CHECKING:
    from relay.smtp.listener import Listener

MAX_LINE = 4096  # RFC 5321 §4.5.3.1.4 asks for 512 and more with extensions
MAX_WAITING = 1 << 18  # bytes of pipelined commands kept while one is served
MAX_ERRORS = 20  # as Postfix's smtpd_hard_error_limit
MAX_RECIPIENTS = 100  # RFC 5321 §4.5.3.1.8
COMMAND_TIMEOUT = 300.0  # seconds; RFC 5321 §4.5.3.2.7
CHUNK_TIMEOUT = 180.0  # between two pieces of mail data; §4.5.3.2.5
DATA_TIMEOUT = 3600.0  # for a whole mail


class Session(SMTP):
    """Bytes come in by `data_received`, are cut into lines, and each line is answered in turn."""

    def __init__(self, listener: "Listener") -> None:
        # aiosmtpd's constructor inspects every member of itself, a third of a millisecond: its findings are shared.
        reader = asyncio.StreamReader(loop=listener.loop)
        asyncio.StreamReaderProtocol.__init__(self, reader, self._cb_client_connected, listener.loop)
        self.__dict__.update(_findings(listener.loop))
        self.hostname = listener.config.relay.hostname
        self.tls_context = listener.tls_context()
        self._listener = listener
        self._intake = listener.intake
        self._input = bytearray()
        self._reception: Reception | None = None
        self._wakeup: asyncio.Future[None] | None = None
        self._output: list[bytes] = []
        self._ended = False
        self._errors = 0
        self._helo = ""
        self._protocol = "SMTP"
        self._sender: str | None = None
        self._recipients: list[Recipient] = []
        self._transaction: Transaction | None = None
        self._verbs: dict[bytes, Callable[[bytes], Awaitable[Reply | None]]] = {
            b"EHLO": self._ehlo,
            b"HELO": self._helo_,
            b"MAIL": self._mail,
            b"RCPT": self._rcpt,
            b"DATA": self._data,
            b"BDAT": self._bdat,
            b"RSET": self._rset,
            b"NOOP": self._noop,
            b"QUIT": self._quit,
            b"VRFY": self._vrfy,
            b"EXPN": self._vrfy,
            b"HELP": self._help,
            b"STARTTLS": self._starttls,
        }

    # --- bytes ------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._reception is not None:
            self._reset_timeout(CHUNK_TIMEOUT)
            data = self._reception.feed(data)
            if self._reception.complete:
                self._reception = None
                self._wake()
        self._input += data
        if len(self._input) > MAX_WAITING:
            self._pause()
        if data:
            self._wake()

    def eof_received(self) -> bool:
        """A client that closes its half after the dot still gets its answer."""
        self._ended = True
        if self._reception is not None:
            self._reception.cut()
            self._reception = None
        self._wake()
        return self._tls_protocol is None  # TLS has no half-close

    def connection_lost(self, error: Exception | None) -> None:
        if self._reception is not None:
            self._reception.cut()
            self._reception = None
        self._listener.closed(self)
        super().connection_lost(error)

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)

    async def _more(self) -> None:
        """Until more input, or the end of it."""
        self._flush()
        self._wakeup = self.loop.create_future()
        await self._wakeup

    async def _line(self) -> bytes | None:
        """The next command line without its CRLF; None at the end. A line too long is read away and given as empty."""
        start = 0
        while (end := self._input.find(b"\n", start)) < 0:
            if self._ended:
                return None
            start = len(self._input)
            if start > MAX_LINE:
                del self._input[:-1]
                start = 1
                self._resume()
            await self._more()
        line = bytes(self._input[:end])
        del self._input[: end + 1]
        self._resume()
        return line.removesuffix(b"\r") if len(line) <= MAX_LINE else b""

    def _pause(self) -> None:
        if self.transport is not None:
            self.transport.pause_reading()  # type: ignore[attr-defined]  # a Transport, not the base

    def _resume(self) -> None:
        if self.transport is not None and not self.transport.is_reading():  # type: ignore[attr-defined]
            self.transport.resume_reading()  # type: ignore[attr-defined]

    def _say(self, reply: Reply | bytes) -> None:
        """Kept until the input runs dry, so that pipelined commands are answered in one packet (RFC 2920 §3.2)."""
        self._output.append(reply if isinstance(reply, bytes) else reply.render())

    def _flush(self) -> None:
        if self._output and self.transport is not None:
            self.transport.write(b"".join(self._output))  # type: ignore[attr-defined]
        self._output.clear()

    async def push(self, status: str | bytes) -> None:
        """What aiosmtpd itself has to say (STARTTLS)."""
        self._say((status.encode("ascii") if isinstance(status, str) else status) + b"\r\n")
        self._flush()

    def _timeout_cb(self) -> None:
        self._say(replies.TIMEOUT)
        self._close()

    def _close(self) -> None:
        self._flush()
        if self.transport is not None:
            self.transport.close()

    # --- the conversation -------------------------------------------------------------------------------------------

    async def _handle_client(self) -> None:
        refused = self._listener.opened(self)
        if refused is not None:
            self._say(refused)
            self._close()
            return
        self._say(f"220 {self.hostname} ESMTP\r\n".encode())
        try:
            while self.transport is not None and not self.transport.is_closing():
                line = await self._line()
                if line is None:
                    break
                self._reset_timeout(COMMAND_TIMEOUT)
                await self._answer(line)
        finally:
            self._drop_mail()
            self._close()

    async def _answer(self, line: bytes) -> None:
        try:
            reply = await self._command(line)
        except (asyncio.CancelledError, ConnectionError):
            raise
        except TLSSetupException:
            self.connection_lost(None)  # asyncio does not call it where the handshake failed
            return
        except Exception as error:
            log.trouble(ids.new(self._listener.now()), error)
            self._drop_mail()
            reply = replies.TROUBLE
        if reply is None:
            return
        self._say(reply)
        if reply.code >= 400:
            self._errors += 1
        if reply.code == 421:
            self._close()
        elif self._errors > MAX_ERRORS:
            self._say(replies.TOO_MANY_ERRORS)
            self._close()

    async def _command(self, line: bytes) -> Reply | None:
        word, _, argument = line.partition(b" ")
        verb = self._verbs.get(word.upper())
        if verb is None:
            return _SYNTAX if not line else _UNKNOWN
        return await verb(argument)

    def stop(self) -> None:
        """The relay stops: mail data in progress is finished and answered, then 421."""
        idle = self._wakeup is not None and not self._wakeup.done()
        if idle and self._reception is None and self._transaction is None:
            self._say(replies.SHUTDOWN)
            self._close()

    # --- verbs ------------------------------------------------------------------------------------------------------

    async def _ehlo(self, argument: bytes) -> Reply | None:
        refused = self._greet(argument, "ESMTPS" if self._tls_protocol else "ESMTP")
        if refused is not None:
            return refused
        offers = [self.hostname, "PIPELINING", f"SIZE {int(self._listener.config.smtp.max_message_size)}", "8BITMIME"]
        if self.tls_context and not self._tls_protocol:
            offers.append("STARTTLS")
        return Reply(250, "", (*offers, "ENHANCEDSTATUSCODES", "CHUNKING"))

    async def _helo_(self, argument: bytes) -> Reply | None:
        return self._greet(argument, "SMTP") or Reply(250, "", (self.hostname,))

    def _greet(self, argument: bytes, protocol: str) -> Reply | None:
        name = argument.strip()
        if not name or len(name) > 255 or not all(0x21 <= byte <= 0x7E for byte in name):
            return Reply(501, "5.5.4", ("Nom d'hote attendu (host name expected)",))
        self._drop_mail()
        self._helo, self._protocol = name.decode("ascii"), protocol
        return None

    async def _mail(self, argument: bytes) -> Reply | None:
        if not self._helo:
            return _SEQUENCE
        if self._sender is not None or self._transaction is not None:
            return _SEQUENCE
        if argument[:5].upper() != b"FROM:":
            return replies.UNREADABLE
        found = path.parse(argument[5:])
        if isinstance(found, path.Problem):
            return path.REPLIES[found]
        refused = self._mail_parameters(found)
        if refused is not None:
            return refused
        if self._intake.disk_is_low():
            return replies.DISK_LOW
        self._sender = found.address
        return _SENDER_OK

    def _mail_parameters(self, found: path.Path) -> Reply | None:
        for keyword, value in found.parameters.items():
            if keyword == "SIZE" and value.isdigit() and len(value) <= 20:
                if int(value) > self._listener.config.smtp.max_message_size:
                    return replies.MESSAGE_TOO_BIG
            elif keyword in ("SIZE", "BODY") and not (keyword == "BODY" and value.upper() in ("7BIT", "8BITMIME")):
                return Reply(501, "5.5.4", (f"Parametre {keyword} incorrect (bad parameter)",))
            elif keyword != "BODY":
                return _NOT_OFFERED
        return None

    async def _rcpt(self, argument: bytes) -> Reply | None:
        if self._sender is None or self._transaction is not None:
            return _SEQUENCE
        if argument[:3].upper() != b"TO:":
            return replies.UNREADABLE
        found = path.parse(argument[3:])
        if isinstance(found, path.Problem):
            return path.REPLIES[found]
        if not found.local:
            return replies.UNREADABLE
        if found.parameters:
            return _NOT_OFFERED
        if len(self._recipients) >= MAX_RECIPIENTS:
            return replies.TOO_MANY_RECIPIENTS
        judged = await self._intake.recipient(found, self._intake.peer(self.peer_ip))
        if isinstance(judged, Reply):
            return judged
        self._recipients.append(judged)
        return replies.RECIPIENT_OK

    @property
    def peer_ip(self) -> str:
        peer: Any = self.session.peer if self.session is not None else None
        return str(peer[0]) if isinstance(peer, tuple) else "127.0.0.1"  # a Unix socket has no address

    def _begin(self) -> Transaction:
        envelope = Envelope(
            peer=self._intake.peer(self.peer_ip),
            helo=self._helo,
            protocol=self._protocol,
            tls=self._tls_version(),
            sender=self._sender or "",
        )
        return self._intake.begin(envelope, self._recipients)

    def _tls_version(self) -> str:
        ssl_object = self.transport.get_extra_info("ssl_object") if self.transport is not None else None
        return str(ssl_object.version()) if ssl_object is not None else ""

    async def _data(self, argument: bytes) -> Reply | None:
        if argument.strip():
            return Reply(501, "5.5.4", ("DATA sans argument (no argument allowed)",))
        if self._sender is None or self._transaction is not None:
            return _SEQUENCE
        if not self._recipients:
            return replies.NO_RECIPIENTS
        self._transaction = self._begin()
        self._say(b"354 Envoyez le message, fin par CRLF.CRLF (end with CRLF.CRLF)\r\n")
        data = Data(self._transaction, self._limits())
        await self._receive(data)
        return await self._end_of_mail(data)

    async def _bdat(self, argument: bytes) -> Reply | None:
        size, _, last = argument.strip().partition(b" ")
        if not size.isdigit() or len(size) > 12 or last.upper() not in (b"", b"LAST"):
            self._say(Reply(501, "5.5.4", ("BDAT taille [LAST] (size expected)",)))
            self._close()  # where the chunk ends cannot be known (RFC 3030 §2)
            return None
        refused = None if self._recipients else (_SEQUENCE if self._sender is None else replies.NO_RECIPIENTS)
        if refused is None and self._transaction is None:
            self._transaction = self._begin()
        chunk = Chunk(self._transaction, self._limits(), int(size))
        await self._receive(chunk)
        if refused is not None:
            return refused
        if last:
            chunk.end()
            return await self._end_of_mail(chunk)
        if chunk.refused is not None:
            return await self._end_of_mail(chunk)
        return Reply(250, "2.0.0", (f"{int(size)} octets recus (octets received)",))

    def _limits(self) -> Limits:
        smtp = self._listener.config.smtp
        normalise = smtp.bare_newlines == "normalise" and self._intake.peer(self.peer_ip).trusted
        return Limits(int(smtp.max_message_size), normalise)

    async def _receive(self, reception: Reception) -> None:
        """Until the mail data, or the chunk, has come; what was pipelined behind the command is fed first."""
        waiting, self._input = bytes(self._input), bytearray()
        self._input += reception.feed(waiting)
        if not reception.complete:
            self._flush()
            self._resume()
            self._reset_timeout(CHUNK_TIMEOUT)
            self._reception = reception
            with contextlib.suppress(asyncio.TimeoutError):
                async with asyncio.timeout(DATA_TIMEOUT):
                    while self._reception is not None:
                        await self._more()
        if reception.was_cut or not reception.complete:
            self._drop_mail()
            self._say(replies.TIMEOUT)
            self._close()
            raise ConnectionAbortedError("the mail data did not come to its end")

    async def _end_of_mail(self, reception: Reception) -> Reply:
        transaction, self._transaction = self._transaction, None
        assert transaction is not None
        self._drop_mail()
        self._reset_timeout(COMMAND_TIMEOUT)
        return await transaction.finish(reception.refused)

    def _drop_mail(self) -> None:
        """Back to before MAIL (RFC 5321 §4.1.1.5)."""
        if self._transaction is not None:
            self._transaction.abort()
        self._transaction, self._sender, self._recipients = None, None, []

    async def _rset(self, argument: bytes) -> Reply | None:
        self._drop_mail()
        return _OK

    async def _noop(self, argument: bytes) -> Reply | None:
        return _OK

    async def _vrfy(self, argument: bytes) -> Reply | None:
        return Reply(252, "2.5.0", ("Verification non disponible, envoyez le message (cannot verify, send the mail)",))

    async def _help(self, argument: bytes) -> Reply | None:
        return Reply(214, "2.0.0", ("RFC 5321",))

    async def _quit(self, argument: bytes) -> Reply | None:
        self._say(Reply(221, "2.0.0", ("Au revoir (bye)",)))
        self._close()
        return None

    async def _starttls(self, argument: bytes) -> Reply | None:
        if argument.strip():
            return Reply(501, "5.5.4", ("STARTTLS sans argument (no argument allowed)",))
        if self.tls_context is None or self._tls_protocol is not None:
            return _NOT_OFFERED_VERB
        self._drop_mail()
        self._helo = ""
        self._input.clear()  # RFC 3207 §4.2: what came before the handshake is not to be believed
        # Not after it: by then the client's first command may have come, in one packet with its handshake's end.
        await super().smtp_STARTTLS("")
        return None


@lru_cache(maxsize=1)
def _findings(loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    """What aiosmtpd's constructor sets on a session, but for the streams."""
    # With a callback, as in the session: only then does the protocol hold its reader (_strong_reader).
    streams = vars(asyncio.StreamReaderProtocol(asyncio.StreamReader(loop=loop), lambda *_: None, loop))
    return {name: value for name, value in vars(SMTP(None, loop=loop)).items() if name not in streams}


_OK = Reply(250, "2.0.0", ("OK",))
_SENDER_OK = Reply(250, "2.1.0", ("Expediteur accepte (sender ok)",))
_SEQUENCE = Reply(503, "5.5.1", ("Commande hors sequence (bad sequence of commands)",))
_SYNTAX = Reply(500, "5.5.2", ("Commande illisible (bad syntax)",))
_UNKNOWN = Reply(500, "5.5.1", ("Commande inconnue (command not recognized)",))
_NOT_OFFERED = Reply(555, "5.5.4", ("Parametre non pris en charge (parameter not recognized)",))
_NOT_OFFERED_VERB = Reply(502, "5.5.1", ("Commande non disponible (command not implemented)",))
