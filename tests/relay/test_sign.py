"""What we sign, stock dkimpy verifies; what we hash, stock dkimpy hashes the same."""

import base64
import hashlib
import itertools
import re
import stat
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from dkim.canonicalization import Simple
from hypothesis import given
from hypothesis import strategies as st

from relay import sign
from relay.sign import Key, KeyProblem, Signer, SimpleBodyHash

HEADER = (
    b"Received: from a by b; today\r\n"
    b"From: =?utf-8?q?Ma=C3=A7on?= <a@welyb.fr>\r\n"
    b"To: dupont@factures-meg.fr,\r\n\tother@factures-meg.fr\r\n"
    b"Subject:   a   folded\r\n  subject \r\n"
    b"Date: Tue, 24 Nov 2026 14:15:00 +0100\r\n"
    b"Message-ID: <1@welyb.fr>\r\n"
    b"MIME-Version: 1.0\r\n"
    b"Content-Type: multipart/mixed;\r\n boundary=b\r\n"
    b"X-Welyb-Document-Id: 17\r\n"
    b"\r\n"
)


@pytest.fixture(scope="module", params=["rsa", "ed25519"])
def key(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Key:
    return sign.create(str(tmp_path_factory.mktemp("keys") / "k.pem"), request.param)


def signed(key: Key, header: bytes, body: bytes) -> bytes:
    body_hash = SimpleBodyHash()
    body_hash.feed(body)
    headers = sign.fields(header)
    return Signer("welyb.fr", "s1", key).sign(headers, body_hash.digest(), 1_795_500_000) + header + body


def verifies(message: bytes, key: Key) -> bool:
    def record(name: bytes, timeout: int = 5) -> bytes | None:
        return sign.dns_record(key).encode() if name == b"s1._domainkey.welyb.fr." else None

    return bool(dkim.verify(message, dnsfunc=record))


BODIES = {
    "plain": b"hello\r\n",
    "empty": b"",
    "one empty line": b"\r\n",
    "empty lines": b"\r\n\r\n\r\n",
    "empty lines at the end": b"a\r\n\r\nb\r\n\r\n\r\n",
    "no final CRLF": b"hello",
    "no final CRLF after lines": b"a\r\nb",
    "spaces at the end": b"a \t \r\n \r\n",
    "dots": b".\r\n..\r\n.a\r\n",
    "8-bit": "é\r\n".encode(),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_stock_dkimpy_verifies(key: Key, body: bytes) -> None:
    assert verifies(signed(key, HEADER, body), key)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"a@welyb.fr", b"b@welyb.fr"),
        (b"a   folded", b"a foldedd"),
        (b"Document-Id: 17", b"Document-Id: 18"),
        (b"Message-ID: <1", b"Message-ID: <2"),
        (b"hello", b"hellO"),
        (b"From: =", b"From: evil@example.org\r\nFrom: ="),
        (b"Date:", b"Subject: a second one\r\nDate:"),
        (b"Date:", b"Reply-To: evil@example.org\r\nDate:"),
        (b"\r\n\r\nhello", b"\r\nContent-Transfer-Encoding: base64\r\n\r\nhello"),
    ],
)
def test_what_is_changed_or_added_breaks_it(key: Key, before: bytes, after: bytes) -> None:
    message = signed(key, HEADER, b"hello\r\n")
    assert before in message
    assert not verifies(message.replace(before, after), key)


def test_what_the_next_host_does_does_not_break_it(key: Key) -> None:
    message = signed(key, HEADER, b"hello\r\n")
    changed = b"Received: by the next host\r\nReturn-Path: <x@y>\r\n" + message.replace(
        b"a   folded\r\n  sub", b"a folded sub"
    )
    assert verifies(changed, key)


def test_two_keys_each_sign_the_message_and_not_the_others_signature(tmp_path: Path) -> None:
    made: dict[str, Key] = {
        "r": sign.create(str(tmp_path / "r.pem"), "rsa"),
        "e": sign.create(str(tmp_path / "e.pem"), "ed25519"),
    }
    hashed = SimpleBodyHash()
    hashed.feed(b"hello\r\n")
    signers = [Signer("welyb.fr", selector, key) for selector, key in made.items()]
    both = sign.signatures(signers, sign.fields(HEADER), hashed.digest(), 1_795_500_000)
    assert re.findall(rb"(?m)^DKIM-Signature:.* a=(\S+);", both) == [b"rsa-sha256", b"ed25519-sha256"]
    assert sign.signatures((), sign.fields(HEADER), b"", 1) == b""

    def valid(message: bytes, number: int) -> bool:
        published = {f"{s}._domainkey.welyb.fr.".encode(): sign.dns_record(key).encode() for s, key in made.items()}
        try:
            return bool(dkim.DKIM(message).verify(idx=number, dnsfunc=lambda name, timeout=5: published.get(name)))
        except dkim.ValidationError:  # the body is another
            return False

    message = both + HEADER + b"hello\r\n"
    assert valid(message, 0) and valid(message, 1)
    first, second = re.findall(rb"DKIM-Signature:.*\r\n(?:[ \t].*\r\n)+", both)
    assert valid(message.replace(first, b""), 0) and valid(message.replace(second, b""), 0)
    changed = message.replace(b"hello", b"hellO")
    assert not valid(changed, 0) and not valid(changed, 1)


