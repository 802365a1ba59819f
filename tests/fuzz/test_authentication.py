"""One invariant sentence per judge of who wrote a mail, for any bytes at all."""

import hashlib
import re
from typing import get_args

import dkim
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay import sign, verify
from relay.verify import Claim
from rules import author, dmarc
from rules.authentication import Authentication, DkimResult, Dmarc, DmarcResult, Policy, Signature, Spf
from tests.support.effort import examples

# ---
# DMARC

LABELS = st.sampled_from(["a", "b", "fr", "test", "x" * 63, "_dmarc", "xn--9ca"])
domains = st.lists(LABELS, min_size=1, max_size=11).map(".".join)
SHARDS = ["v=DMARC1", ";", "p=", "sp=", "np=", "reject", "quarantine", "none", "psd=", "y", "n", "u", "t=", "adkim=s"]
SHARDS += [" ", "=", "rua=mailto:a@b", "p=reject;", "v", "\t", "aspf=s;", "é", ","]
texts = st.lists(st.sampled_from(SHARDS), max_size=12).map("".join)
records = st.lists(texts.map(lambda text: "v=DMARC1;" + text) | texts, max_size=2).map(dmarc.record)


@st.composite
def walks(draw: st.DrawFn, domain: str) -> dmarc.Answers:
    return {name: draw(records | st.just(dmarc.Trouble())) for name in dmarc.names(domain)}


@given(st.data(), domains, st.lists(domains, max_size=3), st.sampled_from([True, False, None]))
@settings(max_examples=examples(150))
def test_any_answers_are_a_result_and_only_a_domain_of_the_authors_organization_makes_a_pass(
    data: st.DataObject, name: str, others: list[str], exists: bool | None
) -> None:
    assert len(dmarc.names(name)) <= 8 and all(name.endswith(shorter) for shorter in dmarc.names(name))
    asked = dmarc.discover(name, data.draw(walks(name)))
    if isinstance(asked, Dmarc):
        assert asked.result in ("none", "temperror", "permerror") and asked.policy == "none"
        return
    signatures = tuple(Signature("pass", other, "s") for other in others)
    facts = Authentication(Spf("temperror", name), signatures)
    organizations = {
        other: dmarc.organization(other, data.draw(walks(other))) for other in dmarc.unaligned(asked, facts)
    }
    for other, top in organizations.items():
        assert top is None or other == top or other.endswith(f".{top}")
    known = dmarc.conclude(asked, facts, organizations, exists=exists)
    assert known.result in get_args(DmarcResult) and known.policy in get_args(Policy) and known.domain == name
    if known.result == "pass":
        assert any(other == name or organizations.get(other) == asked.organization for other in others)


SPECIALS = [
    "@",
    "<",
    ">",
    ",",
    ";",
    ":",
    "(",
    ")",
    '"',
    "\\",
    " ",
    "\r\n ",
    ".",
    "a",
    "fr.test",
    "é",
    "[",
    "]",
    "=?utf-8?q?",
]


@given(st.lists(st.sampled_from(SPECIALS), max_size=30).map("".join) | st.text(max_size=40))
@example("a@a,b@b")
@settings(max_examples=examples(150))
def test_any_from_has_one_domain_that_the_dns_could_have_or_none(field: str) -> None:
    found = author.domain([field.encode("utf-8", "replace")])
    assert found in ("", author.Several()) or (isinstance(found, str) and _is_lower_name(found))


def _is_lower_name(found: str) -> bool:
    return bool(author.DOMAIN.fullmatch(found) and len(found) <= 253 and found == found.lower())


# ---
# DKIM

KEY = Ed25519PrivateKey.generate()
HEADER = b"From: a@fr.test\r\nSubject: x\r\n\r\n"
SIGNED = sign.Signer("fr.test", "s", KEY).sign(sign.fields(HEADER), hashlib.sha256(b"x\r\n").digest(), 1_795_500_000)
RECORD = sign.dns_record(KEY).encode()
PIECES = [b";", b"=", b"b=", b"bh=", b"h=from", b"l=1;", b"x=1;", b"t=", b"c=simple;", b"a=rsa-sha256;", b"v=1;", b":"]
PIECES += [b"\r\n ", b" ", b"\xff", b"d=.", b"i=@x", b"s=;", b"k=rsa;", b"p=", b"AAAA", b"A", b"h=sha1;"]
junk = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=6).map(b"".join)


@st.composite
def mutated(draw: st.DrawFn, original: bytes) -> bytes:
    start = draw(st.integers(0, len(original)))
    end = min(len(original), start + draw(st.integers(0, 6)))
    return original[:start] + draw(junk) + original[end:]


def results(message: bytes, record: bytes) -> list[Signature]:
    fields = sign.fields(message)
    headers = verify.Headers(fields)
    return [headers.verify(c, [record]) if isinstance(c, Claim) else c for c in verify.claims(fields, message)]


@given(mutated(SIGNED), mutated(RECORD))
@settings(max_examples=examples(200))
def test_any_signature_and_any_key_are_a_result(field: bytes, record: bytes) -> None:
    for signature in results(field + HEADER, record):
        assert signature.result in get_args(DkimResult)
        assert signature.why or signature.result == "pass"


@given(mutated(SIGNED + HEADER))
@settings(max_examples=examples(200))
def test_what_we_take_for_good_dkimpy_takes_for_good(message: bytes) -> None:
    end = message.find(b"\r\n\r\n") + 4
    found = results(message[:end], RECORD)
    bare = len(re.findall(rb"[\r\n]", message)) != 2 * message.count(b"\r\n")  # refused at the door
    if not found or found[0].result != "pass" or bare:
        return
    claim = verify.claims(sign.fields(message[:end]), message[:end])[0]
    assert isinstance(claim, Claim)
    hashed = verify.hash_body(iter((message[end:] + b"x\r\n",)), [claim.body])
    if verify.with_body(found[0], claim, hashed).result == "pass":
        assert dkim.verify(message + b"x\r\n", dnsfunc=lambda name, timeout=5: RECORD)


def test_the_original_is_good() -> None:
    raw = KEY.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    assert len(raw) == 32 and results(SIGNED + HEADER, RECORD) == [Signature("pass", "fr.test", "s")]
