"""One connection to one destination, many deliveries: SMTP as a client, in outcomes.

Knows alone: the conversation (RFC 5321), pipelined where that is announced (RFC 2920), its TLS (RFC 3207, RFC 7435),
its time limits, and how a body is sent: a small one in one write; a large one in clear by the kernel, from its file; under
TLS, or with too many dots to remember, in pieces that are stuffed as they pass.
What the far side does is an Outcome; exceptions are our own mistakes: an address that is none, a body that cannot be
read. Then, and when cancelled, the line is cut before the dot, so that no half message arrives.
A host that must prove who it is and does not gets nothing, not even MAIL: that outcome waits; another host may be tried.
Limits: under opportunistic TLS certificates are not checked: without DNSSEC an MX name proves nothing. No BDAT, AUTH or
SMTPUTF8. One delivery at a time on a connection; when to open another, and whether to try the next host, is the caller's
to say. Over 400 lines because a conversation is told in one place.
"""

import asyncio
import itertools
import re
import ssl
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, assert_never

from relay import clock
from relay.dns import DnsTrouble, MxHosts, NoDomain, NullMx, Resolver, endpoint
from relay.spool import Body
from relay.trust import Trust, anyone, chain, unproved
from relay.wire import DotStuffer, Line, Trouble
from rules.outcome import Fault, Outcome, Scope, Stage, of_fault, of_reply, too_big
from rules.tls import Dane, Opportunistic, Required, Verified, word

SMTP_PORT = 25
MAX_REPLY_LINES = 100
SMALL = 128 * 1024  # a message up to this size is written in one piece
LAST_WORD = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Destination:
    host: str  # the name the far side goes by
    address: str
    port: int
    alias_of: str = ""  # where its TLSA records may be; "" where DNSSEC does not vouch for all that led here

    def __str__(self) -> str:
        place = f"[{self.address}]:{self.port}"
        return place if self.host == self.address else self.host + place


@dataclass(frozen=True, slots=True)
class Stored:
    """What `chunks()` of a Job yields, as it lies in a file from `start` on; `tail` follows it.

    `dots` are those that begin a line, counted from `start`. Who may send it from there need not look at it.
    """

    opened: Callable[[], AbstractContextManager[Body]]
    start: int
    dots: tuple[int, ...]
    tail: bytes


