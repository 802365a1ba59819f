"""One mail that the MTA shows us: its recipients judged one by one, its octets on their way into a transaction.

Knows alone: whose recipients are ours, how header fields become octets again, and what the MTA is told at the end. Our
recipients' mail is ours from our commit on: they are deleted from the MTA's message, or the whole of it is discarded. In
mode "rewrite" a mail without a recipient of theirs is handed back for its collectors: they become its recipients, and
`retours+TOKEN` its sender, which would be everybody's sender were there others. Limits: a filter that stands behind us
and refuses the message afterwards is not heard of: we stand last.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from relay import log
from relay.accept import MAX_RECIPIENTS, Intake, Transaction
from relay.compose import LOOP_HEADER
from relay.draft import Envelope, Recipient
from relay.milter.answers import (
    AddHeader,
    AddRecipient,
    Answer,
    ChangeSender,
    Continue,
    DeleteRecipient,
    Discard,
    Progress,
    ReplyCode,
)
from relay.milter.commands import EndOfHeaders, Header, ProtocolError
from relay.store.intake import NewDelivery
from rules import path, replies
from rules.replies import Reply

Later = Coroutine[Any, Any, Answer]
PROGRESS_EVERY = 5.0  # seconds; Postfix's patience is milter_content_timeout, sendmail's the milter's own T=


@dataclass(frozen=True, slots=True)
class Ours:
    """A recipient that we accepted, and its path exactly as the MTA knows it."""

    path: bytes
    recipient: Recipient


class Mail:
    """From MAIL to the answer to its end. `refused` is what every recipient of ours is told, where nothing can be judged."""

    def __init__(self, intake: Intake, envelope: Envelope | None, refused: Reply | None) -> None:
        self._intake = intake
        self._envelope = envelope
        self._refused = refused
        self._transaction: Transaction | None = None
        self._ours: list[Ours] = []
        self._others = 0
        self._shown = False

    @property
    def concerns_us(self) -> bool:
        return bool(self._ours)

    # --- recipients -------------------------------------------------------------------------------------------------

    def recipient(self, argument: bytes) -> Answer | Later:
        """One RCPT: judged where it is ours, else none of our business."""
        if self._shown:
            raise ProtocolError("a recipient after the mail's first octet: it would be told yes, and nothing be stored")
        found = path.parse(argument)
        if not self._is_ours(argument, found):
            self._others += 1
            return Continue()
        try:
            judged = self._judge(found)
        except Exception as error:
            log.trouble("milter", error)
            judged = replies.TROUBLE
        if isinstance(judged, Coroutine):
            return self._judged_later(argument, judged)
        return self._judged(argument, judged)

    async def _judged_later(self, argument: bytes, judged: Coroutine[Any, Any, Recipient | Reply]) -> Answer:
        try:
            return self._judged(argument, await judged)
        except Exception as error:
            log.trouble("milter", error)
            return refusal(replies.TROUBLE)

    def _judged(self, argument: bytes, judged: Recipient | Reply) -> Answer:
        if isinstance(judged, Reply):
            return refusal(judged)
        self._ours.append(Ours(argument, judged))
        return Continue()

    def _is_ours(self, argument: bytes, found: path.Path | path.Problem) -> bool:
        domain = self._intake.config.relay.domain.lower()
        if isinstance(found, path.Path):
            return found.domain.lower() == domain
        return leads_to(domain, argument)

    def _judge(self, found: path.Path | path.Problem) -> Recipient | Reply | Coroutine[Any, Any, Recipient | Reply]:
        if isinstance(found, path.Problem):
            return path.REPLIES[found]
        if self._envelope is None or self._refused is not None:
            return self._refused or replies.TROUBLE
        if self._intake.disk_is_low():
            return replies.DISK_LOW
        if len(self._ours) >= MAX_RECIPIENTS:
            return replies.TOO_MANY_RECIPIENTS
        asked = found, self._envelope.peer, self._envelope.sender
        return self._intake.recipient(*asked) or self._intake.recipient_again(*asked)

    # --- octets -----------------------------------------------------------------------------------------------------

    def feed(self, octets: bytes) -> None:
        """Nothing is kept of a mail without a recipient of ours, or of one that is refused already."""
        self._shown = True
        if not self._ours or self._refused is not None or not octets:
            return
        self._refused = self._begun().take(octets)

    @property
    def wants_more(self) -> bool:
        return bool(self._ours) and self._refused is None

    def _begun(self) -> Transaction:
        if self._transaction is None:
            assert self._envelope is not None  # else there would be no recipient of ours
            handed = self._intake.config.milter.mode == "rewrite" and not self._others
            envelope = replace(self._envelope, handed=handed)
            self._transaction = self._intake.begin(envelope, [each.recipient for each in self._ours])
        return self._transaction

    def abort(self) -> None:
        if self._transaction is not None:
            self._transaction.abort()

    # --- the end ----------------------------------------------------------------------------------------------------

    async def end(self, say: Callable[[Answer], None], queue: str) -> Sequence[Answer]:
        """The MTA's `queue` id goes into the log, where its own log has the other half of the story."""
        if not self._ours:
            return (Continue(),)
        transaction = self._begun()
        commit = transaction.finish(self._refused)
        while not (await asyncio.wait({commit}, timeout=PROGRESS_EVERY))[0]:
            say(Progress())
        reply = commit.result()
        if reply.code != replies.accepted("").code:
            return (refusal(reply),)
        log.taken(reply.lines[-1].rpartition(" ")[2], queue=queue, others=self._others)
        if not self._others and not transaction.handed:
            return (Discard(),)
        taken = [DeleteRecipient(known) for known in dict.fromkeys(each.path for each in self._ours)]
        return (*taken, *self._handed(transaction.handed), Continue())

    def _handed(self, deliveries: Sequence[NewDelivery]) -> Iterator[Answer]:
        """What the MTA sends on itself looks as if we had sent it."""
        for delivery in deliveries:
            yield AddRecipient(b"<%s>" % delivery.target.encode())
        if deliveries:
            yield AddHeader(LOOP_HEADER.encode(), b" " + self._intake.config.relay.domain.encode())
            if deliveries[0].sender:  # the null sender stays null
                yield ChangeSender(b"<%s>" % deliveries[0].sender.encode())


def leads_to(domain: str, unreadable: bytes) -> bool:
    """Might an MTA that reads more generously than we do find an address at `domain` here? sendmail skips comments.

    >>> leads_to("welyb.fr", b"<meg+x@(et)welyb.fr (Paul)>"), leads_to("welyb.fr", b"<paul@welyb.fr.example (x)>")
    (True, False)
    """
    bare = re.sub(rb'\([^()]*\)|[ \t<>"]', b"", unreadable.lower())
    return re.search(rb"@%b(?![a-z0-9-]|\.[a-z0-9])" % re.escape(domain.encode()), bare) is not None


def refusal(reply: Reply) -> ReplyCode:
    return ReplyCode(reply.render().removesuffix(b"\r\n"))


def octets(part: Header | EndOfHeaders) -> bytes:
    r"""As it will leave the MTA: fields are folded with CRLF, which it says as LF.

    >>> octets(Header(b"Subject", b" Facture\n\tde mars"))
    b'Subject: Facture\r\n\tde mars\r\n'
    """
    if isinstance(part, EndOfHeaders):
        return b"\r\n"
    return part.name + b":" + part.value.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") + b"\r\n"
