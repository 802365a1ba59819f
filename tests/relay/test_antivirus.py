"""What clamd says of a mail, and what is made of what it does not say."""

import asyncio
import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from relay import antivirus
from relay.antivirus import AT_ONCE, PIECE, Answer, Away, Clamd, Clean, Infected
from relay.config import Antivirus
from tests.support import clamd as real
from tests.support.clients import Dialogue, mail
from tests.support.door import doors
from tests.support.inside import inside

LONG = timedelta(seconds=60)


def scanned(where: str, message: bytes, *, timeout: timedelta = LONG) -> Answer:
    async def scan() -> Answer:
        clamd = Clamd(Antivirus(where, timeout))
        return await clamd.scan(len(message), lambda offset, length: message[offset : offset + length])

    return asyncio.run(scan())


# --- a real one -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clamd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[real.Clamd]:
    clamd = real.Clamd(tmp_path_factory.mktemp("clamd"), most="2M").start()
    yield clamd
    clamd.stop()


@pytest.mark.debian("clamav-daemon")
@pytest.mark.parametrize("kind", ["unix", "tcp"])
@pytest.mark.parametrize("size", [0, PIECE, 2 * PIECE + 7], ids=["small", "a piece", "some pieces"])
def test_clean_or_infected(clamd: real.Clamd, kind: str, size: int) -> None:
    where = clamd.unix if kind == "unix" else clamd.tcp
    clean = mail("a@b.fr", "c@d.fr", ("x.txt", "text/plain", b"x" * size))
    evil = mail("a@b.fr", "c@d.fr", ("x.txt", "text/plain", b"x" * size + clamd.evil.encode()))
    assert clamd.evil.encode() not in evil, "it is found in what the encoding hides"
    assert scanned(where, clean) == Clean()
    assert scanned(where, evil) == Infected(real.FOUND)


@pytest.mark.debian("clamav-daemon")
@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_a_mail_that_is_too_long_for_it_is_not_clean(clamd: real.Clamd, kind: str) -> None:
    """It hangs up while it is told; what it said before is heard all the same."""
    where = clamd.unix if kind == "unix" else clamd.tcp
    for _ in range(10):
        answer = scanned(where, b"Subject: x\r\n\r\n" + b"x" * 9_000_000)
        assert isinstance(answer, Away) and "StreamMaxLength" in answer.remedy


@pytest.mark.debian("clamav-daemon")
def test_more_at_once_than_it_may_be_asked(clamd: real.Clamd) -> None:
    messages = [mail("a@b.fr", "c@d.fr", text=clamd.evil if n % 3 == 0 else "bonjour") for n in range(4 * AT_ONCE)]

    async def all_of_them() -> list[Answer]:
        one = Clamd(Antivirus(clamd.unix, LONG))
        return await asyncio.gather(*(one.scan(len(m), lambda at, n, m=m: m[at : at + n]) for m in messages))

    assert asyncio.run(all_of_them()) == [Infected(real.FOUND) if n % 3 == 0 else Clean() for n in range(4 * AT_ONCE)]


@pytest.mark.debian("clamav-daemon")
def test_its_version(clamd: real.Clamd) -> None:
    version = asyncio.run(Clamd(Antivirus(clamd.unix, LONG)).version())
    assert isinstance(version, str) and version.startswith("ClamAV ")


# --- one that is not itself -------------------------------------------------------------------------------------------

Manner = Callable[[socket.socket], None]


def says(answer: bytes) -> Manner:
    """Hears it all, says this, and hangs up."""

    def serve(sock: socket.socket) -> None:
        heard = b""
        while not heard.endswith(bytes(4)):
            heard += sock.recv(1 << 16)
        sock.sendall(answer)

    return serve


def hangs_up(sock: socket.socket) -> None:
    pass


def says_nothing(sock: socket.socket) -> None:
    while sock.recv(1 << 16):
        pass


def does_not_even_listen(sock: socket.socket) -> None:
    poll = select.poll()
    poll.register(sock, 0)  # until the other end is gone
    poll.poll()


