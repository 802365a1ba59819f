"""What the postmaster and the accountant ask: read-only, paged, newest first.

Knows alone: the columns of each listing (design.md §5: scripts depend on their names) and how a filter becomes SQL. A page
costs the same however long the queue is: it walks an index from where the last one ended, one index for each state
asked for. CROSS JOIN is how SQLite is told which table it walks.

Limits: of two filters that meet rarely (a client and a state, say) one is walked and the other tried row by row.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import Any, TypeVar

from relay.store.database import Store, marks, rows
from rules.lifecycle import State

Record = dict[str, Any]
T = TypeVar("T")
MODIFIED = '{"code": "modified"'  # how the reason of a version begins (relay.store.intake.reason_text)
CHUNK = 1000  # rows read at a time, so that a long listing is never held whole


@dataclass(frozen=True, slots=True)
class Filter:
    """Empty fields do not narrow. `since` is a stamp; `after` the last id (of documents: the last key) of the page before.

    `states` may hold "modified" and, for documents, "skipped" and "baseline", which no delivery is in.
    """

    states: tuple[str, ...] = ()
    client: str = ""
    collector: str = ""
    sender: str = ""
    since: str = ""
    ids: tuple[str, ...] = ()
    after: str = ""
    limit: int | None = None

    @property
    def narrows(self) -> bool:
        return bool(self.states or self.client or self.collector or self.sender or self.since or self.ids)


def where(wanted: Filter) -> tuple[str, list[object]]:
    """Conditions on `delivery d`, and their parameters. An id may be a delivery's, a message's or a document's."""
    conditions: list[str] = []
    parameters: list[object] = []

    def add(condition: str, *values: object) -> None:
        conditions.append(condition)
        parameters.extend(values)

    if wanted.states:
        modified = f" OR (d.state = 'held' AND d.reason LIKE '{MODIFIED}%')" if "modified" in wanted.states else ""
        add(f"(d.state IN ({marks(wanted.states)}){modified})", *wanted.states)
    if wanted.client:
        add("d.client = ? AND d.client <> ''", wanted.client)
    if wanted.collector:
        add("d.target = ?", wanted.collector)
    if wanted.sender:
        add("d.message IN (SELECT id FROM message WHERE sender = ?)", wanted.sender)
    if wanted.since:
        add("d.created_at >= ?", wanted.since)
    if wanted.ids:
        list_ = marks(wanted.ids)
        found = f"SELECT delivery FROM delivery_document WHERE document IN ({list_})"
        add(f"(d.id IN ({list_}) OR d.message IN ({list_}) OR d.id IN ({found}))", *(wanted.ids * 3))
    return " AND ".join(conditions) or "1", parameters


# In both, a mail's deliveries follow its message: their ids begin with its own, so that one order serves either walk.
_DELIVERIES = "delivery d LEFT JOIN message m ON m.id = d.message"
_OF_SENDER = "message m CROSS JOIN delivery d ON d.message = m.id"


@dataclass(frozen=True, slots=True)
class _Walk:
    """From which tables, on which conditions and in which order the rows of one query come."""

    tables: str
    condition: str
    parameters: list[object]
    order: str = "d.id DESC"


def _walks(wanted: Filter) -> list[_Walk]:
    """One, or one a state: each is an index walked in order, where `state IN (…)` would have to sort all it finds."""
    states = [state for state in wanted.states if state in {*State, "modified"}] if wanted.states else []
    if "modified" in states and State.HELD in states:
        states.remove("modified")
    narrower = wanted.client or wanted.collector or wanted.sender or wanted.ids
    if wanted.states and not narrower:
        return [_walk(replace(wanted, states=(state,))) for state in dict.fromkeys(states)]
    return [_walk(wanted)]


def _walk(wanted: Filter) -> _Walk:
    condition, parameters = where(replace(wanted, sender=""))
    if not wanted.sender:
        return _Walk(_DELIVERIES, condition, parameters)
    if wanted.ids or wanted.client or wanted.collector:
        return _Walk(_DELIVERIES, f"m.sender = ? AND {condition}", [wanted.sender, *parameters])
    if wanted.after:
        condition, parameters = f"({condition}) AND m.id <= ?", [*parameters, wanted.after]
    return _Walk(_OF_SENDER, f"m.sender = ? AND {condition}", [wanted.sender, *parameters], "m.id DESC, d.id DESC")


