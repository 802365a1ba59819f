"""Bytes of the spool are gone, cut, or cannot be read now: that delivery fails in sight, or waits; the others go."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.door import (
    LARGE,
    LONG,
    SALES,
    NewRelay,
    documents,
    files,
    letter,
    post,
    run,
    segment,
    states,
    until,
)
from tests.faults.far import Placed
from tests.faults.inject import running
from tests.support import debian
from tests.support.relay import Relay


def gone(place: Path) -> None:
    place.unlink()


def cut(place: Path) -> None:
    with place.open("r+b") as file:
        file.truncate(place.stat().st_size - 1000)


def emptied(place: Path) -> None:
    os.truncate(place, 0)


DAMAGES = pytest.mark.parametrize("damage", [gone, cut, emptied] if LONG else [gone, cut])


@pytest.fixture
def relay(new_relay: NewRelay, far: Placed) -> Relay:
    return new_relay({"delivery": {"routes": {"factures-meg.fr": far.place}}}).start()


@DAMAGES
@pytest.mark.parametrize("size", [0, LARGE], ids=["small", "large"])
def test_bytes_missing_when_a_mail_is_to_leave(
    relay: Relay, far: Placed, damage: Callable[[Path], None], size: int
) -> None:
    first = [letter(), letter(size=LARGE)]
    assert [post(relay, message).code for message in first] == [250, 250]
    relay.stop()
    relay.start()  # so that what follows has a segment of its own
    before = set(files(relay))
    bad = letter(size=size)
    assert post(relay, bad).accepted
    place = (set(files(relay)) - before).pop() if size else segment(relay)
    damage(place)
    counts = run(relay)
    assert (counts["sent"], counts["refused"]) == (2, 1)
    assert states(relay, bad) == ["failed"]
    (row,) = relay.json("queue", "list", "--state", "failed")
    assert row["reason"], "a person is told"
    assert len(far.messages) == 2, "nothing of it left, and nothing cut"


@pytest.mark.debian("faketime")
@DAMAGES
def test_bytes_missing_when_a_document_is_to_be_filed(new_relay: NewRelay, damage: Callable[[Path], None]) -> None:
    relay = new_relay(env=debian.faked_time("+0 x30") | {"TZ": "UTC"}).start()  # tried again every other second
    away = relay.ged.rename(relay.ged.with_name("away"))
    bad, good = letter(SALES, size=LARGE), letter(SALES, size=LARGE)
    assert post(relay, bad, SALES).accepted
    (place,) = files(relay)
    assert post(relay, good, SALES).accepted
    damage(place)
    away.rename(relay.ged)
    until(lambda: {*states(relay, bad), *states(relay, good)} == {"failed", "filed"}, "file one, fail the other")
    assert states(relay, bad) == ["failed"]
    assert len(documents(relay.ged)) == 1


@pytest.mark.debian("strace")
@pytest.mark.parametrize("error", [errno.EIO, errno.EMFILE], ids=errno.errorcode.get)
def test_bytes_that_cannot_be_read_now_wait_and_others_go(relay: Relay, far: Placed, error: int) -> None:
    """A bad sector, or no descriptor left: not the end of a delivery, as bytes that are gone are."""
    bad, good = letter(size=LARGE), letter()
    assert post(relay, bad).accepted
    (place,) = files(relay)
    assert post(relay, good).accepted
    calls = "openat" if error == errno.EMFILE else "pread64,sendfile"
    with running(relay, "runs", "now", calls=calls, path=place, how=f"error={errno.errorcode[error]}") as found:
        assert found.calls() >= 1
    assert (states(relay, bad), states(relay, good)) == (["waiting"], ["sent"])
    run(relay)
    assert states(relay, bad) == ["sent"] and len(far.messages) == 2
