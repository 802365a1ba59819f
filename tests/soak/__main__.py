"""python -m tests.soak: measures what the relay can take, gives it half of that for half an hour, and judges.

Ends with 1 where a sentence of the verdict is false. Leaves soak.json, soak.md and soak.svg in build/soak.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from relay import clock
from tests.crash import audit
from tests.crash.site import until
from tests.soak import books, chart, faults, tables, verdict
from tests.soak.samples import Sampler, descriptors
from tests.soak.site import Site
from tests.soak.traffic import Account, Generator, Kind, Stream, kinds
from tests.soak.verdict import Line
from tests.support.program import ProgramFailed, open_files

OUT = Path(__file__).resolve().parents[2] / "build" / "soak"
WARM = 3.0  # seconds of a little of everything before the soak
PATIENCE = 600.0  # seconds for the queue to empty itself


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--share", type=float, default=0.5, help="of the measured capacity")
    parser.add_argument("--rate", type=float, default=0, help="mails a second, instead of a share of what is measured")
    parser.add_argument(
        "--every", type=int, default=0, metavar="SECONDS", help="between runs; 60, less in a short soak"
    )
    parser.add_argument("--processes", type=int, default=1, help="that take mail; above 1, one is killed early on")
    parser.add_argument("--json", type=Path, default=OUT / "soak.json")
    parser.add_argument("--spool", type=Path, default=OUT / "spool", help="a folder on the file system to soak")
    parser.add_argument("--keep", action="store_true", help="leave the installation for a look at it")
    given = parser.parse_args(words)
    given.seconds = given.minutes * 60
    given.every = given.every or (60 if given.minutes >= 10 else 10 if given.minutes >= 3 else 5)
    return given


@dataclass
class Soak:
    """One soak, from its capacity to its books."""

    given: argparse.Namespace
    kinds: tuple[Kind, ...] = field(default_factory=kinds)
    facts: dict[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    def site(self, name: str, every: int) -> Site:
        folder = self.given.spool / name
        shutil.rmtree(folder, ignore_errors=True)  # of a soak that was cut off
        return Site(folder, every=every, processes=self.given.processes)

    def capacity(self, seconds: float) -> float:
        """Mails a second that are taken, over ten connections, each its own, and sent on: first the one, then the other,
        for they share a processor. What is only taken is no capacity: the queue would grow for ever.
        """
        site, account = self.site("capacity", 86_400), Account(self.kinds)
        try:
            site.start()
            generator = Generator(site.folder / "mails", self.kinds)
            for first, length in ((0, 1.0), (1_000_000, seconds)):  # the first is to warm it up
                begun, before = time.monotonic(), len(account)
                command = generator.command(site.relay.port, rate=0, seconds=length, first=first)
                stream = Stream(command, account, began=begun)
                stream.wait(length + 120)
                run = json.loads(site.relay.cli("runs", "now", "--json").stdout)
            answered = sum(code in (250, 554) for code in account.code[before:])
            taking = max(account.due[n] + account.took[n] for n in range(before, len(account)))
            sending = (clock.instant(run["finished_at"]) - clock.instant(run["started_at"])).total_seconds()
            self.facts |= {"taken": answered / taking, "sent": run["sent"] / sending}
            return answered / (taking + sending)
        finally:
            site.stop()
            shutil.rmtree(site.folder, ignore_errors=True)

    def run(self) -> bool:
        given = self.given
        if not given.rate:
            self.facts["capacity"] = self.capacity(20 if given.minutes >= 10 else 8)
            both = f"{self.facts['taken']:.0f}/s in, {self.facts['sent']:.0f}/s out"
            say(f"capacity: {self.facts['capacity']:.1f} mails/s ({both})")
        self.facts["rate"] = rate = given.rate or given.share * self.facts["capacity"]
        say(f"soak: {rate:.1f} mails/s for {given.minutes:g} minutes, a run every {given.every} s")
        site = self.site("soak", given.every)
        try:
            site.start()
            self._soak(site, rate)
        finally:
            site.stop()
            if not given.keep:
                shutil.rmtree(site.folder, ignore_errors=True)
        return all(line.good for line in self.lines)

    def _soak(self, site: Site, rate: float) -> None:
        seconds, account = self.given.seconds, Account(self.kinds)
        generator = Generator(site.folder / "mails", self.kinds)
        # Enough of everything that each file is open which will ever be. Its times count for nothing.
        warming = generator.command(site.relay.port, rate=min(rate, 50), seconds=WARM, first=0)
        Stream(warming, account, began=math.inf).wait(120)
        at_rest(site)
        before, files = descriptors(site.group.pids()), Counter(open_files(*site.group.pids()))
        began, stamp = time.monotonic(), clock.stamp(clock.now())
        sampler = Sampler(site, account, began=began)
        parts = 6 if seconds >= 100 else 1
        injector = faults.Injector(site, faults.plan(seconds, parts=parts, workers=self.given.processes), began=began)
        command = generator.command(site.relay.port, rate=rate, seconds=seconds, first=1_000_000)
        with together(site, injector, sampler, rate=rate, seconds=seconds):
            stream = Stream(command, account, began=began)
            try:
                stream.wait(seconds + PATIENCE)
            finally:
                stream.stop()
        ended, rested = clock.stamp(clock.now()), ""
        try:
            at_rest(site)
        except ProgramFailed as error:
            rested = str(error)
        after, left = descriptors(site.group.pids()), Counter(open_files(*site.group.pids()))
        self.facts["descriptors"] = {
            "more": sorted((left - files).elements()),
            "less": sorted((files - left).elements()),
        }
        self.lines += [
            verdict.traffic(account, rate, seconds),
            verdict.memory(sampler.samples, seconds),
            verdict.descriptors(before, after),
            *verdict.latency(account, injector, seconds),
            verdict.runs(site, stamp, ended),
            verdict.waiting(site.waiting(), rested=rested),
            verdict.injected(injector),
        ]
        found = self._books(site, account)
        self.lines += verdict.accounts(found)
        self._leave(site, account, found, sampler=sampler, injector=injector)

    def _books(self, site: Site, account: Account) -> books.Books:
        """Stopped and started again, and with what still waits made due, everything comes to its end."""
        site.relay.stop()
        for collector in site.collectors.values():
            collector.tell("mend 0")
        site.time_has_come()
        site.relay.start()
        with contextlib.suppress(ProgramFailed):  # what is left is a finding
            until(lambda: not site.waiting(), "empty its queue", timeout=PATIENCE)
        taken = [each for collector in site.collectors.values() for each in collector.taken()]
        return books.settle(site, account, taken)

    # --- what is left behind --------------------------------------------------------------------------------------------

    def _leave(
        self, site: Site, account: Account, found: books.Books, *, sampler: Sampler, injector: faults.Injector
    ) -> None:
        given = self.given
        self.facts |= {
            "at": time.strftime("%Y-%m-%d %H:%M"),
            "machine": f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}",
            "seconds": given.seconds,
            "processes": given.processes,
            "every": given.every,
            "counts": dict(sorted(found.counts.items())),
            "flagged": len(found.doubled),
            "log": log_lines(site),
            "runs": audit.rows(site.data, "SELECT * FROM run ORDER BY id"),
            "faults": dict(Counter(each.name for each in injector.happened)),
        }
        results = {
            "verdict": [{"good": line.good, "text": line.text} for line in self.lines],
            "facts": self.facts,
            "findings": found.findings(),
            "faults": [asdict(each) for each in injector.happened],
            "samples": [each.as_json() for each in sampler.samples],
        }
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(results, indent=1, default=str))
        title = f"{self.facts['rate']:.0f} mails/s for {given.minutes:g} minutes, {self.facts['at']}"
        drawn = chart.svg(sampler.samples, injector.happened, seconds=given.seconds, title=title)
        given.json.with_suffix(".svg").write_text(drawn)
        given.json.with_suffix(".md").write_text(tables.markdown(results))


@contextlib.contextmanager
def together(site: Site, injector: faults.Injector, sampler: Sampler, *, rate: float, seconds: float) -> Iterator[None]:
    """Faults, deposits and samples beside the block; faults that were begun come to their end."""
    over, abandoned = threading.Event(), threading.Event()
    faulting = threading.Thread(target=injector.work, args=(abandoned,))
    beside = [
        threading.Thread(target=site.deposits(over, pause=max(1.0, 20 / rate))),
        threading.Thread(target=sampler.work, args=(over,), kwargs={"every": min(5.0, seconds / 12)}),
    ]
    for thread in (faulting, *beside):
        thread.start()
    try:
        yield
    except BaseException:
        abandoned.set()
        raise
    finally:
        faulting.join()
        over.set()
        for thread in beside:
            thread.join()


def at_rest(site: Site) -> None:
    """No mail is coming in, what was due has been sent and filed, no run is under way, and no connection of ours is left."""
    soon = timedelta(seconds=site.every)

    def quiet() -> bool:
        horizon = clock.stamp(clock.now() + soon)
        return all(state == "waiting" and str(due_at) > horizon for state, due_at, _ in site.waiting())

    until(quiet, "send and file what was due", timeout=PATIENCE)
    seen: list[Counter[str]] = []

    def still() -> bool:
        """Three looks alike, a moment apart."""
        time.sleep(0.5)
        seen.append(descriptors(site.group.pids()))
        running = str(site.data / "run.lock") in open_files(*site.group.pids())
        return not running and len(seen) > 2 and seen[-1] == seen[-2] == seen[-3]

    until(still, "close its connections", timeout=60)


def log_lines(site: Site) -> dict[str, int]:
    """How many lines of warnings and errors the relay has written, by event."""
    found: Counter[str] = Counter()
    with site.relay.program.err.open(errors="replace") as lines:
        for line in lines:
            words = line.split(maxsplit=4)
            if len(words) > 3 and words[2] in ("WARNING", "ERROR", "CRITICAL"):
                found[f"{words[2]} {words[3]}"] += 1
            elif len(words) < 3 or words[2] != "INFO":
                found["not a line of the log"] += 1
    return dict(found)


def say(text: str) -> None:
    print(text, flush=True)


def main(words: Sequence[str] | None = None) -> int:
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that a soak that is stopped stops its programs too
        signal.signal(number, lambda *_: sys.exit(1))
    soak = Soak(options(words))
    good = soak.run()
    say(soak.given.json.with_suffix(".md").read_text())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
