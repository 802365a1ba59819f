"""What leaves, on a real spool: the same octets whichever way a body is read, and nothing large held."""

import base64
import json
import tracemalloc
from dataclasses import replace
from email import message_from_bytes
from email.policy import default
from hashlib import sha256
from pathlib import Path

import dkim
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay import sign
from relay.config import Config
from relay.deliver import SMALL, Job
from relay.mime import Scanner
from relay.outgoing import Outgoing
from relay.sign import Signer
from relay.spool import PIECE, Spool, SpoolError
from relay.store import intake
from relay.store.delivery import Carried, Claimed
from relay.wire import DotStuffer
from rules.authentication import Authentication, Dmarc, Spf
from tests.support.clients import mail
from tests.support.documents import jpeg, pdf
from tests.support.firm import file_name

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


FACTS = Authentication(Spf("pass", "cabinet.example"), (), Dmarc("pass", "cabinet.example", "reject"))


@given(_BODIES, st.sampled_from([0, *range(PIECE - 3, PIECE + 3)]), st.sampled_from([None, FACTS]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_way_is_the_same(
    spool: Spool, signer: Signer, ending: bytes, length: int, known: Authentication | None
) -> None:
    """Kept, read again, or sent by the kernel; with what is odd where the pieces of the file are cut."""
    message = HEADER + b"x" * length + ending
    outgoing = Outgoing(Config(), spool, (signer,))
    taken = replace(small(spool, message), authentication=intake.kept_results(known))
    read, kept = outgoing.job(taken, -1), outgoing.job(taken, len(message))
    assert (kept.stored is None) == (length == 0)
    assert kept.prefix == read.prefix and kept.size == read.size
    assert on_the_wire(kept) == on_the_wire(read) == from_the_file(read)
    assert read.size == len(read.prefix) + len(b"".join(read.chunks()))
    assert (read.prefix + b"".join(read.chunks())).endswith(message if message.endswith(b"\r\n") else message + b"\r\n")
    assert (b"\r\nAuthentication-Results: mx.welyb.fr;" in read.prefix) == (known is not None)


@pytest.mark.parametrize("body", [b"", b".\r\n", b"a\r\n.b\r\n" * 60_000], ids=["none", "a dot", "long"])
def test_stock_dkimpy_verifies_what_leaves(spool: Spool, signer: Signer, body: bytes) -> None:
    job = Outgoing(Config(), spool, (signer,)).job(large(spool, HEADER + body), SMALL)
    message = job.prefix + b"".join(job.chunks())
    assert dkim.verify(message, dnsfunc=lambda name, timeout=5: sign.dns_record(signer.key).encode())


def test_two_keys_make_two_signatures_counted_in_the_size_and_the_same_at_every_attempt(
    spool: Spool, signer: Signer, tmp_path: Path
) -> None:
    rsa = Signer("welyb.fr", "s0", sign.create(str(tmp_path / "k.pem"), "rsa"))
    outgoing, taken = Outgoing(Config(), spool, (rsa, signer)), small(spool, HEADER + b"a\r\n")
    job, again = outgoing.job(taken, SMALL), outgoing.job(replace(taken, attempts=3), SMALL)
    assert job.prefix == again.prefix
    assert [name for name, _ in sign.fields(job.prefix)][:3] == [b"DKIM-Signature", b"DKIM-Signature", b"Received"]
    assert job.size == len(job.prefix + b"".join(job.chunks()))


def test_many_dots_are_not_remembered(spool: Spool) -> None:
    job = Outgoing(Config(), spool, ()).job(large(spool, HEADER + b".\r\n" * 100_000), SMALL)
    assert job.stored is None
    assert on_the_wire(job).endswith(b"\r\n" + b"..\r\n" * 100_000 + b".\r\n")


def test_a_last_piece_of_one_octet_is_no_reason_for_an_empty_line(spool: Spool) -> None:
    body = b"x" * (2 * PIECE - 1) + b"\r\n"
    job = Outgoing(Config(), spool, ()).job(large(spool, HEADER + body), SMALL)
    assert b"".join(job.chunks()) == body


def test_a_large_body_is_not_held(spool: Spool, signer: Signer) -> None:
    taken = large(spool, HEADER + (b"A" * 76 + b"\r\n") * 200_000)
    outgoing = Outgoing(Config(), spool, (signer,))
    tracemalloc.start()
    try:
        job = outgoing.job(taken, SMALL)
        assert sum(map(len, job.chunks())) > 15_000_000
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


# --- a mail's documents in a message of ours ---------------------------------------------------------------------------

DOCUMENTS = {"facture n° 12.pdf": pdf("un"), "photo.jpg": jpeg(100_000), "vide.txt": b"x"}


def carried(spool: Spool, *, subject: str = "Facture d'été\u202e \x07 12") -> Claimed:
    """A mail with documents, as a run claims it when it is to leave as a message of ours."""
    types = ("application/pdf", "image/jpeg", "text/plain")
    parts = [(name, type_, content) for (name, content), type_ in zip(DOCUMENTS.items(), types, strict=True)]
    written = mail("a@cabinet.example", "meg+dupont@welyb.fr", *parts, subject="SUJET")
    raw = written.replace(b"SUJET", f"=?utf-8?b?{base64.b64encode(subject.encode()).decode()}?=".encode())
    scanner = Scanner()
    scanner.feed(raw)
    found = [part for part in scanner.close().parts if part.leaf.name]
    documents = tuple(
        Carried(
            f"m1.{number}",
            str(part.leaf.name),
            part.leaf.type,
            part.size,
            part.sha256,
            json.dumps([[s.offset, s.length, s.encoding] for s in part.spans]),
        )
        for number, part in enumerate(found, 1)
    )
    author = {"author": "automate@welyb.fr", "outbound_message_id": "<m1-1@welyb.fr>"}
    return replace(small(spool, raw), carried=documents, **author)


def test_the_documents_leave_as_they_came_in_a_message_of_ours(spool: Spool, signer: Signer) -> None:
    job = Outgoing(Config(), spool, (signer,)).job(carried(spool), SMALL)
    whole = job.prefix + b"".join(job.chunks())
    assert job.size == len(whole) and not job.eight_bit and whole.isascii()
    assert dkim.verify(whole, dnsfunc=lambda name, timeout=5: sign.dns_record(signer.key).encode())
    message = message_from_bytes(whole, policy=default)
    assert (message["From"], message["To"]) == ("Welyb <automate@welyb.fr>", "dupont@factures-meg.fr")
    assert (message["Subject"], message["Message-ID"]) == ("Facture d'été  12", "<m1-1@welyb.fr>")
    assert message["Reply-To"] is None and message["X-Welyb-Relay"] == "welyb.fr"
    text, *parts = message.iter_parts()
    assert all(name in text.get_content() for name in DOCUMENTS)
    assert {file_name(part): part.get_payload(decode=True) for part in parts} == DOCUMENTS
    for number, part in enumerate(parts, 1):
        assert part["X-Welyb-Document-Id"] == f"m1.{number}"
        assert part["X-Welyb-Document-SHA256"] == sha256(part.get_payload(decode=True)).hexdigest()
    assert [part.get_content_type() for part in parts] == ["application/pdf", "image/jpeg", "text/plain"]


def test_it_is_the_same_at_every_attempt(spool: Spool, signer: Signer) -> None:
    taken = carried(spool)
    first, second = (Outgoing(Config(), spool, (signer,)).job(taken, most) for most in (SMALL, -1))
    assert on_the_wire(first) == on_the_wire(second) == on_the_wire(first)


def test_without_a_subject_it_bears_the_first_documents_name(spool: Spool) -> None:
    job = Outgoing(Config(), spool, ()).job(carried(spool, subject="\x07"), SMALL)
    assert message_from_bytes(job.prefix, policy=default)["Subject"] == "facture n° 12.pdf"


def test_a_document_that_is_not_what_was_accepted_does_not_leave(spool: Spool) -> None:
    taken = carried(spool)
    first, *others = taken.carried
    with pytest.raises(SpoolError, match=r"m1\.1"):
        Outgoing(Config(), spool, ()).job(replace(taken, carried=(replace(first, sha256="0" * 64), *others)), SMALL)


def test_bytes_that_are_gone(spool: Spool) -> None:
    with pytest.raises(SpoolError):
        Outgoing(Config(), spool, ()).job(replace(TAKEN, spool=f"f/{DAY}/gone"), SMALL)
