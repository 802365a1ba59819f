"""DKIM: our keys, and a signature from a header block and the hash of a body (RFC 6376, RFC 8301, RFC 8463).

Knows alone: which fields we sign, and how a body is hashed while it streams, so that 13 MB are neither held nor split
into lines. Folding is dkimpy's; RSA is `cryptography`'s, twenty times faster than dkimpy's own.
Limits: signs, does not verify; no l=, no x= (a retry after days must still verify), no i=.
"""

import base64
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import dkim
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

# ---
# Keys

RSA_BITS = 2048  # RFC 8301 §3.2; 4096 does not fit one TXT string and is refused by some verifiers
Key = RSAPrivateKey | Ed25519PrivateKey


class KeyProblem(ValueError):
    """A key file that cannot be used: the message names it and the remedy."""


def create(path: str, kind: Literal["rsa", "ed25519"]) -> Key:
    """Makes a key and writes it to `path`, readable by its owner only. FileExistsError rather than overwrite."""
    key = generate_private_key(65537, RSA_BITS) if kind == "rsa" else Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(descriptor)
    return key


def load(path: str) -> Key:
    """The key in the PEM file `path`. KeyProblem if it is no private key that DKIM can use."""
    with open(path, "rb") as file:
        pem = file.read()
    try:
        # Whether its numbers are primes would take 40 ms to find out at every start; `_works` finds what is damaged.
        key = serialization.load_pem_private_key(pem, password=None, unsafe_skip_rsa_key_validation=True)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyProblem(f"{path}: not an unencrypted PEM private key. Remedy: make one with `keys create`.") from None
    if isinstance(key, RSAPrivateKey) and key.key_size >= 1024:  # RFC 8301 §3.2
        if not _works(key):
            raise KeyProblem(f"{path}: a damaged key: nobody could verify it. Remedy: make one with `keys create`.")
        return key
    if isinstance(key, Ed25519PrivateKey):
        return key
    raise KeyProblem(f"{path}: neither RSA of 1024 bits or more, nor Ed25519. Remedy: make one with `keys create`.")


def _works(key: RSAPrivateKey) -> bool:
    """Does its public half verify what it signs?"""
    how = (padding.PKCS1v15(), hashes.SHA256())
    try:
        key.public_key().verify(key.sign(b"", *how), b"", *how)
    except (InvalidSignature, ValueError, InternalError):
        return False
    return True


def dns_record(key: Key) -> str:
    """The text of the TXT record at SELECTOR._domainkey.DOMAIN; over 255 octets it is published in several strings."""
    if isinstance(key, Ed25519PrivateKey):  # RFC 8463 §4: the bare 32 octets
        public = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        return f"v=DKIM1; k=ed25519; p={base64.b64encode(public).decode()}"
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"v=DKIM1; k=rsa; p={base64.b64encode(public).decode()}"


# ---
# The header block

Field = tuple[bytes, bytes]  # name, and the value raw: from after the colon to its CRLF, folds kept

# Up to the CRLF that no blank follows (RFC 5322 §2.2.3).
FIELD_VALUE = rb"[^\r\n]*(?:(?:\r\n(?=[ \t])|\r(?!\n)|\n)[^\r\n]*)*(?:\r\n|\Z)"
_FIELD = re.compile(rb"(?m)^([\x21-\x39\x3b-\x7e]+)[ \t]*:(" + FIELD_VALUE + rb")")


def fields(block: bytes) -> list[Field]:
    """The fields of a header block, in order. Lines that are no field are passed over."""
    return [(match[1], match[2]) for match in _FIELD.finditer(block)]


def relaxed(headers: Sequence[Field]) -> list[Field]:
    """The fields under "relaxed" canonicalisation (RFC 6376 §3.4.2). Most have nothing to be brought into form."""
    return [(name.lower(), _on_one_line(value.strip()) + b"\r\n") for name, value in headers]


def _on_one_line(value: bytes) -> bytes:
    """Unfolded, and each run of blanks one space."""
    if b"\n" in value:
        value = value.replace(b"\r\n", b"").replace(b"\n", b"")
    if b"\t" in value:
        value = value.replace(b"\t", b" ")
    while b"  " in value:
        value = value.replace(b"  ", b" ")
    return value


# ---
# The body


