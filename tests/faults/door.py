"""A relay on a bad day, and mails for it: what they are answered, and what is in the store afterwards.

Knows alone: how a mail is stopped between the go-ahead and its content, so that the trouble begins there.
"""

import itertools
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pysqlite3.dbapi2 as sqlite3  # the SQLite that the relay has

from tests.crash.audit import rows, spooled
from tests.support import documents as made
from tests.support.clients import CLIENTS, Dialogue, Reply, Sent, mail, stuffed
from tests.support.relay import Relay

SENDER = "compta@cabinet.example"
MEG, SALES = "meg+martin@welyb.fr", "ventes+martin@welyb.fr"
LARGE = 500_000  # over what is kept in memory
LONG = os.environ.get("FAULTS") == "long"
PROCESSES = [2, 1] if LONG else [2]  # that take mail
_serial = itertools.count(1)
NewRelay = Callable[..., Relay]


def letter(*to: str, size: int = 0) -> bytes:
    """A mail unlike any other, with one PDF."""
    name = f"Facture {next(_serial)}"
    content = made.pdf_of_size(size).replace(b"Facture 0231", name.encode()) if size else made.pdf(name)
    return mail(SENDER, to or (MEG,), (f"{name}.pdf", "application/pdf", content))


def post(relay: Relay, message: bytes, *to: str) -> Sent:
    return CLIENTS["python"](relay.port, SENDER, to or (MEG,), message)


@contextmanager
def on_the_way(relay: Relay, *to: str) -> Iterator[Dialogue]:
    """Told to go ahead with its mail."""
    with Dialogue(relay.port, timeout=60) as dialogue:
        dialogue.hello()
        assert [reply.code for reply in dialogue.envelope(SENDER, *(to or (MEG,)))] == [250] * (1 + len(to or (MEG,)))
        assert dialogue.say("DATA").code == 354
        yield dialogue


def content(dialogue: Dialogue, message: bytes) -> Reply:
    """The answer to the content."""
    dialogue.send(stuffed(message))
    return dialogue.reply()


def data(relay: Relay) -> Path:
    return relay.folder / "var"


def queue(relay: Relay) -> dict[str, str]:
    """Delivery → state."""
    return {str(id_): str(state) for id_, state in rows(data(relay), "SELECT id, state FROM delivery")}


def stored(relay: Relay, message: bytes) -> int:
    """How many times the store has it; each time whole, to the last byte."""
    found = re.search(rb"(?m)^Message-ID: (\S+)\r$", message)
    assert found
    sql = "SELECT spool FROM message WHERE message_id = ?"
    keys = [str(row[0]) for row in rows(data(relay), sql, found[1].decode())]
    assert all(spooled(data(relay), key) == message for key in keys), keys
    return len(keys)


def states(relay: Relay, message: bytes) -> list[str]:
    """Of its deliveries."""
    found = re.search(rb"(?m)^Message-ID: (\S+)\r$", message)
    assert found
    sql = "SELECT d.state FROM delivery d JOIN message m ON m.id = d.message WHERE m.message_id = ? ORDER BY d.id"
    return [str(row[0]) for row in rows(data(relay), sql, found[1].decode())]


def run(relay: Relay) -> dict[str, Any]:
    (counts,) = relay.json("runs", "now")
    assert counts["eligible"] == sum(counts[key] for key in ("sent", "deferred", "refused", "held", "duplicate"))
    return counts


def until(holds: Callable[[], object], what: str, *, timeout: float = 40) -> None:
    end = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < end, f"it did not {what}"
        time.sleep(0.02)


def files(relay: Relay) -> list[Path]:
    """Of large mails, in the spool."""
    return [path for path in (data(relay) / "spool/files").rglob("*") if path.is_file()]


def segment(relay: Relay) -> Path:
    """The one that is appended to."""
    return max((data(relay) / "spool/segments").iterdir(), key=lambda path: path.name)


def documents(folder: Path) -> list[Path]:
    """What people see."""
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]


def half_filed(folder: Path) -> list[Path]:
    return list(folder.rglob(".welyb-*"))


def restarted(relay: Relay) -> None:
    """Killed, all of it, and started again."""
    relay.kill()
    relay.start()


@contextmanager
def locked(relay: Relay) -> Iterator[None]:
    """Another process writes."""
    other = sqlite3.connect(str(data(relay) / "relay.db"), isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@contextmanager
def halfway(relay: Relay, message: bytes, *to: str) -> Iterator[tuple[Callable[[], int], Path]]:
    """A large mail stopped in its middle: what sends the rest and gives the code of the answer, and the file it grows in."""
    with on_the_way(relay, *to) as dialogue:
        before, half = set(files(relay)), len(message) * 2 // 3
        dialogue.send(message[:half])
        until(lambda: set(files(relay)) - before, "begin a file")
        (place,) = set(files(relay)) - before

        def finish() -> int:
            dialogue.send(stuffed(message[half:]))
            return dialogue.reply().code

        yield finish, place
