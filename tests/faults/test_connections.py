"""Ten thousand connections are opened and left silent: the door stays open for the others, and nothing of them stays.

Limits: the test needs 10,500 descriptors of its own; where the hard limit is lower it opens fewer.
"""

import resource
import selectors
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults.clocks import Clock
from tests.faults.door import LARGE, NewRelay, letter, post, until
from tests.faults.inject import processes as pids
from tests.support.clients import Dialogue
from tests.support.relay import Relay

MANY = 10_000
AT_ONCE = 200
PER_ADDRESS = 500
MOST = 2000  # of one process: relay.smtp.listener.MAX_CONNECTIONS
MEGABYTES = 60  # more of each process for all of them


@pytest.fixture
def many() -> Iterator[int]:
    """How many this process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY + 500
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
    yield min(MANY, max(soft, most) - 500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Crowd:
    """Silent connections, from as many addresses as it takes. `open`: what the relay has not closed."""

    def __init__(self, stack: ExitStack, port: int, number: int) -> None:
        self._looking = stack.enter_context(selectors.DefaultSelector())
        self.open: set[socket.socket] = set()
        self.greetings: dict[socket.socket, bytes] = {}
        for each in range(number):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.bind((f"127.0.1.{1 + each // PER_ADDRESS}", 0))
            sock.connect_ex(("127.0.0.1", port))
            self._looking.register(sock, selectors.EVENT_READ)
            self.open.add(sock)
            if each % AT_ONCE == AT_ONCE - 1:
                self.greeted()
        self.greeted()

    def greeted(self) -> None:
        """Until each has heard something: what the system's queue is too short for would be tried again in seconds."""
        until(lambda: self.look() or self.open <= self.greetings.keys(), "greet them all")
        until(lambda: not self.look(), "be silent")

    def said(self) -> Counter[bytes]:
        return Counter(self.greetings.values())

    def look(self, seconds: float = 0.02) -> bool:
        """Reads what came; False once nothing comes any more."""
        ready = self._looking.select(seconds)
        for key, _ in ready:
            self._read(key.fileobj)
        return bool(ready)

    def _read(self, sock: Any) -> None:
        try:
            told = sock.recv(4096)
        except OSError:
            told = b""
        self.greetings.setdefault(sock, told[:3])
        if not told:
            self._looking.unregister(sock)
            self.open.discard(sock)


def descriptors(relay: Relay) -> int:
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids(relay))


def resident(relay: Relay) -> list[int]:
    """Megabytes of each process."""
    found = []
    for pid in pids(relay):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        found.append(pages * resource.getpagesize() // 1_000_000)
    return found


@pytest.mark.debian("faketime")
def test_ten_thousand_silent_connections(
    tmp_path: Path, new_relay: NewRelay, many: int, processes: dict[str, Any]
) -> None:
    clock = Clock(tmp_path, elapsed=True)
    relay = new_relay(processes, env=clock.environment).start()
    assert post(relay, letter()).accepted
    descriptors_before, memory_before = descriptors(relay), resident(relay)
    with ExitStack() as stack:
        crowd = Crowd(stack, relay.port, many)
        assert set(crowd.said()) == {b"220", b"421"}
        room = MOST * processes["smtp"]["processes"]
        assert room * 0.9 <= len(crowd.open) <= room
        for message in (letter(), letter(size=LARGE), letter(), letter()):
            assert post(relay, message).accepted, "from another address"
        with Dialogue(relay.port, source="127.0.2.1") as other:
            assert other.greeting.code == 220
        grown = [after - before for after, before in zip(resident(relay), memory_before, strict=True)]
        assert max(grown) <= MEGABYTES, grown
        clock.set("+301")  # five minutes are over

        def all_gone() -> bool:
            with Dialogue(relay.port):  # what wakes them: their sleep was begun by another clock
                crowd.look(0)
            return not crowd.open

        until(all_gone, "turn them all out")
        until(lambda: descriptors(relay) <= descriptors_before + 2, "close what it had opened")
    assert post(relay, letter()).accepted


def test_one_address_takes_no_more_than_its_share(new_relay: NewRelay, many: int) -> None:
    relay = new_relay().start()
    with ExitStack() as stack:
        crowd = Crowd(stack, relay.port, PER_ADDRESS)
        assert crowd.said() == {b"220": PER_ADDRESS}
        with Dialogue(relay.port, source="127.0.1.1") as one_more:
            assert one_more.greeting.code == 421
        assert post(relay, letter()).accepted


def test_few_descriptors_are_kept_for_the_files_of_mail(new_relay: NewRelay) -> None:
    """Where the system allows 1,024 in all, connections leave as many as a mail on each of them needs."""
    relay = new_relay(under=["prlimit", "--nofile=1024:1024", "--"]).start()
    with ExitStack() as stack:
        crowd = Crowd(stack, relay.port, 1200)
        assert len(crowd.open) == (1024 - 256) // 2
        for message in (letter(), letter(size=LARGE)):
            assert post(relay, message).accepted
    assert b"Too many open files" not in relay.program.err.read_bytes()
