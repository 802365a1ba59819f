"""What stock dkimpy verifies we verify, and nothing else; what it lets pass and should not, we do not."""

import base64
import hashlib
import itertools
import re
import time
from collections.abc import Callable, Iterator, Sequence

import dkim
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicNumbers, generate_private_key
from dkim.canonicalization import Relaxed
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay import sign, verify
from relay.sign import Field, Key, Signer, SimpleBodyHash
from relay.verify import Claim, RelaxedBodyHash
from rules.authentication import Signature
from tests.support.effort import examples

RSA = generate_private_key(65537, 2048)
ED25519 = Ed25519PrivateKey.generate()
KEYS: dict[str, list[bytes]] = {
    "rsa._domainkey.fr.test": [sign.dns_record(RSA).encode()],
    "ed._domainkey.fr.test": [sign.dns_record(ED25519).encode()],
}
HEADER = (
    b"Received: from a by b\r\n"
    b"From: =?utf-8?q?Ma=C3=A7on?= <a@fr.test>\r\n"
    b"To: dupont@x.test,\r\n\tother@x.test\r\n"
    b"Subject:   a   folded\r\n  subject \r\n"
    b"Date: Tue, 24 Nov 2026 14:15:00 +0100\r\n"
    b"\r\n"
)
BODIES = {
    "plain": b"hello\r\n",
    "empty": b"",
    "one empty line": b"\r\n",
    "empty lines": b"\r\n\r\n\r\n",
    "blank lines": b" \t\r\n \r\n",
    "empty lines at the end": b"a\r\n\r\nb\r\n\r\n\r\n",
    "no final CRLF": b"a\r\nb",
    "blanks": b"a  b\t\tc \t \r\n \r\n d\r\n",
    "8-bit": "é  è\r\n".encode(),
}


def verified(message: bytes, keys: dict[str, list[bytes]] = KEYS) -> list[Signature]:
    """As the shell does it, with the key records at hand."""
    end = message.index(b"\r\n\r\n") + 4
    fields = sign.fields(message[:end])
    headers = verify.Headers(fields)
    found = []
    for claim in verify.claims(fields, message[:end]):
        verdict = headers.verify(claim, keys.get(claim.key_name, ())) if isinstance(claim, Claim) else claim
        if isinstance(claim, Claim) and verdict.result == "pass":
            body = verify.hash_body(iter((message[end:],)), [claim.body])
            verdict = verify.with_body(verdict, claim, body)
        found.append(verdict)
    return found


def stock(message: bytes) -> bool:
    def record(name: bytes, timeout: int = 5) -> bytes | None:
        return next(iter(KEYS.get(name.decode("latin-1").rstrip("."), ())), None)

    try:
        return bool(dkim.verify(message, dnsfunc=record))
    except Exception:
        return False


def dkimpys(message: bytes, key: Key, way: str = "relaxed/simple", names: list[bytes] | None = None) -> bytes:
    """Signed by dkimpy."""
    if isinstance(key, RSAPrivateKey):
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        selector, algorithm = b"rsa", b"rsa-sha256"
    else:
        raw = serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
        pem, selector, algorithm = base64.b64encode(key.private_bytes(*raw)), b"ed", b"ed25519-sha256"
    field: bytes = dkim.sign(
        message,
        selector,
        b"fr.test",
        pem,
        canonicalize=tuple(part.encode() for part in way.split("/")),
        include_headers=names,
        signature_algorithm=algorithm,
    )
    return field + message


def ours(message: bytes, key: Key) -> bytes:
    end = message.index(b"\r\n\r\n") + 4
    body_hash = SimpleBodyHash()
    body_hash.feed(message[end:])
    selector = "rsa" if isinstance(key, RSAPrivateKey) else "ed"
    return (
        Signer("fr.test", selector, key).sign(sign.fields(message[:end]), body_hash.digest(), 1_795_500_000) + message
    )


