"""Kills at random under load: clients that send and send again, deposits, runs under way, starts cut short.

The relay is at times one process, at times a daemon with two workers, of which one may die long before the daemon.
CRASH_ROUNDS is how many kills of the relay under load (`make crash`: 200); CRASH_SEED repeats the dice, though not the
threads. Installations are used for twenty rounds each, so that their disks stay small.
"""

import itertools
import os
import random
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.crash import audit
from tests.crash.ledger import Letter, by_chunks, by_data
from tests.crash.site import MEG, VENTES, Site, until
from tests.support.program import Program
from tests.support.relay import Relay

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "5"))
SEED = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
EACH = 20
CLIENTS = 4
SMALL, MIDDLE, LARGE = 0, 300_000, 9_900_000
# What a round begins with, two of these each time: by chance a short run might miss a kind of mail.
ROTA = list(itertools.product((by_data, by_chunks), ((MEG,), (VENTES,), (MEG, VENTES)), (SMALL, LARGE)))
# Of one round after the other: how many processes take mail, and how many of those die while the daemon lives.
CREWS = ((1, 0), (2, 1), (2, 0), (2, 2))
How = Callable[[int, Letter], bool]

pytestmark = [
    pytest.mark.debian("postfix", "strace"),
    pytest.mark.timeout(120 + 30 * EACH),
    # smtplib leaves its socket to the garbage collector when the server dies in the middle of a reply.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@dataclass
class Traffic:
    """Clients at work until the relay is dead; what was not answered 250 is sent again, mostly, once it is back."""

    site: Site
    dice: random.Random
    unanswered: list[Letter] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    _rota: Iterator[tuple[How, tuple[str, ...], int]] = field(default_factory=lambda: itertools.cycle(ROTA))
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def until(self, ends: Callable[[], None]) -> None:
        """`ends` kills the relay; the clients notice."""
        first = [self._due() for _ in range(2)] + [None] * (CLIENTS - 2)
        self._over.clear()
        threads = [
            threading.Thread(target=self._client, args=(random.Random(self.dice.random()), begins)) for begins in first
        ]
        for thread in threads:
            thread.start()
        try:
            ends()
        finally:
            self.site.relay.kill()
            self._over.set()
            for thread in threads:
                thread.join()

    def _due(self) -> tuple[How, Letter]:
        how, recipients, size = next(self._rota)
        return how, self._new(recipients, (size,))

    def _client(self, dice: random.Random, begins: tuple[How, Letter] | None) -> None:
        going = self._attempt(*reversed(begins), dice) if begins else True
        while going or not self._over.wait(0.05):
            going = self.one(dice)
            if dice.random() < 0.1:
                self.site.ledger.deposit(self.site.connected, size=dice.choices((SMALL, MIDDLE, LARGE), (12, 6, 1))[0])
                self.counts["deposits"] += 1

    def one(self, dice: random.Random) -> bool:
        """One attempt of one client; False where it got no 250."""
        return self._attempt(self._letter(dice), dice.choice((by_data, by_chunks)), dice)

    def _attempt(self, letter: Letter, how: How, dice: random.Random) -> bool:
        answered = self.site.post(letter, how)
        if not answered and dice.random() < 0.8:
            with self._lock:
                self.unanswered.append(letter)
        return answered

    def _letter(self, dice: random.Random) -> Letter:
        with self._lock:
            if self.unanswered:
                return self.unanswered.pop()
        recipients = dice.choice(((MEG,), (VENTES,), (MEG, VENTES), ("meg+autre@welyb.fr",)))
        sizes = dice.choices(((SMALL,), (SMALL, SMALL), (MIDDLE,), (LARGE,)), (40, 10, 10, 2))[0]
        return self._new(recipients, sizes)

    def _new(self, recipients: tuple[str, ...], sizes: tuple[int, ...]) -> Letter:
        self.counts["large"] += LARGE in sizes
        return self.site.ledger.letter(*recipients, sizes=sizes)


def kills(site: Site, traffic: Traffic, *, first: int, under_way: Program) -> None:
    """The relay, and the run at times before, with, or after it; `first` of its workers before that."""
    dice = traffic.dice
    time.sleep(dice.uniform(0.1, 1.0))
    for pid in dice.sample(workers(site.relay), first):
        kill_worker(site, pid)
        traffic.counts["workers"] += 1
        letter = site.ledger.letter(VENTES)
        assert site.post(letter), "mail does not go on without a worker"
        time.sleep(dice.uniform(0, 0.5))
    for program in dice.sample([site.relay.program, under_way], k=2):
        if program is site.relay.program or dice.random() < 0.7:
            if program.running:
                program.kill()
                site.buried()
            time.sleep(dice.choice((0, dice.uniform(0, 0.3))))


def workers(relay: Relay) -> list[int]:
    """The processes that take mail for the daemon; none where it does so itself."""
    children = Path(f"/proc/{relay.program.pid}/task/{relay.program.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"relay.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def kill_worker(site: Site, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}/cmdline").read_bytes(), "die")  # a zombie has no command line
    site.buried()


def start_over(site: Site, dice: random.Random, *, processes: int) -> None:
    """Back to serving, with so many processes; one start in three is killed too, and perhaps the one after it."""
    site.relay.configure({"smtp": {"processes": processes}})
    while dice.random() < 1 / 3:
        program = Program(site.relay.program.command, site.relay.folder, name="start")
        program.start(lambda: True)
        time.sleep(dice.uniform(0.2, 0.9))
        program.kill()
        site.buried()
    site.relay.start()
    wrong = audit.of_store(site.data, site.ledger)
    assert not wrong, wrong


@pytest.mark.parametrize("campaign", range((ROUNDS + EACH - 1) // EACH))
def test_nothing_is_lost(campaign: int, tmp_path: Path, account: list[str]) -> None:
    dice, rounds = random.Random(SEED + campaign), min(EACH, ROUNDS - campaign * EACH)
    site = Site.start(tmp_path)
    traffic = Traffic(site, dice)
    try:
        for number in range(rounds):
            (_, first), (processes, _) = CREWS[number % len(CREWS)], CREWS[(number + 1) % len(CREWS)]
            run = Program([*site.relay.program.command[:-1], "runs", "now"], site.relay.folder, name="runs")
            run.start(lambda: True)
            traffic.until(lambda run=run, first=first: kills(site, traffic, first=first, under_way=run))
            start_over(site, dice, processes=processes)
            run.kill()
        while traffic.unanswered:
            assert traffic.one(dice)
        site.back()
        books = site.settled()
    finally:
        site.stop()
        told = Counter("answered" if letter.answered else "unanswered" for letter in site.ledger.letters.values())
        account.append(
            f"crash: seed {SEED + campaign}, {rounds} rounds, {site.kills} kills, {told['answered']} mails answered 250 "
            f"({traffic.counts['large']} of 10 MB), {told['unanswered']} not, {traffic.counts['deposits']} deposits, "
            f"{traffic.counts['workers']} workers killed before their daemon"
        )
    account[-1] += f": {len(books.lost)} lost, {len(books.doubled)} doubled while in flight"
    shutil.rmtree(tmp_path)
