"""What each packet of the MTA deserves, from the negotiation to QUIT.

Knows alone: the order of packets, and what of an MTA's word is believed: the client of the connect event as the peer, its
TLS, and that it authenticated. Limits: HELO or EHLO is not told; the protocol of our Received says ESMTP for both. A user is
called as the MTA calls it: sendmail writes names as xtext (RFC 3461 §4), `a+2Bb` for a+b.
"""

from collections.abc import Callable, Coroutine
from ipaddress import ip_address
from typing import Any

from relay.accept import Intake
from relay.draft import Envelope
from relay.milter import commands
from relay.milter.answers import Accept, Answer, Continue, Skip, agree, answered
from relay.milter.commands import Command, ProtocolError
from relay.milter.mail import Later, Mail, octets
from rules import path, replies
from rules.peer import Peer
from rules.replies import Reply


class Session:
    """One connection of the MTA: clients and mails one after another. `say` sends an answer."""

    def __init__(self, intake: Intake, say: Callable[[Answer], None]) -> None:
        self._intake = intake
        self._say = say
        self._answered: frozenset[type[Command]] | None = None  # what the MTA waits for a word on, once that is agreed
        self._mail: Mail | None = None
        self._new_client()

    def _new_client(self) -> None:
        self._macros: dict[bytes, dict[bytes, bytes]] = {}
        self._peer: Peer | None = None
        self._helo = ""

    @property
    def idle(self) -> bool:
        """Between mails: nothing is lost if the connection ends now."""
        return self._mail is None

    def take(self, command: Command) -> Coroutine[Any, Any, None] | None:
        """Answers `command`, if it is one to be answered: at once, or by what is given back, which is to be waited for.

        ProtocolError where it has no place here.
        """
        if self._answered is None:
            self._negotiate(command)
            return None
        answer = self._answer(command)
        if isinstance(answer, Coroutine):
            return self._say_later(answer)
        if type(command) in self._answered:
            self._say(answer)
        return None

    async def _say_later(self, answer: Later) -> None:
        self._say(await answer)

    def _negotiate(self, command: Command) -> None:
        if not isinstance(command, commands.Negotiate):
            raise ProtocolError("a packet before the negotiation")
        agreed = agree(command)
        self._answered = answered(agreed.steps)
        self._say(agreed)

    def _answer(self, command: Command) -> Answer | Later:
        match command:
            case commands.Body(chunk):
                self._begun().feed(chunk)
                return Continue() if self._begun().wants_more else Skip()
            case commands.Rcpt(recipient):
                return self._begun().recipient(recipient)
            case commands.Data():
                return self._data()
            case commands.EndOfMessage(chunk):
                return self._end(chunk)
            case _:
                self._hear(command)
        return Continue()

    def _hear(self, command: Command) -> None:
        """What has no answer of its own."""
        match command:
            case commands.Header() | commands.EndOfHeaders():
                self._begun().feed(octets(command))
            case commands.Macros(of, values):
                self._macros[of] = dict(values)
            case commands.Mail():
                self._begin(command)
            case commands.Connect():
                self._peer = self._peer_of(command)
            case commands.Helo(name):
                self._helo = _printable(name)
            case commands.Abort():
                self.drop_mail()
            case commands.QuitNewConnection():
                self.drop_mail()
                self._new_client()
            case commands.Negotiate():
                raise ProtocolError("a second negotiation")
            case _:
                pass  # an SMTP command that the MTA does not know either

    # --- mails ------------------------------------------------------------------------------------------------------

    def _begun(self) -> Mail:
        if self._mail is None:
            raise ProtocolError("a packet of a mail that was not begun")
        return self._mail

    def _begin(self, command: commands.Mail) -> None:
        self.drop_mail()
        user = self._macros.pop(b"M", {}).get(b"{auth_authen}", b"")  # of this mail only
        sender = path.parse(command.path or b"<>")  # Postfix, of its own mail: without brackets
        if isinstance(sender, path.Problem):
            self._mail = Mail(self._intake, None, path.REPLIES[sender])
            return
        envelope = self._envelope(sender.address, user)
        self._mail = Mail(self._intake, envelope, self._too_big(command))

    def _envelope(self, sender: str, user: bytes) -> Envelope | None:
        """None where the MTA does not know whom it speaks with: nobody could be judged."""
        if self._peer is None:
            return None
        peer = self._peer
        if user:  # the MTA's, trusted as ours would be (domain.md §4: authenticated submission)
            peer = Peer(peer.ip, trusted=True, user=_printable(user) or "?")
        tls = _printable(self._macros.get(b"H", {}).get(b"{tls_version}", b""))
        return Envelope(
            peer=peer,
            helo=self._helo,
            protocol=f"ESMTP{'S' if tls else ''}{'A' if user else ''}",  # RFC 3848
            tls=tls,
            sender=sender,
        )

    def _too_big(self, command: commands.Mail) -> Reply | None:
        announced = [word[5:] for word in command.parameters if word[:5].upper() == b"SIZE="]
        limit = self._intake.config.smtp.max_message_size
        over = any(size.isdigit() and len(size) <= 20 and int(size) > limit for size in announced)
        return replies.MESSAGE_TOO_BIG if over else None

    def _data(self) -> Answer:
        if self._begun().concerns_us:
            return Continue()
        self.drop_mail()  # the MTA shows us nothing more of it
        return Accept()

    async def _end(self, chunk: bytes) -> Answer:
        mail = self._begun()
        mail.feed(chunk)
        queue = self._macros.pop(b"E", {}).get(b"i", b"")
        try:
            *edits, verdict = await mail.end(self._say, _printable(queue))
        finally:
            self._mail = None
        for edit in edits:
            self._say(edit)
        return verdict

    def drop_mail(self) -> None:
        """The client gave it up, or the connection ends; what holds for the connection stays."""
        if self._mail is not None:
            self._mail.abort()
        self._mail = None

    def _peer_of(self, command: commands.Connect) -> Peer | None:
        text = _printable(command.address)
        text = text[5:] if text[:5].lower() == "ipv6:" else text  # sendmail's way of writing it
        try:
            return self._intake.peer(str(ip_address(text))) if command.family in (b"4", b"6") else None
        except ValueError:
            return None


def _printable(text: bytes) -> str:
    """The MTA's word, for a Received field and for the history; "" where it is no word."""
    fits = len(text) <= 255 and all(0x21 <= byte <= 0x7E for byte in text)
    return text.decode("ascii") if fits else ""
