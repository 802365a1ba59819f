"""The GED is unmounted, read-only or slow: mail is taken all the same, and filed once, when the GED is back."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.disks import bound
from tests.faults.door import (
    SALES,
    NewRelay,
    documents,
    half_filed,
    letter,
    post,
    run,
    states,
    until,
)
from tests.faults.far import Placed
from tests.faults.inject import failing
from tests.support import debian
from tests.support import documents as made
from tests.support.relay import Relay

HASTE = 30  # what is tried again every minute is tried every other second


@pytest.fixture
def share(tmp_path: Path) -> Iterator[tuple[Path, ExitStack]]:
    """The firm's disk, and what mounts it."""
    disk = tmp_path / "disk"
    for client in ("Martin", "Dupont", "Durand"):
        (disk / client).mkdir(parents=True)
    with ExitStack() as stack:
        yield disk, stack


def hurried(new_relay: NewRelay, far: Placed | None = None) -> Relay:
    relay = new_relay(env=debian.faked_time(f"+0 x{HASTE}") | {"TZ": "UTC", "NO_FAKE_STAT": "1"})
    (relay.ged / "Martin").rmdir()
    if far is not None:
        relay.configure({"delivery": {"routes": {"factures-meg.fr": far.place}}})
    return relay


def waits(relay: Relay, message: bytes) -> bool:
    return b"filing-waits" in relay.program.err.read_bytes() and states(relay, message) in (["waiting"], ["filing"])


@pytest.mark.debian("faketime", "root")
def test_the_ged_is_unmounted(new_relay: NewRelay, share: tuple[Path, ExitStack]) -> None:
    disk, _ = share
    relay = hurried(new_relay)
    with bound(disk, relay.ged):
        relay.start()
        first = letter(SALES)
        assert post(relay, first, SALES).accepted
        until(lambda: states(relay, first) == ["filed"], "file the first")
    sale = letter(SALES)
    assert post(relay, letter(SALES), "ventes+inconnu@welyb.fr").code in (451, 550), "which has the root listed again"
    assert post(relay, sale, SALES).accepted, "a client stays one"
    until(lambda: waits(relay, sale), "wait")
    assert list(relay.ged.iterdir()) == [], "nothing is made where a disk should be"
    with bound(disk, relay.ged):
        until(lambda: states(relay, sale) == ["filed"] and not half_filed(disk), "file it")
        assert len(documents(disk)) == 2
        relay.stop()


@pytest.mark.debian("faketime", "root")
def test_the_ged_is_read_only(new_relay: NewRelay, share: tuple[Path, ExitStack]) -> None:
    disk, _ = share
    relay = hurried(new_relay)
    sale = letter(SALES)
    with bound(disk, relay.ged, "ro"):
        relay.start()
        assert post(relay, sale, SALES).accepted
        until(lambda: waits(relay, sale), "wait")
        (row,) = relay.json("queue", "list")
        assert "Read-only" in row["reply"]
    with bound(disk, relay.ged):
        until(lambda: states(relay, sale) == ["filed"] and not half_filed(disk), "file it")
        assert len(documents(disk)) == 1
        relay.stop()


@pytest.mark.debian("root")
def test_a_connected_folder_is_unmounted_during_a_run(
    new_relay: NewRelay, share: tuple[Path, ExitStack], far: Placed
) -> None:
    """Nothing is concluded from a tree that is not there: neither departures now, nor deposits when it is back."""
    disk, _ = share
    relay = new_relay({"delivery": {"routes": {"factures-meg.fr": far.place}}})
    (relay.ged / "Martin").rmdir()
    folder = disk / "Martin/Achats"
    folder.mkdir()
    for number in range(4):
        (folder / f"avant-{number}.pdf").write_bytes(made.pdf(f"avant {number}"))
    with bound(disk, relay.ged):
        relay.start()
        address = ("--application", "meg", "--client", "martin", "--address", "martin@factures-meg.fr")
        relay.cli("connections", "add", *address, "--folder", "Achats")
        (folder / "nouveau.pdf").write_bytes(made.pdf("nouveau"))
    assert run(relay)["eligible"] == 0
    assert [row["state"] for row in relay.json("connections", "list")] == ["error"]
    with bound(disk, relay.ged):
        assert run(relay)["sent"] == 1
        assert run(relay)["eligible"] == 0
        assert [row["state"] for row in relay.json("connections", "list")] == ["active"]
        relay.stop()
    assert len(far.messages) == 1 and b"nouveau.pdf" in far.messages[0]


@pytest.mark.debian("strace", "root")
def test_the_ged_is_slow(new_relay: NewRelay) -> None:
    """While one document waits for its disk, mail is answered and leaves."""
    relay = new_relay().start()
    warm = letter(SALES)
    assert post(relay, warm, SALES).accepted
    until(lambda: states(relay, warm) == ["filed"], "file the first")
    (month,) = {path.parent for path in documents(relay.ged)}
    slow = letter(SALES)
    with failing(relay, "fsync", month, f"delay_enter={20_000_000}:when=1") as found:
        assert post(relay, slow, SALES).accepted
        until(lambda: states(relay, slow) == ["filing"], "begin")
        for _ in range(3):
            assert post(relay, letter()).accepted
        assert states(relay, slow) == ["filing"], "all of that while the disk was waited for"
    until(lambda: states(relay, slow) == ["filed"], "file it")
    assert found.log.read_text() and len(documents(relay.ged)) == 2
