"""What a restored store does not know: what left between the backup and the loss.

Knows alone: what is held for it. Whatever was on its way at the backup may have arrived since, and so may every deposit
made in the meantime, of which the restored inventory has no row; sent again, it would be an invoice doubled. Filings are
held as well: a document filed since stands in the GED under its name, and would be filed beside itself as « (2) ».
"""

import json
from dataclasses import dataclass

from sqlite_utils import Database

from relay import clock
from relay.store.database import rows
from relay.store.directory import meta, set_meta
from relay.store.events import Event, write
from rules.lifecycle import State
from rules.replies import Reason

META = "restored"


@dataclass(frozen=True, slots=True)
class Restored:
    """Times are stamps: of the backup, and of its restoration."""

    backup: str
    at: str
    actor: str
    why: str
    source: str


def hold_all(db: Database, done: Restored) -> list[str]:
    """Holds everything that was on its way at the backup; the ids. In a transaction."""
    reason = Reason("restored", {"backup": done.backup})
    text = json.dumps({"code": reason.code, **(reason.facts or {})})
    found = rows(
        db,
        "SELECT id FROM delivery WHERE state IN (?, ?, ?) ORDER BY id",
        (State.WAITING, State.SENDING, State.FILING),
    )
    ids = [str(row[0]) for row in found]
    db.conn.executemany(
        """UPDATE delivery SET uncertain = uncertain | (state = 'sending'), state = 'held', claim = NULL, reason = ?,
        held_at = ? WHERE id = ?""",
        [(text, done.at, id_) for id_ in ids],
    )
    detail = {"from": done.source, "backup": done.backup, "held": len(ids), "why": done.why}
    held = [Event("held", delivery=id_, detail={"code": "restored", "backup": done.backup}) for id_ in ids]
    write(db, done.at, done.actor, [Event("restored", detail=detail), *held])
    set_meta(db, META, json.dumps({"at": done.at, "backup": done.backup}))
    for (connection,) in rows(db, "SELECT id FROM connection WHERE removed_at IS NULL"):
        set_meta(db, _unseen(connection), "1")
    return ids


def doubt(db: Database, connection: int, ctime_ns: int) -> Reason | None:
    """Why a deposit found now must not leave by itself: it may have been found, and sent, before the loss.

    That goes for every file that was there at the restoration, and for all that is found until the folder has once been
    seen whole: a file that was touched, renamed or copied since, or a GED that was restored too, shows a later time.
    """
    stored = meta(db, META)
    if not stored:
        return None
    restored = json.loads(stored)
    if not is_unseen(db, connection) and ctime_ns > clock.instant(restored["at"]).timestamp() * 1e9:
        return None
    return Reason("restored", {"backup": restored["backup"]})


def is_unseen(db: Database, connection: int) -> bool:
    """Has its folder not been seen whole since the restoration?"""
    return bool(meta(db, _unseen(connection)))


def seen(db: Database, connection: int) -> None:
    db.conn.execute("DELETE FROM meta WHERE name = ?", (_unseen(connection),))


def _unseen(connection: int) -> str:
    return f"restored:{connection}"
