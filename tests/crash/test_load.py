"""Kills at random under load: clients that send and send again, deposits, runs under way, starts cut short.

CRASH_ROUNDS is how many kills of the relay under load (`make crash`: 200); CRASH_SEED repeats the dice, though not the
threads. Installations are used for twenty rounds each, so that their disks stay small.
"""

import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.crash import audit
from tests.crash.ledger import Letter, by_chunks, by_data
from tests.crash.site import MEG, VENTES, Site
from tests.support.program import Program

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "5"))
SEED = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
EACH = 20
CLIENTS = 4
SMALL, MIDDLE, LARGE = 0, 300_000, 9_900_000

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
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def until(self, ends: Callable[[], None]) -> None:
        """`ends` kills the relay; the clients notice."""
        threads = [
            threading.Thread(target=self._client, args=(random.Random(self.dice.random()),)) for _ in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        try:
            ends()
        finally:
            self.site.relay.kill()
            for thread in threads:
                thread.join()

    def _client(self, dice: random.Random) -> None:
        while self.one(dice):
            if dice.random() < 0.1:
                self.site.ledger.deposit(self.site.connected, size=dice.choices((SMALL, MIDDLE, LARGE), (12, 6, 1))[0])
                self.counts["deposits"] += 1

    def one(self, dice: random.Random) -> bool:
        """One attempt of one client; False once the relay is gone."""
        letter = self._letter(dice)
        answered = self.site.post(letter, dice.choice((by_data, by_chunks)))
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
        self.counts["large"] += LARGE in sizes
        return self.site.ledger.letter(*recipients, sizes=sizes)


def kills(site: Site, dice: random.Random, *, under_way: Program) -> None:
    """The relay, and the run at times before, with, or after it."""
    time.sleep(dice.uniform(0.1, 1.0))
    for program in dice.sample([site.relay.program, under_way], k=2):
        if program is site.relay.program or dice.random() < 0.7:
            if program.running:
                program.kill()
                site.buried()
            time.sleep(dice.choice((0, dice.uniform(0, 0.3))))


def start_over(site: Site, dice: random.Random) -> None:
    """Back to serving; one start in three is killed too, and perhaps the one after it."""
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
        for _ in range(rounds):
            run = Program([*site.relay.program.command[:-1], "runs", "now"], site.relay.folder, name="runs")
            run.start(lambda: True)
            traffic.until(lambda run=run: kills(site, dice, under_way=run))
            start_over(site, dice)
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
            f"({traffic.counts['large']} of 10 MB), {told['unanswered']} not, {traffic.counts['deposits']} deposits"
        )
    account[-1] += f": {len(books.lost)} lost, {len(books.doubled)} doubled while in flight"
    shutil.rmtree(tmp_path)
