"""Does the store agree with itself? What `check --store` asks of the rows; of the bytes relay.care asks.

Knows alone: which rows may not stand together. Each question gives what breaks it, and nothing where all is well.
Limits: rows are looked at while others write; a row in doubt is looked at again before it is told.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlite_utils import Database

from relay.store.database import Store, marks, one, rows
from relay.store.delivery import COUNTS, revive_twins
from relay.store.erasure import unfinished
from relay.store.events import Event, write
from relay.store.intake import reason_facts, reason_text
from rules.lifecycle import ALIVE, State
from rules.replies import Reason

OURS = frozenset({"postmaster", "dsn", "warning"})  # routes that are no rule's
SHOWN = 20  # of one kind


@dataclass(frozen=True, slots=True)
class Problem:
    """`code` names the question that failed, `what` the row or file, `detail` what was found."""

    code: str
    what: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Needed:
    """Bytes that a row needs: a message's, or those of a delivery of ours."""

    table: str
    id: str
    key: str
    size: int


def problems(db: Store, rules: Sequence[str]) -> Iterator[Problem]:
    """Of the rows alone; `rules` are the names of those in force."""
    for (told,) in rows(db, f"PRAGMA integrity_check({SHOWN})"):
        if told != "ok":
            yield Problem("damaged", "relay.db", str(told))
    for table, rowid, parent, _ in rows(db, "PRAGMA foreign_key_check")[:SHOWN]:
        yield Problem("reference", str(table), f"{rowid if rowid is not None else '?'} → {parent}")
    for code, sql in _BROKEN.items():
        for what, detail in rows(db, f"{sql} LIMIT {SHOWN}"):
            yield Problem(code, str(what), str(detail))
    for route, count in rows(db, _ROUTES):
        if route not in rules and route not in OURS:
            yield Problem("rule", str(route), str(count))
    if left := unfinished(db):  # type: ignore[arg-type]  # plain SQL is all it needs
        yield Problem("erasing", "spool", str(len(left)))


_ROUTES = """SELECT route, count(*) FROM delivery WHERE state IN ('waiting', 'sending', 'filing', 'held')
GROUP BY route"""
_BALANCE = " + ".join(COUNTS[1:])
_BROKEN = {
    "balance": f"SELECT 'run ' || id, eligible || ' <> ' || ({_BALANCE}) FROM run "
    f"WHERE finished_at IS NOT NULL AND eligible <> {_BALANCE}",
    "recipient": """SELECT m.id, '' FROM message m WHERE NOT EXISTS (SELECT 1 FROM recipient r WHERE r.message = m.id)""",
    "document": """SELECT d.id, l.document FROM delivery d JOIN delivery_document l ON l.delivery = d.id
      JOIN document f ON f.id = l.document WHERE f.sha256 <> l.sha256""",
    "finished": """SELECT id, state FROM delivery WHERE finished_at IS NOT NULL
      AND state IN ('waiting', 'sending', 'filing', 'held')""",
}


def in_flight(db: Store, state: str) -> int:
    """How many are in the hands of somebody, `sending` or `filing`."""
    return int(rows(db, "SELECT count(*) FROM delivery WHERE state = ?", (state,))[0][0])


def needed(db: Store) -> Iterator[Needed]:
    """All bytes that rows need, one statement, one instant."""
    sql = """SELECT 'message', id, spool, size FROM message WHERE purged_at IS NULL
      UNION ALL SELECT 'delivery', id, spool, size FROM delivery WHERE spool <> ''"""
    for row in db.conn.execute(sql):
        yield Needed(*row)


def still_needed(db: Store, item: Needed) -> bool:
    """Have the bytes not been purged since? Rows are changed before bytes go."""
    condition = "purged_at IS NULL" if item.table == "message" else "spool <> ''"
    return one(db, f"SELECT 1 FROM {item.table} WHERE id = ? AND {condition}", (item.id,)) is not None


def documents(db: Store, message: str) -> list[tuple[str, str, str]]:
    """(id, SHA-256, spans) of what a mail brought."""
    sql = "SELECT id, sha256, spans FROM document WHERE message = ? AND spans <> '[]'"
    return [(str(a), str(b), str(c)) for a, b, c in rows(db, sql, (message,))]


def fail_without_bytes(db: Database, item: Needed, *, at: str, actor: str, why: str) -> list[str]:
    """Gives up what cannot be sent any more; the ids. In a transaction. What is in flight is its holder's to judge."""
    column = "message" if item.table == "message" else "id"
    own = " AND spool = ''" if item.table == "message" else ""
    found = rows(db, f"SELECT id FROM delivery WHERE {column} = ? AND state IN ('waiting', 'held'){own}", (item.id,))
    reason = Reason("bytes-missing")
    sql = """UPDATE delivery SET state = 'failed', reason = ?, finished_at = ?, held_at = NULL WHERE id = ?"""
    db.conn.executemany(sql, [(reason_text(reason), at, row[0]) for row in found])
    detail = reason_facts(reason) | {"why": why}
    write(db, at, actor, [Event("bytes-missing", delivery=row[0], detail=detail) for row in found])
    for (delivery,) in found:
        revive_twins(db, delivery, at, actor)
    return [str(row[0]) for row in found]


def forget_missing(db: Database, item: Needed, *, at: str, actor: str) -> bool:
    """Bytes that are gone and that nothing can be asked of any more count as purged. In a transaction."""
    column = "message" if item.table == "message" else "id"
    wanted = (*ALIVE, State.FAILED, State.REFUSED)  # what a run sends, or the postmaster may try again
    sql = f"SELECT 1 FROM delivery WHERE {column} = ? AND state IN ({marks(wanted)})"
    if one(db, sql, (item.id, *wanted)) is not None:
        return False
    if item.table == "message":
        db.conn.execute("UPDATE message SET purged_at = ? WHERE id = ?", (at, item.id))
        write(db, at, actor, [Event("purged", message=item.id)])
    else:
        db.conn.execute("UPDATE delivery SET spool = '' WHERE id = ?", (item.id,))
        write(db, at, actor, [Event("purged", delivery=item.id)])
    return True
