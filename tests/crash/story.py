"""A short story of everything the relay does, recorded call by call, and what a power cut anywhere in it leaves.

The story is told once; it can then be cut at every one of its calls, for the log of calls is the disk at that instant,
with all that anybody had been told by then. Knows alone: what must be found on such a disk, and what must become of it once
the relay is started on it. Limits: clients do not send again what was not answered.
"""

import copy
import re
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from tests.crash import audit
from tests.crash.disk import Choice, Disk, Record, compiled, recorded, records
from tests.crash.ledger import Ledger, by_chunks, by_data, digest, visible
from tests.crash.site import CLIENT, MEG, VENTES, Site, connecting, until
from tests.support.collector import Collector, Received

SMALL, LARGE = (0,), (600_000,)
PARTS = ("var", "ged")
_ANSWERED = re.compile(rb"250 2\.0\.0 [^\r]* ([0-9a-z]{16})\r\n")
_HANDED_OVER = re.compile(rb"(?mi)^Message-ID: (\S+)\r$")
# SQLite does it by itself after 64 MB of WAL: too long for a short story. The SQLite is the relay's.
_CHECKPOINT = """
import sys
import pysqlite3.dbapi2 as sqlite3
print(sqlite3.connect(sys.argv[1], isolation_level=None).execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
"""
_LAY = """
import os, sys
path, partial = sys.argv[1], sys.argv[1].replace("depot", ".depot")
with open(partial, "wb") as file:
    file.write(sys.stdin.buffer.read())
    file.flush()
    os.fsync(file.fileno())
os.rename(partial, path)
os.fsync(os.open(os.path.dirname(path), os.O_RDONLY))
"""


@dataclass(frozen=True, slots=True)
class Promise:
    """From `since` on (an offset of the log) the query finds at least `count` rows: a command has said so."""

    since: int
    query: str
    count: int


@dataclass(frozen=True, slots=True)
class Known:
    """What others know at the instant of a cut."""

    answered: frozenset[str]  # Message-IDs that got their 250
    handed_over: frozenset[str]  # Message-IDs that a collector has seen something of
    laid: frozenset[str]  # deposits
    promises: tuple[Promise, ...]


