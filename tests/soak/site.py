"""The installation that is soaked: a relay with all its checks and its signature, a GED, two collectors, deposits.

Knows alone: its settings, which clients have a connected folder, and what is put there. A run comes every minute instead
of every quarter of an hour, and bodies are kept for two: half an hour then has as many of both as a day.
"""

import random
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pysqlite3.dbapi2 as sqlite3  # whoever changes the store does it with the SQLite that the relay has

from tests.bench.meter import Group
from tests.crash import audit
from tests.crash.ledger import Ledger
from tests.soak.collector import FarEnd
from tests.soak.traffic import CLIENTS
from tests.support.documents import plain_zip
from tests.support.relay import Relay

SELECTOR = "soak"
CONNECTED = 3  # clients with a connected folder
LARGE, MIDDLE = 3_000_000, 100_000  # bytes of some deposits
NEAR, FAR = "factures-meg.fr", "achats.factures-meg.fr"


class Site:
    """`start`, then `stop`; the relay's processes are those of `group`."""

    def __init__(self, folder: Path, *, every: int, processes: int) -> None:
        self.folder = folder
        self.every = every
        self.group = Group("soak")
        self.collectors = {NEAR: FarEnd(folder, "near"), FAR: FarEnd(folder, "far")}
        routes = {domain: f"127.0.0.1:{far.port}" for domain, far in self.collectors.items()}
        settings = {
            "relay": {"keep_bodies": f"{2 * every} s"},
            "smtp": {"processes": processes},
            "run": {"every": f"{every} s", "settle": "1 s"},
            "delivery": {"routes": routes},
        }
        self.relay = Relay(folder, settings, under=self.group.prefix)
        self.data, self.ged = self.relay.folder / "var", self.relay.ged
        self.ledger = Ledger()
        self.archives: list[Path] = []  # ZIPs put into connected folders
        self.ged_in_place = threading.Lock()  # held by who writes there, and by who takes it away

    def start(self) -> None:
        for collector in self.collectors.values():
            collector.start()
        self.relay.cli("keys", "create", SELECTOR)
        self.relay.configure({"dkim": {"selector": SELECTOR}})
        for number in range(CLIENTS):
            self.relay.client(f"client-{number}")
        self.relay.start()
        self.group.adopt(self.relay.program.pid)
        for number in range(CONNECTED):
            (self.ged / f"client-{number}/Achats").mkdir()
            address = f"client-{number}@{(NEAR, FAR)[number % 2]}"
            application = ("meg", "meg-achats")[number % 2]
            where = ("--client", f"client-{number}", "--folder", "Achats", "--address", address)
            self.relay.cli("connections", "add", "--application", application, *where)

    def stop(self) -> None:
        self.relay.stop()
        for collector in self.collectors.values():
            collector.stop()
        self.group.remove()

    def waiting(self) -> list[tuple[object, ...]]:
        """(state, due_at, reason) of every delivery that is not at its end."""
        return audit.rows(
            self.data,
            "SELECT state, due_at, reason FROM delivery WHERE state IN ('waiting', 'sending', 'filing', 'held')",
        )

    def time_has_come(self) -> None:
        """Everything that waits is due: what the next hours would have brought. The relay must not be serving."""
        assert not self.relay.program.running
        with closing(sqlite3.connect(str(self.data / "relay.db"), isolation_level=None)) as db:
            db.execute("UPDATE delivery SET due_at = '2000-01-01T00:00:00.000Z' WHERE state = 'waiting'")

    # --- deposits -------------------------------------------------------------------------------------------------------

    def deposits(self, over: threading.Event, *, pause: float) -> Callable[[], None]:
        """What a thread does until `over`: a document every `pause` seconds into one of the connected folders."""
        dice = random.Random(1)

        def work() -> None:
            while not over.wait(pause):
                with self.ged_in_place:
                    self._deposit(dice)

        return work

    def _deposit(self, dice: random.Random) -> None:
        folder = self.ged / f"client-{dice.randrange(CONNECTED)}/Achats"
        if dice.random() < 0.05:
            self.archives.append(folder / f"releve-{len(self.archives)}.zip")
            self.archives[-1].write_bytes(plain_zip())
        else:
            self.ledger.deposit(folder, size=dice.choices((0, MIDDLE, LARGE), (90, 9, 1))[0])
