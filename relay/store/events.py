"""The history: append-only rows, each written in the transaction of the change it tells of.

Knows alone: the vocabulary of events. Audit-trail evidence: rows are never changed, and outlive the bytes;
only an erasure takes from their details what is personal, and is itself told of.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlite_utils import Database

VOCABULARY = {
    "accepted": "a mail was answered 250",
    "repeated": "the same mail came again after its 250 was lost; nothing was added",
    "again": "a mail brought a document that had gone to the same place before",
    "deposited": "a document was found in a connected folder",
    "withdrawn": "a document left its folder before it was sent; it is still sent",
    "moved": "a document was renamed or moved inside its connected folder",
    "modified": "a document changed after it was sent",
    "attempted": "an attempt began; the next one is already planned",
    "sent": "the next hop answered 250",
    "filed": "the document stands in the GED",
    "deferred": "an attempt failed for now",
    "failed": "the far side refused for good, or the delivery was given up",
    "refused": "our rules refused the document",
    "duplicate": "the same document was sent or is on its way; not sent again",
    "revived": "the one it was a duplicate of came to nothing; it goes in its place",
    "replaced": "its file changed before it was sent; the new bytes go instead",
    "held": "held by a rule or by the postmaster",
    "released": "put back in the queue by the postmaster",
    "dropped": "dropped by the postmaster",
    "retried": "put back in the queue after a failure by the postmaster",
    "resent": "sent once more on the postmaster's word",
    "bounced": "a failure report came back after it was sent",
    "handed": "left to the mail server in front, which sends it on itself ([milter] mode)",
    "reported": "a delivery report or another answer came back",
    "recovered": "found in flight after a crash and put back in the queue",
    "warned": "waiting for longer than [relay] warn_after",
    "forwarding": "a mailbox's service asks whether mail may be forwarded to the address; kept, and sent to nobody",
    "notified": "the sender was told of the failure",
    "not-notified": "the sender was not told of the failure: it is no person, not trusted, or was told of another that day",
    "connected": "a connection was saved and its baseline taken",
    "disconnected": "a connection was removed",
    "readdressed": "a connection was given another address",
    "connection-error": "a connected folder could not be trusted; nothing was concluded from it",
    "connection-accepted": "the postmaster said that a connected folder is right as it is",
    "connection-recovered": "a connected folder can be read again",
    "client-added": "a client was added or completed by hand",
    "client-removed": "a client was forgotten",
    "key-created": "a DKIM key was made",
    "key-removed": "a DKIM key was removed",
    "throttle-cleared": "the postmaster lets one through again that was held back",
    "user-added": "a user was given a password and rules",
    "user-changed": "a user was given another password",
    "user-removed": "a user may no longer hand in mail",
    "bytes-missing": "its bytes were not where the row says; the delivery was given up",
    "restored": "the store was restored from a backup; what was on its way is held",
    "erased": "personal data were removed on request; who, why, how much, and a salted hash of what was asked",
    "purged": "the bytes were removed after their retention",
}


@dataclass(frozen=True, slots=True)
class Event:
    event: str
    message: str | None = None
    document: str | None = None
    delivery: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make an encoder for each event

_INSERT = "INSERT INTO event (at, actor, event, message, document, delivery, detail) VALUES (?, ?, ?, ?, ?, ?, ?)"


def write(db: Database, at: str, actor: str, events: Iterable[Event]) -> None:
    """Appends `events`; the caller is inside the transaction of what they tell of."""
    db.conn.executemany(_INSERT, [_row(at, actor, event) for event in events])


def _row(at: str, actor: str, event: Event) -> tuple[object, ...]:
    assert event.event in VOCABULARY
    detail = encode(event.detail) if event.detail else None
    return at, actor, event.event, event.message, event.document, event.delivery, detail