def told_by(manner: Manner, folder: Path, message: bytes, *, timeout: float) -> Answer:
    """What becomes of one mail shown to somebody of such manners."""
    path = folder / f"{len(message)}.sock"

    def serve() -> None:
        with contextlib.suppress(ConnectionError), listening.accept()[0] as sock:
            manner(sock)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        answer = scanned(f"unix:{path}", message, timeout=timedelta(seconds=timeout))
        thread.join(20)
        assert not thread.is_alive(), "the connection is closed"
    return answer


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (b"stream: OK\0", Clean()),
        (b"stream: Win.Test FOUND\0stream: OK\0", Infected("Win.Test")),
        (b"stream: OK", Away),  # no end: more may have been meant
        (b"stream: O", Away),
        (b"", Away),
        (b"\0", Away),
        (b"stream: OK FOR NOW\0", Away),
        (b"stream: Can't allocate memory ERROR\0", Away),
        (b"stream: caf\xe9\r\nforged log line ERROR\0", Away),
        (b"INSTREAM: Can't write to temporary file. ERROR\0", Away),
        (b"UNKNOWN COMMAND\0", Away),
        (b"x" * 100_000, Away),
    ],
)
def test_only_a_plain_answer_is_one(tmp_path: Path, said: bytes, answer: Answer | type[Away]) -> None:
    told = told_by(says(said), tmp_path, b"Subject: x\r\n\r\nx\r\n", timeout=20)
    if isinstance(answer, type):
        assert isinstance(told, answer)
        assert told.remedy and told.why.isprintable() and told.why.isascii()
    else:
        assert told == answer


@pytest.mark.parametrize("manner", [says_nothing, does_not_even_listen])
@pytest.mark.parametrize("size", [10, 5_000_000])
def test_silence_is_waited_for_no_longer_than_is_allowed(tmp_path: Path, manner: Manner, size: int) -> None:
    began = time.monotonic()
    assert isinstance(told_by(manner, tmp_path, b"x" * size, timeout=0.3), Away)
    assert time.monotonic() - began < 20


def test_a_stop_waits_for_no_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its mail comes again, and what stops is not killed in the middle of it."""
    monkeypatch.setattr(antivirus, "LAST", 0.2)
    path = tmp_path / "clamd.sock"
    with socket.socket(socket.AF_UNIX) as listening, doors(tmp_path) as open_:
        listening.bind(str(path))
        listening.listen()
        door = open_("[antivirus]", f'clamd = "unix:{path}"', 'timeout = "1 hour"')
        with Dialogue(door.port) as dialogue:
            dialogue.hello()
            dialogue.envelope("a@b.fr", "postmaster@welyb.fr")
            dialogue.say("DATA")
            dialogue.send(b"Subject: x\r\n\r\nx\r\n.\r\n")
            with listening.accept()[0]:
                door.stop()
                assert dialogue.reply().code == 451
                assert dialogue.reply().code == 421


def test_a_reload_keeps_the_scanner_whose_settings_are_as_they_were(tmp_path: Path) -> None:
    with inside(tmp_path, f'[antivirus]\nclamd = "unix:{tmp_path}/no.sock"\n') as relay:
        first = relay.intake.clamd
        relay.adopt(tmp_path / "relay.toml")
        assert first is not None and relay.intake.clamd is first
        (tmp_path / "relay.toml").write_text((tmp_path / "relay.toml").read_text() + 'timeout = "5 s"\n')
        relay.adopt(tmp_path / "relay.toml")
        assert relay.intake.clamd not in (None, first)


def test_one_that_hangs_up(tmp_path: Path) -> None:
    for size in (10, 5_000_000):
        assert isinstance(told_by(hangs_up, tmp_path, b"x" * size, timeout=20), Away)


@pytest.mark.parametrize("where", ["unix:/nowhere/clamd.ctl", "tcp:127.0.0.1:1", "tcp:[::1]:1"])
def test_nobody_is_there(where: str) -> None:
    answer = scanned(where, b"x")
    assert isinstance(answer, Away) and "clamav-daemon" in answer.remedy
