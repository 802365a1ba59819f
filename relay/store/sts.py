"""MTA-STS policies that were fetched, for as long as they hold: what a later outage must not take away."""

from dataclasses import dataclass

from relay.store.database import Store, one


@dataclass(frozen=True, slots=True)
class Kept:
    domain: str
    id: str
    policy: str  # as fetched
    fetched_at: str
    expires_at: str


def kept(db: Store, domain: str, at: str) -> Kept | None:
    """The policy of `domain` that still holds `at` that time."""
    row = one(db, "SELECT * FROM sts WHERE domain = ? AND expires_at > ?", (domain, at))
    return Kept(*map(str, row)) if row else None


def keep(db: Store, policy: Kept) -> None:
    """In place of the last one; those of any domain that no longer hold go. Inside a transaction."""
    db.conn.execute("DELETE FROM sts WHERE expires_at <= ? OR domain = ?", (policy.fetched_at, policy.domain))
    row = (policy.domain, policy.id, policy.policy, policy.fetched_at, policy.expires_at)
    db.conn.execute("INSERT INTO sts VALUES (?, ?, ?, ?, ?)", row)
