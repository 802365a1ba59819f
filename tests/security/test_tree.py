"""No way out of the GED's root: neither by a name, nor by a link, nor by a link that comes while we are on the way.

The racing folder is swapped by another process, atomically (renameat2), thousands of times; the kernel tells of every
file that is opened outside the tree (inotify), so that nothing was written there and nothing was even looked at.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relay.ged import Copied, Filed, GedAway, Listing, Tree
from tests.support import documents as made
from tests.support.clients import CLIENTS, mail
from tests.support.firm import digest
from tests.support.relay import Relay

SECRET = b"%PDF-1.4 of another company\n"
INSIDE = b"%PDF-1.4 of this one\n"
ROUNDS = int(os.environ.get("RACE_ROUNDS", "400"))
LIBC = ctypes.CDLL(None, use_errno=True)
# Everything but what the test itself does: to open, to read, to write, to make, to remove, to rename.
IN_ALL = 0x00000FFF & ~0x00000004 & ~0x00000800

SWAPPER = """
import ctypes, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
one, other = (name.encode() for name in sys.argv[1:])
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
print("swapping", flush=True)
count = 0
while not stop.is_set() or count % 2:
    if libc.renameat2(-100, one, -100, other, 2):
        sys.exit(f"renameat2: errno {ctypes.get_errno()}")
    count += 1
print(count)
"""


class Outside:
    """A folder beside the tree, and every event in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "2026/11").mkdir(parents=True)
        (folder / "secret.pdf").write_bytes(SECRET)
        self._before = self._content()
        self._fd = LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        for place in (folder, folder / "2026", folder / "2026/11"):
            assert LIBC.inotify_add_watch(self._fd, os.fsencode(place), IN_ALL) > 0, os.strerror(ctypes.get_errno())

    def _content(self) -> dict[str, bytes]:
        return {str(p.relative_to(self.folder)): p.read_bytes() if p.is_file() else b"" for p in self.folder.rglob("*")}

    def untouched(self) -> None:
        try:
            events = os.read(self._fd, 65536)
        except BlockingIOError:
            events = b""
        os.close(self._fd)
        assert events == b"", "something was opened out there"
        assert self._content() == self._before


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    there = Outside(tmp_path / "outside")
    yield there
    there.untouched()


@pytest.fixture
def ged(tmp_path: Path) -> Path:
    (tmp_path / "ged/dupont/Ventes").mkdir(parents=True)
    (tmp_path / "ged/dupont/Ventes/inside.pdf").write_bytes(INSIDE)
    return tmp_path / "ged"


