"""Erasure of the personal data of a client or a sender, and the record that it was done.

Knows alone: what is personal, and what accounting evidence needs. Ids, hashes, sizes, types, dates, states and the
Message-ID stay; addresses, names of files and hosts, paths, replies and the details of events go, and so do the bytes.
What was asked for is kept as a salted hash (scrypt), by which the same question is known again and nothing is read back.
Limits: a mail that also went to another client keeps its own line and bytes until its retention; a document whose name
was erased is no longer known as a duplicate by it; backups made before still have all of it.
"""

import hashlib
import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sqlite_utils import Database

from relay.store.database import marks, one, rows
from relay.store.directory import meta, set_meta
from relay.store.events import Event, encode, write
from rules import throttle
from rules.lifecycle import ALIVE

GONE = "erased"
UNFINISHED = "erasing"  # in `meta`: keys whose bytes are still to go
_KEPT_DETAILS = ("attempt", "code", "twin", "by", "of", "was", "mx", "tls", "delivery")
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Asked:
    """`client` or `sender`, one of them."""

    client: str = ""
    sender: str = ""

    @property
    def text(self) -> str:
        return f"client {self.client}" if self.client else f"sender {self.sender.lower()}"


@dataclass(frozen=True, slots=True)
class Scope:
    """Ids of what is meant. `messages`: those of which nothing concerns anybody else."""

    messages: tuple[str, ...]
    deliveries: tuple[str, ...]
    documents: tuple[str, ...]
    refusals: tuple[str, ...]
    connections: tuple[int, ...]
    alive: int
    throttles: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        found = (self.messages, self.deliveries, self.refusals, self.connections, self.throttles)
        return sum(map(len, found))


def scope(db: Database, asked: Asked) -> Scope:
    found = _of_client(db, asked.client) if asked.client else _of_sender(db, asked.sender)
    return replace(found, throttles=_throttles(db, asked, found))


def _throttles(db: Database, asked: Asked, found: Scope) -> tuple[int, ...]:
    """Who was held back: the client or its collectors, or the sender's domain; and the peers their mail came from."""
    collectors = _ids(db, "SELECT lower(collector_address) FROM connection WHERE client = ?", asked.client)
    peers = _of(db, "SELECT DISTINCT peer FROM message WHERE id IN ({})", found.messages)
    peers = (*peers, *_of(db, "SELECT DISTINCT peer FROM refusal WHERE id IN ({})", found.refusals))
    networks = tuple({throttle.network(peer) for peer in peers})
    domain = asked.sender.rpartition("@")[2].lower()
    ids: list[str] = []
    for kind, names in (
        ("client", (asked.client, *collectors) if asked.client else ()),
        ("sender_domain", (domain,) if domain else ()),
        ("peer", networks),
        ("unknown", networks),
    ):
        ids += _of(db, f"SELECT id FROM throttle WHERE kind = '{kind}' AND subject IN ({{}})", names)
    return tuple(map(int, ids))


def _of_sender(db: Database, sender: str) -> Scope:
    messages = _ids(db, "SELECT id FROM message WHERE lower(sender) = lower(?)", sender)
    refusals = _ids(db, "SELECT id FROM refusal WHERE lower(sender) = lower(?)", sender)
    deliveries = _of(db, "SELECT id FROM delivery WHERE message IN ({})", messages)
    return _scope(db, messages, deliveries, refusals, ())


def _of_client(db: Database, client: str) -> Scope:
    deliveries = tuple(str(row[0]) for row in rows(db, _OF_CLIENT, {"client": client}))
    mine = set(deliveries)
    messages = tuple(
        message
        for message in _of(
            db, "SELECT DISTINCT message FROM delivery WHERE id IN ({}) AND message IS NOT NULL", deliveries
        )
        if mine.issuperset(_ids(db, "SELECT id FROM delivery WHERE message = ?", message))
    )
    messages = (*messages, *_requests(db, client))
    links = tuple(int(row[0]) for row in rows(db, "SELECT id FROM connection WHERE client = ?", (client,)))
    refusals = tuple(id_ for id_, typed in _refusals(db, client) if all(_is_of(client, one_) for one_ in typed))
    return _scope(db, messages, deliveries, refusals, links)


# What bears its name, and what went to a collector that was its alone before or after a connection stood.
_OF_CLIENT = """
SELECT id FROM delivery WHERE client = :client
UNION SELECT d.id FROM connection c JOIN delivery d ON d.target = c.collector_address AND d.client = ''
  WHERE c.client = :client AND NOT EXISTS
  (SELECT 1 FROM connection x WHERE x.collector_address = c.collector_address AND x.client <> c.client)"""


