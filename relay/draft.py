"""What one accepted mail adds to the store: its message, recipients, documents and deliveries, as rows.

Knows alone: how many deliveries a mail gives rise to, and what each of them says. No I/O but the dice of its token.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from relay import clock, ids
from relay.config import Config
from relay.mime import Message, Part
from relay.store import intake
from relay.store.directory import Client
from rules import address, attachment, author, bounce, lifecycle, notification
from rules.attachment import Content, Document, Skip
from rules.authentication import Authentication
from rules.form import form
from rules.forwarding import Verification
from rules.lifecycle import State
from rules.peer import Peer
from rules.replies import Reason
from rules.ruleset import Rule

MAX_MESSAGE_ID = 998  # RFC 5322 §2.1.1: longer than a line may be it is nobody's
Bounces = tuple[tuple[str, bounce.Bounce | None], ...]


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the session knows of a mail before its first byte."""

    peer: Peer
    helo: str
    protocol: str
    tls: str
    sender: str
    handed: bool = False  # the mail server in front of us sends on itself what is for a collector (relay.milter)


@dataclass(frozen=True, slots=True)
class Recipient:
    """An accepted RCPT: where it leads, how it was typed, and its client where it files."""

    route: address.Relay | address.File | address.Postmaster | address.Bounce
    typed: str
    client: Client | None = None

    @property
    def address(self) -> str:
        return self.route.address

    @property
    def rule(self) -> Rule | None:
        route = self.route
        return route.rule if isinstance(route, address.Relay | address.File) else None


@dataclass(frozen=True, slots=True)
class Judged:
    """A part of the mail, what its bytes say, and what becomes of it under the strictest of the rules in play."""

    part: Part
    content: Content
    verdict: attachment.Verdict
    name: str


@dataclass(frozen=True, slots=True)
class Draft:
    """What is known of a mail besides itself. `origins` are the domains of all rules whose mail is marked.

    `known` is None where nobody asked who wrote it; `verification`, a mailbox service's question, is kept and goes nowhere
    but to people.
    """

    config: Config
    envelope: Envelope
    recipients: tuple[Recipient, ...]
    id: str
    now: datetime
    token_key: ids.TokenKey
    origins: frozenset[str]
    known: Authentication | None = None
    verification: Verification | None = None

    def rows(self, message: Message, judged: Sequence[Judged], bounces: Bounces) -> intake.Accepted:
        """Everything the mail adds."""
        documents = tuple([self._document(number, j) for number, j in enumerate(judged, 1)])
        told = self._message(message)
        deliveries = _Deliveries(self, told, documents)
        for recipient in self.recipients:
            if not self._is_asked(recipient):
                deliveries.add(recipient)
        return intake.Accepted(
            message=told,
            recipients=tuple({r.address: self._recipient(r) for r in self.recipients}.values()),
            documents=documents,
            deliveries=tuple(deliveries.made),
            bounces=bounces,
            verification=self.verification,
        )

    def _is_asked(self, recipient: Recipient) -> bool:
        return self.verification is not None and recipient.rule is not None

    def _message(self, message: Message) -> intake.NewMessage:
        envelope = self.envelope
        return intake.NewMessage(
            id=self.id,
            received_at=clock.stamp(self.now),
            message_id=message_id(message),
            content_hash=message.content_hash,
            size=message.size,
            peer=envelope.peer.ip,
            helo=envelope.helo,
            protocol=envelope.protocol,
            sender=envelope.sender,
            trusted=int(envelope.peer.trusted),
            tls=envelope.tls,
            body="8bit" if message.eight_bit else "7bit",
            origin=self._origin(message),
            foreign=envelope.peer.trusted and not envelope.peer.user and message.received_count > 0,
            user=envelope.peer.user,
            authentication=self.known,
            automatic=notification.automatic(message.headers),
        )

    def _origin(self, message: Message) -> str:
        """The application this mail came from, by envelope, From or signature, whatever rule names it; else ""."""
        return self._named(message) or next(iter(sorted(self._signers() & self.origins)), "")

    def _signers(self) -> frozenset[str]:
        return self.known.signers if self.known else frozenset()

    def _named(self, message: Message) -> str:
        claimed = (self.envelope.sender, *author.addresses([v for name, v in message.headers if name == "from"]))
        return next((d for d in (c.rpartition("@")[2].lower() for c in claimed) if d in self.origins), "")

    def _recipient(self, recipient: Recipient) -> intake.NewRecipient:
        kind = "forwarding" if self._is_asked(recipient) else type(recipient.route).__name__.lower()
        return intake.NewRecipient(
            recipient.address, recipient.typed, kind, recipient.rule.name if recipient.rule else ""
        )

    def _document(self, number: int, j: Judged) -> intake.NewDocument:
        spans = json.dumps([[s.offset, s.length, s.encoding] for s in j.part.spans])
        flags = ",".join(j.verdict.flags) if isinstance(j.verdict, Document) else ""
        skipped = (j.verdict.reason or Reason("skip-text")) if isinstance(j.verdict, Skip) else None
        return intake.NewDocument(
            f"{self.id}.{number}", j.content.sha256, j.name, j.content.type, j.content.size, spans, flags, skipped
        )


