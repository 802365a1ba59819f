"""The one way in: facts → rules → spool + store → reply. The SMTP server and the milter both come through here.

Knows alone: what happens to a mail between its last byte and its 250. It never answers 250 before relay.commit says the
bytes and the rows are durable, and it never answers 5xx for a trouble of ours. Over 400 lines because that is one story:
what each RCPT and the end of the data deserve, in the order in which it is asked.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO

from sqlite_utils import Database

from relay import clock, forwards, ids, log
from relay.antivirus import Away, Clamd, Clean, Infected
from relay.authenticate import Authenticator, Mail
from relay.commit import Commits
from relay.compose import LOOP_HEADER
from relay.config import Config
from relay.directory import Directory, Unclear, Unknown
from relay.dns import Resolver
from relay.draft import Draft, Envelope, Judged, Recipient, message_id
from relay.examine import examine, is_only_text, seekable
from relay.mime import Message, Part, Scanner
from relay.mime import decoded as decoded_part
from relay.spf import Client
from relay.spool import Incoming, Spool
from relay.store import intake
from relay.store.database import Anchor, is_busy
from relay.store.users import User
from relay.throttles import Throttles
from rules import access, address, attachment, bounce, filing, forwarding, path, replies
from rules.attachment import Content, Document, Refuse, Skip
from rules.authentication import Authentication
from rules.peer import Peer, forwarders, is_trusted, networks
from rules.replies import Reply
from rules.ruleset import Rule, RuleSet

MAX_RECIPIENTS = 100  # RFC 5321 §4.5.3.1.8
MAX_RECEIVED = 50  # RFC 5321 §6.3 asks for at least 100 hops; a collector is never that far from us
MAX_REPORT = 1 << 20  # bytes of a mail to retours+ that are looked at
LEAST_FREE = 0.05  # of the spool's blocks and inodes


class Intake:
    """One per process; it holds what every mail needs and nothing of any one mail."""

    def __init__(
        self,
        config: Config,
        ruleset: RuleSet,
        *,
        spool: Spool,
        writer: Commits,
        directory: Directory,
        token_key: ids.TokenKey,
    ) -> None:
        self.throttles = Throttles(config.throttle, writer=writer, db=directory.db)
        self._asked: tuple[str, ...] | None = None  # the name servers that the authenticator asks
        self.clamd: Clamd | None = None
        self.adopt(config, ruleset)
        self.spool = spool
        self.writer = writer
        self.directory = directory
        self.token_key = token_key
        self.on_filings: Callable[[], None] = lambda: None
        self.anchor = Anchor(config.database)
        self._doubtful: list[str] = []
        self._under_way: set[asyncio.Task[Reply]] = set()
        self._free_until = 0.0
        self._full = False

    def adopt(self, config: Config, ruleset: RuleSet) -> None:
        """Settings and rules read again: for the next conversation."""
        self.config, self.ruleset = config, ruleset
        self.throttles.limits = config.throttle
        self.trusted = networks(config.smtp.trusted_networks)
        self.proxies = networks(config.smtp.proxy)
        self.origins = frozenset(domain for rule in ruleset.rules for domain in rule.origins)
        self.forwarders = forwarders(config.authentication.forwarders)
        if self._asked != config.delivery.dns:
            self._asked = config.delivery.dns
            self.authenticator = Authenticator(Resolver(config.delivery.dns))
        if not config.antivirus.clamd:
            self.clamd = None
        elif self.clamd is None or self.clamd.settings != config.antivirus:
            self.clamd = Clamd(config.antivirus)

    def hurry(self) -> None:
        """The relay stops, and waits for mail that has come only so long."""
        if self.clamd is not None:
            self.clamd.hurry()

    def peer(self, ip: str) -> Peer:
        return Peer(ip, is_trusted(ip, self.trusted))

    def user_peer(self, ip: str, known: User) -> Peer | None:
        """A peer that gave the password of the user `known` then; None once there is none of that name and password."""
        user = self.directory.user(known.name)
        if user is None or user.hash != known.hash:
            return None
        return Peer(ip, trusted=True, user=user.name, rules=frozenset(user.rules))

    def disk_is_low(self) -> bool:
        """Asked at MAIL; the answer is kept for a second."""
        now = asyncio.get_running_loop().time()  # a clock that is never put back
        if now > self._free_until:
            self._full = min(self.spool.free()) < LEAST_FREE
            self._free_until = now + 1
        return self._full

    def recipient(self, argument: path.Path, peer: Peer, sender: str = "") -> Recipient | Reply | None:
        """One RCPT, judged alone (domain.md §4): headers never decide, and neither do the other recipients.

        None: to be asked of `recipient_again`.
        """
        held = self.throttles.held(argument, peer, sender)
        if held is not None:
            return held
        judged = self._recipient(argument, peer, sender)
        return None if judged is None else self.throttles.judged(argument, peer, judged)

    async def recipient_again(self, argument: path.Path, peer: Peer, sender: str = "") -> Recipient | Reply:
        """Once the GED has been listed: an unknown client may be a folder made a minute ago."""
        await self.directory.list_again()
        return self.throttles.judged(argument, peer, self._recipient(argument, peer, sender) or replies.UNKNOWN)

    def _recipient(self, argument: path.Path, peer: Peer, sender: str) -> Recipient | Reply | None:
        domain = self.config.relay.domain
        route = address.route(argument, self.ruleset, domain, self.directory.registered())
        if isinstance(route, address.Refuse):
            return route.reply
        allowed = access.may_send(route, peer, sender)
        if isinstance(allowed, access.Refuse):
            # Which addresses are registered is the firm's secret: they are refused as they would be if they were not.
            unregistered = address.route(argument, self.ruleset, domain, {})
            return unregistered.reply if isinstance(unregistered, address.Refuse) else allowed.reply
        if isinstance(route, address.Bounce) and not self._is_token(route.token):
            return replies.UNKNOWN
        client = None
        if isinstance(route, address.File):
            found = self.directory.client(route.client)
            if found is None:
                return None
            if isinstance(found, Unknown):
                return replies.UNKNOWN
            if isinstance(found, Unclear):
                log.client_unclear(route.client, found.why)
                return replies.TROUBLE
            client = found
        return Recipient(route, argument.address or "postmaster", client)

    def _is_token(self, text: str) -> bool:
        give_up_after = self.config.delivery.give_up_after
        return ids.is_token(self.token_key, text, now=clock.now(), give_up_after=give_up_after)

    def forget(self, key: str) -> None:
        """A large mail that no row speaks of."""
        if key:
            with contextlib.suppress(OSError):  # start-up removes files that no row refers to
                self.spool.remove(key)

    def doubt(self, key: str) -> None:
        """A commit failed, and yet its rows may stand after a power cut (the sync of the WAL failed, say): they would
        speak of this file. The next commit overwrites them; the next start removes it if nobody has by then."""
        if key:
            self._doubtful.append(key)

    def end_doubts(self) -> None:
        """A later commit stands."""
        while self._doubtful:
            self.forget(self._doubtful.pop())

    def track(self, work: Coroutine[Any, Any, Reply]) -> "asyncio.Task[Reply]":
        """A commit under way, kept until it is over whatever happens to its session."""
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def settled(self) -> None:
        """Until no commit is under way: the last thing before the writer stops."""
        if self._under_way:
            await asyncio.wait(self._under_way)
        self.authenticator.close()

    def begin(self, envelope: Envelope, recipients: Sequence[Recipient]) -> "Transaction":
        self.throttles.begun(envelope)
        return Transaction(self, envelope, tuple(recipients))


class Transaction:
    """One mail arriving. `feed` its bytes (RFC 5321's mail data, unstuffed), then `finish` or `abort`."""

    def __init__(self, door: Intake, envelope: Envelope, recipients: tuple[Recipient, ...]) -> None:
        self._door = door
        self._envelope = envelope
        self._recipients = recipients
        self._now = clock.now()
        self.id = ids.new(self._now)
        self.handed: tuple[intake.NewDelivery, ...] = ()  # once committed: what the mail server in front is to send on
        self._scanner = Scanner()
        self._incoming: Incoming = door.spool.incoming(self.id, self._now.date().isoformat())

    @property
    def size(self) -> int:
        return self._incoming.size

    def feed(self, data: bytes) -> None:
        """Raises OSError when the spool cannot take them."""
        self._incoming.write(data)
        self._scanner.feed(data)

    def take(self, data: bytes) -> Reply | None:
        """The same; what the mail's end is to be answered, where they cannot be taken."""
        if self.size + len(data) > self._door.config.smtp.max_message_size:
            return replies.MESSAGE_TOO_BIG
        try:
            self.feed(data)
        except OSError as error:
            log.trouble(self.id, error)
            return replies.DISK_LOW
        return None

    def abort(self) -> None:
        self._incoming.discard()

    def finish(self, refused: Reply | None = None) -> "asyncio.Task[Reply]":
        """The answer to the end of the mail data; `refused` where the session could not take it whole.

        A client that hangs up now does not stop the commit.
        """
        return self._door.track(self._conclude(refused))

    async def _conclude(self, refused: Reply | None) -> Reply:
        began = asyncio.get_running_loop().time()
        try:
            return await self._finish(refused)
        except Exception as error:
            self.abort()
            log.trouble(self.id, error)
            return replies.TROUBLE
        finally:
            log.answered(asyncio.get_running_loop().time() - began)

    async def _finish(self, refused: Reply | None) -> Reply:
        message = self._scanner.close()
        refused = refused or _structure(message, self._door.config.relay.domain)
        authors = forwards.authors(message) if refused is None and self._rules() else []
        if service := forwarding.claimed(authors):
            return await self._keep(message, service, authors)
        judged = await self._judge(message) if refused is None else []
        refused = refused or self._content(judged)
        known = await self._authenticate(message) if refused is None else None
        refused = refused or self._access(known or Authentication()) or await self._scan()
        if refused is not None:
            return await self._refuse(message, refused, judged=judged, known=known)
        return await self._commit(message, self._draft(known).rows(message, judged, self._bounces()))

    async def _refuse(
        self, message: Message, reply: Reply, *, judged: Sequence[Judged] = (), known: Authentication | None = None
    ) -> Reply:
        if reply.final:
            await self._record_refusal(message, judged, reply, known)
        self.abort()
        return reply

    # --- who wrote it -----------------------------------------------------------------------------------------------

    async def _authenticate(self, message: Message) -> Authentication | None:
        """None where nobody wants to know."""
        verify, peer = self._door.config.authentication.verify, self._envelope.peer
        routes = [r.route for r in self._recipients if not isinstance(r.route, address.Bounce)]
        if not routes or verify == "none":
            return None
        if verify == "strangers" and peer.trusted:  # but not for every rule, if some domain's mail alone is taken there
            permitted = [access.may_send(route, peer, self._envelope.sender) for route in routes]
            if not any(isinstance(permission, access.AllowIf) for permission in permitted):
                return None
        return await self._ask(message)

    async def _ask(self, message: Message) -> Authentication:
        mail = Mail(
            Client(self._envelope.peer.ip, self._envelope.helo, self._envelope.sender),
            header_end=message.header_end,
            size=message.size,
            read=self._incoming.read,
        )
        return await self._door.authenticator.authenticate(mail)

    def _access(self, known: Authentication) -> Reply | None:
        word = access.at_end(
            [recipient.route for recipient in self._recipients],
            self._envelope.peer,
            sender=self._envelope.sender,
            known=known,
            trusted=self._door.forwarders,
        )
        return word.reply if isinstance(word, access.Refuse) else None

    # --- a mailbox's service that asks for a forward to be confirmed --------------------------------------------------

    async def _keep(self, message: Message, service: forwarding.Service, authors: Sequence[str]) -> Reply:
        """It goes to no collector and into no folder, whatever it is: kept if it is what it says, else refused.

        So it is looked up whatever the settings say: there are few, and none may be taken for an invoice.
        """
        known = await self._ask(message)
        match forwarding.proved(service, authors, known):
            case forwarding.Unclear():
                return await self._refuse(message, replies.UNVERIFIED)
            case forwarding.Forged():
                return await self._refuse(message, replies.NOT_ALLOWED, known=known)
        if (refused := await self._scan()) is not None:  # people read it
            return await self._refuse(message, refused, known=known)
        draft = replace(self._draft(known), verification=forwards.read(service, message))
        return await self._commit(message, draft.rows(message, [], self._bounces()))

    # --- content ----------------------------------------------------------------------------------------------------

    def _rules(self) -> list[Rule]:
        rules = {r.rule.name: r.rule for r in self._recipients if r.rule is not None}
        return list(rules.values())

    async def _judge(self, message: Message) -> list[Judged]:
        """Every part, under the rule that refuses it if any does. Mail for people alone is not looked into."""
        judged: list[Judged] = []
        rules = self._rules()
        for part in message.parts if rules else ():
            if attachment.is_text_of_message(part.leaf) and is_only_text(part.head, part.tail):
                continue
            content = await self._examine(part)
            verdicts = [attachment.judge(content, rule, leaf=part.leaf, cids=message.cids) for rule in rules]
            verdict = next((v for v in verdicts if isinstance(v, Refuse)), verdicts[0])
            judged.append(Judged(part, content, verdict, self._name(part, content, len(judged) + 1)))
        return judged

    async def _examine(self, part: Part) -> Content:
        def reopen() -> BinaryIO:
            return seekable(decoded_part(self._incoming.read, part.spans))

        def look() -> Content:
            return examine(size=part.size, sha256=part.sha256, head=part.head, tail=part.tail, reopen=reopen)

        # Of a large document that is not plainly a PDF the whole may have to be read.
        heavy = part.size > 1 << 20 and not part.head.startswith(b"%PDF")
        return await asyncio.to_thread(look) if heavy else look()

    def _name(self, part: Part, content: Content, serial: int) -> str:
        received = self._now.astimezone(self._door.config.zone).date()
        return filing.safe_name(part.leaf.name, type=content.type, serial=serial, date=received)

    def _content(self, judged: Sequence[Judged]) -> Reply | None:
        """All or nothing: one refused document refuses the mail, for every recipient."""
        refused = [(j.part.leaf.name or j.name, j.verdict.reason) for j in judged if isinstance(j.verdict, Refuse)]
        if refused:
            return replies.refused_documents(refused)
        wanted = any(rule.documents == "required" for rule in self._rules())
        if wanted and not any(isinstance(j.verdict, Document) for j in judged):
            return replies.NO_DOCUMENT
        return None

    async def _scan(self) -> Reply | None:
        """The scanner's word on what would go on from here. A report to a return address goes no further than us."""
        clamd = self._door.clamd
        if clamd is None or all(isinstance(r.route, address.Bounce) for r in self._recipients):
            return None
        match await clamd.scan(self.size, self._incoming.read):
            case Clean():
                return None
            case Infected(name=name):
                return replies.infected(name)
            case Away(why=why, remedy=remedy):
                log.scanner_away(self.id, why=why, remedy=remedy)
                return replies.TROUBLE

    async def _record_refusal(
        self, message: Message, judged: Sequence[Judged], reply: Reply, known: Authentication | None
    ) -> None:
        envelope = self._envelope
        refusal = intake.Refusal(
            id=self.id,
            at=clock.stamp(self._now),
            peer=envelope.peer.ip,
            helo=envelope.helo,
            sender=envelope.sender,
            recipients=tuple(address.unproved(r.typed) for r in self._recipients),
            message_id=message_id(message),
            documents=tuple(_refused_facts(j) for j in judged),
            reply=f"{reply.code} {reply.enhanced} {reply.text()}",
            authentication=known,
        )
        await self._door.writer.write(partial(_add_refusal, refusal))
        log.refused(self.id, reply)

    # --- commit -----------------------------------------------------------------------------------------------------

    async def _commit(self, message: Message, accepted: intake.Accepted) -> Reply:
        self._door.anchor.confirm()  # before: rows in a file without a name would be sent, and not be there afterwards
        body = self._incoming.small
        key = "" if body is not None else await asyncio.to_thread(self._incoming.settle)
        try:
            committed = await self._door.writer.write(partial(_add, accepted, key), body)
        except Exception as error:
            if is_busy(error):
                self._door.forget(key)  # nothing was even begun
            else:
                self._door.doubt(key)
            raise
        self._door.anchor.confirm()
        self._door.end_doubts()
        self.handed = committed.handed
        peer = self._envelope.peer.ip
        if committed.added:
            log.accepted(committed.message, size=message.size, peer=peer, deliveries=len(accepted.deliveries))
        else:
            self._door.forget(key)
            log.repeated(committed.message, peer=peer)
        if committed.filings:
            self._door.on_filings()
        self._door.throttles.accepted(self._envelope, self._recipients)
        return replies.accepted(committed.message)

    def _draft(self, known: Authentication | None) -> Draft:
        door = self._door
        about = (self._envelope, self._recipients, self.id, self._now)
        return Draft(door.config, *about, door.token_key, door.origins, known)

    def _bounces(self) -> tuple[tuple[str, bounce.Bounce | None], ...]:
        tokens = [r.route.token for r in self._recipients if isinstance(r.route, address.Bounce)]
        if not tokens:
            return ()
        read = bounce.read(self._incoming.read(0, MAX_REPORT))
        report = read if isinstance(read, bounce.Bounce) else None
        return tuple((token, report) for token in tokens)


# What is written where the writer is, which may be another process: functions of this module, so that they can be sent.


def _add(accepted: intake.Accepted, key: str, db: Database, appended: str) -> intake.Committed:
    return intake.commit(db, accepted, spool=appended or key)


def _add_refusal(refusal: intake.Refusal, db: Database, _: str) -> None:
    intake.record_refusal(db, refusal)


_PROBLEMS = {
    "header-too-big": replies.HEADER_TOO_BIG,
    "too-many-parts": replies.TOO_MANY_PARTS,
    "too-deep": replies.TOO_DEEP,
    "fragment": replies.FRAGMENT,
}


def _structure(message: Message, domain: str) -> Reply | None:
    """What is wrong with the message as a whole, before any document of it is looked at."""
    if message.bare_newline:
        return replies.BARE_NEWLINE
    if message.problem:
        return _PROBLEMS[message.problem]
    loop = LOOP_HEADER.lower()
    ours = any(name == loop and value.strip().lower() == domain.encode() for name, value in message.headers)
    return replies.LOOP if ours or message.received_count > MAX_RECEIVED else None


def _refused_facts(j: Judged) -> dict[str, object]:
    reason = intake.reason_facts(j.verdict.reason if isinstance(j.verdict, Refuse | Skip) else None)
    return {
        "name": j.part.leaf.name or j.name,
        "sha256": j.content.sha256,
        "size": j.content.size,
        "type": j.content.type,
        "reason": reason,
    }