def _merged(found: Sequence[Iterable[T]], key: Callable[[T], Any], limit: int | None) -> Iterator[T]:
    """The rows of all, newest first."""
    if len(found) == 1:
        return iter(found[0])
    return islice(merge(*found, key=key, reverse=True), limit)


def _limit(limit: int | None) -> int:
    return -1 if limit is None else limit


_QUEUE = {
    "id": "d.id",
    "message": "d.message",
    "message_id": "coalesce(m.message_id, d.outbound_message_id)",
    "documents": "(SELECT count(*) FROM delivery_document dd WHERE dd.delivery = d.id)",
    "kind": "d.kind",
    "state": "d.state",
    "reason": "coalesce(d.reason, '')",
    "route": "d.route",
    "client": "d.client",
    "sender": "coalesce(m.sender, '')",
    "recipient": "d.recipient",
    "target": "d.target",
    "received_at": "coalesce(m.received_at, d.created_at)",
    "due_at": "d.due_at",
    "attempts": "d.attempts",
    "reply": "d.reply",
    "size": "d.size",
    "mx": "d.mx",
    "tls": "d.tls",
    "uncertain": "json(iif(d.uncertain, 'true', 'false'))",
    "form": """CASE WHEN d.message IS NULL OR d.kind = 'file' THEN '' WHEN d.author = '' THEN 'received' ELSE 'new' END""",
    "reason_code": "NULL",
}
# Of ten thousand rows, most of the time went into making them Python's and then text again. Where the text is printable
# ASCII it is byte for byte what Python's json makes of them.
_FORMAT = ", ".join(f'"{name}": %s' for name in _QUEUE)
_QUEUE_AS_TEXT = (
    f"SELECT d.id, d.reason IS NULL, format('{{{_FORMAT}}}', {', '.join(f'json_quote({v})' for v in _QUEUE.values())})"
)


def queue(db: Store, wanted: Filter) -> Iterator[Record]:
    """Deliveries, newest first. `reason` is the stored JSON, for the reader's language to be put to."""
    return (json.loads(line) for line, _ in queue_as_text(db, wanted))


def queue_as_text(db: Store, wanted: Filter) -> Iterator[tuple[str, bool]]:
    """The same, each as the JSON it is shown as; and whether that stands: not where it has a reason, or is not printable
    ASCII.
    """
    page, after = (" AND d.id < ?", [wanted.after]) if wanted.after else ("", [])
    found = [
        _rows(
            db,
            f"{_QUEUE_AS_TEXT} FROM {walk.tables} WHERE ({walk.condition}){page} ORDER BY {walk.order} LIMIT ?",
            [*walk.parameters, *after, _limit(wanted.limit)],
        )
        for walk in _walks(wanted)
    ]
    merged = _merged(found, itemgetter(0), wanted.limit)
    return ((line, bool(plain) and line.isascii() and "\x7f" not in line) for _, plain, line in merged)


_DOCUMENTS = """
SELECT f.id, d.id AS delivery, f.name, f.type, f.sha256, f.size, coalesce(nullif(d.client, ''), c.client, '') AS client,
  coalesce(c.folder, '') AS folder, d.kind, d.state, d.target AS collector, f.origin, d.reason, f.deposited_at,
  d.finished_at, d.due_at, f.skipped, f.path, f.flags, d.id || '/' || f.id AS key, d.uncertain"""
_WITH_DOCUMENTS = """CROSS JOIN delivery_document dd ON dd.delivery = d.id CROSS JOIN document f ON f.id = dd.document
LEFT JOIN connection c ON c.id = f.connection"""


