"""Rows for the store as the intake makes them, without a mail: for tests of what the store does with them.

Limits: one recipient spelled one way; a delivery takes every document of its mail.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from relay import clock
from relay.store.delivery import Order, Pace
from relay.store.intake import Accepted, NewDelivery, NewDocument, NewMessage, NewRecipient
from rules.bounce import Bounce
from rules.lifecycle import State

NOON = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
PACE = Pace(every=timedelta(minutes=15), warn_after=timedelta(hours=4))
COLLECTOR = "dupont@factures-meg.fr"
ORIGINS = frozenset({"factures-meg.fr"})


def sha(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def mail(
    id: str,
    *targets: str,
    documents: Sequence[str] = ("invoice",),
    at: datetime = NOON,
    message_id: str = "<1@cabinet.example>",
    sender: str = "compta@cabinet.example",
    content: str = "as it came",
    origin: str = "",
    kind: str = "send",
    bounces: Sequence[tuple[str, Bounce | None]] = (),
) -> Accepted:
    """A mail for each of `targets` (its RCPT is the same address at welyb.fr), with `documents`: name and bytes alike."""
    made = tuple(
        NewDocument(f"{id}.{n}", sha(name), f"{name}.pdf", "application/pdf", 1000 + n, "[]", "")
        for n, name in enumerate(documents, 1)
    )
    stamp = clock.stamp(at)
    return Accepted(
        message=NewMessage(
            id=id,
            received_at=stamp,
            message_id=message_id,
            content_hash=sha(content),
            size=5000,
            peer="127.0.0.1",
            helo="cabinet.example",
            protocol="ESMTP",
            sender=sender,
            trusted=1,
            tls="",
            body="7bit",
            origin=origin,
            foreign=False,
        ),
        recipients=tuple(NewRecipient(rcpt(t), rcpt(t), "relay", "meg") for t in targets),
        documents=made,
        deliveries=tuple(
            NewDelivery(
                id=f"{id}-{n}",
                kind=kind,
                route="meg" if kind == "send" else "ventes",
                client="",
                recipient=rcpt(target),
                target=target,
                state=State.WAITING,
                reason=None,
                created_at=stamp,
                due_at=stamp,
                expires_at=clock.stamp(at + timedelta(days=5)),
                sender=f"retours+{id:a<16}@welyb.fr",
                token=f"{id:a<16}",
                outbound_message_id=message_id,
                size=5000,
                documents=tuple(d.id for d in made),
                origins=ORIGINS if kind == "send" else frozenset(),
            )
            for n, target in enumerate(targets, 1)
        ),
        bounces=tuple(bounces),
    )


def rcpt(target: str) -> str:
    return f"meg+{target.partition('@')[0]}@welyb.fr"


def order(at: datetime = NOON, *, why: str = "parce que") -> Order:
    due = clock.stamp(at + timedelta(minutes=15))
    return Order("postmaster", why, clock.stamp(at), due_at=due, expires_at=clock.stamp(at + timedelta(days=5)))
