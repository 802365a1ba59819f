"""TLSA records and the certificates a host showed → does DANE vouch for it (RFC 6698, as RFC 7672 narrows it for SMTP)?

Knows alone: which records SMTP may use, and what each of them compares. A certificate comes as octets, taken apart by
the shell; that a chain leads to an anchor found here is the shell's to verify, since it takes signatures.
Limits: digest agility (RFC 7671 §9) is not applied: a match under any usable record counts, SHA-256 and SHA-512 alike.
A bare key (2 1 0) serves only where the host sends a certificate that has it.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

TA, EE = 2, 3  # usage: a trust anchor, the host's own certificate
CERTIFICATE, KEY = 0, 1  # selector
FULL, SHA256, SHA512 = 0, 1, 2  # matching type
_DIGESTS: dict[int, tuple[int, Callable[[bytes], bytes]]] = {
    SHA256: (32, lambda octets: hashlib.sha256(octets).digest()),
    SHA512: (64, lambda octets: hashlib.sha512(octets).digest()),
}


@dataclass(frozen=True, slots=True)
class Tlsa:
    usage: int
    selector: int
    matching: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Certificate:
    """DER: all of it, and its SubjectPublicKeyInfo."""

    der: bytes
    key: bytes


def usable(records: Iterable[Tlsa]) -> tuple[Tlsa, ...]:
    """Those that count for SMTP: PKIX-TA(0) and PKIX-EE(1) do not (RFC 7672 §3.1.3), nor what is not known or malformed."""
    return tuple(record for record in records if record.usage in (TA, EE) and _readable(record))


def _readable(record: Tlsa) -> bool:
    if record.selector not in (CERTIFICATE, KEY):
        return False
    if record.matching == FULL:
        return bool(record.data)
    return record.matching in _DIGESTS and len(record.data) == _DIGESTS[record.matching][0]


def matches(record: Tlsa, certificate: Certificate) -> bool:
    """Is this the certificate, or the key, that the record names? Of a usable record."""
    octets = certificate.key if record.selector == KEY else certificate.der
    if record.matching != FULL:
        octets = _DIGESTS[record.matching][1](octets)
    return octets == record.data


def vouches(records: Iterable[Tlsa], leaf: Certificate) -> bool:
    """DANE-EE(3): the host's own certificate is named. Its names and dates do not matter then (RFC 7672 §3.1.1)."""
    return any(record.usage == EE and matches(record, leaf) for record in records)


def anchors(records: Sequence[Tlsa], issuers: Iterable[Certificate]) -> tuple[bytes, ...]:
    """DANE-TA(2): the certificates, DER, that a chain from the host's own may end at.

    `issuers` are what the host sent above its own. A whole certificate in the DNS need not be sent (RFC 7671 §5.2.2).
    """
    chosen = [record for record in records if record.usage == TA]
    sent = [each.der for each in issuers if any(matches(record, each) for record in chosen)]
    written = [record.data for record in chosen if (record.selector, record.matching) == (CERTIFICATE, FULL)]
    return tuple(dict.fromkeys([*sent, *written]))
