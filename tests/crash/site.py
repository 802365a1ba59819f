"""An installation that is killed again and again: relay, GED, collector, and the ledger of what clients were told.

Knows alone: how its processes die and come back, and what is looked at each time: the GED as the dead left it, then
store, spool and GED once the relay is ready again.
"""

import itertools
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import pysqlite3.dbapi2 as sqlite3  # a checkpoint is the work of the SQLite that the relay has

from tests.crash import audit
from tests.crash.audit import Books
from tests.crash.ledger import Halfway, Ledger, Letter, by_data, post
from tests.crash.strace import DIES_WITHIN, Point, attached
from tests.support.collector import Collector
from tests.support.program import LOOK_EVERY, Program, ProgramFailed, open_files
from tests.support.relay import Relay

CLIENT = "macon-dupont"
MEG, VENTES = f"meg+{CLIENT}@welyb.fr", f"ventes+{CLIENT}@welyb.fr"
_logs = itertools.count(1)


class Survived(AssertionError):
    """A command that was to die came to its end."""


class Site:
    """`relay` serves, from `start` to `stop`; whoever kills it calls `back` before going on."""

    def __init__(self, folder: Path, collector: Collector | None = None) -> None:
        self.folder = folder
        self.collector = collector
        routes = {"factures-meg.fr": collector.destination} if collector else {}
        self.relay = Relay(folder, {"run": {"settle": "0 s"}, "delivery": {"routes": routes}})
        self.data, self.ged = self.relay.folder / "var", self.relay.ged
        self.ledger = Ledger()
        self.kills = 0

    @classmethod
    def start(cls, folder: Path) -> Self:
        """Serving, with a collector, one client, and that client's folder connected."""
        site = cls(folder, Collector.start(folder))
        try:
            site.relay.client(CLIENT)
            site.relay.start()
            site.connected.mkdir()
            site.relay.cli(*connecting(CLIENT, "Achats"))
            site.taken(MEG, VENTES, sizes=(0, 600_000))
            until(lambda: site.month.is_dir(), "file the first document")
        except BaseException:
            site.stop()
            raise
        return site

    def stop(self) -> None:
        self.relay.stop()
        if self.collector:
            self.collector.stop()

    @property
    def connected(self) -> Path:
        return self.ged / CLIENT / "Achats"

    @property
    def month(self) -> Path:
        """The folder that documents are filed in now."""
        months = sorted((self.ged / CLIENT / "Ventes").glob("*/*"))
        return months[-1] if months else self.ged / CLIENT / "Ventes/none"

    @property
    def wal(self) -> Path:
        return self.data / "relay.db-wal"

    @property
    def segments(self) -> Path:
        return self.data / "spool/segments"

    @property
    def segment(self) -> Path:
        """The one the relay has open to append to. A command that ran meanwhile may have left a newer one of its own."""
        opened = map(Path, open_files(self.relay.program.pid))
        return max(path for path in opened if path.parent == self.segments.resolve())

    @property
    def day(self) -> Path:
        """The folder that large messages arrive in now."""
        return self.data / "spool/files" / datetime.now(UTC).date().isoformat()

    # --- mail -----------------------------------------------------------------------------------------------------------

    def post(self, letter: Letter, how: Callable[[int, Letter], bool] = by_data) -> bool:
        return post(self.relay.port, letter, how)

    def taken(self, *recipients: str, sizes: tuple[int, ...] = (0,)) -> Letter:
        """A new letter that got its 250."""
        letter = self.ledger.letter(*recipients, sizes=sizes)
        assert self.post(letter)
        return letter

    @contextmanager
    def halfway(self, letter: Letter, *, chunks: bool = False) -> Iterator[tuple[Halfway, Path]]:
        """A large letter stopped in the middle, and the file it is arriving in."""
        before = set((self.data / "spool/files").rglob("*"))
        with Halfway(self.relay.port, letter, chunks=chunks) as half:
            arriving: list[Path] = []

            def arrives() -> bool:
                arriving[:] = [p for p in (self.data / "spool/files").rglob("*") if p not in before and p.is_file()]
                return bool(arriving)

            until(arrives, "begin a file")
            yield half, arriving[0]

    def stored(self, letter: Letter) -> int:
        """How many times the store has it."""
        return len(audit.rows(self.data, "SELECT 1 FROM message WHERE message_id = ?", letter.message_id))

    def states(self, letter: Letter) -> list[object]:
        sql = "SELECT d.state FROM delivery d JOIN message m ON m.id = d.message WHERE m.message_id = ? ORDER BY d.id"
        return [row[0] for row in audit.rows(self.data, sql, letter.message_id)]

    # --- death ----------------------------------------------------------------------------------------------------------

    @contextmanager
    def dies_at(self, point: Point, program: Program | None = None) -> Iterator[None]:
        """Within the block, or soon after, the relay (or `program`) makes the call of `point`, and is dead."""
        program, log = program or self.relay.program, self.log()
        with attached(program.pid, point.options(log)):
            yield
            await_death(program)
        point.check(log)
        self.buried()

    def dies_running(self, point: Point, *verb: str) -> None:
        """A command is run (`serve`, say) and dies."""
        log = self.log()
        command = [*point.under(log), *self.relay.program.command[:-1], *verb]
        program = Program(command, self.relay.folder, name=verb[0])
        program.start(lambda: True)
        try:
            await_death(program)
        finally:
            program.kill()
        point.check(log)
        self.buried()

    def told(self, verb: str) -> Path:
        """Where a command run by `dies_running` writes what it has done."""
        return self.relay.folder / f"{verb}.out"

    def buried(self) -> None:
        """A process was killed: what the clients see in the GED at this instant is whole."""
        self.kills += 1
        wrong = audit.of_ged(self.ged, self.ledger)
        assert not wrong, wrong

    def log(self) -> Path:
        return self.folder / f"strace-{next(_logs)}.err"

    # --- life -----------------------------------------------------------------------------------------------------------

    def back(self) -> None:
        """The relay is started, and has nothing left to mend but what it is allowed to leave for a run."""
        self.relay.kill()
        self.relay.start()
        wrong = audit.of_store(self.data, self.ledger) + audit.orphans(self.data)
        assert not wrong, wrong

    def checkpoint(self) -> None:
        """A WAL that SQLite begins anew costs one more sync, and it does so when it has grown long: not during a test."""
        with closing(sqlite3.connect(str(self.data / "relay.db"))) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def run(self) -> dict[str, object]:
        (counts,) = self.relay.json("runs", "now")
        assert counts["eligible"] == sum(int(counts[n]) for n in ("sent", "deferred", "refused", "held", "duplicate"))
        return counts

    def drain(self, timeout: float = 60) -> None:
        """Runs, until nothing waits."""
        deadline = time.monotonic() + timeout
        waiting = "SELECT id, kind, state FROM delivery WHERE state NOT IN ('sent', 'filed')"
        while left := audit.rows(self.data, waiting):
            assert time.monotonic() < deadline, left
            if any(kind == "send" for _, kind, _ in left):
                self.run()
            else:
                time.sleep(LOOK_EVERY)

    def settled(self) -> Books:
        """Everything sent and filed, and the books closed: nothing lost, nothing wrong."""
        assert self.collector is not None
        self.run()
        self.drain()
        until(lambda: not audit.temporaries(self.ged), "put its temporaries away")
        books = audit.settle(self.data, self.ged, self.ledger, self.collector.messages())
        books.wrong += audit.of_store(self.data, self.ledger) + audit.of_ged(self.ged, self.ledger)
        assert not books.lost and not books.wrong, books
        return books


def connecting(client: str, folder: str) -> tuple[str, ...]:
    """The command that connects a folder."""
    address = ("--address", f"{client}@factures-meg.fr")
    return ("connections", "add", "--application", "meg", "--client", client, "--folder", folder, *address)


def await_death(program: Program) -> None:
    until(lambda: not program.running, "die", timeout=DIES_WITHIN)
    assert program.process is not None
    code = program.process.returncode
    if code == 0:
        raise Survived(program.told())
    assert code == -signal.SIGKILL, f"{program.name}: exit {code}\n{program.told()}"


def until(reached: Callable[[], bool], what: str, *, timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not reached():
        if time.monotonic() > deadline:
            raise ProgramFailed(f"it did not {what}")
        time.sleep(LOOK_EVERY)
