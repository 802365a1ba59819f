"""Connections and their inventories: what stands in a connected folder, and what it is to us.

Knows alone: that a row's part in the story is read from its delivery's state, never kept twice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlite_utils import Database

from relay.store.database import marks, one, rows
from relay.store.directory import touch
from relay.store.events import Event, write
from rules.address import Pair
from rules.deposit import Identity, Known, Role, Seen
from rules.lifecycle import State

# name, device, inode, size, mtime_ns, ctime_ns: the order of relay.ged.Entry, so that sets of both can be compared
Entry = tuple[str, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Connection:
    """`folder` lies below the client's; `client_folder` is that one, in the GED."""

    id: int
    application: str
    client: str
    folder: str
    welyb_address: str
    collector_address: str
    activated_at: str
    state: str
    reason: str | None
    root: Identity
    client_folder: str
    accepted: int = 0


_SELECT = """SELECT n.id, n.application, n.client, n.folder, n.welyb_address, n.collector_address, n.activated_at, n.state,
n.reason, n.root, coalesce(c.folder, n.client), n.accepted FROM connection n LEFT JOIN client c ON c.slug = n.client"""


def connections(db: Database, client: str = "") -> list[Connection]:
    """Those that stand, the oldest first."""
    condition, values = (" AND n.client = ?", [client]) if client else ("", [])
    found = rows(db, f"{_SELECT} WHERE n.removed_at IS NULL{condition} ORDER BY n.id", values)
    return [_connection(row) for row in found]


def connection(db: Database, number: int) -> Connection | None:
    row = one(db, f"{_SELECT} WHERE n.removed_at IS NULL AND n.id = ?", (number,))
    return _connection(row) if row else None


def _connection(row: tuple[object, ...]) -> Connection:
    system, _, inode = str(row[9]).partition(":")
    values = (*row[:9], (int(system), int(inode)), *row[10:])
    return Connection(*values)  # type: ignore[arg-type]  # a row is as the schema has it


def sharing(db: Database, collector: str, client: str) -> list[str]:
    """Other clients whose connections lead to the same collector."""
    sql = "SELECT DISTINCT client FROM connection WHERE removed_at IS NULL AND lower(collector_address) = ? AND client <> ?"
    return [str(row[0]) for row in rows(db, sql, (collector.lower(), client))]


def add(db: Database, new: Connection, baseline: Iterable[tuple[str, Sequence[Entry]]], actor: str) -> int:
    """Saves a connection with its baseline, (folder, entries) by (folder, entries); its number. In a transaction."""
    row = (new.application, new.client, new.folder, new.welyb_address, new.collector_address, new.activated_at)
    root = f"{new.root[0]}:{new.root[1]}"
    sql = f"""INSERT INTO connection (application, client, folder, welyb_address, collector_address, activated_at, state,
    root) VALUES ({marks(row)}, 'active', ?)"""
    number = int(db.conn.execute(sql, (*row, root)).lastrowid or 0)
    count, outer = 0, _around(db, new)
    for folder, found in baseline:
        present = found if outer is None else _seen_by(db, outer, folder, found)
        put_entries(db, number, folder, present, role="baseline")
        count += len(present)
    detail = {"connection": number, "client": new.client, "collector": new.collector_address, "baseline": count}
    write(db, new.activated_at, actor, [Event("connected", detail=detail)])
    touch(db)
    return number


def remove(db: Database, old: Connection, *, at: str, actor: str, why: str) -> None:
    """Disconnects; what is queued still goes, and the rows of its inventory go with it. In a transaction."""
    db.conn.execute("UPDATE connection SET removed_at = ?, state = 'removed' WHERE id = ?", (at, old.id))
    _bequeath(db, old)
    db.conn.execute("DELETE FROM inventory WHERE connection = ?", (old.id,))
    write(db, at, actor, [Event("disconnected", detail={"connection": old.id, "client": old.client, "why": why})])
    touch(db)


