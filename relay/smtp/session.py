"""What each verb of SMTP deserves (RFC 5321), with PIPELINING, CHUNKING, SIZE, 8BITMIME, ENHANCEDSTATUSCODES, STARTTLS,
and for users AUTH (RFC 6409): there, who gave no password gets no further than that, whatever network he is in.

Knows alone: the order of verbs and the limits of a mail. How lines come and answers go is relay.smtp.conversation; what
an address or a mail deserves is asked of relay.accept. Limits: one mail at a time, as the protocol has it. A user may
send in anybody's name: a firm's scanners and programs write for many, and the user is in the history.
"""

import asyncio
from collections.abc import Callable
from ssl import SSLContext
from typing import TYPE_CHECKING

from relay import log
from relay.accept import MAX_RECIPIENTS, Transaction
from relay.draft import Envelope, Recipient
from relay.passwords import Busy
from relay.smtp.arrival import Arrival
from relay.smtp.authentication import Credentials, Exchange
from relay.smtp.body import Normaliser
from relay.smtp.conversation import Answer
from relay.smtp.door import Kind
from relay.smtp.reception import Chunk, Data, Reception
from relay.store.users import User
from rules import path, replies, throttle
from rules.peer import Peer
from rules.replies import Reply

if TYPE_CHECKING:
    from relay.smtp.listener import Listener

MAX_FAILURES = 3  # of AUTH
FAILURE_DELAY = 1.0  # seconds, and as many more with every failure


