"""What goes wrong during the soak, when, and for how long: the same in every part of it, so that its ends can be compared.

Knows alone: the faults and their times. Limits: one at a time, but for the client that hangs.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pysqlite3.dbapi2 as sqlite3  # the lock is the work of the SQLite that the relay has

from tests.crash.ledger import SENDER
from tests.soak.site import FAR, NEAR, Site
from tests.support.clients import Dialogue

AFTER_LOCK = 5.0  # seconds in which what has waited for the lock is worked off


@dataclass(frozen=True, slots=True)
class Fault:
    """At `at` seconds of the soak, for `seconds`."""

    at: float
    seconds: float
    name: str
    happen: Callable[[Site, float], None]


@dataclass(frozen=True, slots=True)
class Happened:
    name: str
    began: float
    ended: float


def plan(seconds: float, *, parts: int, workers: int) -> list[Fault]:
    """One of each in each of `parts`; a worker is killed once, early, where there are `workers` beside each other."""
    part, found = seconds / parts, []
    for number in range(parts):
        for share, longest, share_of_part, name, happen in _KINDS:
            length = min(longest, share_of_part * part)
            found.append(Fault((number + share) * part, length, name, happen))
    if workers > 1:
        found.append(Fault(part * 0.02, 0, "worker killed", _kill_worker))
    return sorted(found, key=lambda fault: fault.at)


class Injector:
    """Carries the plan out; `happened` is its diary, in seconds of the soak."""

    def __init__(self, site: Site, faults: Sequence[Fault], *, began: float) -> None:
        self._site, self._faults, self._began = site, faults, began
        self.happened: list[Happened] = []
        self.failed: list[str] = []  # faults that did not come about

    def work(self, abandoned: threading.Event) -> None:
        """To the plan's end: what is taken away is given back."""
        for fault in self._faults:
            if abandoned.wait(max(0.0, self._began + fault.at - time.monotonic())):
                return
            began = time.monotonic() - self._began
            try:
                fault.happen(self._site, fault.seconds)
            except (OSError, sqlite3.Error) as error:
                self.failed.append(f"{fault.name}: {error}")
                continue
            self.happened.append(Happened(fault.name, began, time.monotonic() - self._began))

    def disturbed(self, due: float) -> bool:
        """Whether a mail due then had to wait for the lock on the database, which nobody can do anything about."""
        return any(
            each.began - 0.2 <= due <= each.ended + AFTER_LOCK
            for each in self.happened
            if each.name == "database locked"
        )


# --- the faults ---------------------------------------------------------------------------------------------------------


def _hang(site: Site, seconds: float) -> None:
    """A client stops in the middle of a mail, and is cut off long after, or goes."""

    def client() -> None:
        with contextlib.suppress(OSError), Dialogue(site.relay.port) as dialogue:
            dialogue.hello()
            dialogue.envelope(SENDER, "meg+client-0@welyb.fr")
            dialogue.say("DATA")
            dialogue.send(b"Subject: half\r\n\r\n" + b"x" * 70 + b"\r\n" * 1000)
            time.sleep(seconds)

    threading.Thread(target=client, daemon=True).start()


def _lock(site: Site, seconds: float) -> None:
    """Another process writes, and takes its time. From here, that is another process."""
    db = sqlite3.connect(str(site.data / "relay.db"), isolation_level=None, timeout=60)
    try:
        db.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        db.execute("ROLLBACK")
    finally:
        db.close()


def _stop_collector(site: Site, seconds: float) -> None:
    """While a run sends to it: at the next minute, and a second."""
    time.sleep(site.every - time.time() % site.every + min(1.0, site.every / 10))
    site.collectors[NEAR].pause()
    try:
        time.sleep(seconds)
    finally:
        site.collectors[NEAR].resume()


def _told(domain: str, *words: str) -> Callable[[Site, float], None]:
    def happen(site: Site, seconds: float) -> None:
        for word in words:
            site.collectors[domain].tell(word)

    return happen


def _away(site: Site, seconds: float) -> None:
    """A collector is down over a run at least."""
    site.collectors[FAR].tell(f"away {seconds:.1f}")
    time.sleep(seconds)


def _ged_away(site: Site, seconds: float) -> None:
    """The share of the GED is not mounted: an empty folder, or none."""
    with site.ged_in_place:
        elsewhere = site.ged.with_name("elsewhere")
        site.ged.rename(elsewhere)
        try:
            time.sleep(seconds)
        finally:
            elsewhere.rename(site.ged)


def _kill_worker(site: Site, seconds: float) -> None:
    daemon = site.relay.program.pid
    workers = sorted(pid for pid in site.group.pids() if _parent(pid) == daemon)
    os.kill(workers[-1], signal.SIGKILL)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[1])
    except OSError:
        return 0  # it has ended


# share of the part at which it begins, longest, longest as a share of the part, name, what
_KINDS: tuple[tuple[float, float, float, str, Callable[[Site, float], None]], ...] = (
    (0.05, 120.0, 0.40, "client hangs", _hang),
    (0.15, 2.0, 0.10, "database locked", _lock),
    (0.25, 0.0, 0.0, "451 to RCPT", _told(NEAR, "refuse 5")),
    (0.28, 0.0, 0.0, "451 after the dot", _told(NEAR, "defer 5")),
    (0.30, 10.0, 0.04, "collector stopped", _stop_collector),
    (0.55, 0.0, 0.0, "hangs up after the dot", _told(FAR, "vanish 2")),
    (0.60, 65.0, 0.20, "collector away", _away),
    (0.82, 60.0, 0.16, "GED away", _ged_away),
)