def _around(db: Database, inner: Connection) -> tuple[Connection, str] | None:
    """The nearest connection of the same application around a folder, and where in it that folder lies."""
    around = [
        other
        for other in connections(db, inner.client)
        if other.application == inner.application
        and other.folder != inner.folder
        and (not other.folder or inner.folder.startswith(f"{other.folder}/"))
    ]
    if not around:
        return None
    nearest = max(around, key=lambda other: len(other.folder))
    return nearest, inner.folder.removeprefix(nearest.folder).lstrip("/")


def _seen_by(db: Database, outer: tuple[Connection, str], folder: str, found: Sequence[Entry]) -> list[Entry]:
    """Those of a folder's files that the connection around it has seen. The others are deposits of the time since its
    last run: baseline here, they would go nowhere."""
    nearest, below = outer
    place = "/".join(part for part in (below, folder) if part)
    sql = "SELECT name FROM inventory WHERE connection = ? AND folder = ?"
    names = {row[0] for row in rows(db, sql, (nearest.id, place))}
    return [entry for entry in found if entry[0] in names]


def _bequeath(db: Database, old: Connection) -> None:
    """A connection around the one removed takes its folder back: what is there is baseline to it, or it would all go."""
    outer = _around(db, old)
    if outer is None:
        return
    nearest, below = outer
    db.conn.execute(
        """INSERT OR REPLACE INTO inventory (connection, folder, name, device, inode, size, mtime_ns, ctime_ns, sha256, role)
        SELECT ?, rtrim(? || '/' || folder, '/'), name, device, inode, size, mtime_ns, ctime_ns, sha256,
          CASE role WHEN 'document' THEN 'baseline' ELSE role END FROM inventory WHERE connection = ?""",
        (nearest.id, below, old.id),
    )


def readdress(db: Database, old: Connection, to: Pair, *, at: str, actor: str, why: str) -> int:
    """Another address: waiting and held deposits go there, nothing is sent again; how many moved. In a transaction."""
    collector = to.collector
    db.conn.execute(
        "UPDATE connection SET application = ?, welyb_address = ?, collector_address = ? WHERE id = ?",
        (to.rule.name, to.welyb, collector, old.id),
    )
    domain = collector.rpartition("@")[2].lower()
    moved = db.conn.execute(
        """UPDATE delivery SET target = ?, domain = ?, route = ?, recipient = ?
        WHERE connection = ? AND state IN ('waiting', 'held')""",
        (collector, domain, to.rule.name, to.welyb, old.id),
    ).rowcount
    db.conn.execute(
        """UPDATE delivery_document SET target = ? WHERE delivery IN
        (SELECT id FROM delivery WHERE connection = ? AND state IN ('waiting', 'held'))""",
        (collector, old.id),
    )
    detail = {"connection": old.id, "from": old.collector_address, "to": collector, "moved": moved, "why": why}
    write(db, at, actor, [Event("readdressed", detail=detail)])
    touch(db)
    return int(moved)


def set_state(db: Database, number: int, state: str, reason: str | None, at: str) -> None:
    """Active or in error, with an event when that changes. In a transaction."""
    changed = db.conn.execute(
        "UPDATE connection SET state = ?, reason = ? WHERE id = ? AND (state <> ? OR reason IS NOT ?)",
        (state, reason, number, state, reason),
    ).rowcount
    if changed:
        event = "connection-error" if state == "error" else "connection-recovered"
        write(db, at, "run", [Event(event, detail={"connection": number, "reason": reason})])


def accept(db: Database, old: Connection, *, at: str, actor: str, why: str) -> None:
    """The postmaster says that the tree is right as it is: the next scan does not doubt it. In a transaction."""
    db.conn.execute("UPDATE connection SET accepted = 1 WHERE id = ?", (old.id,))
    write(db, at, actor, [Event("connection-accepted", detail={"connection": old.id, "why": why})])


def adopt(db: Database, number: int, root: Identity) -> None:
    """After a scan that was taken on the postmaster's word: this is the tree from now on. In a transaction."""
    db.conn.execute(
        "UPDATE connection SET accepted = 0, root = ? WHERE id = ? AND accepted = 1", (f"{root[0]}:{root[1]}", number)
    )


# --- inventory --------------------------------------------------------------------------------------------------------