def message_id(message: Message) -> str:
    return (message.header("message-id") or "")[:MAX_MESSAGE_ID]


class _Deliveries:
    """What one mail gives rise to: one sending per collector, one filing per document and client."""

    def __init__(self, of: Draft, message: intake.NewMessage, documents: Sequence[intake.NewDocument]) -> None:
        config = of.config
        self.made: list[intake.NewDelivery] = []
        self._of = of
        self._message = message
        self._documents = tuple(d.id for d in documents if d.skipped is None)
        self._sizes = {d.id: d.size for d in documents}
        self._targets: set[str] = set()
        self._due = clock.stamp(lifecycle.next_run(of.now, config.run.every))
        self._expires = clock.stamp(of.now + config.delivery.give_up_after)
        # One token a transaction; the null sender stays null, for nobody waits for that answer (RFC 5321 §4.5.5).
        self._token = ids.token(of.token_key, of.now) if of.envelope.sender else ""
        self._sender = f"{address.BOUNCE_PREFIX}{self._token}@{config.relay.domain}" if self._token else ""

    def add(self, recipient: Recipient) -> None:
        match recipient.route:
            case address.Relay(rule=rule, collector=collector, client=client):
                self._send(recipient, collector, rule, client=client)
            case address.Postmaster():
                postmaster = self._of.config.relay.postmaster or recipient.address
                self._send(recipient, postmaster, None, client="")
            case address.File(rule=rule):
                self._file(recipient, rule)
            case address.Bounce():
                pass  # an event of the delivery it reports on

    def _send(self, recipient: Recipient, target: str, rule: Rule | None, *, client: str) -> None:
        if target.lower() in self._targets:
            return  # the same RCPT twice, or two spellings of one collector: stored once
        self._targets.add(target.lower())
        author = self._author(rule)
        state, reason = self._beginning(rule, author)
        id_ = self._next_id()
        own_id = f"<{id_}@{self._of.config.relay.domain}>"
        self.made.append(
            intake.NewDelivery(
                id=id_,
                kind="send",
                route=rule.name if rule else "postmaster",
                client=client,
                recipient=recipient.address,
                target=target,
                state=state,
                reason=reason,
                created_at=self._message.received_at,
                due_at=self._due,
                expires_at=self._expires,
                sender=self._sender,
                token=self._token,
                outbound_message_id=own_id if author else self._message.message_id,
                size=self._message.size,
                documents=self._documents,
                origins=rule.origins if rule else frozenset(),
                author=author,
            )
        )

    def _author(self, rule: Rule | None) -> str:
        """From of the message of ours that the documents leave in; "" where the mail leaves as it came."""
        if rule is None or form(rule, self._of.known, len(self._documents)) == "received":
            return ""
        return rule.sender or self._of.config.delivery.sender

    def _beginning(self, rule: Rule | None, author: str) -> tuple[State, Reason | None]:
        if rule is None and not self._of.config.relay.postmaster:
            return State.HELD, Reason("kept")
        if rule is not None and self._of.envelope.handed and not author:  # a new message only we can write
            return State.HANDED, Reason("handed")
        return State.WAITING, None

    def _file(self, recipient: Recipient, rule: Rule) -> None:
        client = recipient.client.slug if recipient.client else ""
        if f"file:{client}" in self._targets:
            return
        self._targets.add(f"file:{client}")
        for document in self._documents:
            self.made.append(
                intake.NewDelivery(
                    id=self._next_id(),
                    kind="file",
                    route=rule.name,
                    client=client,
                    recipient=recipient.address,
                    target=recipient.address,  # the folder, once it is filed
                    state=State.WAITING,
                    reason=None,
                    created_at=self._message.received_at,
                    due_at=self._message.received_at,
                    expires_at=self._expires,
                    sender="",
                    token="",
                    outbound_message_id="",
                    size=self._sizes[document],
                    documents=(document,),
                )
            )

    def _next_id(self) -> str:
        return f"{self._of.id}-{len(self.made) + 1}"