def documents(db: Store, wanted: Filter) -> Iterator[Record]:
    """One row per document and destination, then what was skipped and what was never sent, as the firm sees it."""
    left = wanted.limit
    start, after = _place(db, wanted.after)
    for number, section in enumerate((_delivered, _skipped, _baseline)):
        if number < start or left == 0:
            continue
        for row in section(db, wanted, after if number == start else (), left):
            left = None if left is None else left - 1
            yield row


def _place(db: Store, after: str) -> tuple[int, tuple[object, ...]]:
    """The section in which a page begins, and the row it comes after: told by a key, or by a document's id alone."""
    if not after:
        return 0, ()
    if after.startswith(BASELINE):
        number, _, path = after.removeprefix(BASELINE).partition("/")
        folder, _, name = path.rpartition("/")
        return 2, (int(number) if number.isdecimal() else 0, folder, name)
    if "/" in after:
        return 0, tuple(after.split("/", 1))
    found = rows(db, "SELECT skipped FROM document WHERE id = ?", (after,))
    if found and found[0][0] is not None:
        return 1, (after,)
    last = rows(db, "SELECT min(delivery) FROM delivery_document WHERE document = ?", (after,))[0][0]
    return 0, (last, after) if last else (after, "")


def _delivered(db: Store, wanted: Filter, after: tuple[object, ...], left: int | None) -> Iterator[Record]:
    page = " AND d.id <= ? AND (d.id < ? OR dd.document < ?)" if after else ""
    values = [after[0], *after] if after else []
    wanted = replace(wanted, after=str(after[0]) if after else "")
    found = [
        _records(
            db,
            f"""{_DOCUMENTS} FROM {walk.tables} {_WITH_DOCUMENTS} WHERE ({walk.condition}){page}
            ORDER BY {walk.order}, dd.document DESC LIMIT ?""",
            [*walk.parameters, *values, _limit(left)],
        )
        for walk in _walks(wanted)
    ]
    return _merged(found, itemgetter("delivery", "id"), left)


_SKIPPED = """
SELECT f.id, '' AS delivery, f.name, f.type, f.sha256, f.size, '' AS client, '' AS folder, '' AS kind, 'skipped' AS state,
  '' AS collector, f.origin, f.skipped AS reason, f.deposited_at, NULL AS finished_at, f.skipped, f.path, f.flags,
  f.id AS key, 0 AS uncertain
FROM document f LEFT JOIN message m ON m.id = f.message WHERE f.skipped IS NOT NULL"""


def _skipped(db: Store, wanted: Filter, after: tuple[object, ...], left: int | None) -> Iterator[Record]:
    if wanted.client or wanted.collector or (wanted.states and "skipped" not in wanted.states):
        return
    sender = " AND m.sender = ?" if wanted.sender else ""
    since = " AND f.deposited_at >= ?" if wanted.since else ""
    ids = f" AND (f.id IN ({marks(wanted.ids)}) OR f.message IN ({marks(wanted.ids)}))" if wanted.ids else ""
    values = [v for v in (wanted.sender, wanted.since) if v]
    sql = f"{_SKIPPED}{sender}{since}{ids}{' AND f.id < ?' if after else ''} ORDER BY f.id DESC LIMIT ?"
    yield from _records(db, sql, [*values, *wanted.ids, *wanted.ids, *after, _limit(left)])


BASELINE = "baseline:"  # what the keys of files that are never sent begin with

_BASELINE = f"""
SELECT '{BASELINE}' || i.connection || '/' || i.folder || '/' || i.name AS id, '' AS delivery, i.name, '' AS type,
  coalesce(i.sha256, '') AS sha256, i.size, c.client, trim(c.folder || '/' || i.folder, '/') AS folder, '' AS kind,
  'baseline' AS state, c.collector_address AS collector, '' AS origin, NULL AS reason, c.activated_at AS deposited_at,
  NULL AS finished_at, NULL AS skipped, '' AS path, '' AS flags,
  '{BASELINE}' || i.connection || '/' || i.folder || '/' || i.name AS key, 0 AS uncertain
FROM inventory i JOIN connection c ON c.id = i.connection
WHERE i.role = 'baseline' AND c.removed_at IS NULL"""


