"""DKIM signatures of a mail, verified (RFC 6376, RFC 8301, RFC 8463).

Knows alone: what makes a signature good, and how a body of any size is hashed once for all of them. Tags are dkimpy's,
RSA and Ed25519 `cryptography`'s; the rest of dkimpy's verifier is not used: it splits bodies into lines, takes quadratic
time on some fields, and does not ask whether From was signed. Nothing raises:
what cannot be understood is "permerror". Limits: the first ten signatures; lines end in CRLF (others are refused at the
door); a signature of a part of the body (l=) is not believed.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import dkim
import dkim.util
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from relay.entity import has_junk
from relay.sign import Field, SimpleBodyHash, relaxed
from rules.authentication import DkimResult, Signature
from rules.author import a_labels

MAX_SIGNATURES = 10
MAX_FIELD = 16 * 1024  # bytes of a DKIM-Signature or of a key record
MAX_SIGNED = 256 * 1024  # bytes of header that one signature speaks of: the event loop canonicalises them
MIN_BITS, MAX_BITS = 1024, 4096  # RFC 8301 §3.2
KEYS = 256  # of domains: to parse one takes half as long as to verify with it
MAX_EXPONENT = 1 << 32  # a verification takes as many squarings as it has bits; 65537 is everybody's

Canonical = Literal["simple", "relaxed"]
Tags = dict[bytes, bytes]

# dkimpy has no types.
_parse_tags: Callable[[bytes], Tags] = dkim.util.parse_tag_value
_validate: Callable[[Tags], None] = dkim.validate_signature_fields


class _NoPass(Exception):
    """Why a signature does not verify."""

    def __init__(self, result: DkimResult, why: str) -> None:
        super().__init__(why)
        self.result, self.why = result, why


# ---
# What a signature claims


@dataclass(frozen=True, slots=True)
class Claim:
    """A DKIM-Signature that can be verified: its field as it stands in the mail, and what it says."""

    field: Field
    tags: Tags
    domain: str
    selector: str
    header: Canonical
    body: Canonical
    body_hash: bytes

    @property
    def key_name(self) -> str:
        return f"{self.selector}._domainkey.{self.domain}"


def claims(headers: Sequence[Field], block: bytes) -> list[Claim | Signature]:
    """What the signatures among the fields of `block` claim, in order; a Signature where it is plainly no pass."""
    signatures = [field for field in headers if field[0].lower() == b"dkim-signature"]
    found = [_claim(field) for field in signatures[:MAX_SIGNATURES]]
    if found and has_junk(block.removesuffix(b"\r\n")):
        # A line that is no field ends the header for some readers, and is nothing to others: who signed what?
        return [Signature("permerror", claim.domain, claim.selector, "header") for claim in found]
    return found


def _claim(field: Field) -> Claim | Signature:
    try:
        tags = _tags(field[1])
    except Exception:  # dkimpy has no list of what it raises
        return Signature("permerror", "", "", "syntax")
    domain = a_labels(_text(tags.get(b"d", b"")))
    selector = _text(tags.get(b"s", b""))
    try:
        header, body, body_hash = _acceptable(tags, domain)
    except _NoPass as problem:
        return Signature(problem.result, domain, selector, problem.why)
    return Claim(field, tags, domain, selector, header, body, body_hash)


def _tags(value: bytes) -> Tags:
    if len(value) > MAX_FIELD:
        raise ValueError("too long")
    return {name: b"".join(text.split()) for name, text in _parse_tags(value).items()}


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _acceptable(tags: Tags, domain: str) -> tuple[Canonical, Canonical, bytes]:
    """What it says of header and body, and the body's hash; _NoPass if it is not worth a key (RFC 6376 §6.1.1)."""
    if tags.get(b"a", b"").lower() == b"rsa-sha1":
        raise _NoPass("permerror", "rsa-sha1")  # RFC 8301 §3.1: has permanently failed
    try:
        _validate(tags)
        body_hash = base64.b64decode(tags[b"bh"])
    except Exception as error:
        expired = str(error).startswith("x= value is past")
        raise _NoPass("permerror", "expired" if expired else "syntax") from None
    if not domain:
        raise _NoPass("permerror", "d=")
    if b"from" not in tags[b"h"].lower().split(b":"):
        raise _NoPass("permerror", "From not signed")
    if b"l" in tags:
        raise _NoPass("policy", "l=")  # RFC 6376 §8.2: what follows could be anyone's
    header, _, body = _text(tags.get(b"c", b"simple")).partition("/")
    return _canonical(header), _canonical(body or "simple"), body_hash


