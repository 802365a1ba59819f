"""Who may hand in mail with a password: rows of `user`.

Knows alone: that a removed user stays, without a hash, so that who handed in a mail years ago is not forgotten with him.
"""

import json
from dataclasses import dataclass, field

from relay.store.database import Store, rows


@dataclass(frozen=True, slots=True)
class User:
    """`rules` are those it may use, none for all of them. The hash is shown to nobody."""

    name: str
    hash: str = field(repr=False)
    rules: tuple[str, ...]
    created_at: str
    state: str  # active, removed


def users(db: Store) -> list[User]:
    sql = "SELECT name, hash, rules, created_at, state FROM user ORDER BY name"
    return [User(n, h, tuple(json.loads(r)), at, state) for n, h, r, at, state in rows(db, sql)]


def active(db: Store) -> dict[str, User]:
    """Name → user, for those who may."""
    return {user.name: user for user in users(db) if user.state == "active"}


def put(db: Store, user: User) -> None:
    """Adds or replaces one; inside a transaction. The caller calls `directory.touch`."""
    row = (user.name, user.hash, json.dumps(user.rules), user.created_at, user.state)
    db.conn.execute("INSERT OR REPLACE INTO user (name, hash, rules, created_at, state) VALUES (?, ?, ?, ?, ?)", row)
