"""Who is known: the clients, the registered addresses and the users, as the intake looks them up.

Knows alone: when the lists are read again, and how an unknown client makes the GED's root be listed once more, at most
every few seconds, so that a folder made a minute ago is a client and a prober costs nothing.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlite_utils import Database

from relay import clock, ged
from relay.commit import Commits
from relay.store import directory, users
from relay.store.database import transaction
from rules.address import Registered

RELIST_EVERY = 5.0  # seconds


@dataclass(frozen=True, slots=True)
class Unknown:
    pass


@dataclass(frozen=True, slots=True)
class Unclear:
    """Two folders with that slug, or the GED never listed: wait, do not guess."""

    why: str


class Directory:
    """Read on the event loop from a connection of its own; one small query says whether anything changed."""

    def __init__(self, db: Database, writer: Commits, root: Path) -> None:
        self.db = db
        self._writer = writer
        self._root = root
        self._generation = "?"
        self._registered: Mapping[str, Registered] = {}
        self._clients: dict[str, directory.Client] = {}
        self._users: Mapping[str, users.User] = {}
        self._listed = False
        self._next_listing = 0.0

    def registered(self) -> Mapping[str, Registered]:
        self._refresh()
        return self._registered

    def client(self, slug: str) -> directory.Client | Unknown | Unclear | None:
        """None: not known as yet, and `list_again` may change that."""
        self._refresh()
        found = self._clients.get(slug)
        if (found is None or found.state == "ambiguous") and time.monotonic() >= self._next_listing:
            return None
        if found is not None:
            return Unclear("ambiguous") if found.state == "ambiguous" else found
        return Unknown() if self._listed else Unclear("never listed")

    def user(self, name: str) -> users.User | None:
        """Who may hand in mail under this name."""
        self._refresh()
        return self._users.get(name.lower())

    def _refresh(self) -> None:
        generation = directory.meta(self.db, directory.GENERATION)
        if generation == self._generation:
            return
        self._generation = generation
        self._registered = directory.registered(self.db)
        self._users = users.active(self.db)
        known = [client for client in directory.clients(self.db) if client.state != "gone"]
        self._clients = {alias: client for client in known for alias in client.aliases}
        self._clients |= {client.slug: client for client in known}
        self._listed = bool(directory.meta(self.db, directory.CLIENTS_LISTED))

    async def list_again(self) -> None:
        self._next_listing = time.monotonic() + RELIST_EVERY
        await list_again(self._writer, self._root)
        self._next_listing = time.monotonic() + RELIST_EVERY  # a slow disk may have taken longer


def _first_level(root: Path) -> tuple[str, list[directory.Folder]] | None:
    """The identity of the GED's root, and its client folders with theirs; None where it is away."""
    tree = ged.Tree(root)
    top, names = tree.identity(), tree.clients()
    if isinstance(top, ged.GedAway) or isinstance(names, ged.GedAway):
        return None
    found = [(name, tree.within(name).identity()) for name in names]
    folders = [directory.Folder(name, f"{i[0]}:{i[1]}") for name, i in found if not isinstance(i, ged.GedAway)]
    return f"{top[0]}:{top[1]}", folders


def _merge(root: str, folders: list[directory.Folder], at: str, db: Database, _: str) -> None:
    directory.merge_listing(db, root, folders, at)


async def list_again(writer: Commits, root: Path) -> None:
    """Lists the GED's root into the store, in a process that serves; where the GED is away the last list stands."""
    listed = await asyncio.to_thread(_first_level, root)
    if listed is not None:
        await writer.write(partial(_merge, *listed, clock.stamp(clock.now())))


def list_clients(db: Database, root: Path) -> bool:
    """The same for a command or a start-up; False where the GED is away."""
    listed = _first_level(root)
    if listed is None:
        return False
    with transaction(db):
        directory.merge_listing(db, *listed, clock.stamp(clock.now()))
    return True
