"""Samples and books → the sentences of the verdict, each true or false.

Knows alone: which part of the soak is compared with which, and what may differ by how much. Memory is compared from the
end of the first sixth on (minute 5 of 30): before, caches fill. Compared are medians over a twelfth of the time, for at
any instant there are large mails in flight or not.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from relay import clock
from rules.lifecycle import grid_at_or_after
from tests.crash import audit
from tests.soak.books import Books
from tests.soak.faults import Injector
from tests.soak.samples import Sample
from tests.soak.site import Site
from tests.soak.traffic import Account, median, percentile

MEMORY, LATENCY = 1.10, 1.5
LATE = 2.0  # seconds after the minute


@dataclass(frozen=True, slots=True)
class Line:
    """One sentence of the verdict."""

    good: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.good else 'FAIL'} {self.text}"


def memory(samples: Sequence[Sample], seconds: float) -> Line:
    """Growth is the fault; what a part of the soak gives back is not."""
    first = median([each.rss for each in _between(samples, seconds / 6, seconds / 4)])
    last = median([each.rss for each in _between(samples, seconds * 11 / 12, seconds)])
    pss = [
        median([e.pss for e in _between(samples, *at)])
        for at in ((seconds / 6, seconds / 4), (seconds * 11 / 12, seconds))
    ]
    grown = last / first - 1 if first else 0.0
    text = f"memory: RSS {first:.1f} → {last:.1f} MB ({grown:+.1%}), PSS {pss[0]:.1f} → {pss[1]:.1f} MB; at most +10 %"
    return Line(0 < last <= MEMORY * first, text)


def descriptors(before: Counter[str], after: Counter[str]) -> Line:
    """At rest, files and sockets: before the traffic, after it."""
    text = f"descriptors at rest: {before.total()} ({before['file']} files) → {after.total()} ({after['file']} files)"
    return Line(after.total() <= before.total(), text)


def latency(account: Account, injector: Injector, seconds: float) -> list[Line]:
    """p99 of the last sixth against the first, of the mails that no lock on the database delayed."""
    found = []
    for name, chosen in (("all mails", {True, False}), ("mails of 20 kB", {True})):
        kinds = {n for n, kind in enumerate(account.kinds) if kind.small in chosen}
        parts = ((0.0, seconds / 6), (seconds * 5 / 6, seconds))
        first, last = (
            percentile(_undisturbed(account, injector, kinds, low=low, high=high), 0.99) for low, high in parts
        )
        times = last / first if first else 0.0
        text = f"p99 latency, {name}: {first:.0f} → {last:.0f} ms ({times:.2f} ×); at most 1.5 ×"
        found.append(Line(0 < last <= LATENCY * first, text))
    return found


def _undisturbed(account: Account, injector: Injector, kinds: set[int], *, low: float, high: float) -> list[float]:
    return account.times(0, lambda kind, due: kind in kinds and low <= due < high and not injector.disturbed(due))


def runs(site: Site, began: str, ended: str) -> Line:
    """One on every instant of the grid between the two stamps."""
    every = timedelta(seconds=site.every)
    started = [
        clock.instant(str(row[0])) for row in audit.rows(site.data, "SELECT started_at FROM run ORDER BY started_at")
    ]
    due, missed, worst = grid_at_or_after(clock.instant(began), every), [], 0.0
    count = 0
    while due <= clock.instant(ended):
        after = [(at - due).total_seconds() for at in started if due <= at < due + every]
        if not after or after[0] > LATE:
            missed.append(f"{due:%H:%M:%S}" + (f" ({after[0]:.1f} s late)" if after else ""))
        worst = max(worst, *after[:1], 0.0)
        due, count = due + every, count + 1
    text = f"runs on time: {count - len(missed)} of {count}, the latest {worst:.1f} s after its minute"
    return Line(count > 0 and not missed, text + (f"; missed {', '.join(missed[:10])}" if missed else ""))


def accounts(books: Books) -> list[Line]:
    return [
        Line(not books.lost, f"lost: {len(books.lost)}"),
        Line(not books.unflagged, f"doubled, unflagged: {len(books.unflagged)} (flagged: {len(books.doubled)})"),
        Line(not books.wrong, f"wrong: {len(books.wrong)}"),
    ]


def traffic(account: Account, rate: float, seconds: float) -> Line:
    """That there was as much of it as was meant."""
    codes = [code for code, due in zip(account.code, account.due, strict=True) if due >= 0]
    answered = sum(code in (250, 554) for code in codes)
    text = f"traffic: {len(codes)} mails in {seconds:.0f} s ({rate:.1f}/s meant), {answered} answered 250 or 554"
    return Line(len(codes) >= 0.99 * rate * seconds and answered >= 0.99 * len(codes), text)


def injected(injector: Injector) -> Line:
    """That the faults were there to be withstood."""
    text = f"faults: {len(injector.happened)} of {len(injector.happened) + len(injector.failed)}"
    return Line(not injector.failed, "; ".join([text, *injector.failed]))


def waiting(rows: Sequence[tuple[object, ...]], *, rested: str) -> Line:
    """At the end of the traffic and a run after it: whatever has not gone says why. `rested` is what it did not do."""
    silent = [row for row in rows if not row[2]]
    text = f"waiting after the last run: {len(rows)}, {len(rows) - len(silent)} with a reason"
    return Line(not silent and not rested, f"{text}; {rested}" if rested else text)


def _between(samples: Sequence[Sample], low: float, high: float) -> list[Sample]:
    return [each for each in samples if low <= each.at <= high]
