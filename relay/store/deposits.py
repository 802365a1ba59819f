"""Deposits into the queue: the document, its delivery, its row of the inventory and its events, in one transaction.

Knows alone: what makes a deposit a duplicate, which must be decided in the transaction that would queue it.
"""

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from sqlite_utils import Database

from relay.store import connections, restore
from relay.store.connections import Connection
from relay.store.database import one, rows
from relay.store.delivery import revive_twins
from relay.store.events import Event, write
from relay.store.intake import came_from, reason_facts, reason_text, twins
from rules import deposit
from rules.attachment import Content
from rules.deposit import Known, Seen
from rules.lifecycle import State
from rules.replies import Reason


@dataclass(frozen=True, slots=True)
class NewDeposit:
    """`known` is the row it replaces or follows; `refused` why our rules will not have it; `version` that it is held."""

    base: str
    connection: Connection
    seen: Seen
    content: Content
    origins: frozenset[str]
    at: str
    expires_at: str
    token: str
    sender: str
    message_id: str
    size: int = 0  # of the message
    spool: str = ""
    known: Known | None = None
    refused: Reason | None = None
    version: bool = False

    @property
    def document(self) -> str:
        return f"{self.base}.1"

    @property
    def delivery(self) -> str:
        return f"{self.base}-1"

    @property
    def name(self) -> str:
        return shown_name(self.seen)


def shown_name(seen: Seen) -> str:
    """The file's name as people type and search it: macOS writes its accents apart from their letters."""
    return unicodedata.normalize("NFC", seen.path.rpartition("/")[2])


class Made(Enum):
    """What the deposit came to."""

    WAITING = "waiting"
    REFUSED = "refused"
    HELD = "held"
    DUPLICATE = "duplicate"


@dataclass(frozen=True, slots=True)
class _Fate:
    state: State
    reason: Reason | None = None
    twin: str | None = None


def add_deposit(db: Database, new: NewDeposit) -> Made:
    """Inside the caller's transaction; the bytes are durable already."""
    replaced = _replace_pending(db, new)
    fate = _fate(db, new, replaced)
    _insert(db, new, fate)
    connections.put(db, new.connection.id, new.seen, role="document", sha256=new.content.sha256, document=new.document)
    write(db, new.at, "run", _events(db, new, fate))
    return Made(fate.state.value)


def _fate(db: Database, new: NewDeposit, was_held: Reason | None) -> _Fate:
    if new.refused is not None:
        return _Fate(State.REFUSED, new.refused)
    if new.version:
        return _Fate(State.HELD, Reason("modified"))
    if came_from(db, [new.content.sha256], new.origins):
        return _Fate(State.HELD, Reason("origin"))
    twin = next((t for t, name, _ in _twins(db, new) if name == new.name), None)
    if twin:
        return _Fate(State.DUPLICATE, Reason("duplicate", {"twin": twin}), twin)
    was_held = was_held or restore.doubt(db, new.connection.id, new.seen.ctime_ns)
    return _Fate(State.HELD, was_held) if was_held else _Fate(State.WAITING)


def _twins(db: Database, new: NewDeposit) -> list[tuple[str, str, str]]:
    return twins(db, new.content.sha256, new.connection.collector_address)


def _replace_pending(db: Database, new: NewDeposit) -> Reason | None:
    """The bytes changed before they were sent: the old delivery is withdrawn; the reason why it was held, if it was."""
    if new.known is None or new.known.role not in ("pending", "held") or new.known.document is None:
        return None
    held = None
    for delivery, state, reason in rows(
        db,
        """SELECT d.id, d.state, d.reason FROM delivery d JOIN delivery_document dd ON dd.delivery = d.id
        WHERE dd.document = ? AND d.state IN ('waiting', 'held')""",
        (new.known.document,),
    ):
        held = stored_reason(reason) if state == State.HELD else held
        gone = Reason("replaced", {"by": new.delivery})
        db.conn.execute(
            "UPDATE delivery SET state = 'dropped', reason = ?, finished_at = ? WHERE id = ?",
            (reason_text(gone), new.at, delivery),
        )
        write(db, new.at, "run", [Event("replaced", delivery=delivery, detail={"by": new.delivery})])
        revive_twins(db, delivery, new.at, "run")
    return held


def stored_reason(text: str | None) -> Reason | None:
    """A reason as it was stored, read again."""
    if not text:
        return None
    facts = json.loads(text)
    return Reason(str(facts.pop("code", "?")), facts)