@pytest.mark.parametrize("key", [RSA, ED25519], ids=["rsa", "ed25519"])
@pytest.mark.parametrize("way", ["simple/simple", "simple/relaxed", "relaxed/simple", "relaxed/relaxed"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_what_dkimpy_signed(key: Key, way: str, body: bytes) -> None:
    message = dkimpys(HEADER + body, key, way)
    assert stock(message)
    assert [signature.result for signature in verified(message)] == ["pass"]


@pytest.mark.parametrize("key", [RSA, ED25519], ids=["rsa", "ed25519"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_what_we_signed(key: Key, body: bytes) -> None:
    selector = "rsa" if key is RSA else "ed"
    assert verified(ours(HEADER + body, key)) == [Signature("pass", "fr.test", selector)]


# RFC 8463 §A.2, §A.3: neither the signer nor the keys are ours or dkimpy's.
RFC_8463 = b"""\
DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=brisbane; t=1528637909; h=from : to :
 subject : date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=/gCrinpcQOoIfuHNQIbq4pgh9kyIK3AQUdt9OdqQehSwhEIug4D11Bus
 Fa3bT3FY5OsU7ZbnKELq+eXdp1Q1Dw==
DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed;
 d=football.example.com; i=@football.example.com;
 q=dns/txt; s=test; t=1528637909; h=from : to : subject :
 date : message-id : from : subject : date;
 bh=2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=;
 b=F45dVWDfMbQDGHJFlXUNB2HKfbCeLRyhDXgFpEL8GwpsRe0IeIixNTe3
 DhCVlUrSjV4BwcVcOF6+FF3Zo9Rpo1tFOeS9mPYQTnGdaSGsgeefOsk2Jz
 dA+L10TeYt9BgDfQNZtKdN1WO//KgIqXP7OdEFE4LjFYNcUxZQ4FADY+8=
From: Joe SixPack <joe@football.example.com>
To: Suzie Q <suzie@shopping.example.net>
Subject: Is dinner ready?
Date: Fri, 11 Jul 2003 21:00:37 -0700 (PDT)
Message-ID: <20030712040037.46341.5F8J@football.example.com>

Hi.

We lost the game.  Are you hungry yet?

Joe.
""".replace(b"\n", b"\r\n")
RFC_8463_KEYS = {
    "brisbane._domainkey.football.example.com": [
        b"v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=",
    ],
    "test._domainkey.football.example.com": [
        b"v=DKIM1; k=rsa; p=MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDkHlOQoBTzWRiGs5V6NpP3idY6Wk08a5qhdR6wy5bdOKb2jLQiY/J1"
        b"6JYi0Qvx/byYzCNb3W91y3FutACDfzwQ/BC/e/8uBsCR+yz1Lxj+PL6lHvqMKrM3rG4hstT5QjvHO9PzoxZyVYLzBfO2EeC3Ip3G+2kryOTI"
        b"KT+l/K4w3QIDAQAB",
    ],
}


def test_what_an_rfc_signed() -> None:
    domain = "football.example.com"
    assert verified(RFC_8463, RFC_8463_KEYS) == [Signature("pass", domain, s) for s in ("brisbane", "test")]


def test_each_signature_has_its_own_result() -> None:
    message = ours(dkimpys(ours(HEADER + b"hello\r\n", ED25519), RSA, "simple/relaxed"), RSA)
    assert [signature.result for signature in verified(message)] == ["pass"] * 3
    changed = message.replace(b"hello", b"hello ")  # which "relaxed" does not see
    found = [(signature.result, signature.why) for signature in verified(changed)]
    assert found == [("fail", "body"), ("pass", ""), ("fail", "body")]


def test_no_more_than_ten_are_looked_at() -> None:
    message = HEADER + b"hello\r\n"
    for _ in range(12):
        message = ours(message, ED25519)
    assert len(verified(message)) == verify.MAX_SIGNATURES == 10


MUTATIONS: list[tuple[bytes, bytes]] = [
    (b"a@fr.test", b"b@fr.test"),
    (b"a   folded", b"a folded"),
    (b"a   folded\r\n  subject", b"a\r\n folded subject"),
    (b"Subject:", b"SUBJECT:"),
    (b"Subject:", b"Subject: another\r\nSubject:"),
    (b"\r\n\r\nhello", b"\r\nSubject: another\r\n\r\nhello"),
    (b"From:", b"From: evil@x.test\r\nFrom:"),
    (b"\r\n\r\nhello", b"\r\nFrom: evil@x.test\r\n\r\nhello"),
    (b"To: dupont@x.test", b"To: dupond@x.test"),
    (b"Received: from a", b"Received: from c"),
    (b"Received: from a by b\r\n", b""),
    (b"hello", b"Hello"),
    (b"hello\r\n", b"hello\r\n\r\n\r\n"),
    (b"hello\r\n", b"hello\r\nmore\r\n"),
    (b"hello\r\n", b"hello"),
    (b"hello\r\n", b"hello \r\n"),
    (b"hello", b"hel lo"),
    (b"v=1;", b"v=2;"),
    (b"v=1;", b"v=1; v=1;"),
    (b"v=1; ", b""),
    (b"a=", b"A="),
    (b"-sha256", b"-sha512"),
    (b"d=fr.test", b"d=x.test"),
    (b"d=fr.test", b"d=FR.test"),
    (b"i=@fr.test", b"i=@x.test"),
    (b"q=dns/txt", b"q=dns"),
    (b"bh=", b"bh=A"),
    (b"bh=", b"bh=="),
    (b" b=", b" b=A"),
    (b" b=", b" b=="),
    (b" b=", b" x=1; b="),
    (b"h=", b"h=x-absent:"),
    (b"c=", b"c=nonsense/"),
    (b"; d=", b";; d="),
    (b"DKIM-Signature: ", b"DKIM-Signature:"),
    (b"DKIM-Signature: ", b"DKIM-Signature: \xff"),
    (b"DKIM-Signature: ", b"X-Before: 1\r\nDKIM-Signature: "),
    (b"DKIM-Signature: ", b"From a@fr.test Tue Nov 24\r\nDKIM-Signature: "),
    (b"Received:", b"not a field\r\nReceived:"),
    (b"Received:", b"\xff: not a field\r\nReceived:"),
]


@pytest.mark.parametrize("way", ["simple/simple", "relaxed/relaxed"])
@pytest.mark.parametrize("key", [RSA, ED25519], ids=["rsa", "ed25519"])
@pytest.mark.parametrize(("before", "after"), MUTATIONS)
def test_after_a_change_we_say_what_dkimpy_says(key: Key, way: str, before: bytes, after: bytes) -> None:
    message = dkimpys(HEADER + b"hello\r\n", key, way)
    assert before in message
    changed = message.replace(before, after, 1)
    assert [signature.result == "pass" for signature in verified(changed)] == [stock(changed)]


# ---
# What dkimpy does not ask about


def crafted(
    tags: str, *, names: str = "from:subject", algorithm: str = "ed25519-sha256", selector: str = "ed"
) -> bytes:
    """A signature that is right, whatever else `tags` say."""
    body, end = b"hello\r\n", HEADER
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    tags = f" v=1; a={algorithm}; c=relaxed/relaxed; d=fr.test; s={selector}; h={names}; bh={digest}; {tags} b="
    field = (b"DKIM-Signature", tags.encode())
    relaxed = Relaxed.canonicalize_headers([*sign.fields(end), field])
    chosen = [{name: (name, value) for name, value in relaxed}.get(name.encode()) for name in names.split(":")]
    data = b"".join(name + b":" + value for name, value in [*filter(None, chosen), relaxed[-1]])[:-2]
    if algorithm == "rsa-sha256":
        signature = RSA.sign(data, padding.PKCS1v15(), hashes.SHA256())
    else:
        signature = ED25519.sign(hashlib.sha256(data).digest())
    return b"DKIM-Signature:" + tags.encode() + base64.b64encode(signature) + b"\r\n" + HEADER + body


NOW = int(time.time())


@pytest.mark.parametrize(
    ("message", "result", "why"),
    [
        (crafted(""), "pass", ""),
        (crafted("unknown=1;"), "pass", ""),
        (crafted(f"t={NOW}; x={NOW + 90_000};"), "pass", ""),
        (crafted("l=7;"), "policy", "l="),
        (crafted("l=2;"), "policy", "l="),
        (crafted(f"t={NOW - 900_000}; x={NOW - 90_000};"), "permerror", "expired"),
        (crafted(f"t={NOW + 90_000};"), "permerror", "syntax"),
        (crafted("x=" + "9" * 5000 + ";"), "permerror", "syntax"),
        (crafted("", names="subject:date"), "permerror", "From not signed"),
        (crafted("").replace(b"ed25519-sha256", b"rsa-sha1"), "permerror", "rsa-sha1"),
        (crafted("").replace(b"s=ed", b"s=no"), "permerror", "no key"),
        (crafted("").replace(b"s=ed", b"s=rsa"), "permerror", "key of another kind"),
        (crafted("").replace(b"d=fr.test", b"d=..test"), "permerror", "d="),
        (crafted("").replace(b"d=fr.test; ", b""), "permerror", "syntax"),
        (crafted("").replace(b"c=relaxed/relaxed", b"c=relaxed/none"), "permerror", "c="),
        (crafted("").replace(b"v=1", b"v"), "permerror", "syntax"),
        (re.sub(rb"bh=\S+;", b"bh=!AAA;", crafted("")), "permerror", "syntax"),
        (crafted("z=" + "a" * verify.MAX_FIELD + ";"), "permerror", "syntax"),
    ],
)
def test_what_a_signature_says(message: bytes, result: str, why: str) -> None:
    assert [(signature.result, signature.why) for signature in verified(message)] == [(result, why)]


def test_a_part_of_the_body_is_not_believed() -> None:
    message = crafted("l=7;")
    assert stock(message + b"and more\r\n")  # which is why
    assert verified(message + b"and more\r\n")[0].result == "policy"


RECORD = KEYS["ed._domainkey.fr.test"][0]
P = RECORD[RECORD.index(b"p=") :]
SMALL = b"MHwwDQYJKoZIhvcNAQEBBQADawAwaAJhALMCGZ6wi8HpK1GF3Kvt/hFDftnlIi5pi9JictQmbyUn9VBX1il33t/Lkkzi"
SMALL += b"coaHBMhiVzKAzJWXLYLiNxT82lPk24veVE2ersW822XOoJLDn3Wm26hEjbvq5iXgUPgjhwIDAQAB"


@pytest.mark.parametrize(
    ("records", "result", "why"),
    [
        ([RECORD], "pass", ""),
        ([b"k=ed25519; " + P], "pass", ""),
        ([b"v=spf1 -all", RECORD], "pass", ""),
        ([RECORD + b";"], "pass", ""),
        ([b"v=DKIM1; k=ed25519; n=a note; unknown=1; h=sha1:sha256; s=email:x; " + P], "pass", ""),
        ([b"v=DKIM1; k=ed25519; p= " + P[2:12] + b" \t" + P[12:]], "pass", ""),
        ([b"v=DKIM1; t=y; k=ed25519; " + P], "pass", "testing"),
        ([b"v=DKIM1; t=y:s; k=ed25519; " + P], "pass", "testing"),
        ([], "permerror", "no key"),
        ([b"v=spf1 -all"], "permerror", "no key"),
        ([b"v=DKIM1; k=ed25519; p="], "permerror", "key revoked"),
        ([b"v=DKIM2; k=ed25519; " + P], "permerror", "key syntax"),
        ([b"v=DKIM1; k=ed25519; " + P + b"; " + P], "permerror", "key syntax"),
        ([b"v=DKIM1; k=ed25519; p=AAAA"], "permerror", "key syntax"),
        ([b"v=DKIM1; k=ed25519; p=\xff!"], "permerror", "key syntax"),
        ([b"v=DKIM1; k=ed25519; up=1"], "permerror", "key syntax"),
        ([b"v=DKIM1; h=sha1; k=ed25519; " + P], "permerror", "key of another kind"),
        ([b"v=DKIM1; k=x; " + P], "permerror", "key of another kind"),
        ([b"v=DKIM1; " + P], "permerror", "key of another kind"),
        ([b"v=DKIM1; s=tlsrpt; k=ed25519; " + P], "permerror", "key of another service"),
        ([sign.dns_record(Ed25519PrivateKey.generate()).encode()], "fail", "signature"),
        ([b"v=DKIM1; k=ed25519; " + P + b"; x=" + b"1" * verify.MAX_FIELD], "permerror", "key syntax"),
    ],
)
def test_what_a_key_record_says(records: list[bytes], result: str, why: str) -> None:
    found = verified(crafted(""), {"ed._domainkey.fr.test": records})
    assert [(signature.result, signature.why) for signature in found] == [(result, why)]


def test_a_key_for_the_domain_itself_alone() -> None:
    keys = {"ed._domainkey.fr.test": [b"v=DKIM1; t=s; k=ed25519; " + P]}
    assert verified(crafted("i=a@fr.test;"), keys)[0].result == "pass"
    assert verified(crafted("i=a@sub.fr.test;"), keys) == [Signature("permerror", "fr.test", "ed", "i=")]


def test_keys_that_are_too_small_or_too_large() -> None:
    message = crafted("", algorithm="rsa-sha256", selector="rsa")
    assert verified(message)[0].result == "pass"
    weak = {"rsa._domainkey.fr.test": [b"v=DKIM1; p=" + SMALL]}
    assert verified(message, weak) == [Signature("policy", "fr.test", "rsa", "768 bits")]
    ed25519 = ED25519.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    for other in (b"AAAA", base64.b64encode(ed25519)):
        assert verified(message, {"rsa._domainkey.fr.test": [b"p=" + other]})[0].why == "key syntax"


def test_an_exponent_that_would_take_long_is_refused() -> None:
    modulus = RSA.public_key().public_numbers().n
    slow = RSAPublicNumbers((1 << 2046) | 1, modulus).public_key()
    der = slow.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    record = b"v=DKIM1; k=rsa; p=" + base64.b64encode(der)
    found = verified(ours(HEADER + b"x\r\n", RSA), {"rsa._domainkey.fr.test": [record]})
    assert [(signature.result, signature.why) for signature in found] == [("policy", "exponent")]


def test_ten_signatures_of_one_large_header_cost_what_one_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    canonicalised = []

    def counted(fields: Sequence[Field]) -> list[Field]:
        canonicalised.extend(value for _, value in fields)
        return Relaxed.canonicalize_headers(fields)  # type: ignore[no-any-return]

    monkeypatch.setattr(verify, "relaxed", counted)
    signature = (
        b"DKIM-Signature: v=1; a=ed25519-sha256; c=relaxed/relaxed; d=fr.test; s=ed; h=from:x; bh="
        + base64.b64encode(bytes(32))
        + b"; b="
        + base64.b64encode(bytes(64))
        + b"\r\n"
    )
    for size, expected in (
        (verify.MAX_SIGNED // 2, ("fail", "signature")),
        (verify.MAX_SIGNED, ("permerror", "header")),
    ):
        canonicalised.clear()
        found = verified(signature * 10 + b"X: " + b"a " * (size // 2) + b"\r\n" + HEADER)
        assert [(verdict.result, verdict.why) for verdict in found] == [expected] * 10
        assert sum(len(value) > 1000 for value in canonicalised) == (expected[0] == "fail")


def test_names_are_told_as_the_dns_has_them() -> None:
    message = crafted("").replace(b"d=fr.test", "d=É.Fr.test".encode())
    assert verified(message) == [Signature("permerror", "xn--9ca.fr.test", "ed", "no key")]


@given(
    st.binary(max_size=3), st.lists(st.sampled_from(b"\r\n|\r|\n|a|:|  | |\t|\x0b|\x0c|\xff".split(b"|"))).map(b"".join)
)
@settings(max_examples=examples(300))
def test_relaxed_fields_are_what_dkimpy_takes_them_for(name: bytes, value: bytes) -> None:
    field = (name.strip(), value)
    assert sign.relaxed([field]) == Relaxed.canonicalize_headers([field])


def test_a_key_is_parsed_once_and_judged_each_time() -> None:
    message = ours(HEADER + b"x\r\n", RSA)
    verify._loaded.cache_clear()
    assert [verified(message)[0].result for _ in range(3)] == ["pass"] * 3
    assert verify._loaded.cache_info().misses == 1
    revoked = {"rsa._domainkey.fr.test": [b"v=DKIM1; k=rsa; p="]}
    assert [verified(message, revoked)[0].why for _ in range(2)] == ["key revoked"] * 2
    other = {"rsa._domainkey.fr.test": [sign.dns_record(generate_private_key(65537, 2048)).encode()]}
    assert verified(message, other)[0].result == "fail"


# ---
# The body

_PIECES = st.lists(
    st.sampled_from(
        [b"\r\n", b"\r", b"\n", b"a", b".", b" ", b"\t", b"  \t", b" \r\n", b"\t\r\n\r\n", b" \r", b"\r\r\n"]
    ),
    max_size=30,
)


@given(_PIECES, st.lists(st.integers(0, 60), max_size=8))
@example([b" ", b"\r", b"\n"], [1, 2])
@example([b"\t\r\n\r\n"], [])
@settings(max_examples=examples(300))
def test_relaxed_is_what_dkimpy_takes_it_for_whatever_the_chunks(pieces: list[bytes], cuts: list[int]) -> None:
    body = b"".join(pieces)
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    hashed = RelaxedBodyHash()
    for start, end in itertools.pairwise(edges):
        hashed.feed(body[start:end])
    assert hashed.digest() == hashlib.sha256(Relaxed.canonicalize_body(body)).digest()


def _pieces(body: bytes) -> Iterator[bytes]:
    return (body[at : at + (1 << 18)] for at in range(0, len(body), 1 << 18))


def test_a_body_is_read_once_for_both_ways() -> None:
    body = b"a  b \r\n" * 200_000 + b" " * 100_000 + b"\t\r\n" * 1000
    hashed = verify.hash_body(_pieces(body), ["simple", "relaxed"])
    assert hashed["relaxed"] == hashlib.sha256(b"a b\r\n" * 200_000).digest()
    assert hashed["simple"] == hashlib.sha256(body).digest()


# ---
# No signature takes longer than it may

BOMBS: dict[str, Callable[[], bytes]] = {
    "blanks before a b": lambda: b"DKIM-Signature: v=1; b" + b"\r\n " * 80_000 + b"=\r\n",
    "blanks in h": lambda: crafted("").replace(b"h=", b"h=" + b" " * 15_000 + b"x:", 1),
    "blanks in b": lambda: crafted("").replace(b" b=", b" b=" + b" " * 15_000 + b"!", 1),
    "names in h": lambda: crafted("").replace(b"h=", b"h=" + b"x:" * 7_000, 1),
    "tags": lambda: crafted("").replace(b"v=1;", b"v=1;" + b"".join(b"a%d=;" % n for n in range(2_000)), 1),
    "ten": lambda: ours(HEADER, RSA).partition(b"Received:")[0] * 2_000 + HEADER,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_signature_takes_longer_than_it_may(bomb: str) -> None:
    filling = b"".join(b"X%d: a  b\r\n" % n for n in range(20_000))
    message = BOMBS[bomb]().replace(b"Received:", filling + b"Received:", 1) + HEADER
    started = time.process_time()
    assert all(signature.result != "pass" for signature in verified(message))
    assert time.process_time() - started < 2


def test_the_field_may_stand_anywhere_and_be_folded_anyhow() -> None:
    message = dkimpys(HEADER + b"hello\r\n", RSA, "relaxed/relaxed")
    field, rest = re.fullmatch(rb"(?s)(DKIM-Signature:.*?\r\n)(Received.*)", message).groups()  # type: ignore[union-attr]
    folded = re.sub(rb"; ", b";\r\n\t ", field)
    assert verified(rest.replace(b"Date:", folded + b"Date:"))[0].result == "pass"