def _baseline(db: Store, wanted: Filter, after: tuple[object, ...], left: int | None) -> Iterator[Record]:
    if wanted.sender or wanted.since or wanted.ids or (wanted.states and "baseline" not in wanted.states):
        return
    client = " AND c.client = ?" if wanted.client else ""
    collector = " AND c.collector_address = ?" if wanted.collector else ""
    values = [v for v in (wanted.client, wanted.collector) if v]
    page = " AND (i.connection, i.folder, i.name) > (?, ?, ?)" if after else ""
    sql = f"{_BASELINE}{client}{collector}{page} ORDER BY i.connection, i.folder, i.name LIMIT ?"
    yield from _records(db, sql, [*values, *after, _limit(left)])


STATUS = {
    State.WAITING: "pending",
    State.SENDING: "pending",
    State.FILING: "pending",
    State.SENT: "validated",
    State.FILED: "filed",
    State.HELD: "held",
    State.REFUSED: "refused",
    State.FAILED: "failed",
    State.DUPLICATE: "duplicate",
    State.DROPPED: "skipped",
    State.BOUNCED: "bounced",
    State.HANDED: "skipped",
}


def status(row: Record) -> str:
    """What the firm sees: « validé » if and only if the next hop accepted it and no failure report withdrew it."""
    if row["state"] == State.HELD and (row["reason"] or "").startswith(MODIFIED):
        return "modified"
    return STATUS.get(row["state"], str(row["state"]))


# --- the story of one thing -------------------------------------------------------------------------------------------


def trace(db: Store, query: str) -> list[Record]:
    """Every event of what `query` names: an id, a file name, a SHA-256, a Message-ID, a sender or a client."""
    documents_ = _found(db, "document", "id = ? OR name = ? OR (path = ? AND path <> '')", (query, query, query))
    documents_ |= {str(row[0]) for row in rows(db, _BY_HASH, {"sha256": query.lower()})}
    bare = query if query.startswith("<") else f"<{query}>"
    messages = _found(db, "message", "id = ? OR message_id IN (?, ?) OR sender = ?", (query, query, bare, query))
    deliveries = _found(db, "delivery", "id = ? OR (client = ? AND client <> '') OR target = ?", (query, query, query))
    if not (documents_ or messages or deliveries):
        return _refusals(db, query)
    documents_ |= _linked(db, "SELECT id FROM document WHERE message IN ({})", messages)
    documents_ |= _linked(db, "SELECT document FROM delivery_document WHERE delivery IN ({})", deliveries)
    deliveries |= _linked(db, "SELECT delivery FROM delivery_document WHERE document IN ({})", documents_)
    deliveries |= _linked(db, "SELECT id FROM delivery WHERE message IN ({})", messages)
    messages |= _linked(db, "SELECT message FROM delivery WHERE message IS NOT NULL AND id IN ({})", deliveries)
    messages |= _linked(db, "SELECT message FROM document WHERE message IS NOT NULL AND id IN ({})", documents_)
    found: dict[int, Record] = {}
    for column, ids in (("message", messages), ("document", documents_), ("delivery", deliveries)):
        for some in _batches(sorted(ids)):
            sql = f"{_EVENTS} WHERE e.{column} IN ({marks(some)})"
            found |= {row["id"]: row for row in _records(db, sql, some)}
    story = [found[key] for key in sorted(found, key=lambda k: (found[k]["at"], k))]
    for row in story:
        row["detail"] = json.loads(row["detail"] or "{}") | _authentication(row)
        del row["id"]
    return story + _refusals(db, query)


_EVENTS = """
SELECT e.*, m.authentication FROM event e LEFT JOIN message m ON m.id = e.message AND e.event = 'accepted'"""


def _authentication(row: Record) -> Record:
    """What SPF, DKIM and DMARC said, where anybody asked."""
    kept = row.pop("authentication")
    return {"authentication": json.loads(kept)} if kept else {}