def _insert(db: Database, new: NewDeposit, fate: _Fate) -> None:
    content, link = new.content, new.connection
    db.conn.execute(
        """INSERT INTO document (id, connection, sha256, name, type, size, spans, path, flags, deposited_at)
        VALUES (?, ?, ?, ?, ?, ?, '[]', ?, ?, ?)""",
        (
            *(new.document, link.id, content.sha256, new.name, content.type, content.size),
            *(_ged_path(new), "encrypted" if content.encrypted else "", new.at),
        ),
    )
    domain = link.collector_address.rpartition("@")[2].lower()
    finished = new.at if fate.state in (State.REFUSED, State.DUPLICATE) else None
    db.conn.execute(
        """INSERT INTO delivery (id, kind, route, client, connection, recipient, target, domain, state, reason, created_at,
          due_at, expires_at, held_at, finished_at, sender, token, outbound_message_id, spool, size, twin)
        VALUES (?, 'send', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
        (
            *(new.delivery, link.application, link.client, link.id, link.welyb_address, link.collector_address, domain),
            *(fate.state, reason_text(fate.reason), new.at, new.at, new.expires_at),
            *(new.at if fate.state is State.HELD else None, finished),
            *(new.sender, new.token, new.message_id, new.spool, new.size, fate.twin),
        ),
    )
    link_row = (new.delivery, new.document, content.sha256, link.collector_address)
    db.conn.execute("INSERT INTO delivery_document VALUES (?, ?, ?, ?)", link_row)


def _ged_path(new: NewDeposit) -> str:
    return "/".join(part for part in (new.connection.client_folder, new.connection.folder, new.seen.path) if part)


def _events(db: Database, new: NewDeposit, fate: _Fate) -> list[Event]:
    where = {"client": new.connection.client, "connection": new.connection.id, "path": _ged_path(new)}
    events = [Event("deposited", document=new.document, delivery=new.delivery, detail=where)]
    if new.version:
        old = new.known.document if new.known else None
        events.append(Event("modified", document=new.document, delivery=new.delivery, detail={"was": old}))
    told = {State.REFUSED: "refused", State.HELD: "held", State.DUPLICATE: "duplicate"}.get(fate.state)
    if told:
        events.append(Event(told, delivery=new.delivery, detail=reason_facts(fate.reason)))
    elif other := next((twin for twin, name, _ in _twins(db, new) if name != new.name), None):
        events.append(Event("again", document=new.document, delivery=new.delivery, detail={"twin": other}))
    return events


def apply_rows(db: Database, number: int, decisions: Iterable[deposit.Decision], at: str) -> None:
    """The decisions that only move rows of the inventory; in a transaction. Old rows go first: files can swap."""
    decisions = list(decisions)
    for decision in decisions:
        if isinstance(decision, deposit.Departed):
            _depart(db, number, decision.known, at)
        elif isinstance(decision, deposit.Moved | deposit.Returned) and decision.known.path != decision.seen.path:
            connections.delete(db, number, decision.known.path)
    for decision in decisions:
        match decision:
            case deposit.Moved(known=known, seen=seen) | deposit.Touched(known=known, seen=seen):
                role = connections.stored_role(known)
                connections.put(db, number, seen, role=role, sha256=known.sha256, document=known.document)
                if known.document and known.path != seen.path:
                    detail = {"from": known.path, "to": seen.path}
                    write(db, at, "run", [Event("moved", document=known.document, detail=detail)])
            case deposit.Returned(known=known, seen=seen):
                connections.put(db, number, seen, role="baseline", sha256=known.sha256, document=None)
            case deposit.EmptyWait(seen=seen):
                connections.put(db, number, seen, role="empty", sha256=None, document=None)
            case _:
                pass  # the others are deposits, and come one by one


def _depart(db: Database, number: int, known: Known, at: str) -> None:
    if known.role == "baseline":  # it may come back, and is baseline still
        db.conn.execute(
            "UPDATE inventory SET role = 'departed' WHERE connection = ? AND folder = ? AND name = ?",
            (number, *connections.split(known.path)),
        )
        return
    connections.delete(db, number, known.path)
    if known.document and known.role in ("pending", "held"):
        row = one(db, "SELECT delivery FROM delivery_document WHERE document = ?", (known.document,))
        write(db, at, "run", [Event("withdrawn", document=known.document, delivery=row[0] if row else None)])