class Swapping:
    """Another process that swaps two names without pause, and leaves them as they were."""

    def __init__(self, one: Path, other: Path) -> None:
        command = [sys.executable, "-c", SWAPPER, str(one), str(other)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None and self._process.stdout.readline() == "swapping\n"

    def stop(self) -> int:
        out, _ = self._process.communicate("", timeout=20)
        assert self._process.returncode == 0
        return int(out)


@contextmanager
def swapping(one: Path, other: Path) -> Iterator[list[int]]:
    """The list holds, at the end, how often they were swapped."""
    process, swaps = Swapping(one, other), list[int]()
    try:
        yield swaps
    finally:
        swaps.append(process.stop())
        print(f"{swaps[0]} swaps")


def until_both(attempt: Callable[[int], bool]) -> None:
    """Attempts, until the race was won and lost often."""
    won = lost = number = 0
    end = time.monotonic() + 40 + ROUNDS / 50
    while number < ROUNDS or min(won, lost) < ROUNDS // 20:
        assert time.monotonic() < end, f"{won} won, {lost} lost: this is no race"
        number += 1
        if attempt(number):
            won += 1
        else:
            lost += 1
    print(f"{won} won, {lost} lost")


# --- races ----------------------------------------------------------------------------------------------------------


def test_filing_while_its_folder_becomes_a_link(ged: Path, outside: Outside) -> None:
    (ged / "dupont/.link").symlink_to(outside.folder)
    tree, filed = Tree(ged), set[str]()

    def attempt(number: int) -> bool:
        name = f"{number}.pdf"
        folders = ["dupont", "Ventes", "2026", "11"]
        answer = tree.file_document(folders, name, delivery=str(number), chunks=[INSIDE], sha256=digest(INSIDE))
        assert isinstance(answer, Filed | GedAway), answer
        if isinstance(answer, Filed):
            filed.add(name)
            tree.forget_temporary(answer)
        return isinstance(answer, Filed)

    with swapping(ged / "dupont/Ventes", ged / "dupont/.link") as swaps:
        until_both(attempt)
    assert swaps[0] > ROUNDS
    assert {path.name for path in (ged / "dupont/Ventes/2026/11").glob("*.pdf")} == filed


def test_looking_while_a_folder_becomes_a_link(ged: Path, outside: Outside) -> None:
    (ged / "dupont/.link").symlink_to(outside.folder)
    tree = Tree(ged)

    def attempt(number: int) -> bool:
        found = list(tree.scan())
        seen = {listing.seen(e).path for listing in found if isinstance(listing, Listing) for e in listing.entries}
        assert seen <= {"dupont/Ventes/inside.pdf"}
        assert tree.look("dupont/Ventes/secret.pdf") is None
        assert not isinstance(tree.read_deposit("dupont/Ventes/secret.pdf", _never), Copied)
        below = tree.within("dupont/Ventes")
        assert below.look("secret.pdf") is None
        return isinstance(below.identity(), tuple)

    with swapping(ged / "dupont/Ventes", ged / "dupont/.link") as swaps:
        until_both(attempt)
    assert swaps[0] > ROUNDS


def _never(chunk: bytes) -> None:
    raise AssertionError(f"read outside: {chunk!r}")


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_reading_while_the_file_becomes_something_else(ged: Path, outside: Outside, kind: str) -> None:
    other = ged / "dupont/Ventes/.other"
    if kind == "link":
        other.symlink_to(outside.folder / "secret.pdf")
    else:
        os.mkfifo(other)  # a reader that took it for a file would wait for ever, or see an empty one
    tree = Tree(ged)

    def attempt(number: int) -> bool:
        chunks: list[bytes] = []
        answer = tree.read_deposit("dupont/Ventes/inside.pdf", chunks.append)
        assert b"".join(chunks) in (b"", INSIDE)
        if isinstance(answer, Copied):
            assert answer.sha256 == digest(INSIDE)
        return isinstance(answer, Copied)

    with swapping(ged / "dupont/Ventes/inside.pdf", other) as swaps:
        until_both(attempt)
    assert swaps[0] > ROUNDS


PLANTER = """
import os, sys, threading
target, name = sys.argv[1:]
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
print("planting", flush=True)
while not stop.is_set():
    try:
        os.symlink(target, name)
    except FileExistsError:
        pass
"""


def test_a_temporary_that_is_planted_again_and_again_is_not_written_through(ged: Path, outside: Outside) -> None:
    planted, tree = ged / "dupont/Ventes/.welyb-d.part", Tree(ged)
    command = [sys.executable, "-c", PLANTER, str(outside.folder / "secret.pdf"), str(planted)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "planting\n"

        def attempt(number: int) -> bool:
            name = f"{number}.pdf"
            answer = tree.file_document(
                ["dupont", "Ventes"], name, delivery="d", chunks=[INSIDE], sha256=digest(INSIDE)
            )
            if isinstance(answer, GedAway):
                return False
            assert isinstance(answer, Filed)
            (ged / answer.path).unlink()
            tree.forget_temporary(answer)
            return True

        until_both(attempt)
    finally:
        process.communicate("", timeout=20)


# --- what was planted before ----------------------------------------------------------------------------------------


def test_a_temporary_planted_as_a_link_is_not_written_through(ged: Path, outside: Outside) -> None:
    (ged / "dupont/Ventes/.welyb-d.part").symlink_to(outside.folder / "secret.pdf")
    answer = Tree(ged).file_document(
        ["dupont", "Ventes"], "x.pdf", delivery="d", chunks=[INSIDE], sha256=digest(INSIDE)
    )
    assert isinstance(answer, Filed)
    place = ged / "dupont/Ventes/x.pdf"
    assert place.read_bytes() == INSIDE and not place.is_symlink()


@pytest.mark.parametrize("kind", ["folder", "file", "chain", "parent"])
def test_links_are_not_followed_anywhere(ged: Path, outside: Outside, kind: str) -> None:
    target = {"folder": outside.folder, "file": outside.folder / "secret.pdf", "chain": ged / "loop", "parent": ".."}
    (ged / "loop").symlink_to(outside.folder)
    (ged / "dupont/link").symlink_to(target[kind])
    tree = Tree(ged)
    seen = [listing.seen(e).path for listing in tree.scan() if isinstance(listing, Listing) for e in listing.entries]
    assert seen == ["dupont/Ventes/inside.pdf"]
    assert tree.clients() == ("dupont",)
    for path in ("dupont/link", "dupont/link/secret.pdf", "loop/secret.pdf", "dupont/link/2026/11/x"):
        assert tree.look(path) is None
        assert not isinstance(tree.read_deposit(path, _never), Copied)
    for folders in (["dupont", "link"], ["loop"], ["loop", "2026"]):
        answer = tree.file_document(folders, "x.pdf", delivery="d", chunks=[INSIDE], sha256=digest(INSIDE))
        assert isinstance(answer, GedAway)
    for folder in ("dupont/link", "loop", "loop/2026"):
        assert isinstance(tree.within(folder).identity(), GedAway)


# --- names ----------------------------------------------------------------------------------------------------------

CLIMBING = ["..", ".", "", "../outside", "/etc", "a/../../outside", "nul\0byte", "\ud800"]
LONG = "n" * 300


@pytest.mark.parametrize("name", [*CLIMBING, LONG], ids=ascii)
def test_no_name_leads_out(ged: Path, outside: Outside, name: str) -> None:
    tree = Tree(ged)
    attempts: list[Callable[[], object]] = [
        lambda: tree.file_document([name], "x.pdf", delivery="d", chunks=[INSIDE], sha256=digest(INSIDE)),
        lambda: tree.file_document(["dupont"], name, delivery="d", chunks=[INSIDE], sha256=digest(INSIDE)),
        lambda: tree.read_deposit(f"dupont/{name}/secret.pdf", _never),
        lambda: tree.look(f"{name}/secret.pdf"),
        lambda: tree.within(f"dupont/{name}").within("outside").identity(),
        lambda: list(tree.within(f"{name}/..").scan()),
    ]
    for attempt in attempts:
        try:
            answer = attempt()
        except ValueError:
            continue  # a broken promise, before any system call
        assert not isinstance(answer, Filed | Copied | tuple), answer
    assert {path.name for path in ged.rglob("*") if path.is_file()} <= {"inside.pdf", ".welyb-d.part"}


# --- the real command -----------------------------------------------------------------------------------------------


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    relay = Relay(tmp_path, {"run": {"settle": "0 s"}})
    relay.client("dupont")
    yield relay
    relay.stop()


def test_mail_filed_by_the_real_command_while_the_sales_folder_becomes_a_link(relay: Relay, outside: Outside) -> None:
    sales = relay.client("dupont") / "Ventes"
    sales.mkdir()
    (sales.parent / ".link").symlink_to(outside.folder)
    relay.start()
    to = "ventes+dupont@welyb.fr"
    documents = [(f"f{number}.pdf", "application/pdf", made.pdf(str(number))) for number in range(40)]
    with swapping(sales, sales.parent / ".link") as swaps:
        for document in documents:
            assert CLIENTS["python"](relay.port, "a@b.example", [to], mail("a@b.example", to, document)).accepted
    assert swaps[0] > 1000
    relay.stop()
    states = [row["state"] for row in relay.json("queue", "list")]  # what met the link waits for a minute
    assert len(states) == len(documents) and set(states) <= {"filed", "filing", "waiting"}
    found = {digest(path.read_bytes()) for path in sales.rglob("*.pdf")}
    assert len(found) >= states.count("filed") and found <= {digest(content) for _, _, content in documents}


def test_no_connection_leads_out(relay: Relay, outside: Outside) -> None:
    (relay.client("dupont") / "link").symlink_to(outside.folder)
    relay.start()
    add = ("connections", "add", "--application", "meg-achats", "--client", "dupont", "--address")
    for folder in ("..", "../outside", "/etc", "Achats/../../..", LONG, "link", "link/2026"):
        done = relay.cli(*add, "meg+achats+dupont@welyb.fr", "--folder", folder, check=False)
        assert done.returncode in (1, 2) and "Traceback" not in done.stderr, folder
    assert relay.json("connections", "list") == []


def test_no_client_leads_out(relay: Relay) -> None:
    relay.start()
    for folder in ("..", ".", "../outside", "/etc", "dupont/Ventes"):
        done = relay.cli("clients", "add", "martin", "--folder", folder, check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr, folder
    assert [row["slug"] for row in relay.json("clients", "list")] == ["dupont"]


def test_a_connected_folder_that_becomes_a_link_sends_nothing(relay: Relay, outside: Outside) -> None:
    folder = relay.client("dupont") / "Achats"
    folder.mkdir()
    relay.start()
    add = ("connections", "add", "--application", "meg-achats", "--client", "dupont", "--address")
    relay.cli(*add, "meg+achats+dupont@welyb.fr", "--folder", "Achats")
    shutil.rmtree(folder)
    folder.symlink_to(outside.folder)
    (run,) = relay.json("runs", "now")
    assert run["eligible"] == 0
    assert [row["state"] for row in relay.json("connections", "list")] == ["error"]
    assert relay.json("documents", "list") == []
