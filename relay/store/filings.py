"""What the filing worker needs to know of a document it has claimed."""

import json
from dataclasses import dataclass

from sqlite_utils import Database

from relay.mime import Span
from relay.store.database import one, rows


@dataclass(frozen=True, slots=True)
class Filing:
    """One document for one client's folder. `spans` say where it lies in the message."""

    document: str
    name: str
    sha256: str
    spans: tuple[Span, ...]
    folder: str  # the client's, in the GED
    fiscal_year_end: str
    client_state: str


def of(db: Database, delivery: str) -> Filing | None:
    """None where the client is no longer known."""
    row = one(
        db,
        """SELECT f.id, f.name, f.sha256, f.spans, c.folder, c.fiscal_year_end, c.state FROM delivery d
        JOIN delivery_document dd ON dd.delivery = d.id JOIN document f ON f.id = dd.document
        JOIN client c ON c.slug = d.client OR EXISTS (SELECT 1 FROM json_each(c.aliases) WHERE value = d.client)
        WHERE d.id = ? ORDER BY c.slug = d.client DESC LIMIT 1""",
        (delivery,),
    )
    if row is None:
        return None
    spans = tuple(Span(*span) for span in json.loads(row[3]))
    return Filing(row[0], row[1], row[2], spans, row[4], row[5], row[6])


def latest(db: Database) -> list[tuple[str, str]]:
    """(delivery, path) of what was filed last: a worker that died may have left the temporary of one."""
    sql = """SELECT d.id, d.target FROM event e JOIN delivery d ON d.id = e.delivery
    WHERE e.id > (SELECT max(id) FROM event) - 1000 AND e.event = 'filed' AND d.state = 'filed'
    ORDER BY e.id DESC LIMIT 20"""
    return [(str(delivery), str(path)) for delivery, path in rows(db, sql)]
