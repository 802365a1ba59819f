"""Mails by which a mailbox's service asks whether it may forward to one of our addresses: kept, for the postmaster to read.

Knows alone: how they are found again: by a recipient whose route is "forwarding", and by the event of that name.
"""

import json
from collections.abc import Iterator

from relay.store.database import Store
from relay.store.listing import Filter, Record

_SQL = """
SELECT m.id, m.received_at, group_concat(r.typed, ', ') AS recipient, m.sender, e.detail,
  CASE WHEN m.purged_at IS NULL THEN 'pending' ELSE 'expired' END AS state
FROM recipient r CROSS JOIN message m ON m.id = r.message
CROSS JOIN event e ON e.message = m.id AND e.event = 'forwarding'
WHERE r.route = 'forwarding'"""


def forwardings(db: Store, wanted: Filter) -> Iterator[Record]:
    """One a mail, newest first. `state` is "expired" once its bytes are past their retention."""
    conditions: list[str] = []
    values: list[object] = []
    for given, condition in (
        (wanted.client, "instr(r.address, '+' || ? || '@') > 0"),
        (wanted.collector, "? = ''"),  # none has one
        (wanted.sender, "m.sender = ?"),
        (wanted.since, "m.received_at >= ?"),
        (wanted.after, "m.id < ?"),
    ):
        if given:
            conditions.append(f" AND {condition}")
            values.append(given)
    cursor = db.conn.execute(f"{_SQL}{''.join(conditions)} GROUP BY m.id ORDER BY m.id DESC", values)
    names = [column[0] for column in cursor.description]
    left = wanted.limit
    for row in cursor:
        if left == 0:
            return
        record = _shown(dict(zip(names, row, strict=True)))
        if (wanted.ids and record["id"] not in wanted.ids) or (wanted.states and record["state"] not in wanted.states):
            continue
        left = None if left is None else left - 1
        yield record


def _shown(row: Record) -> Record:
    detail = json.loads(row.pop("detail") or "{}")
    return {
        **row,
        "service": detail.get("service", ""),  # an erasure takes what is personal
        "code": detail.get("confirmation", ""),
        "link": detail.get("link", ""),
    }