@dataclass
class Story:
    """`site` stands still once the story is told."""

    site: Site
    library: Path
    log: Path
    base: Disk
    records: list[Record] = field(default_factory=list)
    unrecorded: list[str] = field(default_factory=list)  # what is on the real disk and not in the log, or the reverse
    received: list[Received] = field(default_factory=list)
    ledger: Ledger = field(default_factory=Ledger)
    _laid: dict[str, int] = field(default_factory=dict)
    _promises: list[Promise] = field(default_factory=list)
    _ids: dict[str, str] = field(default_factory=dict)

    @classmethod
    def told(cls, folder: Path) -> Self:
        library = compiled(folder)
        site = Site(folder, Collector.start(folder))
        try:
            site.relay.client(CLIENT)
            site.connected.mkdir()
            story = cls(site, library, folder / "calls", Disk(site.relay.folder, PARTS))
            before = dict(site.relay.program.env)
            with recorded(library, site.relay.folder, story.log) as environment:
                site.relay.program.env.update(environment)
                story._tell()
            site.relay.program.env = before
            story._read()
        except BaseException:
            site.stop()
            raise
        return story

    def _tell(self) -> None:
        site = self.site
        site.relay.start()
        self._mails()
        site.relay.cli(*connecting(CLIENT, "Achats"))
        self._promise("SELECT 1 FROM connection", 1)
        self._deposits_and_a_run(1)
        site.relay.stop()
        _by_itself(_CHECKPOINT, site.data / "relay.db")
        site.relay.configure({"smtp": {"processes": 2}})
        site.relay.start()
        self._mails()
        self._deposits_and_a_run(2)
        self.received = site.collector.messages() if site.collector else []
        site.relay.kill()

    def _mails(self) -> None:
        """Small and large, by DATA and BDAT, to be sent, filed, and both."""
        letters = [(SMALL, by_data, (MEG,)), (LARGE, by_data, (MEG, VENTES)), (LARGE, by_chunks, (VENTES,))]
        for sizes, how, recipients in [*letters, (SMALL + SMALL, by_chunks, (VENTES,))]:
            letter = self.site.ledger.letter(*recipients, sizes=sizes)
            assert self.site.post(letter, how)
            filed = sum(recipient == VENTES for recipient in recipients)
            until(lambda letter=letter, n=filed: self.site.states(letter).count("filed") >= n, "file")

    def _deposits_and_a_run(self, number: int) -> None:
        for size in (*SMALL, *LARGE):
            path = self.site.ledger.deposit(self.site.connected, size=size, lay=partial(_by_itself, _LAY))
            self._laid[digest(path.read_bytes())] = self.log.stat().st_size
        self.site.run()
        self._promise("SELECT 1 FROM run WHERE finished_at IS NOT NULL", number)

    def _promise(self, query: str, count: int) -> None:
        self._promises.append(Promise(self.log.stat().st_size, query, count))

    def _read(self) -> None:
        self.records, self.ledger = records(self.log), self.site.ledger
        self.unrecorded = self.disk(len(self.records)).compare()
        self._ids = dict(audit.rows(self.site.data, "SELECT id, message_id FROM message"))  # type: ignore[arg-type]

    # --- cuts -----------------------------------------------------------------------------------------------------------

    def changes(self) -> list[int]:
        """How many calls had been made when a sync began, or had just ended: between them nothing becomes durable."""
        syncs = [n for n, record in enumerate(self.records) if record.kind == "F"]
        return sorted({*syncs, *(n + 1 for n in syncs), len(self.records)})

    def syncs(self, paths: str) -> list[int]:
        """How many calls had been made when one of them began."""
        prefix = len(str(self.base.root)) + 1
        made = enumerate(self.records)
        return [n for n, record in made if record.kind == "F" and re.fullmatch(paths, record.path[prefix:])]

    def known(self, calls: int) -> Known:
        """After so many of them."""
        past = self.records[:calls]
        said = b"\n".join(record.data for record in past if record.kind == "S")
        end = past[-1].end if past else 0
        return Known(
            frozenset(self._ids[found.decode()] for found in _ANSWERED.findall(said)),
            frozenset(found.decode() for found in _HANDED_OVER.findall(said)),
            frozenset(sha256 for sha256, since in self._laid.items() if since <= end),
            tuple(promise for promise in self._promises if promise.since <= end),
        )

    def disks(self, *, without: str | None = None, but_the_first: int = 0) -> Iterator[tuple[int, Disk]]:
        """After each call, the disk; `without` the syncs of the paths (below the site's) that match."""
        disk = copy.deepcopy(self.base)
        prefix = len(str(disk.root)) + 1
        yield 0, disk
        for number, record in enumerate(self.records, 1):
            if without is None or record.kind != "F" or not re.fullmatch(without, record.path[prefix:]):
                disk.apply(record)
            elif but_the_first > 0:
                disk.apply(record)
                but_the_first -= 1
            yield number, disk

    def disk(self, calls: int) -> Disk:
        return next(disk for number, disk in self.disks() if number == calls)

    def ledger_at(self, known: Known, ged: Path) -> Ledger:
        """The letters with what was answered by then, and the deposits that stand in the GED."""
        letters = {key: replace(each, answered=key in known.answered) for key, each in self.ledger.letters.items()}
        found = {digest(path.read_bytes()) for path in visible(ged)}
        deposits = {key: path for key, path in self.ledger.deposits.items() if key in known.laid | found}
        return Ledger(letters, deposits, _laid=set(known.laid))

    # --- what must be found, and become of it -----------------------------------------------------------------------------

    def wrong(self, folder: Path, known: Known) -> list[str]:
        """Of the disk laid out in `folder`, before any program has touched it."""
        data, ged = folder / "var", folder / "ged"
        ledger = self.ledger_at(known, ged)
        wrong = audit.of_ged(ged, replace(ledger, _laid=set()))
        found = Counter(digest(path.read_bytes()) for path in visible(ged))
        wrong += [f"deposit gone: {sha256}" for sha256 in known.laid if sha256 not in found]
        key = data / "token.key"
        wrong += [f"{key}: not 32 bytes"] if key.exists() and key.stat().st_size != 32 else []
        if known.answered or known.promises:
            try:
                wrong += [*audit.of_store(data, ledger), *_broken(data, known, found)]
            except (sqlite3.Error, KeyError) as error:
                wrong.append(f"no store: {error!r}")
        return wrong

    def recovers(self, calls: int, choice: Choice, scratch: Path) -> audit.Books:
        """The real relay is started on what a cut after `calls` leaves, and does all that is left to do."""
        site, known = self.site, self.known(calls)
        site.relay.kill()
        self.disk(calls).lay_out(site.relay.folder, choice)
        site.ledger = self.ledger_at(known, site.ged)
        assert site.collector is not None
        site.collector.forget()
        before = self._before(site.data, scratch)
        site.back()
        site.run()
        site.drain()
        until(lambda: not audit.temporaries(site.ged), "put its temporaries away")
        again = site.collector.messages()
        books = audit.settle(site.data, site.ged, site.ledger, [*before, *again])
        books.wrong += audit.of_store(site.data, site.ledger) + audit.of_ged(site.ged, site.ledger)
        flagged = {row[0] for row in audit.rows(site.data, "SELECT outbound_message_id FROM delivery WHERE uncertain")}
        twice = {message_id(each) for each in again} & known.handed_over
        books.doubled += sorted(twice)
        books.wrong += [f"sent again, not flagged: {each}" for each in twice - flagged]
        return books

    def killed_then_cut(self, calls: int, scratch: Path) -> list[str]:
        """A kill after `calls`, a start that mends what it left, and a power cut at any instant of that: what is wrong.

        What a dead process wrote and never synced looks like all the rest to the next one.
        """
        site, known = self.site, self.known(calls)
        site.relay.kill()
        disk = self.disk(calls)
        disk.survive()
        site.ledger = self.ledger_at(known, site.ged)
        self.log.unlink()
        before = dict(site.relay.program.env)
        with recorded(self.library, site.relay.folder, self.log) as environment:
            site.relay.program.env.update(environment)
            site.relay.start()
            unfiled = "SELECT 1 FROM delivery WHERE kind = 'file' AND state <> 'filed'"
            until(lambda: not audit.rows(site.data, unfiled) and not audit.temporaries(site.ged), "mend the filings")
            site.relay.kill()
        site.relay.program.env = before
        wrong: list[str] = []
        for record in [*records(self.log), None]:
            if record is None or record.kind == "F":
                disk.lay_out(scratch)
                wrong += self.wrong(scratch, known)
            if record is not None:
                disk.apply(record)
        return [*wrong, *disk.compare()]

    def _before(self, data: Path, scratch: Path) -> list[Received]:
        """What the collector has, by the word of the store."""
        shutil.rmtree(scratch, ignore_errors=True)
        if not data.exists():
            return []
        shutil.copytree(data, scratch)
        try:
            sent = audit.rows(scratch, "SELECT outbound_message_id FROM delivery WHERE state = 'sent'")
        except sqlite3.Error:
            return []  # there is no store yet
        return [each for each in self.received if (message_id(each),) in sent]


