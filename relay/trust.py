"""Which certificates prove who answers: by a known authority, or by what a TLSA record names.

Knows alone: where the authorities are, how Python's ssl gives the chain that a host sent (a private way before 3.13), and
how a chain is followed to an anchor of DANE-TA.
Limits: no revocation lists, no OCSP. A DANE-TA chain must have subjectAltName and the keys and signatures of the Web PKI
(RSA of 2048 bits, P-256 and above). A key that cryptography cannot read is named by no TLSA record.
"""

import functools
import os
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store, VerificationError

from rules import dane
from rules.dane import Certificate
from rules.tls import Dane

_DER = 2  # _ssl.ENCODING_DER
_UNREADABLE = (ValueError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension)


@functools.cache
def anyone() -> ssl.SSLContext:
    """RFC 7435 §3: encryption for whoever answers; it is not known who that is, unless the chain is looked at."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Trust:
    """The authorities of this machine, and those in the PEM file `authorities` if there is one."""

    def __init__(self, authorities: str = "") -> None:
        self._authorities = authorities

    @functools.cached_property
    def verifying(self) -> ssl.SSLContext:
        """A certificate of an authority, in date, for the name that is asked for. OSError for a file that cannot be read."""
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.hostname_checks_common_name = False  # RFC 8461 §4.1: the names are those of subjectAltName
        if self._authorities:
            context.load_verify_locations(self._authorities)
        return context

    @property
    def known(self) -> bool:
        """Is there any authority? OpenSSL reads a folder of them only as it needs one. OSError as above."""
        folder = ssl.get_default_verify_paths().capath
        return bool(self.verifying.cert_store_stats()["x509_ca"] or (folder and os.listdir(folder)))


def chain(tls: ssl.SSLObject) -> tuple[bytes, ...]:
    """The certificates that the far side sent, DER, its own first."""
    if hasattr(tls, "get_unverified_chain"):
        return tuple(tls.get_unverified_chain())
    hidden: Any = tls
    return tuple(each.public_bytes(_DER) for each in hidden._sslobj.get_unverified_chain() or ())


def unproved(policy: Dane, sent: Sequence[bytes], now: datetime) -> str:
    """Why DANE does not vouch for the host that sent this chain; "" where it does."""
    if not sent:
        return "no certificate"
    leaf, *issuers = map(_taken_apart, sent)
    if dane.vouches(policy.records, leaf):
        return ""
    anchors = dane.anchors(policy.records, issuers)
    if not anchors:
        return "no TLSA record names its certificate"
    try:
        return _unlinked(sent, anchors, policy.names, now)
    except _UNREADABLE as error:
        return f"its chain cannot be read: {error}"


def _taken_apart(der: bytes) -> Certificate:
    try:
        key = x509.load_der_x509_certificate(der).public_key()
        return Certificate(der, key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    except _UNREADABLE:
        return Certificate(der, b"")


# What the Web PKI asks beyond these (which extensions are critical, key identifiers) an authority of a firm's own need not.
@functools.cache
def _host() -> ExtensionPolicy:
    policy = ExtensionPolicy.permit_all()
    policy = policy.require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
    return policy.may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _may_serve)


@functools.cache
def _authority() -> ExtensionPolicy:
    policy = ExtensionPolicy.permit_all()
    policy = policy.require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _may_issue)
    return policy.may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _may_sign)


def _may_serve(_: Policy, certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    known = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)
    if usage is not None and not any(each in known for each in usage):
        raise ValueError("not for a server")


def _may_issue(_: Policy, certificate: x509.Certificate, constraints: x509.BasicConstraints) -> None:
    if not constraints.ca:
        raise ValueError("not an authority")


def _may_sign(_: Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("not a key that signs certificates")


def _unlinked(sent: Sequence[bytes], anchors: Sequence[bytes], names: Sequence[str], now: datetime) -> str:
    """Why the host's certificate does not lead to an anchor under one of `names` (RFC 7672 §3.2.2); "" where it does."""
    leaf, *issuers = map(x509.load_der_x509_certificate, sent)
    builder = PolicyBuilder().store(Store(list(map(x509.load_der_x509_certificate, anchors))))
    builder = builder.time(now.astimezone(UTC).replace(tzinfo=None))
    builder = builder.extension_policies(ca_policy=_authority(), ee_policy=_host())
    why: dict[str, None] = {}
    for name in names:
        try:
            builder.build_server_verifier(x509.DNSName(name)).verify(leaf, issuers)
            return ""
        except VerificationError as error:
            why[str(error).partition(" (encountered")[0]] = None
    return f"it does not lead to the anchor in TLSA: {'; '.join(why)}"