@dataclass(frozen=True, slots=True)
class Job:
    """One message for one recipient: `prefix`, then what `chunks()` yields, as on the wire but for the dots.

    `size` counts them together (RFC 1870 §3). `sender` is "" for the null sender.
    """

    id: str
    sender: str
    recipient: str
    size: int
    eight_bit: bool
    prefix: bytes
    chunks: Callable[[], Iterator[bytes]]
    stored: Stored | None = None


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds (RFC 5321 §4.5.3.2)."""

    connect: float = 30
    greeting: float = 300
    command: float = 300
    data: float = 120
    block: float = 180
    dot: float = 600


PATIENT = Timeouts()

# ---
# Where to


async def destinations(domain: str, routes: Mapping[str, str], resolver: Resolver) -> tuple[Destination, ...] | Outcome:
    """The hosts for `domain` in the order they are to be tried: its fixed route ("host:port"), else its MX."""
    route = routes.get(domain.lower())
    if route is None:
        mx = await resolver.mx(domain)
        if not isinstance(mx, MxHosts):
            return _nowhere(domain, mx)
        return tuple(
            Destination(host.host, address, SMTP_PORT, host.alias_of if mx.secure else "")
            for host in mx.hosts
            for address in host.addresses
        )
    host, port = endpoint(route, SMTP_PORT)
    addresses = await resolver.addresses(host)
    if not isinstance(addresses, tuple):
        return _nowhere(host, addresses)
    return tuple(Destination(host, address, port) for address in addresses)


def _nowhere(name: str, answer: NullMx | NoDomain | DnsTrouble) -> Outcome:
    match answer:
        case NullMx():
            return of_fault("connect", Fault.NULL_MX, f"{name}: null MX")
        case NoDomain():
            return of_fault("connect", Fault.NXDOMAIN, f"{name}: NXDOMAIN")
        case DnsTrouble(text):
            return of_fault("connect", Fault.DNS, text)
        case _:
            assert_never(answer)


# ---
# The conversation

Tls = Opportunistic | Required | Verified | Dane
ANYONE = Opportunistic()
SYSTEM = Trust()


class Connection:
    """An open session. `tls` is "TLSv1.3", "TLSv1.3 dane" or the like, "" in clear; `usable` is whether another job may
    be sent."""

    @classmethod
    async def open(
        cls,
        destination: Destination,
        *,
        hostname: str,
        tls: Tls = ANYONE,
        trust: Trust = SYSTEM,
        timeouts: Timeouts = PATIENT,
    ) -> "Connection | Outcome":
        """A session ready for its first job. `hostname` is what we call ourselves."""
        connection = cls(destination, hostname, trust=trust, timeouts=timeouts)
        outcome = await connection._open(tls)
        if outcome is not None and outcome.fault is Fault.TLS and isinstance(tls, Opportunistic):
            # RFC 7435 §3: what fails under encryption is tried without. A new line: this one is beyond repair.
            connection = cls(destination, hostname, trust=trust, timeouts=timeouts)
            outcome = await connection._open(None)
        return connection if outcome is None else outcome

    async def _open(self, tls: Tls | None) -> Outcome | None:
        """None for `tls`: in clear, whatever is offered."""
        outcome = await self._guarded(self._begin(tls))
        if outcome is not None:
            await self.close()
        return outcome

    def __init__(self, destination: Destination, hostname: str, *, trust: Trust, timeouts: Timeouts) -> None:
        """Not yet connected: `open` is the way in."""
        self.destination = destination
        self.tls = ""
        self.extensions: dict[str, str] = {}
        self._mx = str(destination)
        self._hostname = hostname
        self._trust = trust
        self._timeouts = timeouts
        self._line = Line()
        self._stage: Stage = "connect"
        self._refusal: Outcome | None = None
        self._half_done = False  # a transaction was begun and not ended
        self._cut = ""  # why we ended it

    @property
    def usable(self) -> bool:
        return not self._line.lost

    async def send(self, job: Job) -> Outcome:
        """Delivers one message. ValueError for an address that cannot be said."""
        commands = self._commands(job)
        outcome = self._unfit(job) or await self._guarded(self._transaction(job, commands))
        assert outcome is not None
        return outcome

    def cut(self, why: str) -> None:
        """Our time is over: ends a transaction under way, unless the far side has the whole message: that answer counts."""
        if self._stage != "dot":
            self._cut = why
            self._line.abort()

    async def close(self) -> None:
        """Says QUIT, and waits a moment for the answer (RFC 5321 §4.1.1.10)."""
        try:
            if self.usable:
                self._line.write(b"QUIT\r\n")
                await self._reply(self._stage, LAST_WORD)
        except Trouble:
            pass  # nothing is at stake any more
        finally:
            self._line.abort()

    async def _guarded(self, talk: Coroutine[Any, Any, Outcome | None]) -> Outcome | None:
        """What came of `talk`. Trouble on the line is an outcome of the stage it came at."""
        self._refusal = None
        try:
            outcome = await talk
        except Trouble as trouble:
            self._line.abort()
            fault, why = (Fault.TIMEOUT, self._cut) if self._cut else (trouble.fault, str(trouble))
            outcome = self._refusal or of_fault(self._stage, fault, why)
        except BaseException:
            self._line.abort()
            raise
        if outcome is None:
            return None
        if outcome.scope is Scope.SESSION:
            self._line.abort()
        return replace(outcome, mx=self._mx, tls=self.tls)

    # --- before the first job

    async def _begin(self, tls: Tls | None) -> Outcome | None:
        await self._line.connect(self.destination.address, self.destination.port, self._timeouts.connect)
        code, lines = await self._reply("connect", self._timeouts.greeting)
        if code // 100 != 2:
            return of_reply("connect", code, lines)
        refused = await self._hello()
        if refused is not None or tls is None:
            return refused
        if "STARTTLS" in self.extensions:
            return await self._secure(tls)
        return None if isinstance(tls, Opportunistic) else of_fault("starttls", Fault.TLS, "STARTTLS not offered")

    async def _hello(self) -> Outcome | None:
        code, lines = await self._say("ehlo", f"EHLO {self._hostname}")
        if code // 100 == 5:  # RFC 5321 §3.2: an old host
            code, lines = await self._say("ehlo", f"HELO {self._hostname}")
            lines = lines[:1]
        if code // 100 != 2:
            return of_reply("ehlo", code, lines)
        words = (line.split(maxsplit=1) for line in lines[1:] if line.strip())
        self.extensions = {word[0].upper(): word[1] if len(word) > 1 else "" for word in words}
        return None

    async def _secure(self, tls: Tls) -> Outcome | None:
        code, lines = await self._say("starttls", "STARTTLS")
        if code != 220:
            refused = of_reply("starttls", code, lines)
            return None if isinstance(tls, Opportunistic) and refused.scope is not Scope.SESSION else refused
        secured = await self._line.secure(self._context(tls), self._sni(tls), seconds=self._timeouts.connect)
        why = unproved(tls, chain(secured), clock.now()) if isinstance(tls, Dane) else ""
        if why:
            raise Trouble(Fault.TLS, why)
        proved = [word(tls)] if isinstance(tls, Verified | Dane) else []
        self.tls = " ".join([str(secured.version()), *proved])
        return await self._hello()  # RFC 3207 §4.2: what was announced in clear is forgotten

    def _context(self, tls: Tls) -> ssl.SSLContext:
        if not isinstance(tls, Verified):
            return anyone()
        try:
            return self._trust.verifying
        except OSError as error:  # ours to mend, and until then nobody can be verified
            raise Trouble(Fault.TLS, f"[delivery] authorities: {error.strerror or error}") from None

    def _sni(self, tls: Tls) -> str | None:
        match tls:
            case Dane():
                return tls.names[0]  # RFC 7672 §8.1
            case Verified():
                return self.destination.host
            case _:
                return None if _is_address(self.destination.host) else self.destination.host

    # --- a job

    def _unfit(self, job: Job) -> Outcome | None:
        announced = self.extensions.get("SIZE", "")
        limit = int(announced) if announced.isascii() and announced.isdecimal() else 0  # RFC 1870 §4: 0 is no limit
        if 0 < limit < job.size:
            return replace(too_big(job.size, limit), mx=self._mx, tls=self.tls)
        if job.eight_bit and "8BITMIME" not in self.extensions:
            outcome = of_fault("mail", Fault.EIGHT_BIT, "8BITMIME not offered")
            return replace(outcome, mx=self._mx, tls=self.tls)
        return None

    def _commands(self, job: Job) -> list[tuple[Stage, bytes]]:
        size = f" SIZE={job.size}" if "SIZE" in self.extensions else ""
        body = " BODY=8BITMIME" if job.eight_bit else ""
        reset: list[tuple[Stage, bytes]] = [("mail", b"RSET\r\n")] if self._half_done else []
        return [
            *reset,
            ("mail", f"MAIL FROM:<{_sayable(job.sender)}>{size}{body}\r\n".encode("ascii")),
            ("rcpt", f"RCPT TO:<{_sayable(job.recipient)}>\r\n".encode("ascii")),
            ("data", b"DATA\r\n"),
        ]

    async def _transaction(self, job: Job, commands: list[tuple[Stage, bytes]]) -> Outcome:
        """RFC 2920 §3.1: where the far side can, all commands go at once; each gets its reply, in order."""
        self._half_done = True
        pipelined = "PIPELINING" in self.extensions
        if pipelined:
            self._line.write(b"".join(command for _, command in commands))
        code = 0
        for stage, command in commands:
            if not pipelined:
                self._line.write(command)
            code, lines = await self._reply(stage, self._timeouts.data if stage == "data" else self._timeouts.command)
            if code // 100 != (3 if stage == "data" else 2):
                self._refusal = self._refusal or of_reply(stage, code, lines)
            if code == 421 or (self._refusal and not pipelined):
                break
        if self._refusal is None:
            return await self._content(job)
        if code // 100 == 3:
            # RFC 2920 §3.1: DATA was taken although nobody is to receive it. The dot ends it; the refusal stands.
            self._line.write(b".\r\n")
            await self._reply("data", self._timeouts.dot)
        return self._refusal

    async def _content(self, job: Job) -> Outcome:
        try:
            rest = await self._all_but_the_end(job)
            self._nothing_said()
        except Trouble as trouble:
            return await self._cut_off(trouble)
        self._stage = "dot"
        self._line.write(rest)
        outcome = of_reply("dot", *await self._reply("dot", self._timeouts.dot))
        self._half_done = False
        return outcome

    async def _all_but_the_end(self, job: Job) -> bytes:
        """Sends a message up to what must not go before it is known that all is well: that is returned."""
        dots = DotStuffer()
        if job.stored is not None and not self.tls:
            self._line.write(dots.feed(job.prefix))
            return await self._from_file(job.stored)
        chunks = (dots.feed(chunk) for chunk in itertools.chain((job.prefix,), job.chunks()))
        if job.size <= SMALL:
            return b"".join((*chunks, dots.end()))
        for chunk in chunks:
            self._line.write(chunk)
            await self._line.drain(self._timeouts.block)
            self._nothing_said()
        await asyncio.sleep(0)  # lets be heard what was said meanwhile
        return dots.end()

    async def _from_file(self, stored: Stored) -> bytes:
        with stored.opened() as body:
            first, size, at = body.start + stored.start, body.size - stored.start, 0
            for dot in (*stored.dots, size):
                await self._line.send_file(body.fd, first + at, size=dot - at, seconds=self._timeouts.block)
                self._nothing_said()
                if dot < size:
                    self._line.write(b".")
                at = dot
        await asyncio.sleep(0)
        return stored.tail + b".\r\n"

    def _nothing_said(self) -> None:
        """A reply that is there before the dot is not one to it: taken for it, it would be a false success."""
        if self._line.pending:
            raise Trouble(Fault.PROTOCOL, "a reply before the end of the message")

    async def _cut_off(self, trouble: Trouble) -> Outcome:
        """In the middle of a message. A host that will not have the rest may have said so before it hung up."""
        try:
            code, lines = await self._reply("data", 0)
        except Trouble:
            raise trouble from None
        self._line.abort()  # whatever it said, this session is inside a message
        return of_reply("data", code, lines)

    # --- a command and its reply

    async def _say(self, stage: Stage, command: str) -> tuple[int, list[str]]:
        self._line.write(command.encode("ascii") + b"\r\n")
        return await self._reply(stage, self._timeouts.command)

    async def _reply(self, stage: Stage, seconds: float) -> tuple[int, list[str]]:
        """One reply, of one line or more (RFC 5321 §4.2.1): its code, and its lines without it."""
        self._stage = stage
        lines: list[str] = []
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        while len(lines) < MAX_REPLY_LINES:
            line = self._line.next() or await self._line.read(max(deadline - clock(), 0))
            match = _REPLY.fullmatch(line)
            if match is None:
                raise Trouble(Fault.PROTOCOL, f"not a reply: {_printable(line)}")
            lines.append(_printable(match[3]))
            if match[2] != b"-":
                return int(match[1]), lines
        raise Trouble(Fault.PROTOCOL, "endless reply")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


_REPLY = re.compile(rb"([2-5]\d\d)(?:([ -])([^\r\n]*))?\r?\n")


def _printable(octets: bytes | None) -> str:
    text = (octets or b"").decode("utf-8", "replace").strip()
    return text[:500] if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)[:500]


# Nothing that could end the path or the command (RFC 5321 §4.1.2).
_PATH = re.compile(r'(?:[!#-;=?-\[\]-~]+|"(?:[ !#-\[\]-~]|\\[ -~])*")@[A-Za-z0-9.:\[\]-]+')


def _sayable(address: str) -> str:
    if address and not _PATH.fullmatch(address):
        raise ValueError(f"not an address: {address!r}")
    return address