def _canonical(name: str) -> Canonical:
    match name:
        case "simple" | "relaxed":
            return name
        case _:
            raise _NoPass("permerror", "c=")


# ---
# The key and the header


class Headers:
    """A mail's fields, for as many signatures as it has."""

    def __init__(self, headers: Sequence[Field]) -> None:
        self._fields: dict[bytes, list[Field]] = {}
        for name, value in headers:
            self._fields.setdefault(name.lower(), []).append((name, value.removesuffix(b"\r\n") + b"\r\n"))
        self._relaxed: dict[Field, Field] = {}  # each once, however many signatures speak of it

    def verify(self, claim: Claim, keys: Iterable[bytes]) -> Signature:
        """Whether the key, the texts found at the claim's key name, made this signature; the body is yet to be seen."""
        try:
            key, remark = _key(keys, claim)
            self._verify(claim, key)
        except _NoPass as problem:
            return Signature(problem.result, claim.domain, claim.selector, problem.why)
        except Exception:
            return Signature("permerror", claim.domain, claim.selector, "syntax")
        return Signature("pass", claim.domain, claim.selector, remark)

    def _verify(self, claim: Claim, key: RSAPublicKey | Ed25519PublicKey) -> None:
        data, signature = self._signed(claim), base64.b64decode(claim.tags[b"b"])
        try:
            if isinstance(key, RSAPublicKey):
                key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            else:
                key.verify(signature, hashlib.sha256(data).digest())  # RFC 8463 §3: the hash is what is signed
        except InvalidSignature:
            raise _NoPass("fail", "signature") from None

    def _signed(self, claim: Claim) -> bytes:
        """RFC 6376 §3.7: the fields that h= names, the last first, then the signature itself with an empty b=."""
        # A From more than were signed breaks the signature: readers may show any of them.
        names = [*claim.tags[b"h"].lower().split(b":"), b"from"]
        left = {name: self._fields[name].copy() for name in {*names} if name in self._fields}
        chosen = [left[name].pop() for name in names if left.get(name)]
        if sum(len(value) for _, value in chosen) > MAX_SIGNED:
            raise _NoPass("permerror", "header")
        own = [(claim.field[0], _without_signature(claim.field[1]))]
        lines = self._canonical(chosen) + relaxed(own) if claim.header == "relaxed" else chosen + own
        return b"".join([name + b":" + value for name, value in lines]).removesuffix(b"\r\n")

    def _canonical(self, chosen: Sequence[Field]) -> list[Field]:
        new = [field for field in chosen if field not in self._relaxed]
        self._relaxed.update(zip(new, relaxed(new), strict=True))
        return [self._relaxed[field] for field in chosen]


def _without_signature(value: bytes) -> bytes:
    """The value of the field with that of its b= deleted, and the blanks around it (RFC 6376 §3.7)."""
    tags = value.split(b";")
    for at, tag in enumerate(tags):
        name, equals, _ = tag.partition(b"=")
        if name.strip() == b"b":
            tags[at] = name + equals
    return b";".join(tags)