def folders(db: Database, number: int) -> list[str]:
    """The folders that have rows: one index step each."""
    sql = """WITH RECURSIVE step (folder) AS (
      SELECT min(folder) FROM inventory WHERE connection = :n
      UNION ALL SELECT (SELECT min(folder) FROM inventory WHERE connection = :n AND folder > step.folder)
      FROM step WHERE step.folder IS NOT NULL)
    SELECT folder FROM step WHERE folder IS NOT NULL"""
    return [str(row[0]) for row in rows(db, sql, {"n": number})]


def entries(db: Database, number: int, folder: str) -> list[Entry]:
    """The rows of one folder that should be found there."""
    sql = """SELECT name, device, inode, size, mtime_ns, ctime_ns FROM inventory
    WHERE connection = ? AND folder = ? AND role <> 'departed'"""
    return rows(db, sql, (number, folder))


_KNOWN = """SELECT i.folder, i.name, i.device, i.inode, i.size, i.mtime_ns, i.ctime_ns, i.role, i.sha256, i.document,
d.state FROM inventory i LEFT JOIN delivery_document dd ON dd.document = i.document
LEFT JOIN delivery d ON d.id = dd.delivery WHERE i.connection = ?"""


def known(db: Database, number: int, folder: str, names: Iterable[str]) -> list[Known]:
    wanted = set(names)
    found = rows(db, f"{_KNOWN} AND i.folder = ? ORDER BY d.id", (number, folder))
    # A document sent again has several deliveries; the last one speaks for it.
    return list({row[1]: _known(row) for row in found if row[1] in wanted}.values())


def at_inode(db: Database, number: int, inode: int) -> list[Known]:
    """The rows of one inode: a file, or several hard links to it."""
    return [_known(row) for row in rows(db, f"{_KNOWN} AND i.inode = ? AND i.role <> 'departed'", (number, inode))]


def aside(db: Database, number: int, role: str) -> list[Known]:
    """Every row of a role that is rare: departed or empty."""
    return [_known(row) for row in rows(db, f"{_KNOWN} AND i.role = ?", (number, role))]


_ROLE: dict[str, Role] = {
    State.WAITING: "pending",
    State.HELD: "held",
    State.REFUSED: "refused",
    State.FAILED: "refused",
}


def _known(row: tuple[object, ...]) -> Known:
    folder, name, *numbers = row[:7]
    role, sha256, document, state = row[7:]
    path = f"{folder}/{name}" if folder else str(name)
    part = _ROLE.get(str(state), "sent") if role == "document" else role
    values = (path, *numbers, part, sha256 or None, document)
    return Known(*values)  # type: ignore[arg-type]  # a row is as the schema has it


def counts(db: Database, number: int) -> dict[str, int]:
    """How many files the inventory has of each role."""
    found = rows(db, "SELECT role, count(*) FROM inventory WHERE connection = ? GROUP BY role", (number,))
    return {str(role): int(count) for role, count in found}


def split(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, name


_PUT = f"""INSERT OR REPLACE INTO inventory (connection, folder, name, device, inode, size, mtime_ns, ctime_ns, sha256,
role, document) VALUES ({marks(range(11))})"""


def put_entries(db: Database, number: int, folder: str, found: Sequence[Entry], *, role: str) -> None:
    db.conn.executemany(_PUT, [(number, folder, *entry, None, role, None) for entry in found])


def put(db: Database, number: int, seen: Seen, *, role: str, sha256: str | None, document: str | None) -> None:
    numbers = (seen.device, seen.inode, seen.size, seen.mtime_ns, seen.ctime_ns)
    db.conn.execute(_PUT, (number, *split(seen.path), *numbers, sha256, role, document))


def delete(db: Database, number: int, path: str) -> None:
    db.conn.execute("DELETE FROM inventory WHERE connection = ? AND folder = ? AND name = ?", (number, *split(path)))


def stored_role(known_row: Known) -> str:
    """The role as the table has it."""
    return known_row.role if known_row.role in ("baseline", "departed", "empty") else "document"


def unhashed(db: Database, number: int, limit: int) -> list[Known]:
    """Baseline rows whose hash is still to be taken."""
    return [
        _known(r) for r in rows(db, f"{_KNOWN} AND i.role = 'baseline' AND i.sha256 IS NULL LIMIT ?", (number, limit))
    ]
