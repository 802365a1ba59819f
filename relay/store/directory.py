"""Clients and registered addresses: the lists a recipient is looked up in.

Knows alone: how the list of first-level folders becomes clients, and stays one while the GED is away. A counter in `meta`
rises with every change, so that a process knows when to read again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlite_utils import Database

from relay.store.database import one, rows
from rules.address import Registered
from rules.filing import slug as slug_of

CLIENTS_LISTED = "clients-listed"  # in meta: when the GED's root was last listed
GENERATION = "generation"
GED_ROOT = "ged-root"  # "filesystem:inode" of the tree the clients were last listed from
FOREIGN = "foreign-received"  # when mail that others had handled last came from a trusted peer


@dataclass(frozen=True, slots=True)
class Client:
    slug: str
    folder: str
    aliases: tuple[str, ...]
    fiscal_year_end: str  # "MM-DD" or ""
    state: str  # listed, added, ambiguous, gone
    identity: str


@dataclass(frozen=True, slots=True)
class Folder:
    """A first-level folder of the GED: its name, and "device:inode"."""

    name: str
    identity: str


def meta(db: Database, name: str) -> str:
    """A value of the `meta` table, "" where there is none."""
    row = one(db, "SELECT value FROM meta WHERE name = ?", (name,))
    return str(row[0]) if row else ""


def set_meta(db: Database, name: str, value: str) -> None:
    db.conn.execute("INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (name, value))


def touch(db: Database) -> None:
    """Tells every process that the lists changed; inside the change's transaction."""
    set_meta(db, GENERATION, str(int(meta(db, GENERATION) or 0) + 1))


def registered(db: Database) -> dict[str, Registered]:
    """Lower-case Welyb local part → what its connection registered."""
    sql = "SELECT welyb_address, application, collector_address, client FROM connection WHERE removed_at IS NULL"
    return {
        str(welyb).partition("@")[0].lower(): Registered(str(rule), str(collector), str(client))
        for welyb, rule, collector, client in rows(db, sql)
    }


def clients(db: Database) -> list[Client]:
    sql = "SELECT slug, folder, aliases, fiscal_year_end, state, identity FROM client ORDER BY slug"
    return [Client(s, f, tuple(json.loads(a)), e, st, i) for s, f, a, e, st, i in rows(db, sql)]


def find_client(db: Database, slug: str) -> Client | None:
    """By slug, else by an alias that is nobody else's slug."""
    known = {client.slug: client for client in clients(db)}
    return known.get(slug) or next((c for c in known.values() if slug in c.aliases), None)


def merge_listing(db: Database, root: str, folders: Sequence[Folder], at: str) -> None:
    """The GED's root as it is now, brought into the table; inside a transaction.

    A folder known by its identity under another name was renamed: its old slugs stay as aliases. Two folders with one slug
    make that slug ambiguous. What is gone keeps its row: a slug is never silently given to another folder. A root that lost
    over half its clients at once is a mount that failed, and nothing is concluded from it. What is as it was is not written
    again, nor read again by anybody: it is looked at in every run.
    """
    changes = db.conn.total_changes
    before = {client.slug: client for client in clients(db)}
    there = {folder.identity for folder in folders}
    listed = [client for client in before.values() if client.state == "listed"]
    if sum(client.identity not in there for client in listed) * 2 > len(listed):
        return
    by_slug: dict[str, list[Folder]] = {}
    for folder in folders:
        slug = slug_of(folder.name)
        if slug:
            by_slug.setdefault(slug, []).append(folder)
    by_identity = {client.identity: client for client in before.values() if client.identity}
    for slug, found in by_slug.items():
        _put(db, slug, found, before.get(slug), by_identity.get(found[0].identity))
    for slug, client in before.items():
        renamed = client.identity in there and slug not in by_slug
        if renamed:
            db.conn.execute("DELETE FROM client WHERE slug = ?", (slug,))
            new = next(other for other, found in by_slug.items() if found[0].identity == client.identity)
            db.conn.execute(
                "UPDATE OR IGNORE connection SET client = ? WHERE client = ? AND removed_at IS NULL", (new, slug)
            )
        elif slug not in by_slug and client.state not in ("added", "gone"):
            db.conn.execute("UPDATE client SET state = 'gone' WHERE slug = ?", (slug,))
    if db.conn.total_changes > changes or not meta(db, CLIENTS_LISTED):
        touch(db)
    set_meta(db, CLIENTS_LISTED, at)
    set_meta(db, GED_ROOT, root)


def _put(db: Database, slug: str, found: Sequence[Folder], same: Client | None, renamed: Client | None) -> None:
    aliases = list(same.aliases) if same else []
    fiscal_year_end = same.fiscal_year_end if same else ""
    if renamed and renamed.slug != slug:
        aliases += [a for a in (renamed.slug, *renamed.aliases) if a not in aliases and a != slug]
        fiscal_year_end = fiscal_year_end or renamed.fiscal_year_end
    state = "ambiguous" if len(found) > 1 else "listed"
    client = Client(slug, found[0].name, tuple(aliases), fiscal_year_end, state, found[0].identity)
    if client != same:
        put_client(db, client)


def put_client(db: Database, client: Client) -> None:
    """Adds or replaces one client; inside a transaction. The caller calls `touch`."""
    db.conn.execute(
        """INSERT INTO client (slug, folder, aliases, fiscal_year_end, state, identity) VALUES (?, ?, ?, ?, ?, ?)
        ON CONFLICT (slug) DO UPDATE SET folder = excluded.folder, aliases = excluded.aliases, state = excluded.state,
          fiscal_year_end = excluded.fiscal_year_end, identity = excluded.identity""",
        (
            client.slug,
            client.folder,
            json.dumps(client.aliases, ensure_ascii=False),
            client.fiscal_year_end,
            client.state,
            client.identity,
        ),
    )


def remove_client(db: Database, slug: str) -> bool:
    """Forgets a client added by hand, or one whose folder is gone; a listed one would only come back."""
    found = db.conn.execute("DELETE FROM client WHERE slug = ? AND state IN ('added', 'gone')", (slug,)).rowcount
    touch(db)
    return bool(found)