class SimpleBodyHash:
    """SHA-256 of a body under "simple" canonicalisation (RFC 6376 §3.4.3), fed in chunks of any size.

    Empty lines at the end count as one CRLF, so they are held back, as a number, until something follows. A body that
    lacks its final CRLF is hashed as if it had it; it leaves with it (compose.needs_final_crlf).
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._pairs = 0  # CRLFs held back
        self._carry = b""  # a CR that ended the last chunk

    def feed(self, chunk: bytes) -> None:
        if self._carry:
            chunk, self._carry = self._carry + chunk, b""
        if chunk.endswith(b"\r"):
            chunk, self._carry = chunk[:-1], b"\r"
        end = _end_of_content(chunk) if chunk.endswith(b"\n") else len(chunk)
        if end:
            self._release()
            self._hash.update(memoryview(chunk)[:end])
        self._pairs += (len(chunk) - end) // 2

    def digest(self) -> bytes:
        """The hash of the whole body. Nothing may be fed afterwards."""
        if self._carry:
            self._release()
            self._hash.update(self._carry)
        self._hash.update(b"\r\n")
        return self._hash.digest()

    def _release(self) -> None:
        while self._pairs:
            some = min(self._pairs, 32_768)
            self._hash.update(b"\r\n" * some)
            self._pairs -= some


def _end_of_content(chunk: bytes) -> int:
    """Where the run of CRLFs that ends `chunk` begins."""
    start = len(chunk.rstrip(b"\r\n"))
    tail = chunk[start:]
    if not tail.endswith(b"\n"):
        return len(chunk)
    # A run alternates, so it begins after the last doubled character.
    run = max(tail.rfind(b"\r\r"), tail.rfind(b"\n\n")) + 1
    return start + run + tail.startswith(b"\n", run)


# ---
# The signature

# RFC 6376 §5.4.1: what a reader sees, and what says how to read the body. Trace fields are not among them: the next
# host adds its own. Every instance present is signed.
SIGNED = (
    b"from",
    b"sender",
    b"reply-to",
    b"to",
    b"cc",
    b"subject",
    b"date",
    b"message-id",
    b"in-reply-to",
    b"references",
    b"mime-version",
    b"content-type",
    b"content-transfer-encoding",
    b"content-disposition",
    b"auto-submitted",
    b"x-welyb-document-id",
    b"x-welyb-document-sha256",
)
# Named once more than they occur (RFC 6376 §8.15): adding one, or a second, breaks the signature. Not those which a
# next host may add with good reason (Sender) or that change nothing.
OVERSIGNED = frozenset(
    (
        b"from",
        b"reply-to",
        b"to",
        b"cc",
        b"subject",
        b"date",
        b"message-id",
        b"mime-version",
        b"content-type",
        b"content-transfer-encoding",
        b"x-welyb-document-id",
        b"x-welyb-document-sha256",
    )
)


# dkimpy has no types.
_fold: Callable[[bytes, int], bytes] = dkim.fold


@dataclass(frozen=True, slots=True)
class Signer:
    domain: str  # d=
    selector: str  # s=
    key: Key

    def sign(self, headers: list[Field], body_hash: bytes, now: int) -> bytes:
        """The whole DKIM-Signature field, to go on top of the message. `now` is in seconds since 1970."""
        names, chosen = _chosen(headers)
        algorithm = b"rsa-sha256" if isinstance(self.key, RSAPrivateKey) else b"ed25519-sha256"
        value = _fold(
            b" v=1; a=%b; c=relaxed/simple; d=%b; s=%b; t=%d; h=%b; bh=%b; b="
            % (
                algorithm,
                self.domain.encode("ascii"),
                self.selector.encode("ascii"),
                now,
                b" : ".join(names),
                base64.b64encode(body_hash),
            ),
            len(b"DKIM-Signature:"),
        )
        signature = base64.b64encode(self._signature(_canonical(chosen, value)))
        lines = (signature[at : at + 72] for at in range(0, len(signature), 72))
        return b"DKIM-Signature:" + value + b"\r\n " + b"\r\n ".join(lines) + b"\r\n"

    def _signature(self, data: bytes) -> bytes:
        if isinstance(self.key, RSAPrivateKey):
            return self.key.sign(data, padding.PKCS1v15(), hashes.SHA256())
        return self.key.sign(hashlib.sha256(data).digest())  # RFC 8463 §3: the hash is what is signed


def signatures(signers: Iterable[Signer], headers: list[Field], body_hash: bytes, now: int) -> bytes:
    """One by each: with RSA for whoever verifies nothing else, and with Ed25519 (RFC 8463 §1), say.

    None signs another, so whoever cannot verify one, or whose DNS lacks its key, loses nothing of the other.
    """
    return b"".join(signer.sign(headers, body_hash, now) for signer in signers)


def _chosen(headers: list[Field]) -> tuple[list[bytes], list[Field]]:
    """The names for h=, and the fields they stand for: of several instances the last first (RFC 6376 §5.4.2)."""
    present: dict[bytes, list[Field]] = {}
    for field in reversed(headers):
        present.setdefault(field[0].lower(), []).append(field)
    names = [name for name in SIGNED for _ in range(len(present.get(name, ())) + (name in OVERSIGNED))]
    return names, [field for name in SIGNED for field in present.get(name, ())]


def _canonical(chosen: list[Field], value: bytes) -> bytes:
    """What is signed (RFC 6376 §3.7): the fields chosen, then this signature with an empty b=."""
    lines = [name + b":" + text for name, text in relaxed([*chosen, (b"DKIM-Signature", value)])]
    return b"".join(lines).removesuffix(b"\r\n")
