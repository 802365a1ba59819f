"""What one accepted mail adds, and what one refused mail leaves: many mails in one transaction.

Knows alone: what a repeat is (domain.md §4 "A server that repeats a mail whose 250 it lost"), which must be decided in
the transaction that would add it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from sqlite_utils import Database

from relay import clock, ids
from relay.store.database import marks, one, rows
from relay.store.directory import FOREIGN, set_meta
from relay.store.events import Event, encode, write
from rules import authentication
from rules.authentication import Authentication
from rules.bounce import Bounce
from rules.forwarding import Verification
from rules.lifecycle import COUNTS_NOT_AS_DONE, Change, State, after
from rules.replies import Reason

REPEAT_WINDOW = timedelta(days=7)
REFUSALS_KEPT = timedelta(days=90)
_UNDONE = tuple(COUNTS_NOT_AS_DONE)
_NO_REPEAT = (*_UNDONE, State.HANDED)  # a mail server that lost what it was handed must be handed it again


@dataclass(frozen=True, slots=True)
class NewMessage:
    """Times are stamps (relay.clock)."""

    id: str
    received_at: str
    message_id: str
    content_hash: str
    size: int
    peer: str
    helo: str
    protocol: str
    sender: str
    trusted: int
    tls: str
    body: str
    origin: str
    foreign: bool  # handled by another host before a trusted peer gave it to us
    authentication: Authentication | None = None  # None: nobody asked
    automatic: str = ""  # rules.notification.automatic
    user: str = ""


@dataclass(frozen=True, slots=True)
class NewRecipient:
    address: str
    typed: str
    route: str
    rule: str


@dataclass(frozen=True, slots=True)
class NewDocument:
    id: str
    sha256: str
    name: str
    type: str
    size: int
    spans: str
    flags: str
    skipped: Reason | None = None


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """`origins`: the domains whose documents may not go there. `author`: whose message of ours carries them there."""

    id: str
    kind: str
    route: str
    client: str
    recipient: str
    target: str
    state: State
    reason: Reason | None
    created_at: str
    due_at: str
    expires_at: str
    sender: str
    token: str
    outbound_message_id: str
    size: int
    documents: tuple[str, ...]
    origins: frozenset[str] = frozenset()
    author: str = ""


@dataclass(frozen=True, slots=True)
class Accepted:
    """Everything one mail adds. `bounces` are what came for `retours+TOKEN`, with the report read, if it is one.

    `verification`: it is a mailbox service's question whether mail may be forwarded here.
    """

    message: NewMessage
    recipients: tuple[NewRecipient, ...]
    documents: tuple[NewDocument, ...]
    deliveries: tuple[NewDelivery, ...]
    bounces: tuple[tuple[str, Bounce | None], ...] = ()
    verification: Verification | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """`message` is the id to answer with: an earlier message's, if this one only repeats it."""

    message: str
    added: bool
    filings: int = 0
    handed: tuple[NewDelivery, ...] = ()  # what the mail server in front is to send on


def commit(db: Database, accepted: Accepted, *, spool: str) -> Committed:
    """Adds one mail, inside the caller's transaction; `spool` is where its bytes are durable before it commits."""
    earlier = _repeats(db, accepted)
    if earlier:
        return_to = next(iter(earlier.values()))
        remaining = tuple(r for r in accepted.recipients if r.address not in earlier)
        events = [Event("repeated", message=message, detail={"recipient": r}) for r, message in earlier.items()]
        write(db, accepted.message.received_at, "smtp", events)
        if not remaining:
            return Committed(return_to, added=False)
        deliveries = tuple(d for d in accepted.deliveries if d.recipient not in earlier)
        accepted = replace(accepted, recipients=remaining, deliveries=deliveries)
    deliveries = tuple(_judged_by_origin(db, accepted, delivery) for delivery in accepted.deliveries)
    again = _again(db, deliveries, {d.id: d.sha256 for d in accepted.documents})
    _insert(db, replace(accepted, deliveries=deliveries), spool)
    write(db, accepted.message.received_at, "smtp", [*_told(accepted, deliveries), *again])
    if accepted.message.foreign:
        set_meta(db, FOREIGN, accepted.message.received_at)
    for token, bounce in accepted.bounces:
        record_bounce(db, token, bounce, message=accepted.message.id, at=accepted.message.received_at)
    handed = tuple(d for d in deliveries if d.state is State.HANDED)
    filings = sum(d.kind == "file" for d in deliveries)
    return Committed(accepted.message.id, added=True, filings=filings, handed=handed)


_REPEAT = f"""
SELECT m.id FROM message m INDEXED BY message_by_message_id JOIN recipient r ON r.message = m.id
WHERE m.message_id = ? AND m.sender = ? AND m.content_hash = ? AND m.received_at >= ? AND r.address = ?
  AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.message = m.id AND d.recipient = r.address
                  AND d.state IN ({marks(_NO_REPEAT)}))
ORDER BY m.id DESC LIMIT 1"""


