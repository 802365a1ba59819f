"""What leaves, on a real spool: the same octets whichever way a body is read, and nothing large held."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import dkim
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay import sign
from relay.config import Config
from relay.deliver import SMALL, Job
from relay.outgoing import Outgoing
from relay.sign import Signer
from relay.spool import PIECE, Spool, SpoolError
from relay.store.delivery import Claimed
from relay.wire import DotStuffer

HEADER = b"From: a@cabinet.example\r\nSubject: x\r\n\r\n"
DAY = "2026-11-24"
TAKEN = Claimed(
    *("m1-1", "send", "meg", "", "meg+dupont@welyb.fr", "dupont@factures-meg.fr", "retours+abc@welyb.fr", "", 0, 1),
    *("2026-11-24T12:00:00.000Z", "2026-11-29T12:00:00.000Z", 0, "m1", "2026-11-24T12:00:00.000Z", "192.0.2.1"),
    *("cabinet.example", "ESMTP", 0, "", 1, "compta@cabinet.example"),
)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    return Signer("welyb.fr", "s1", sign.create(str(tmp_path_factory.mktemp("keys") / "k.pem"), "ed25519"))


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    names = iter(range(1000))
    return Spool(tmp_path / "spool", lambda: f"segment{next(names)}")


def small(spool: Spool, message: bytes) -> Claimed:
    (key,) = spool.append([message])
    return replace(TAKEN, spool=key, size=len(message))


def large(spool: Spool, message: bytes, name: str = "m1") -> Claimed:
    fd = spool.create(DAY, name)
    with open(fd, "wb") as file:
        file.write(message)
    return replace(TAKEN, spool=f"f/{DAY}/{name}", size=len(message))


def on_the_wire(job: Job) -> bytes:
    dots = DotStuffer()
    return b"".join(dots.feed(chunk) for chunk in (job.prefix, *job.chunks())) + dots.end()


def from_the_file(job: Job) -> bytes:
    assert job.stored is not None
    with job.stored.opened() as body:
        content = body.read(job.stored.start, body.size)
    for dot in reversed(job.stored.dots):
        content = content[:dot] + b"." + content[dot:]
    return DotStuffer().feed(job.prefix) + content + job.stored.tail + b".\r\n"


_BODIES = st.lists(st.sampled_from([b"\r\n", b".", b"\r", b"\n", b"a", b"\r\n."]), max_size=12).map(b"".join)


@given(_BODIES, st.sampled_from([0, *range(PIECE - 3, PIECE + 3)]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_way_is_the_same(spool: Spool, signer: Signer, ending: bytes, length: int) -> None:
    """Kept, read again, or sent by the kernel; with what is odd where the pieces of the file are cut."""
    message = HEADER + b"x" * length + ending
    outgoing = Outgoing(Config(), spool, signer)
    taken = small(spool, message)
    read, kept = outgoing.job(taken, -1), outgoing.job(taken, len(message))
    assert (kept.stored is None) == (length == 0)
    assert kept.prefix == read.prefix and kept.size == read.size
    assert on_the_wire(kept) == on_the_wire(read) == from_the_file(read)
    assert read.size == len(read.prefix) + len(b"".join(read.chunks()))
    assert (read.prefix + b"".join(read.chunks())).endswith(message if message.endswith(b"\r\n") else message + b"\r\n")


@pytest.mark.parametrize("body", [b"", b".\r\n", b"a\r\n.b\r\n" * 60_000], ids=["none", "a dot", "long"])
def test_stock_dkimpy_verifies_what_leaves(spool: Spool, signer: Signer, body: bytes) -> None:
    job = Outgoing(Config(), spool, signer).job(large(spool, HEADER + body), SMALL)
    message = job.prefix + b"".join(job.chunks())
    assert dkim.verify(message, dnsfunc=lambda name, timeout=5: sign.dns_record(signer.key).encode())


def test_many_dots_are_not_remembered(spool: Spool) -> None:
    job = Outgoing(Config(), spool, None).job(large(spool, HEADER + b".\r\n" * 100_000), SMALL)
    assert job.stored is None
    assert on_the_wire(job).endswith(b"\r\n" + b"..\r\n" * 100_000 + b".\r\n")


def test_a_last_piece_of_one_octet_is_no_reason_for_an_empty_line(spool: Spool) -> None:
    body = b"x" * (2 * PIECE - 1) + b"\r\n"
    job = Outgoing(Config(), spool, None).job(large(spool, HEADER + body), SMALL)
    assert b"".join(job.chunks()) == body


def test_a_large_body_is_not_held(spool: Spool, signer: Signer) -> None:
    taken = large(spool, HEADER + (b"A" * 76 + b"\r\n") * 200_000)
    outgoing = Outgoing(Config(), spool, signer)
    tracemalloc.start()
    try:
        job = outgoing.job(taken, SMALL)
        assert sum(map(len, job.chunks())) > 15_000_000
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def test_bytes_that_are_gone(spool: Spool) -> None:
    with pytest.raises(SpoolError):
        Outgoing(Config(), spool, None).job(replace(TAKEN, spool=f"f/{DAY}/gone"), SMALL)