def _refusals(db: Database, client: str) -> list[tuple[str, list[str]]]:
    """Those that name the client, each with all its recipients as they were typed."""
    typed = f"%+{client.replace('_', '~_')}@%"
    found = rows(db, "SELECT id, recipients FROM refusal WHERE recipients LIKE ? ESCAPE '~'", (typed,))
    return [(str(id_), [str(one_) for one_ in json.loads(recipients)]) for id_, recipients in found]


def _requests(db: Database, client: str) -> Iterator[str]:
    """Requests to confirm a forward to an address of the client's, and to no other: nothing was delivered of them."""
    asked = """SELECT message FROM recipient WHERE route = 'forwarding' AND instr(lower(typed), '+' || ? || '@') > 0"""
    for message in _ids(db, asked, client):
        typed = _ids(db, "SELECT typed FROM recipient WHERE message = ?", message)
        if all(_is_of(client, one_) for one_ in typed):
            yield message


def _is_of(client: str, typed: str) -> bool:
    return f"+{client}@" in typed.lower()


def _scope(
    db: Database,
    messages: Sequence[str],
    deliveries: Sequence[str],
    refusals: Sequence[str],
    links: Sequence[int],
) -> Scope:
    told = "SELECT detail ->> 'by' FROM event WHERE event = 'notified' AND delivery IN ({})"  # the reports to a sender
    deliveries = (*deliveries, *_of(db, told, deliveries))
    documents = _of(db, "SELECT id FROM document WHERE message IN ({})", messages)
    own = "SELECT d.id FROM delivery_document l JOIN document d ON d.id = l.document WHERE d.message IS NULL AND l.delivery"
    documents = (*documents, *_of(db, own + " IN ({})", deliveries))
    alive = sum(
        one(
            db,
            f"SELECT count(*) FROM delivery WHERE id IN ({marks(part)}) AND state IN ({marks(_ALIVE)})",
            (*part, *_ALIVE),
        )[0]  # type: ignore[index]  # a count has a row
        for part in _parts(deliveries)
    )
    active = sum(_active(db, link) for link in links)
    return Scope(tuple(messages), tuple(deliveries), tuple(documents), tuple(refusals), tuple(links), alive + active)


_ALIVE = tuple(ALIVE)


def _active(db: Database, link: int) -> int:
    return int(one(db, "SELECT 1 FROM connection WHERE id = ? AND removed_at IS NULL", (link,)) is not None)


def erase(db: Database, asked: Asked, *, at: str, actor: str, why: str) -> Scope:
    """In a transaction, with secure_delete on; the bytes of `keys` are the caller's. Nothing where some of it is alive."""
    found = scope(db, asked)
    if found.alive or not found.size:
        return found
    keys = _keys(db, found)
    _erase_messages(db, found.messages, at)
    _erase_deliveries(db, found, of_client=asked.client)
    _each(db, "UPDATE document SET name = 'erased', path = '' WHERE id = ?", found.documents)
    _each(db, "DELETE FROM refusal WHERE id = ?", found.refusals)
    db.conn.executemany("DELETE FROM throttle WHERE id = ?", [(id_,) for id_ in found.throttles])
    for id_, typed in _refusals(db, asked.client) if asked.client else ():  # others were named beside it
        left = encode([GONE if _is_of(asked.client, one_) else one_ for one_ in typed])
        db.conn.execute("UPDATE refusal SET recipients = ? WHERE id = ?", (left, id_))
    _erase_connections(db, found.connections)
    _erase_details(db, found, asked.client)
    set_meta(db, UNFINISHED, encode([*unfinished(db), *keys]))
    salt = secrets.token_hex(16)
    counts = {"messages": len(found.messages), "deliveries": len(found.deliveries), "refusals": len(found.refusals)}
    counts |= {"documents": len(found.documents), "bodies": len(keys)}
    detail = {"what": "client" if asked.client else "sender", **counts, "why": why, "salt": salt}
    write(db, at, actor, [Event("erased", detail=detail | {"asked": _hashed(salt, asked)})])
    return found


def _hashed(salt: str, asked: Asked) -> str:
    return hashlib.scrypt(asked.text.encode(), salt=bytes.fromhex(salt), n=2**14, r=8, p=1, dklen=32).hex()


def record_of(db: Database, asked: Asked) -> tuple[str, str] | None:
    """(when, who) of the latest erasure that was asked for in the same words."""
    for at, actor, detail in rows(db, "SELECT at, actor, detail FROM event WHERE event = 'erased' ORDER BY id DESC"):
        facts = json.loads(detail)
        if facts["asked"] == _hashed(facts["salt"], asked):
            return str(at), str(actor)
    return None