def _repeats(db: Database, accepted: Accepted) -> dict[str, str]:
    """Recipient → the earlier message that already serves it. Without a Message-ID nothing is ever a repeat."""
    message = accepted.message
    if not message.message_id:
        return {}
    since = clock.stamp(clock.instant(message.received_at) - REPEAT_WINDOW)
    found = {}
    for recipient in accepted.recipients:
        key = (message.message_id, message.sender, message.content_hash, since, recipient.address, *_NO_REPEAT)
        row = one(db, _REPEAT, key)
        if row:
            found[recipient.address] = str(row[0])
    return found


def _judged_by_origin(db: Database, accepted: Accepted, delivery: NewDelivery) -> NewDelivery:
    """A document that came from the application is held instead of sent back to it, and so is any copy of it."""
    if not delivery.origins or delivery.state not in (State.WAITING, State.HANDED):
        return delivery
    hashes = [d.sha256 for d in accepted.documents if d.id in delivery.documents]
    origin = accepted.message.origin
    if origin in delivery.origins or came_from(db, hashes, delivery.origins):
        return replace(delivery, state=State.HELD, reason=Reason("origin"))
    return delivery


def came_from(db: Database, hashes: Sequence[str], origins: frozenset[str]) -> bool:
    """Did a document with one of these hashes come from one of these domains?"""
    if not hashes or not origins:
        return False
    sql = f"""SELECT 1 FROM document WHERE origin <> '' AND sha256 IN ({marks(hashes)})
    AND origin IN ({marks(list(origins))}) LIMIT 1"""
    return one(db, sql, (*hashes, *origins)) is not None


def twins(db: Database, sha256: str, target: str, most: int = 50) -> list[tuple[str, str, str]]:
    """Deliveries that took, or will take, these bytes to `target`: (delivery, name, state), the oldest first."""
    sql = f"""
    SELECT l.id, d.name, l.state FROM delivery_document ld INDEXED BY delivery_document_twins
    JOIN delivery l ON l.id = ld.delivery JOIN document d ON d.id = ld.document
    WHERE ld.sha256 = ? AND ld.target = ? AND l.state NOT IN ({marks(_UNDONE)}, 'duplicate') LIMIT {most}"""
    return [(str(a), str(b), str(c)) for a, b, c in rows(db, sql, (sha256, target, *_UNDONE))]


def _again(db: Database, deliveries: Sequence[NewDelivery], hashes: dict[str, str]) -> list[Event]:
    """Someone who mails a document again means it: it is sent, and flagged with its twin."""
    events = []
    for delivery in deliveries:
        if delivery.kind != "send":
            continue
        for document in delivery.documents:
            for twin, _, _ in twins(db, hashes[document], delivery.target, most=1):
                events.append(Event("again", document=document, delivery=delivery.id, detail={"twin": twin}))
    return events


def _told(accepted: Accepted, deliveries: Sequence[NewDelivery]) -> list[Event]:
    message = accepted.message
    held = [Event("held", delivery=d.id, detail=reason_facts(d.reason)) for d in deliveries if d.state is State.HELD]
    held += [Event("handed", delivery=d.id) for d in deliveries if d.state is State.HANDED]
    detail: dict[str, object] = {"sender": message.sender, "recipients": [r.typed for r in accepted.recipients]}
    if message.user:
        detail["user"] = message.user
    return [Event("accepted", message=message.id, detail=detail), *_asked(accepted), *held]


def _asked(accepted: Accepted) -> list[Event]:
    asked = accepted.verification
    if asked is None:
        return []
    detail = {"service": asked.service, "confirmation": asked.code, "link": asked.link}
    return [Event("forwarding", message=accepted.message.id, detail=detail)]


def kept_results(known: Authentication | None) -> str | None:
    """As stored: one JSON object."""
    return encode(authentication.facts(known)) if known else None


def reason_facts(reason: Reason | None) -> dict[str, object]:
    return {"code": reason.code, **(reason.facts or {})} if reason else {}


def reason_text(reason: Reason | None) -> str | None:
    """A reason as stored: one JSON object."""
    return encode(reason_facts(reason)) if reason else None


_MESSAGE = f"""INSERT INTO message (id, received_at, message_id, content_hash, size, peer, helo, protocol, sender,
trusted, tls, body, spool, origin, authentication, automatic, user) VALUES ({marks(range(17))})"""
_RECIPIENT = "INSERT INTO recipient (message, address, typed, route, rule) VALUES (?, ?, ?, ?, ?)"
_DOCUMENT = f"""INSERT INTO document (id, message, sha256, name, type, size, spans, flags, skipped, origin,
deposited_at) VALUES ({marks(range(11))})"""
_DELIVERY = f"""INSERT INTO delivery (id, message, kind, route, client, recipient, target, domain, state, reason,
created_at, due_at, expires_at, sender, token, outbound_message_id, size, author) VALUES ({marks(range(18))})"""
_LINK = "INSERT INTO delivery_document (delivery, document, sha256, target) VALUES (?, ?, ?, ?)"