class Session(Arrival):
    """One client, from its greeting to its QUIT."""

    def __init__(self, listener: "Listener", kind: Kind = Kind.SMTP) -> None:
        super().__init__(listener, kind)
        self._intake = listener.intake
        self._helo = ""
        self._protocol = "SMTP"
        self._sender: str | None = None
        self._recipients: list[Recipient] = []
        self._transaction: Transaction | None = None
        self._user: User | None = None  # as he was when he gave his password
        self._exchange: Exchange | None = None  # of AUTH, under way
        self._failures = 0
        self._verbs: dict[bytes, Callable[[bytes], Answer]] = {
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
            b"AUTH": self._auth,
        }

    def welcome(self) -> Reply:
        self._peer = Peer(self.peer_ip, trusted=False) if self._kind.is_for_users else self._stranger()
        return Reply(220, "", (f"{self.hostname} ESMTP",))

    def _stranger(self) -> Peer:
        """Whoever gave no password: as his network has it."""
        return Peer(self.peer_ip, trusted=False) if self.is_nobody else self._intake.peer(self.peer_ip)

    def answer(self, line: bytes) -> Answer:
        if self._exchange is not None:
            return self._heard(self._exchange, self._exchange.hear(line))
        word, _, argument = line.partition(b" ")
        verb = self._verbs.get(word.upper())
        if verb is None:
            return _UNKNOWN if line else _SYNTAX
        return verb(argument)

    @property
    def is_idle(self) -> bool:
        return not self._busy and self._transaction is None

    # --- verbs ------------------------------------------------------------------------------------------------------

    def _ehlo(self, argument: bytes) -> Reply | None:
        protocol = "ESMTPSA" if self._user else "ESMTPS" if self._tls_protocol else "ESMTP"  # RFC 3848
        refused = self._greet(argument, protocol)
        if refused is not None:
            return refused
        offers = [self.hostname, "PIPELINING", f"SIZE {int(self._listener.config.smtp.max_message_size)}", "8BITMIME"]
        if self.tls_context and not self._tls_protocol:
            offers.append("STARTTLS")
        if self._kind.is_for_users and self._tls_protocol:
            offers.append("AUTH PLAIN LOGIN")
        return Reply(250, "", (*offers, "ENHANCEDSTATUSCODES", "CHUNKING"))

    def _helo_(self, argument: bytes) -> Reply | None:
        return self._greet(argument, "SMTP") or Reply(250, "", (self.hostname,))

    def _greet(self, argument: bytes, protocol: str) -> Reply | None:
        name = argument.strip()
        if not name or len(name) > 255 or not all(0x21 <= byte <= 0x7E for byte in name):
            return Reply(501, "5.5.4", ("Nom d'hote attendu (host name expected)",))
        self.drop_mail()
        self._helo, self._protocol = name.decode("ascii"), protocol
        return None

    def _mail(self, argument: bytes) -> Reply | None:
        if not self._helo:
            return _SEQUENCE
        if self._sender is not None or self._transaction is not None:
            return _SEQUENCE
        if self._kind.is_for_users and (refused := self._user_needed()) is not None:
            return refused
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

    def _user_needed(self) -> Reply | None:
        """RFC 6409 §4.3; asked with every mail, for the user may be gone, or his password another."""
        if not self._tls_protocol:
            return replies.TLS_FIRST
        peer = self._intake.user_peer(self.peer_ip, self._user) if self._user is not None else None
        if peer is None:
            return replies.AUTH_FIRST
        self._peer = peer
        return None

    def _mail_parameters(self, found: path.Path) -> Reply | None:
        for keyword, value in found.parameters.items():
            if keyword == "SIZE" and value.isdigit() and len(value) <= 20:
                if int(value) > self._listener.config.smtp.max_message_size:
                    return replies.MESSAGE_TOO_BIG
            elif keyword in ("SIZE", "BODY") and not (keyword == "BODY" and value.upper() in ("7BIT", "8BITMIME")):
                return Reply(501, "5.5.4", (f"Parametre {keyword} incorrect (bad parameter)",))
            elif keyword != "BODY" and not (keyword == "AUTH" and self._user):  # RFC 4954 §5: believed of nobody
                return _NOT_OFFERED
        return None

    def _rcpt(self, argument: bytes) -> Answer:
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
        judged = self._intake.recipient(found, self._peer, self._sender)
        return self._rcpt_again(found, self._sender) if judged is None else self._take(judged)

    async def _rcpt_again(self, found: path.Path, sender: str) -> Reply:
        return self._take(await self._intake.recipient_again(found, self._peer, sender))

    def _take(self, judged: Recipient | Reply) -> Reply:
        if isinstance(judged, Reply):
            return judged
        self._recipients.append(judged)
        return replies.RECIPIENT_OK

    def _begin(self) -> Transaction:
        envelope = Envelope(
            peer=self._peer,
            helo=self._helo,
            protocol=self._protocol,
            tls=self._tls_version(),
            sender=self._sender or "",
        )
        return self._intake.begin(envelope, self._recipients)

    def _tls_version(self) -> str:
        ssl_object = self.transport.get_extra_info("ssl_object") if self.transport is not None else None
        return str(ssl_object.version()) if ssl_object is not None else ""

    def _data(self, argument: bytes) -> Answer:
        if argument.strip():
            return Reply(501, "5.5.4", ("DATA sans argument (no argument allowed)",))
        if self._sender is None or self._transaction is not None:
            return _SEQUENCE
        if not self._recipients:
            return replies.NO_RECIPIENTS
        self._transaction = self._begin()
        data = Data(self._transaction, self._normaliser())
        self.receive(data, lambda: self._end_of_mail(data))
        return _GO_AHEAD

    def _bdat(self, argument: bytes) -> Answer:
        size, _, last = argument.strip().partition(b" ")
        if not size.isdigit() or len(size) > 12 or last.upper() not in (b"", b"LAST"):
            return _BAD_CHUNK  # where the chunk ends cannot be known (RFC 3030 §2): nothing more can be understood
        refused = None if self._recipients else (_SEQUENCE if self._sender is None else replies.NO_RECIPIENTS)
        if refused is None and self._transaction is None:
            self._transaction = self._begin()
        chunk = Chunk(self._transaction, self._normaliser(), int(size))
        self.receive(chunk, lambda: refused or self._end_of_chunk(chunk, int(size), last))
        return None

    def _end_of_chunk(self, chunk: Chunk, size: int, last: bytes) -> Answer:
        if last:
            chunk.end()
        if last or chunk.refused is not None:
            return self._end_of_mail(chunk)
        return Reply(250, "2.0.0", (f"{size} octets recus (octets received)",))

    def _normaliser(self) -> Normaliser | None:
        wanted = self._listener.config.smtp.bare_newlines == "normalise" and self._peer.trusted
        return Normaliser() if wanted else None

    def _end_of_mail(self, reception: Reception) -> Answer:
        transaction = self._transaction
        assert transaction is not None
        self._transaction = None
        self.drop_mail()
        return transaction.finish(reception.refused)

    def drop_mail(self) -> None:
        """Back to before MAIL (RFC 5321 §4.1.1.5)."""
        if self._transaction is not None:
            self._transaction.abort()
        self._transaction, self._sender, self._recipients = None, None, []

    def _rset(self, argument: bytes) -> Reply | None:
        self.drop_mail()
        return _OK

    def _noop(self, argument: bytes) -> Reply | None:
        return _OK

    def _vrfy(self, argument: bytes) -> Reply | None:
        return Reply(252, "2.5.0", ("Verification non disponible, envoyez le message (cannot verify, send the mail)",))

    def _help(self, argument: bytes) -> Reply | None:
        return Reply(214, "2.0.0", ("RFC 5321",))

    def _quit(self, argument: bytes) -> Reply | None:
        return _BYE

    def _starttls(self, argument: bytes) -> Answer:
        if argument.strip():
            return Reply(501, "5.5.4", ("STARTTLS sans argument (no argument allowed)",))
        context = self._listener.tls_context()
        if context is None or self._tls_protocol is not None:
            return _NOT_OFFERED_VERB
        return self._secure(context)

    async def _secure(self, context: SSLContext) -> Reply | None:
        if self._ended:
            return _NO_HANDSHAKE  # a handshake would be waited for in vain
        self.drop_mail()
        self._helo, self._protocol = "", "SMTP"  # the client greets again, and only then is AUTH taken
        # RFC 3207 §4.2: what came before the handshake is not to be believed. From here to the handshake nothing is read.
        self._input.clear()
        await self.push("220 2.0.0 TLS")
        await self.shake_hands(context)
        return None

    # --- AUTH ---------------------------------------------------------------------------------------------------------

    def _auth(self, argument: bytes) -> Answer:
        if not self._kind.is_for_users:
            return _NOT_OFFERED_VERB
        if not self._tls_protocol:
            return replies.AUTH_NEEDS_TLS
        if not self._protocol.startswith("ESMTP") or self._user or self._sender is not None:
            return _SEQUENCE  # RFC 4954 §4: after EHLO, once, and not within a mail
        exchange = Exchange()
        return self._heard(exchange, exchange.begin(argument))

    def _heard(self, exchange: Exchange, said: Reply | Credentials) -> Answer:
        self._exchange = exchange if exchange.goes_on(said) else None
        return self._judge(said) if isinstance(said, Credentials) else said

    async def _judge(self, given: Credentials) -> Reply:
        throttles, user = self._intake.throttles, self._intake.directory.user(given.name)
        if throttles.guesses(self._stranger()):
            return replies.AUTH_BUSY
        try:
            right = await self._listener.comparisons.matches(
                given.password,
                user.hash if user else "",
                network=throttle.network(self.peer_ip),
                is_there=lambda: self.transport is not None and not self.transport.is_closing(),
            )
        except Busy:
            return replies.AUTH_BUSY
        if user is not None and right:
            self._user, self._protocol = user, "ESMTPSA"
            log.authenticated(user.name, peer=self.peer_ip)
            return replies.AUTH_OK
        self._failures += 1
        throttles.guessed(self._stranger())
        log.not_authenticated(user.name if user else "", peer=self.peer_ip)
        await asyncio.sleep(self._failures * FAILURE_DELAY)
        return replies.AUTH_FAILED if self._failures < MAX_FAILURES else replies.AUTH_OVER


_OK = Reply(250, "2.0.0", ("OK",))
_SENDER_OK = Reply(250, "2.1.0", ("Expediteur accepte (sender ok)",))
_SEQUENCE = Reply(503, "5.5.1", ("Commande hors sequence (bad sequence of commands)",))
_SYNTAX = Reply(500, "5.5.2", ("Commande illisible (bad syntax)",))
_UNKNOWN = Reply(500, "5.5.1", ("Commande inconnue (command not recognized)",))
_NOT_OFFERED = Reply(555, "5.5.4", ("Parametre non pris en charge (parameter not recognized)",))
_NOT_OFFERED_VERB = Reply(502, "5.5.1", ("Commande non disponible (command not implemented)",))
_NO_HANDSHAKE = Reply(454, "4.7.0", ("TLS impossible, connexion a demi fermee (half-closed, no handshake can come)",))
_GO_AHEAD = Reply(354, "", ("Envoyez le message, fin par CRLF.CRLF (end with CRLF.CRLF)",))
_BAD_CHUNK = Reply(421, "4.7.0", ("BDAT taille [LAST], connexion fermee (size expected, closing)",))
_BYE = Reply(221, "2.0.0", ("Au revoir (bye)",))