def unfinished(db: Database) -> list[str]:
    """Keys of bodies that were erased from the store and may still be in the spool."""
    return [str(key) for key in json.loads(meta(db, UNFINISHED) or "[]")]


def finished(db: Database) -> None:
    db.conn.execute("DELETE FROM meta WHERE name = ?", (UNFINISHED,))


def _keys(db: Database, found: Scope) -> list[str]:
    """Of all bodies that are still there."""
    bodies = _of(db, "SELECT spool FROM message WHERE purged_at IS NULL AND id IN ({})", found.messages)
    own = _of(db, "SELECT spool FROM delivery WHERE spool <> '' AND id IN ({})", found.deliveries)
    return [*bodies, *own]


def _erase_messages(db: Database, messages: Sequence[str], at: str) -> None:
    gone = "sender = 'erased', peer = '', helo = '', user = '', authentication = NULL"
    _each(db, f"UPDATE message SET {gone} WHERE id = ?", messages)
    stamped = "UPDATE message SET purged_at = ? WHERE id = ? AND purged_at IS NULL"
    db.conn.executemany(stamped, [(at, id_) for id_ in messages])
    numbered = """UPDATE recipient SET typed = 'erased', address = 'erased-' || (SELECT count(*) FROM recipient r
      WHERE r.message = recipient.message AND r.address <= recipient.address) WHERE message = ? AND address = ?"""
    for message in messages:
        for (address,) in rows(db, "SELECT address FROM recipient WHERE message = ?", (message,)):
            if not address.startswith("erased-"):
                db.conn.execute(numbered, (message, address))


def _erase_deliveries(db: Database, found: Scope, *, of_client: str) -> None:
    """A sender's keep the collector they went to, which is the client's; a client's keep its domain alone."""
    sql = """UPDATE delivery SET recipient = 'erased', reply = '', spool = '',
      sender = CASE WHEN sender LIKE 'retours+%' THEN sender ELSE '' END,
      reason = CASE WHEN reason IS NULL THEN NULL ELSE json_object('code', reason ->> 'code') END WHERE id = ?"""
    _each(db, sql, found.deliveries)
    if of_client:
        sql = """UPDATE delivery SET client = '', connection = NULL,
          target = CASE kind WHEN 'send' THEN 'erased@invalid' ELSE 'erased' END WHERE id = ?"""
        _each(db, sql, found.deliveries)
        _each(db, "UPDATE delivery_document SET target = 'erased' WHERE delivery = ?", found.deliveries)
    else:
        _each(db, "UPDATE delivery SET target = 'erased' WHERE kind = 'file' AND id = ?", found.deliveries)
    _each(
        db,
        "UPDATE delivery SET target = 'erased@invalid', domain = '' WHERE route = 'dsn' AND id = ?",
        found.deliveries,
    )


def _erase_connections(db: Database, links: Sequence[int]) -> None:
    marked = [(link,) for link in links]
    db.conn.executemany(
        """UPDATE connection SET client = 'erased', folder = '', welyb_address = 'erased', collector_address = 'erased',
        reason = NULL WHERE id = ?""",
        marked,
    )
    db.conn.executemany("DELETE FROM inventory WHERE connection = ?", marked)


def _erase_details(db: Database, found: Scope, client: str) -> None:
    kept = ", ".join(f"'{name}', detail -> '{name}'" for name in _KEPT_DETAILS)
    # json_patch drops what is null: a fact that was never there does not appear as one.
    update = f"UPDATE event SET detail = json_patch('{{}}', json_object({kept})) WHERE detail IS NOT NULL AND "
    for column, ids in (("message", found.messages), ("document", found.documents), ("delivery", found.deliveries)):
        _each(db, f"{update} {column} = ?", ids)
    if client:
        alone = "message IS NULL AND document IS NULL AND delivery IS NULL"
        db.conn.execute(f"{update} {alone} AND detail ->> 'client' = ?", (client,))
    for link in found.connections:
        db.conn.execute(f"{update} event LIKE 'connect%' AND detail ->> 'connection' = ?", (link,))
        db.conn.execute(f"{update} event = 'readdressed' AND detail ->> 'connection' = ?", (link,))


def _each(db: Database, sql: str, ids: Sequence[str]) -> None:
    db.conn.executemany(sql, [(id_,) for id_ in ids])


def _ids(db: Database, sql: str, value: str) -> tuple[str, ...]:
    return tuple(str(row[0]) for row in rows(db, sql, (value,)))


def _of(db: Database, sql: str, ids: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(row[0]) for part in _parts(ids) for row in rows(db, sql.format(marks(part)), part))


def _parts(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[first : first + _AT_ONCE] for first in range(0, len(ids), _AT_ONCE)]
