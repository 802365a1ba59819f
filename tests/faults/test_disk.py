"""No room: blocks or inodes are used up, wherever something is to be written. Mail gets 4xx, or waits; nothing is lost."""

from collections.abc import Iterator
from contextlib import ExitStack
from email import message_from_bytes
from typing import Any

import pytest

from tests.faults.disks import small
from tests.faults.door import (
    LARGE,
    LONG,
    SALES,
    NewRelay,
    content,
    data,
    documents,
    files,
    half_filed,
    letter,
    on_the_way,
    post,
    queue,
    run,
    states,
    stored,
    until,
)
from tests.faults.far import Placed
from tests.support import debian
from tests.support import documents as made
from tests.support.clients import Dialogue
from tests.support.relay import Relay


@pytest.fixture
def disks() -> Iterator[ExitStack]:
    """Mounts for the test's time; they go before the relay's folder does."""
    with ExitStack() as stack:
        yield stack


def test_the_disk_of_spool_and_store_is_full(disks: ExitStack, new_relay: NewRelay, processes: dict[str, Any]) -> None:
    relay = new_relay(processes)
    disk = disks.enter_context(small(data(relay), 16 << 20))
    relay.start()
    assert post(relay, letter()).accepted
    for size in (0, LARGE):
        message = letter(size=size)
        with on_the_way(relay) as dialogue:
            disk.fill(leave=100 * 1024 if size else 0)
            assert content(dialogue, message).code in (451, 452)
            assert stored(relay, message) == 0
            assert [path for path in files(relay) if path.stat().st_size < size] == [], "half a mail is not kept"
            disk.empty()
        until(lambda: mail_is_taken(relay), "notice that there is room")
        assert post(relay, message).accepted
        assert stored(relay, message) == 1
    disk.fill()
    until(lambda: not mail_is_taken(relay), "notice that there is none")
    disk.empty()
    assert set(queue(relay).values()) == {"waiting"} and len(queue(relay)) == 3


def mail_is_taken(relay: Relay) -> bool:
    """Of every process: a connection is served by one of them."""
    codes = []
    for _ in range(8):
        with Dialogue(relay.port) as dialogue:
            dialogue.hello()
            codes.append(dialogue.say("MAIL FROM:<a@cabinet.example>").code)
    assert set(codes) <= {250, 452}
    return codes == [250] * len(codes)


def test_the_disk_of_the_store_is_full_and_the_spools_is_not(
    disks: ExitStack, new_relay: NewRelay, processes: dict[str, Any]
) -> None:
    """The bytes are durable, the rows cannot be: no 250, and what was spooled is gone with the next mail."""
    relay = new_relay(processes)
    disk = disks.enter_context(small(data(relay), 16 << 20))
    disks.enter_context(small(data(relay) / "spool", 16 << 20))
    relay.start()
    assert post(relay, letter()).accepted
    disk.fill()
    refused = [letter(), letter(size=LARGE)]
    assert [post(relay, message).code for message in refused] == [451, 451]
    assert [stored(relay, message) for message in refused] == [0, 0]
    disk.empty()
    assert [post(relay, message).code for message in refused * 2] == [250] * 4
    assert [stored(relay, message) for message in refused] == [1, 1]
    relay.kill()
    relay.start()
    assert len(files(relay)) == 1


def test_the_disk_fills_while_a_run_composes_a_deposit(disks: ExitStack, new_relay: NewRelay, far: Placed) -> None:
    relay = new_relay({"delivery": {"routes": {"factures-meg.fr": far.place}}})
    disks.enter_context(small(data(relay), 32 << 20))
    spool = disks.enter_context(small(data(relay) / "spool", 8 << 20))
    relay.start()
    folder = relay.client("Martin") / "Achats"
    folder.mkdir()
    address = ("--application", "meg", "--client", "martin", "--address", "martin@factures-meg.fr")
    relay.cli("connections", "add", *address, "--folder", "Achats")
    waiting = letter()
    assert post(relay, waiting).accepted
    document = made.pdf_of_size(2_000_000)
    (folder / "facture.pdf").write_bytes(document)
    spool.fill(leave=1 << 20)
    run(relay)
    assert states(relay, waiting) == ["sent"], "nobody waits for the one there was no room for"
    assert [row["status"] for row in relay.json("documents", "list") if row["name"] == "facture.pdf"] in (
        [],
        ["pending"],
    )
    assert files(relay) == [], "no half of it stays"
    assert (folder / "facture.pdf").read_bytes() == document
    spool.empty()
    run(relay)
    run(relay)
    assert states(relay, waiting) == ["sent"]
    assert [row["status"] for row in relay.json("documents", "list") if row["name"] == "facture.pdf"] == ["validated"]
    assert len(far.messages) == 2, "each of them once"


@pytest.mark.debian("faketime")
@pytest.mark.parametrize("used_up", ["blocks", "inodes"] if LONG else ["blocks"])
def test_the_geds_disk_is_full(disks: ExitStack, new_relay: NewRelay, used_up: str) -> None:
    relay = new_relay(env=debian.faked_time("+0 x30") | {"TZ": "UTC"})
    disk = disks.enter_context(small(relay.ged, 4 << 20, inodes=200))
    client = relay.client("Martin")
    relay.start()
    if used_up == "blocks":
        disk.fill(leave=200_000)
    else:
        disk.use_up_inodes()
    message = letter(SALES, size=LARGE)
    assert post(relay, message, SALES).accepted, "the GED may fill, mail is taken"
    until(lambda: b"filing-waits" in relay.program.err.read_bytes(), "say that it waits")
    (row,) = relay.json("queue", "list")
    assert row["state"] in ("waiting", "filing") and row["attempts"] > 0
    assert documents(client) == [], "no half of it is to be seen"
    disk.empty()
    until(lambda: states(relay, message) == ["filed"] and not half_filed(client), "file it")
    (document,) = documents(client)
    assert document.read_bytes() in message_documents(message)


def message_documents(message: bytes) -> list[bytes]:
    parts = message_from_bytes(message).walk()
    return [part.get_payload(decode=True) for part in parts if part.get_filename()]  # type: ignore[misc]


def test_no_inode_is_left_for_the_spool(disks: ExitStack, new_relay: NewRelay, processes: dict[str, Any]) -> None:
    relay = new_relay(processes)
    disk = disks.enter_context(small(data(relay) / "spool", 16 << 20, inodes=400))
    relay.start()
    large, small_one = letter(size=LARGE), letter()
    with on_the_way(relay) as first, on_the_way(relay) as second:
        disk.use_up_inodes()
        assert content(first, large).code in (451, 452), "it needs a file of its own"
        told = content(second, small_one).code
        assert told == 451, "it needs the first segment"
    until(lambda: not mail_is_taken(relay), "notice that there is no inode")
    disk.empty()
    until(lambda: mail_is_taken(relay), "notice that there are some")
    assert [stored(relay, message) for message in (large, small_one)] == [0, 0]
    assert [post(relay, message).code for message in (large, small_one)] == [250, 250]
    assert [stored(relay, message) for message in (large, small_one)] == [1, 1]