def _broken(data: Path, known: Known, found: Counter[str]) -> Iterator[str]:
    """What was said and is not so: to senders, to the postmaster, in the history of a document."""
    stored = {row[0] for row in audit.rows(data, "SELECT message_id FROM message")}
    yield from (f"answered 250, not stored: {each}" for each in known.answered - stored)
    for promise in known.promises:
        if len(audit.rows(data, promise.query)) < promise.count:
            yield f"said and not so: {promise.query}"
    sent = audit.rows(data, "SELECT outbound_message_id FROM delivery WHERE state = 'sent'")
    yield from (f"sent, says the store: {each}" for (each,) in sent if each not in known.handed_over)
    sql = "SELECT sha256 FROM delivery_document WHERE delivery IN (SELECT id FROM delivery WHERE state = 'filed')"
    yield from (f"filed, says the store: {sha256}" for (sha256,) in audit.rows(data, sql) if sha256 not in found)


def message_id(received: Received) -> str:
    found = _HANDED_OVER.search(received.transmitted)
    return found[1].decode() if found else "?"


def _by_itself(program: str, path: Path, content: bytes = b"") -> None:
    """In a process of its own, so that it is recorded."""
    subprocess.run([sys.executable, "-c", program, str(path)], input=content, check=True, stdout=subprocess.DEVNULL)


def cuts(story: Story, **more: Any) -> Iterator[tuple[int, Disk]]:
    """The disk at each instant of `Story.changes`."""
    wanted = set(story.changes())
    return ((number, disk) for number, disk in story.disks(**more) if number in wanted)
