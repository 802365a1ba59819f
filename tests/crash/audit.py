"""The books: what clients were told, against the store, the spool, the GED and the collector. Findings are sentences.

Knows alone: what must be true of an installation after a crash and its recovery (relay/INTERNALS.md, "The guarantee").
It reads the SQLite file, the folders and the collector's messages; no code of the product has a say but the table of
lawful changes. Limits: of deliveries changed by a rule it knows none: the ledger's documents are all good ones.
"""

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from pathlib import Path

from rules.lifecycle import Change, State, after
from tests.crash.ledger import Ledger, Letter, digest, visible
from tests.support.collector import Received

CHANGES = {
    ("attempted", "send"): Change.CLAIM_SEND,
    ("attempted", "file"): Change.CLAIM_FILE,
    ("sent", "send"): Change.SUCCEED_SEND,
    ("filed", "file"): Change.SUCCEED_FILE,
    ("held", "send"): Change.HOLD,
    ("released", "send"): Change.RELEASE,
    **{(event, kind): Change.DEFER for event in ("deferred", "recovered") for kind in ("send", "file")},
}


@contextmanager
def store(data: Path) -> Iterator[sqlite3.Connection]:
    """The SQLite file, read-only, as it stands at one instant."""
    with closing(sqlite3.connect(f"file:{data / 'relay.db'}?mode=ro", uri=True, timeout=10)) as db:
        db.execute("BEGIN")
        yield db


def rows(data: Path, sql: str, *values: object) -> list[tuple[object, ...]]:
    with store(data) as db:
        return db.execute(sql, values).fetchall()


@dataclass
class Books:
    """`wrong` must be empty. `doubled`: what came twice and may: in flight, same Message-ID, flagged."""

    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)


# --- store and spool: at any time ---------------------------------------------------------------------------------------


def of_store(data: Path, ledger: Ledger) -> list[str]:
    """What is wrong between the rows and the bytes."""
    with store(data) as db:
        checked = [row[0] for row in db.execute("PRAGMA integrity_check")]
        wrong = [f"integrity_check: {line}" for line in checked if line != "ok"]
        wrong += [f"foreign key: {row}" for row in db.execute("PRAGMA foreign_key_check")]
        wrong += _unlawful(db)
        messages = db.execute("SELECT spool, message_id FROM message WHERE purged_at IS NULL").fetchall()
        own = db.execute("SELECT spool, id FROM delivery WHERE spool <> ''").fetchall()
    for key, message_id in messages:
        if spooled(data, key) != ledger.letters[message_id].data:
            wrong.append(f"{key}: not the bytes of {message_id}")
    for key, delivery in own:
        content = spooled(data, key)
        if content is None or not set(hashes(content)) <= set(ledger.deposits):
            wrong.append(f"{key}: not the message of {delivery}")
    return wrong


def _unlawful(db: sqlite3.Connection) -> Iterator[str]:
    """Deliveries whose state is not what their history leads to, step by lawful step."""
    for delivery, kind, state in db.execute("SELECT id, kind, state FROM delivery").fetchall():
        at: State | None = State.WAITING
        told = [row[0] for row in db.execute("SELECT event FROM event WHERE delivery = ? ORDER BY id", (delivery,))]
        for event in told:
            change = CHANGES.get((event, kind))
            at = after(at, change) if at is not None and change is not None else at
        if at != state:
            yield f"{delivery} is {state}, its history says {told}"
    unsettled = (
        "SELECT id FROM message m WHERE NOT EXISTS (SELECT 1 FROM event WHERE message = m.id AND event = 'accepted')"
    )
    yield from (f"{row[0]} was never accepted" for row in db.execute(unsettled))


def spooled(data: Path, key: str) -> bytes | None:
    """The bytes a spool key stands for; None where they are not there, whole."""
    kind, folder, *place = key.split("/")
    if kind == "f":
        path = data / "spool/files" / folder / place[0]
        return path.read_bytes() if path.is_file() else None
    path, offset, length = data / "spool/segments" / folder, int(place[0]), int(place[1])
    content = path.read_bytes()[offset : offset + length] if path.is_file() else b""
    return content if len(content) == length else None


def orphans(data: Path) -> list[str]:
    """Files of the spool that no row refers to: none, once the relay has started."""
    needed = "SELECT spool FROM message WHERE purged_at IS NULL UNION SELECT spool FROM delivery"
    referred = {row[0] for row in rows(data, needed)}
    files = [path for path in (data / "spool/files").rglob("*") if path.is_file()]
    return [f"orphan {path}" for path in files if f"f/{path.parent.name}/{path.name}" not in referred]


# --- the GED: at any time -----------------------------------------------------------------------------------------------


