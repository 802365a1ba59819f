"""The relay itself, as whoever runs it has it: `serve` with every document check on, `runs now`, `queue list`.

Who wrote a mail is looked up by `ours-verify` alone: the peers look nothing up. What that costs is the difference of
these two, with mails that their author signed.
"""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from relay import clock
from rules.authentication import of_facts, told
from tests.bench.server import Mode, Place, Server
from tests.support.author import Author
from tests.support.nameserver import NameServer
from tests.support.relay import Relay, command

SELECTOR = "bench"
AUTHOR = Author("client.example", spf="ip4:127.0.0.1 -all")  # whom the load is from


class Ours(Server):
    """It keeps what comes until a run. `signed` sets a DKIM key; `verify` is [authentication] verify, asked of `dns`."""

    name = "ours"
    can = frozenset({"accept", "drain", "list", "through", "verify"})
    recipient = "meg+user%d@welyb.fr"
    signed = True
    processes = 1
    verify = "none"
    dns: Sequence[str] = ()
    expected = ""  # of `findings`, for the mails of AUTHOR

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.relay: Relay | None = None

    def version(self) -> str:
        described = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=False,
        )
        return f"welyb-relay {described.stdout.strip()}, Python {sys.version.split()[0]}"

    def start(self, mode: Mode) -> None:
        self.lay_out(self.folder)
        self.serve()

    def lay_out(self, folder: Path) -> Relay:
        """Settings and keys under `folder`."""
        routes = dict.fromkeys(("factures-meg.fr", "achats.factures-meg.fr"), f"127.0.0.1:{self.place.sink_port}")
        settings = {
            "delivery": {"routes": routes, "dns": list(self.dns)},
            "smtp": {"processes": self.processes},
            "authentication": {"verify": self.verify},
        }
        self.relay = Relay(folder, settings, under=self.group.prefix)
        self.port = self.relay.port
        if self.signed:
            self.relay.cli("keys", "create", SELECTOR)
            self.relay.configure({"dkim": {"selector": SELECTOR}})
        return self.relay

    def serve(self) -> None:
        assert self.relay is not None
        self.relay.start()
        self.program = self.relay.program
        self.group.adopt(self.program.pid)

    def run_now(self) -> dict[str, Any]:
        """One run, in a process of its own, to its end: what `runs now --json` says of it."""
        assert self.relay is not None
        done = subprocess.run(
            [*self.group.prefix, *command(), "--config", str(self.relay.config), "runs", "now", "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    def flush(self) -> None:
        run = self.run_now()
        spent = clock.instant(run["finished_at"]) - clock.instant(run["started_at"])
        self.last_run = {"run_s": spent.total_seconds()}

    def findings(self) -> dict[str, int]:
        """What SPF, DKIM and DMARC said of the mails in the store, and of how many; "" where nobody asked."""
        assert self.relay is not None
        with closing(sqlite3.connect(self.relay.folder / "var/relay.db")) as db:
            kept = db.execute("SELECT coalesce(authentication, ''), count(*) FROM message GROUP BY 1").fetchall()
        return {told(of_facts(json.loads(facts))) if facts else "": count for facts, count in kept}

    def listing(self) -> Sequence[str]:
        assert self.relay is not None
        return [*command(), "--config", str(self.relay.config), "queue", "list", "--json"]


class Pair(Ours):
    """With two processes that take mail."""

    name = "ours-2"
    can = frozenset({"accept"})
    processes = 2


class Verifying(Ours):
    """It looks up who wrote each mail, of a name server in the bench's own process, which is not measured."""

    name = "ours-verify"
    can = frozenset({"verify"})
    verify = "all"
    expected = f"spf=pass {AUTHOR.domain}, dkim=pass {AUTHOR.domain}, dmarc=pass {AUTHOR.domain} (reject)"

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._names: NameServer | None = None

    def start(self, mode: Mode) -> None:
        self._names = NameServer(AUTHOR.zone).__enter__()
        self.dns = [self._names.address]
        super().start(mode)

    def cleared(self) -> None:
        if self._names is not None:
            self._names.__exit__()
            self._names = None