def _insert(db: Database, accepted: Accepted, spool: str) -> None:
    m, conn = accepted.message, db.conn
    row = (m.id, m.received_at, m.message_id, m.content_hash, m.size, m.peer, m.helo, m.protocol, m.sender, m.trusted)
    told = kept_results(m.authentication), m.automatic, m.user
    conn.execute(_MESSAGE, (*row, m.tls, m.body, spool, m.origin, *told))
    conn.executemany(_RECIPIENT, [(m.id, r.address, r.typed, r.route, r.rule) for r in accepted.recipients])
    conn.executemany(_DOCUMENT, [_document_row(d, m) for d in accepted.documents])
    conn.executemany(_DELIVERY, [_delivery_row(d, m.id) for d in accepted.deliveries])
    hashes = {d.id: d.sha256 for d in accepted.documents}
    links = [(d.id, document, hashes[document], d.target) for d in accepted.deliveries for document in d.documents]
    conn.executemany(_LINK, links)


def _document_row(d: NewDocument, m: NewMessage) -> tuple[object, ...]:
    skipped = reason_text(d.skipped)
    return d.id, m.id, d.sha256, d.name, d.type, d.size, d.spans, d.flags, skipped, m.origin, m.received_at


def _delivery_row(d: NewDelivery, message: str | None) -> tuple[object, ...]:
    domain = d.target.rpartition("@")[2].lower() if d.kind == "send" else ""
    place = (d.id, message, d.kind, d.route, d.client, d.recipient, d.target, domain, d.state, reason_text(d.reason))
    return (*place, d.created_at, d.due_at, d.expires_at, d.sender, d.token, d.outbound_message_id, d.size, d.author)


def add_own(db: Database, new: NewDelivery, spool: str) -> None:
    """A message of our own making, with no mail and no document behind it; inside the caller's transaction."""
    db.conn.execute(_DELIVERY, _delivery_row(new, None))
    db.conn.execute("UPDATE delivery SET spool = ? WHERE id = ?", (spool, new.id))


_OF_TOKEN = """SELECT id, target, state, 1 FROM delivery WHERE token = :token AND token <> ''
UNION ALL SELECT id, target, state, 0 FROM delivery WHERE former_token = :token AND former_token <> '' ORDER BY id"""


def record_bounce(db: Database, token: str, bounce: Bounce | None, *, message: str, at: str) -> None:
    """A report for `token` finds its delivery: `failed` withdraws « validé », anything else joins the history.

    So does one for an earlier attempt, which left under another token: it says nothing of the last.
    """
    found = rows(db, _OF_TOKEN, {"token": token})
    meant = [row for row in found if bounce and row[1].lower() == bounce.final_recipient.lower()] or found
    for delivery, _, state, last in meant:
        text = (bounce.text or bounce.status) if bounce else ""
        detail = {"action": bounce.action if bounce else "", "status": bounce.status if bounce else "", "text": text}
        failed = bounce is not None and bounce.action == "failed" and len(meant) == 1 and last
        target = after(State(state), Change.BOUNCE) if failed else None
        if target is None:
            write(db, at, "smtp", [Event("reported", message=message, delivery=delivery, detail=detail)])
            continue
        reason = reason_text(Reason("bounced", {"reply": text}))
        db.conn.execute("UPDATE delivery SET state = ?, reason = ? WHERE id = ?", (target, reason, delivery))
        write(db, at, "smtp", [Event("bounced", message=message, delivery=delivery, detail=detail)])


# --- refusals -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refusal:
    """A mail refused for its content or its author: what "where is this invoice?" needs, without the body, for 90 days."""

    id: str
    at: str
    peer: str
    helo: str
    sender: str
    recipients: tuple[str, ...]
    message_id: str
    documents: tuple[dict[str, object], ...]
    reply: str
    authentication: Authentication | None = None


def record_refusal(db: Database, refusal: Refusal) -> None:
    """Inside the caller's transaction."""
    documents = encode(refusal.documents)
    recipients, known = encode(refusal.recipients), kept_results(refusal.authentication)
    row = (refusal.id, refusal.at, refusal.peer, refusal.helo, refusal.sender, recipients, refusal.message_id)
    db.conn.execute(f"INSERT INTO refusal VALUES ({marks(range(10))})", (*row, documents, refusal.reply, known))


def forget_refusals(db: Database, at: str, at_once: int) -> None:
    """What is past its ninety days by `at`; inside the caller's transaction."""
    oldest = clock.instant(at) - REFUSALS_KEPT
    sql = "DELETE FROM refusal WHERE id IN (SELECT id FROM refusal WHERE id < ? AND at < ? LIMIT ?)"
    db.conn.execute(sql, (ids.least(oldest), clock.stamp(oldest), at_once))  # an id is as old as its row, and indexed