def of_ged(ged: Path, ledger: Ledger) -> list[str]:
    """What a client sees that is not a whole document, and documents that are there twice."""
    laid = ledger.laid()  # before looking: clients go on depositing
    found = Counter(digest(path.read_bytes()) for path in visible(ged))
    wrong = [
        f"half a file in the GED: {count} of {sha256}"
        for sha256, count in found.items()
        if sha256 not in ledger.known()
    ]
    wrong += [
        f"twice in the GED: {sha256}" for sha256, count in found.items() if count > 1 and sha256 not in ledger.baseline
    ]
    wrong += [f"gone from the GED: {path}" for sha256, path in laid.items() if sha256 not in found]
    return wrong


def temporaries(ged: Path) -> list[str]:
    """Dot-files of ours: none, once the relay has recovered."""
    return [f"temporary {path}" for path in ged.rglob(".welyb-*")]


# --- everything: once the queue is empty --------------------------------------------------------------------------------


def settle(data: Path, ged: Path, ledger: Ledger, received: Iterable[Received]) -> Books:
    """Every letter and every deposit accounted for."""
    books = Books()
    with store(data) as db:
        states = db.execute("SELECT id, state FROM delivery WHERE state NOT IN ('sent', 'filed')").fetchall()
        flagged = {row[0] for row in db.execute("SELECT outbound_message_id FROM delivery WHERE uncertain = 1")}
        recovered = {
            row[0]
            for row in db.execute(
                "SELECT outbound_message_id FROM delivery d JOIN event e ON e.delivery = d.id WHERE e.event = 'recovered'"
            )
        }
        accepted = Counter(row[0] for row in db.execute("SELECT message_id FROM message"))
    books.wrong += [f"not at its end: {row}" for row in states]
    books.wrong += [f"accepted twice: {message_id}" for message_id, count in accepted.items() if count > 1]
    arrived = _Arrived(received)
    filed = Counter(digest(path.read_bytes()) for path in visible(ged))
    for letter in ledger.letters.values():
        _settle_letter(books, letter, arrived, filed, known=letter.message_id in accepted)
    for sha256 in ledger.deposits:
        ids = arrived.with_document.get(sha256, [])
        books.lost += [f"deposit {sha256}"] if not ids else []
        books.wrong += [f"one deposit, several Message-IDs: {ids}"] if len(set(ids)) > 1 else []
    for (message_id, recipient), count in arrived.copies.items():
        if count > 1 and message_id in flagged and message_id in recovered:
            books.doubled.append(f"{count} × {message_id} at {recipient}")
        elif count > 1:
            books.wrong.append(f"{count} × {message_id} at {recipient}, not flagged")
    books.wrong += [f"nobody's: {message_id}" for message_id in arrived.strangers(ledger)]
    return books


class _Arrived:
    """What the collector has."""

    def __init__(self, received: Iterable[Received]) -> None:
        self.copies: Counter[tuple[str, str]] = Counter()
        self.data: dict[tuple[str, str], list[bytes]] = {}
        self.with_document: dict[str, list[str]] = {}
        for each in received:
            head = each.transmitted.partition(b"\r\n\r\n")[0]
            found = re.search(rb"(?mi)^Message-ID: (\S+)", head)
            key = (found[1].decode() if found else "?", each.envelope_recipient)
            self.copies[key] += 1
            self.data.setdefault(key, []).append(each.transmitted)
            for sha256 in hashes(each.transmitted):
                self.with_document.setdefault(sha256, []).append(key[0])

    def strangers(self, ledger: Ledger) -> list[str]:
        ours = {i for sha256 in ledger.deposits for i in self.with_document.get(sha256, ())}
        return [
            message_id for message_id, _ in self.copies if message_id not in ledger.letters and message_id not in ours
        ]


def _settle_letter(books: Books, letter: Letter, arrived: _Arrived, filed: Counter[str], *, known: bool) -> None:
    """All of a letter that was taken must be where it goes; nothing of one that was not."""
    if letter.answered and not known:
        books.lost.append(f"answered 250, never stored: {letter.message_id}")
    for recipient in letter.recipients:
        if recipient.startswith("ventes+"):
            there = {filed[sha256] for sha256 in letter.documents}
        else:
            data = arrived.data.get((letter.message_id, collector_of(recipient)), [])
            there = {len(data)}
            books.wrong += [f"altered: {letter.message_id}" for each in data if not each.endswith(letter.data)]
        if known and 0 in there:
            books.lost.append(f"stored, never arrived: {letter.message_id} for {recipient}")
        if not known and there != {0}:
            books.wrong.append(f"arrived, never stored: {letter.message_id} for {recipient}")


def collector_of(recipient: str) -> str:
    *_, name = recipient.partition("@")[0].split("+")
    return f"{name}@factures-meg.fr"


def hashes(message: bytes) -> list[str]:
    """SHA-256 of each document a message carries."""
    parts = message_from_bytes(message).walk()
    return [digest(part.get_payload(decode=True) or b"") for part in parts if part.get_filename()]


def details(data: Path, event: str) -> list[dict[str, object]]:
    return [json.loads(str(row[0] or "{}")) for row in rows(data, "SELECT detail FROM event WHERE event = ?", event)]