_BY_HASH = """
SELECT document FROM delivery_document WHERE sha256 = :sha256
UNION SELECT id FROM document WHERE sha256 = :sha256 AND skipped IS NOT NULL
UNION SELECT f.id FROM recipient r CROSS JOIN document f ON f.message = r.message
  WHERE r.route = 'bounce' AND f.sha256 = :sha256
LIMIT 10000"""

_REFUSALS = """
SELECT at, 'smtp' AS actor, 'refused' AS event, id AS message, NULL AS document, NULL AS delivery, sender, recipients,
  documents, reply, authentication FROM refusal
WHERE id = :query OR sender = :query OR message_id IN (:query, :bare)
  OR EXISTS (SELECT 1 FROM json_each(recipients) WHERE value = :query OR instr(value, '+' || :query || '@'))
  OR EXISTS (SELECT 1 FROM json_each(documents) WHERE lower(:query) = value ->> '$.sha256' OR :query = value ->> '$.name')
ORDER BY at"""


def _refusals(db: Store, query: str) -> list[Record]:
    """Refused mails answer "where is this invoice?" too."""
    found = []
    for row in _records(db, _REFUSALS, {"query": query, "bare": f"<{query}>"}):
        detail = {"sender": row.pop("sender"), "reply": row.pop("reply")}
        detail |= _authentication(row)
        detail |= {"recipients": json.loads(row.pop("recipients")), "documents": json.loads(row.pop("documents"))}
        found.append({**row, "detail": detail})
    return found


def _found(db: Store, table: str, condition: str, parameters: Sequence[object]) -> set[str]:
    return {str(row[0]) for row in rows(db, f"SELECT id FROM {table} WHERE {condition} LIMIT 10000", parameters)}


def _linked(db: Store, sql: str, ids: set[str]) -> set[str]:
    return {str(row[0]) for some in _batches(sorted(ids)) for row in rows(db, sql.format(marks(some)), some)}


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), 500):
        yield ids[start : start + 500]


# --- the rest ---------------------------------------------------------------------------------------------------------


def body_key(db: Store, id_: str) -> str:
    """Where the bytes of a delivery, or of a message, are spooled; "" where nothing bears that id."""
    sql = """SELECT CASE WHEN d.spool = '' THEN coalesce(m.spool, '') ELSE d.spool END FROM delivery d
      LEFT JOIN message m ON m.id = d.message WHERE d.id = ? UNION ALL SELECT spool FROM message WHERE id = ?"""
    found = rows(db, sql, (id_, id_))
    return str(found[0][0]) if found else ""


def summary(db: Store) -> list[Record]:
    """Per kind and state: how many, how large, and since when the oldest waits."""
    sql = """SELECT kind, state, count(*) AS deliveries, sum(size) AS size, min(created_at) AS oldest
    FROM delivery GROUP BY kind, state ORDER BY kind, state"""
    return list(_records(db, sql, ()))


def runs(db: Store, limit: int | None = None, run: int | None = None) -> list[Record]:
    condition = "WHERE id = ?" if run is not None else ""
    sql = f"""SELECT id, started_at, finished_at, eligible, sent, deferred, refused, held, duplicate FROM run {condition}
    ORDER BY id DESC LIMIT ?"""
    return list(_records(db, sql, [*([run] if run is not None else []), _limit(limit)]))


def attempts_of(db: Store, run: int) -> list[Record]:
    """What a run did, delivery by delivery."""
    sql = "SELECT d.id, d.client, d.target, d.state, d.reason, d.reply FROM delivery d WHERE d.claim = ? ORDER BY d.id"
    return list(_records(db, sql, (run,)))


def _records(db: Store, sql: str, parameters: Sequence[object] | dict[str, object]) -> Iterator[Record]:
    cursor = db.conn.execute(sql, parameters)
    names = [column[0] for column in cursor.description]
    return (dict(zip(names, row, strict=True)) for row in _fetched(cursor))


def _rows(db: Store, sql: str, parameters: Sequence[object]) -> Iterator[tuple[Any, ...]]:
    return _fetched(db.conn.execute(sql, parameters))


def _fetched(cursor: Any) -> Iterator[tuple[Any, ...]]:
    while found := cursor.fetchmany(CHUNK):
        yield from found