def test_several_instances_of_a_field(key: Key) -> None:
    header = b"To: a@b\r\nFrom: c@d\r\nTo: e@f\r\nReferences: <1>\r\nReferences: <2>\r\n\r\n"
    message = signed(key, header, b"x\r\n")
    assert verifies(message, key)
    assert not verifies(message.replace(b"To: a@b", b"To: g@b"), key)


def test_two_signatures_on_one_message(key: Key) -> None:
    message = signed(key, HEADER, b"hello\r\n")
    assert verifies(signed(key, *re.fullmatch(rb"(?s)(.*?\r\n\r\n)(.*)", message).groups()), key)  # type: ignore[union-attr]


def test_the_field_is_folded_and_repeatable(key: Key) -> None:
    message = signed(key, HEADER, b"hello\r\n")
    assert message == signed(key, HEADER, b"hello\r\n")  # both algorithms are deterministic: a retry is identical
    field = message[: message.index(b"Received:")]
    assert all(len(line) <= 76 for line in field.split(b"\r\n"))
    assert b"c=relaxed/simple" in field and b"d=welyb.fr" in field and b"t=1795500000" in field
    for absent in (b"l=", b"x=", b"i=", b"received"):
        assert absent not in re.sub(rb"\sb=.*|bh=\S*", b"", field, flags=re.S)


_PIECES = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b"a", b".", b" ", b"\r\n\r\n", b"\r\r\n", b"\n\r\n"]), max_size=30
)


@given(_PIECES, st.lists(st.integers(0, 40), max_size=6))
def test_the_hash_does_not_depend_on_the_chunks(pieces: list[bytes], cuts: list[int]) -> None:
    body = b"".join(pieces)
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    hashed = SimpleBodyHash()
    for start, end in itertools.pairwise(edges):
        hashed.feed(body[start:end])
    assert hashed.digest() == hashlib.sha256(Simple.canonicalize_body(body)).digest()


def test_many_empty_lines_cost_no_memory() -> None:
    hashed = SimpleBodyHash()
    body = b"x" + b"\r\n" * 3_000_000
    hashed.feed(body)
    hashed.feed(b"y\r\n")
    assert hashed.digest() == hashlib.sha256(body + b"y\r\n").digest()


def test_fields_reads_what_is_there() -> None:
    block = b"A:1\r\nB : 2\r\n\tfold: not a field\r\njunk line: b\r\nFrom x Mon 10:00\r\nC: \r\n\r\n"
    assert sign.fields(block) == [(b"A", b"1\r\n"), (b"B", b" 2\r\n\tfold: not a field\r\n"), (b"C", b" \r\n")]
    assert sign.fields(b"A: 1") == [(b"A", b" 1")]
    assert sign.fields(b"\r\n") == []


@given(st.lists(st.tuples(st.sampled_from([b"A", b"Subject"]), st.sampled_from([b" x", b" x\r\n y", b"", b":"]))))
def test_fields_loses_nothing(pairs: list[tuple[bytes, bytes]]) -> None:
    block = b"".join(name + b":" + value + b"\r\n" for name, value in pairs)
    assert b"".join(name + b":" + value for name, value in sign.fields(block + b"\r\n")) == block


def test_key_files(tmp_path: Path) -> None:
    for kind in ("rsa", "ed25519"):
        path = tmp_path / f"{kind}.pem"
        made = sign.create(str(path), kind)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
        assert sign.dns_record(sign.load(str(path))) == sign.dns_record(made)
        with pytest.raises(FileExistsError):
            sign.create(str(path), kind)


def _pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, password: bytes = b"") -> bytes:
    secret = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)


def test_unusable_key_files_are_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "bad.pem"
    curve = ec.generate_private_key(ec.SECP256R1())
    for content in (b"", b"junk", _pem(curve), _pem(curve, b"secret")):
        path.write_bytes(content)
        with pytest.raises(KeyProblem, match=r"bad\.pem.*Remedy"):
            sign.load(str(path))


def test_a_damaged_key_is_found_wherever_the_damage_is(tmp_path: Path) -> None:
    made = rsa.generate_private_key(65537, 2048)
    whole = made.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = tmp_path / "bad.pem"
    found = 0
    for at in range(0, len(whole), 10):
        damaged = base64.encodebytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        path.write_bytes(b"-----BEGIN PRIVATE KEY-----\n" + damaged + b"-----END PRIVATE KEY-----\n")
        try:
            key = sign.load(str(path))
        except KeyProblem as problem:
            assert re.search(r"bad\.pem.*Remedy", str(problem))
            found += 1
        else:  # OpenSSL does without the number that is wrong
            assert verifies(signed(key, HEADER, b"hello\r\n"), made)
    assert found > 20


def test_a_record_over_255_octets_is_plain_text(tmp_path: Path) -> None:
    record = sign.dns_record(sign.create(str(tmp_path / "k"), "rsa"))
    assert record.startswith("v=DKIM1; k=rsa; p=MIIBIjAN") and len(record) > 255
    assert sign.dns_record(sign.create(str(tmp_path / "e"), "ed25519")).startswith("v=DKIM1; k=ed25519; p=")