def _key(texts: Iterable[bytes], claim: Claim) -> tuple[RSAPublicKey | Ed25519PublicKey, str]:
    """The key that a record publishes for this signature (RFC 6376 §3.6.1, §6.1.2), and a remark, or _NoPass."""
    record = next((text for text in texts if b"p=" in text), None)
    if record is None:
        raise _NoPass("permerror", "no key")
    try:
        tags = _published(record)
    except Exception:
        raise _NoPass("permerror", "key syntax") from None
    kind, flags = tags.get(b"k", b"rsa"), tags.get(b"t", b"").split(b":")
    if tags.get(b"v", b"DKIM1") != b"DKIM1" or b"p" not in tags:
        raise _NoPass("permerror", "key syntax")
    if not tags[b"p"]:
        raise _NoPass("permerror", "key revoked")
    if claim.tags[b"a"] != kind + b"-sha256" or b"sha256" not in tags.get(b"h", b"sha256").split(b":"):
        raise _NoPass("permerror", "key of another kind")
    if not {b"*", b"email"} & {*tags.get(b"s", b"*").split(b":")}:
        raise _NoPass("permerror", "key of another service")
    identity = _text(claim.tags.get(b"i", b"")).rpartition("@")[2]
    if b"s" in flags and identity and a_labels(identity) != claim.domain:
        raise _NoPass("permerror", "i=")
    # t=y asks that a failure not count against the domain; it does not make a good signature bad.
    return _loaded(kind, tags[b"p"]), "testing" if b"y" in flags else ""


@lru_cache(KEYS)
def _published(record: bytes) -> Tags:
    return _tags(record)


@lru_cache(KEYS)
def _loaded(kind: bytes, encoded: bytes) -> RSAPublicKey | Ed25519PublicKey:
    try:
        raw = base64.b64decode(encoded)
        key = Ed25519PublicKey.from_public_bytes(raw) if kind == b"ed25519" else serialization.load_der_public_key(raw)
    except (ValueError, UnsupportedAlgorithm):
        raise _NoPass("permerror", "key syntax") from None
    if isinstance(key, Ed25519PublicKey) and kind == b"ed25519":
        return key
    if not isinstance(key, RSAPublicKey):
        raise _NoPass("permerror", "key syntax")
    if not MIN_BITS <= key.key_size <= MAX_BITS:
        raise _NoPass("policy", f"{key.key_size} bits")
    if key.public_numbers().e > MAX_EXPONENT:
        raise _NoPass("policy", "exponent")
    return key


# ---
# The body


_ONE_LINE, _EMPTY = hashlib.sha256(b"\r\n").digest(), hashlib.sha256().digest()


class RelaxedBodyHash:
    """SHA-256 of a body under "relaxed" canonicalisation (RFC 6376 §3.4.4), fed in chunks of any size."""

    def __init__(self) -> None:
        self._lines = SimpleBodyHash()
        self._carry = b""  # blanks at the end of the last chunk, as one, and a CR

    def feed(self, chunk: bytes) -> None:
        if not self._carry and b" " not in chunk and b"\t" not in chunk and not chunk.endswith(b"\r"):
            self._lines.feed(chunk)  # base64: nothing to bring into form
            return
        chunk = self._carry + chunk if self._carry else chunk
        text = chunk.removesuffix(b"\r")
        end = len(text.rstrip(b" \t"))
        self._carry = (b" " if end < len(text) else b"") + chunk[len(text) :]
        chunk = chunk[:end] if self._carry else chunk
        if b"\t" in chunk:
            chunk = chunk.replace(b"\t", b" ")
        while b"  " in chunk:
            chunk = chunk.replace(b"  ", b" ")
        self._lines.feed(chunk.replace(b" \r\n", b"\r\n"))

    def digest(self) -> bytes:
        """The hash of the whole body. Nothing may be fed afterwards."""
        self._lines.feed(self._carry)
        digest = self._lines.digest()
        return _EMPTY if digest == _ONE_LINE else digest  # where "simple" has one empty line, "relaxed" has nothing


def hash_body(pieces: Iterator[bytes], ways: Iterable[Canonical]) -> dict[Canonical, bytes]:
    """The body's hash in each of `ways`. Blocks, for 50 ms where it is large."""
    hashed = {way: SimpleBodyHash() if way == "simple" else RelaxedBodyHash() for way in ways}
    for piece in pieces:
        for body in hashed.values():
            body.feed(piece)
    return {way: body.digest() for way, body in hashed.items()}


def with_body(signature: Signature, claim: Claim, hashed: dict[Canonical, bytes]) -> Signature:
    """The last word on a signature whose header verified."""
    return signature if claim.body_hash == hashed[claim.body] else replace(signature, result="fail", why="body")
