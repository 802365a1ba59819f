"""Every five seconds a look at the relay from outside: memory, descriptors, files, queue, latency.

Knows alone: where each of these is read. Limits: Linux; PSS is what the kernel says of its processes together.
"""

import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import pysqlite3.dbapi2 as sqlite3

from tests.soak.site import Site
from tests.soak.traffic import Account, percentile
from tests.support.program import links

_QUEUE = "SELECT state, count(*) FROM delivery WHERE state IN ('waiting', 'sending', 'filing', 'held') GROUP BY state"


@dataclass(frozen=True, slots=True)
class Sample:
    """`at` in seconds of the soak; sizes in MB; times in ms, of the mails answered since the last sample."""

    at: float
    rss: float
    pss: float
    processes: int
    files: int  # descriptors that are not sockets
    sockets: int
    cpu: float  # seconds so far
    load: float
    wal: float
    database: float
    spool: float
    queue: int
    mails: int
    p50: float
    p99: float
    p99_small: float
    worst: float
    run: int  # the last one begun

    def as_json(self) -> dict[str, float]:
        return asdict(self)


class Sampler:
    """`work` until `over`; `samples` grows."""

    def __init__(self, site: Site, account: Account, *, began: float) -> None:
        self._site, self._account, self._began = site, account, began
        self._seen = len(account)
        self.samples: list[Sample] = []

    def work(self, over: threading.Event, *, every: float) -> None:
        uri = f"file:{self._site.data / 'relay.db'}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=10, isolation_level=None)) as db:
            due = self._began
            while not over.wait(max(0.0, due - time.monotonic())):
                self.samples.append(self._look(db))
                due = max(due + every, time.monotonic())

    def _look(self, db: "sqlite3.Connection") -> Sample:
        site, first = self._site, self._seen
        self._seen = len(self._account)
        small = [kind.small for kind in self._account.kinds]
        times = self._account.times(first, lambda kind, due: True)
        rss, pss, _ = site.group.memory()
        pids = site.group.pids()
        kinds = descriptors(pids)
        queue = db.execute(_QUEUE).fetchall()
        (run,) = db.execute("SELECT max(id) FROM run").fetchone()
        return Sample(
            at=time.monotonic() - self._began,
            rss=rss,
            pss=pss,
            processes=len(pids),
            files=kinds["file"],
            sockets=kinds["socket"],
            cpu=site.group.cpu(),
            load=os.getloadavg()[0],
            wal=_size(site.data / "relay.db-wal"),
            database=_size(site.data / "relay.db"),
            spool=sum(map(_size, _files(site.data / "spool"))),
            queue=sum(count for _, count in queue),
            mails=self._seen - first,
            p50=percentile(times, 0.5),
            p99=percentile(times, 0.99),
            p99_small=percentile(self._account.times(first, lambda kind, due: small[kind]), 0.99),
            worst=percentile(times, 1.0),
            run=run or 0,
        )


def descriptors(pids: set[int]) -> Counter[str]:
    """How many descriptors the processes have: sockets, and all the rest."""
    found: Counter[str] = Counter()
    for pid in pids:
        for link in links(pid):
            try:
                found["socket" if stat.S_ISSOCK(os.stat(link).st_mode) else "file"] += 1
            except OSError:
                pass  # closed meanwhile
    return found


def _files(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place) / name for name in names)


def _size(path: Path) -> float:
    try:
        return path.stat().st_size / 1e6
    except OSError:
        return 0.0
