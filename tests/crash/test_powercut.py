"""The power goes: only what was synced is on the disk, or that and any part of the rest. And each sync is needed.

CRASH_ROUNDS is how many disks the relay is started on, and how many are drawn with dice (`make crash`: 200);
CRASH_SEED repeats the dice.
"""

import itertools
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.disk import Choice, File, Folder, only, partly, strictly
from tests.crash.story import Story, cuts

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "5"))
SEED = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)


pytestmark = [pytest.mark.debian("postfix", "cc"), pytest.mark.timeout(120 + 10 * ROUNDS)]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    story = Story.told(tmp_path_factory.mktemp("powercut"))
    yield story
    story.site.stop()


def test_every_change_is_recorded(story: Story) -> None:
    """SQLite's too, which is linked into a library of its own: else all that follows would prove nothing."""
    assert not story.unrecorded
    kinds = Counter(record.kind for record in story.records)
    assert kinds["F"] > 50 and kinds["W"] > 100 and kinds["S"] > 50, kinds
    assert {"relay.db", "relay.db-wal"} <= {Path(r.path).name for r in story.records if r.kind == "W"}
    assert len(story.known(len(story.records)).answered) == len(story.ledger.letters)


@pytest.mark.parametrize(
    "choice",
    [
        pytest.param(strictly, id="only-what-was-synced"),
        pytest.param(only(Folder), id="every-name-and-no-byte"),
        pytest.param(only(File), id="every-byte-and-no-name"),
    ],
)
def test_a_power_cut(story: Story, choice: Choice, tmp_path: Path) -> None:
    """At every instant that differs from the one before it; of the odder disks a short run looks at every third."""
    step = 1 if choice is strictly or ROUNDS >= 20 else 3
    for calls, disk in itertools.islice(cuts(story), SEED % step, None, step):
        disk.lay_out(tmp_path, choice)
        wrong = story.wrong(tmp_path, story.known(calls))
        assert not wrong, f"after {calls} calls ({story.records[calls - 1].path}): {wrong}"


def test_a_power_cut_that_leaves_any_part_of_the_rest(story: Story, tmp_path: Path, account: list[str]) -> None:
    dice = random.Random(SEED)
    wanted = set(dice.sample(range(len(story.records)), min(10 * ROUNDS, len(story.records))))
    for calls, disk in story.disks():
        if calls in wanted:
            disk.lay_out(tmp_path, partly(dice))
            wrong = story.wrong(tmp_path, story.known(calls))
            assert not wrong, f"seed {SEED}, after {calls} calls: {wrong}"
    account.append(
        f"power cuts: {len(story.records)} calls, {len(story.changes())} instants, "
        f"{len(wanted)} with dice (seed {SEED}): 0 lost"
    )


def test_the_relay_after_a_power_cut(story: Story, tmp_path: Path, account: list[str]) -> None:
    """Backwards, so that a deposit that is there is the very file, inode and all, that the relay took."""
    dice = random.Random(SEED)
    instants = sorted(dice.sample(story.changes(), min(ROUNDS, len(story.changes()))), reverse=True)
    doubled = 0
    for number, calls in enumerate(instants):
        books = story.recovers(calls, partly(dice) if number % 2 else strictly, tmp_path / "before")
        assert not books.lost and not books.wrong, f"seed {SEED}, after {calls} calls: {books}"
        doubled += len(books.doubled)
    account.append(f"power cuts: the relay started on {len(instants)} disks: 0 lost, {doubled} sent again, flagged")


@pytest.mark.parametrize(
    "sync",
    [
        pytest.param(r"var/relay\.db-wal", id="rows"),
        pytest.param(r"var/spool/files/[\d-]+", id="name-of-a-large-mail"),
        pytest.param(r"var/spool/segments", id="name-of-a-segment"),
        pytest.param(r"ged/[^/]+/Ventes/\d+/[^/]+", id="name-of-a-document"),
        pytest.param(r"ged/[^/]+(/Ventes(/\d+)?)?", id="folder-of-the-ged"),
    ],
)
def test_a_power_cut_after_a_kill(story: Story, sync: str, tmp_path: Path) -> None:
    """Killed as it syncs, started again, and then the power goes: what the dead one left unsynced is not leaned on."""
    calls = random.Random(SEED).choice(story.syncs(sync))
    wrong = story.killed_then_cut(calls, tmp_path)
    assert not wrong, f"seed {SEED}, killed after {calls} calls: {wrong}"


@pytest.mark.parametrize(
    ("sync", "but_the_first", "loss"),
    [
        pytest.param(r"var/spool/segments/\w+", 0, "not the bytes of", id="segment"),
        pytest.param(r"var/spool/segments", 0, "not the bytes of", id="name-of-a-segment"),
        pytest.param(r"var/spool/files/[\d-]+/\w+", 0, "not the bytes of", id="large-mail"),
        pytest.param(r"var/spool/files/[\d-]+", 0, "not the bytes of", id="name-of-a-large-mail"),
        pytest.param(r"var/spool/files", 0, "not the bytes of", id="name-of-a-day"),
        pytest.param(r"var/spool", 0, "not the bytes of", id="folders-of-the-spool"),
        pytest.param(r"var", 0, "no store", id="name-of-the-spool-and-the-store"),
        pytest.param(r"", 0, "no store", id="name-of-the-data-folder"),
        pytest.param(r"var/relay\.db-wal", 8, "answered 250, not stored", id="rows"),
        pytest.param(r"var/relay\.db", 1, "no store", id="rows-moved-from-the-wal"),
        pytest.param(r"var/token\.\w+", 0, "not 32 bytes", id="token-key"),
        pytest.param(r"ged/.*\.part", 0, "half a file", id="document"),
        pytest.param(r"ged/[^/]+/Ventes/\d+/[^/]+", 0, "filed, says the store", id="name-of-a-document"),
        pytest.param(r"ged/[^/]+(/Ventes(/\d+)?)?", 0, "filed, says the store", id="folder-of-the-ged"),
    ],
)
def test_each_sync_is_needed(story: Story, sync: str, but_the_first: int, loss: str, tmp_path: Path) -> None:
    """Without one kind of them something is lost at some instant: so those that are made are not there for show."""
    found: set[str] = set()
    for calls, disk in cuts(story, without=sync, but_the_first=but_the_first):
        disk.lay_out(tmp_path)
        wrong = story.wrong(tmp_path, story.known(calls))
        if any(loss in line for line in wrong):
            return
        found.update(wrong)
    pytest.fail(f"it was not lost without it; but {found}")
