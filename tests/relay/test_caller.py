"""Sessions under DANE and MTA-STS with a scripted far side: what is proved is used and said, what is not gets nothing."""

import asyncio
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay import caller
from relay.caller import Caller, Means
from relay.config import Config
from relay.deliver import Connection, Destination
from relay.dns import Resolver
from relay.trust import Trust
from rules.dane import Certificate, Tlsa
from rules.outcome import Fault, Outcome, Result, Scope
from rules.sts import Mode, StsPolicy
from tests.rules.test_dane import record
from tests.support.farside import Far, Say, listening
from tests.support.nameserver import NameServer

NAME = "mx.meg.test"  # farside's
OFFERED: dict[str, Say | list[Say]] = {"EHLO": b"250-mx\r\n250 STARTTLS\r\n", "STARTTLS": b"220 go\r\n"}
SIGNED = ("meg.test", "hosted.test")


@dataclass
class Pki:
    """A root, an authority below it, and a certificate of that."""

    root: trustme.CA
    middle: trustme.CA
    leaf: trustme.LeafCert

    @classmethod
    def make(cls, *names: str, **more: Any) -> "Pki":
        root = trustme.CA()
        middle = root.create_child_ca()
        return cls(root, middle, middle.issue_cert(*(names or (NAME,)), **more))

    def context(self, *, with_root: bool = True) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.leaf.configure_cert(context)
        if with_root:  # roots are mostly not sent, but RFC 7671 §5.2 wants an anchor of DANE-TA sent
            chain = b"".join(pem.bytes() for pem in (*self.leaf.cert_chain_pems, self.root.cert_pem))
            with trustme.Blob(chain).tempfile() as pems, self.leaf.private_key_pem.tempfile() as key:
                context.load_cert_chain(pems, key)
        return context

    def der(self, which: str) -> Certificate:
        pem = {
            "leaf": self.leaf.cert_chain_pems[0],
            "middle": self.middle.cert_pem,
            "root": self.root.cert_pem,
        }[which].bytes()
        found = x509.load_pem_x509_certificate(pem)
        key = found.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return Certificate(found.public_bytes(Encoding.DER), key)


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki.make()


@pytest.fixture(scope="module")
def other() -> Pki:
    return Pki.make()


@pytest.fixture(scope="module")
def expired() -> Pki:
    return Pki.make(not_after=datetime.now(UTC) - timedelta(days=1), not_before=datetime(2020, 1, 1, tzinfo=UTC))


@pytest.fixture
def names() -> Iterator[NameServer]:
    with NameServer() as server:
        server.sign(*SIGNED)
        yield server


def tlsa(*records: Tlsa, at: str = NAME, port: int) -> str:
    return "".join(
        f"_{port}._tcp.{at}. 300 IN TLSA {each.usage} {each.selector} {each.matching} {each.data.hex()}\n"
        for each in records
    )


def call(
    far: Far,
    names: NameServer,
    *records: Tlsa,
    setting: str = "",
    published: StsPolicy | None = None,
    authorities: str = "",
    base: str = NAME,
) -> Connection | Outcome:
    """What comes of calling mx.meg.test, which has these TLSA records below `base`."""

    async def sts(domain: str) -> StsPolicy | None:
        assert domain == "meg.test"
        return published

    async def run() -> Connection | Outcome:
        async with listening(far) as where:
            names.publish(tlsa(*records, at=base, port=where.port))
            config = Config()
            table = {"meg.test": setting} if setting else {}
            config = replace(config, delivery=replace(config.delivery, tls=table))
            calling = Caller(config, Means(Resolver([names.address]), Trust(authorities), sts))
            place = replace(where, alias_of=base if names.signed else "")
            opened = await calling.call("Meg.Test", place)
            if isinstance(opened, Connection):
                await opened.close()
            return opened

    return asyncio.run(run())


def used(opened: Connection | Outcome) -> str:
    """The TLS of a session; for none, why it waits."""
    if isinstance(opened, Connection):
        return opened.tls
    assert (opened.result, opened.scope) == (Result.LATER, Scope.HOST), opened
    assert opened.warns == (opened.fault is Fault.TLS or opened.code >= 500)
    return f"waits: {opened.reply}"


# --- DANE -------------------------------------------------------------------------------------------------------------

EVERY = [(selector, matching) for selector in (0, 1) for matching in (0, 1, 2)]


@pytest.mark.parametrize(("selector", "matching"), EVERY)
@pytest.mark.parametrize(("usage", "which"), [(3, "leaf"), (2, "middle"), (2, "root")])
def test_dane_vouches(
    names: NameServer, pki: Pki, other: Pki, usage: int, which: str, selector: int, matching: int
) -> None:
    far = Far(OFFERED, pki.context())
    good = record(usage, selector, matching, pki.der(which))
    assert used(call(far, names, good)) == "TLSv1.3 dane"
    assert used(call(far, names, record(3, 1, 1, other.der("leaf")), good)) == "TLSv1.3 dane"  # one of them is enough
    assert "waits: tls 4.7.5" in used(call(far, names, record(usage, selector, matching, other.der(which))))
    assert far.messages == [] and not any(command.startswith("MAIL") for command in far.commands)


def test_an_anchor_that_is_whole_in_the_dns_need_not_be_sent(names: NameServer, pki: Pki) -> None:
    far = Far(OFFERED, pki.context(with_root=False))
    assert used(call(far, names, record(2, 0, 0, pki.der("root")))) == "TLSv1.3 dane"
    assert "names its certificate" in used(call(far, names, record(2, 0, 1, pki.der("root"))))


@pytest.mark.parametrize(("usage", "which", "answer"), [(3, "leaf", "TLSv1.3 dane"), (2, "root", "waits: ")])
def test_names_and_dates_do_not_matter_to_dane_ee(
    names: NameServer, expired: Pki, usage: int, which: str, answer: str
) -> None:
    wrong = Pki.make("other.test")
    for each in (expired, wrong):
        found = used(call(Far(OFFERED, each.context()), names, record(usage, 1, 1, each.der(which))))
        assert found.startswith(answer)


@pytest.mark.parametrize("name", [NAME, "meg.test", "*.meg.test", "mx.hosted.test"])
def test_dane_ta_takes_any_of_the_reference_names(names: NameServer, name: str) -> None:
    """RFC 7672 §3.2.2: of the TLSA base, the MX host, the domain."""
    each = Pki.make(name)
    far = Far(OFFERED, each.context())
    assert used(call(far, names, record(2, 1, 1, each.der("root")), base="mx.hosted.test")) == "TLSv1.3 dane"


def test_an_anchor_that_the_certificate_does_not_lead_to(names: NameServer, pki: Pki, other: Pki) -> None:
    """Sent by the host, but nobody's issuer."""
    chain = b"".join(pem.bytes() for pem in (*pki.leaf.cert_chain_pems, other.root.cert_pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with trustme.Blob(chain).tempfile() as pems, pki.leaf.private_key_pem.tempfile() as key:
        context.load_cert_chain(pems, key)
    found = used(call(Far(OFFERED, context), names, record(2, 1, 1, other.der("root"))))
    assert "does not lead to the anchor" in found


def test_a_certificate_cannot_be_its_own_authority(names: NameServer, pki: Pki, other: Pki) -> None:
    """One that the anchor issued to a host signs for another host: it is no authority."""
    import datetime as dates

    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    host = x509.load_pem_x509_certificate(other.leaf.cert_chain_pems[0].bytes())
    host_key = serialization.load_pem_private_key(other.leaf.private_key_pem.bytes(), None)
    assert isinstance(host_key, ec.EllipticCurvePrivateKey)
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    forged = (
        x509.CertificateBuilder(host.subject, x509.Name([]), key.public_key(), 7, now, now + dates.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(host_key.public_key()), critical=False)
        .sign(host_key, hashes.SHA256())
    )
    pems = [forged.public_bytes(Encoding.PEM), *(pem.bytes() for pem in other.leaf.cert_chain_pems)]
    private = key.private_bytes(Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with trustme.Blob(b"".join(pems)).tempfile() as chain, trustme.Blob(private).tempfile() as own:
        context.load_cert_chain(chain, own)
    assert "does not lead to the anchor" in used(call(Far(OFFERED, context), names, record(2, 0, 0, other.der("root"))))


def test_records_that_cannot_be_used_ask_for_encryption_all_the_same(names: NameServer, pki: Pki) -> None:
    pkix = record(1, 1, 1, pki.der("root"))
    assert used(call(Far(OFFERED, pki.context()), names, pkix)) == "TLSv1.3"
    assert "STARTTLS not offered" in used(call(Far(), names, pkix))


async def no_handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 go\r\n")
    await reader.read(100)
    writer.write(b"this is no handshake\r\n")
    await writer.drain()
    writer.close()


UNWILLING: list[tuple[dict[str, Say | list[Say]], str]] = [
    ({}, "STARTTLS not offered"),
    ({**OFFERED, "STARTTLS": b"454 4.7.0 not now\r\n"}, "454 4.7.0 not now"),
    ({**OFFERED, "STARTTLS": b"501 5.5.1 what\r\n"}, "501 5.5.1 what"),
    ({**OFFERED, "STARTTLS": no_handshake}, "tls 4.7.5"),
]


@pytest.mark.parametrize(("script", "why"), UNWILLING)
@pytest.mark.parametrize("asked", ["dane", "sts"])
def test_a_host_without_tls_gets_nothing(
    names: NameServer, pki: Pki, script: dict[str, Say | list[Say]], why: str, asked: str
) -> None:
    far = Far(script, pki.context())
    records = [record(3, 1, 1, pki.der("leaf"))] if asked == "dane" else []
    policy = StsPolicy(Mode.ENFORCE, 86400, (NAME,)) if asked == "sts" else None
    assert why in used(call(far, names, *records, published=policy))
    assert far.connections == 1  # and is not asked again in clear
    assert not any(command.startswith("MAIL") for command in far.commands)


def test_unknown_is_not_none(names: NameServer, pki: Pki) -> None:
    """The records of a signed host cannot be had: nobody may go on as if there were none."""
    names.fail("_tcp.mx.meg.test", "servfail")
    far = Far(OFFERED, pki.context())
    outcome = call(far, names, record(3, 1, 1, pki.der("leaf")))
    assert isinstance(outcome, Outcome) and outcome.fault is Fault.DNS and not outcome.warns
    assert used(outcome).startswith("waits: ") and far.connections == 0


def test_records_that_nobody_vouches_for_are_none(names: NameServer, pki: Pki, other: Pki) -> None:
    names.signed.clear()
    assert used(call(Far(OFFERED, pki.context()), names, record(3, 1, 1, other.der("leaf")))) == "TLSv1.3"


def test_the_records_of_an_alias_come_first(names: NameServer, pki: Pki, other: Pki) -> None:
    far = Far(OFFERED, pki.context())
    assert used(call(far, names, record(3, 1, 1, pki.der("leaf")), base="mx.hosted.test")) == "TLSv1.3 dane"
    assert "_tcp.mx.hosted.test." in names.queries[0][0]
    assert not any("_tcp.mx.meg.test" in name for name, _ in names.queries)


# --- MTA-STS ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def authorities(pki: Pki, tmp_path: Path) -> str:
    pki.root.cert_pem.write_to_path(str(tmp_path / "root.pem"))
    return str(tmp_path / "root.pem")


def sts(mode: Mode = Mode.ENFORCE, mx: str = NAME) -> StsPolicy:
    return StsPolicy(mode, 86400, (mx,))


@pytest.mark.parametrize("mx", [NAME, "*.meg.test"])
def test_a_host_of_the_policy_with_a_certificate_for_its_name(
    names: NameServer, pki: Pki, authorities: str, mx: str
) -> None:
    assert (
        used(call(Far(OFFERED, pki.context()), names, published=sts(mx=mx), authorities=authorities)) == "TLSv1.3 sts"
    )


def test_a_host_outside_the_policy_is_not_even_called(names: NameServer, pki: Pki, authorities: str) -> None:
    far = Far(OFFERED, pki.context())
    found = used(call(far, names, published=sts(mx="mail.other.test"), authorities=authorities))
    assert found == "waits: tls 4.7.5 mx.meg.test is not in the MTA-STS policy of meg.test"
    assert far.connections == 0


def broken(pki: Pki, kind: str) -> Pki:
    if kind == "name":
        return replace(pki, leaf=pki.middle.issue_cert("meg.test", "other.test"))
    if kind == "common name":
        return replace(pki, leaf=pki.middle.issue_cert("other.test", common_name=NAME))
    if kind == "authority":
        return Pki.make()
    yesterday = datetime.now(UTC) - timedelta(days=1)
    return replace(
        pki, leaf=pki.middle.issue_cert(NAME, not_before=datetime(2020, 1, 1, tzinfo=UTC), not_after=yesterday)
    )


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("name", "Hostname mismatch"),
        ("common name", "Hostname mismatch"),
        ("authority", "self-signed certificate in certificate chain"),
        ("date", "certificate has expired"),
    ],
)
def test_a_certificate_that_proves_nothing(
    names: NameServer, pki: Pki, authorities: str, kind: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    far = Far(OFFERED, broken(pki, kind).context())
    assert why in used(call(far, names, published=sts(), authorities=authorities))
    assert far.connections == 1 and not any(command.startswith("MAIL") for command in far.commands)
    # In mode testing it is told, and goes.
    assert used(call(far, names, published=sts(Mode.TESTING), authorities=authorities)) == "TLSv1.3"
    assert "sts-testing mx=mx.meg.test[127.0.0.1]" in caplog.text and why in caplog.text


def test_testing_goes_in_clear_too(names: NameServer, authorities: str, caplog: pytest.LogCaptureFixture) -> None:
    assert used(call(Far(), names, published=sts(Mode.TESTING), authorities=authorities)) == ""
    assert "STARTTLS not offered" in caplog.text
    assert used(call(Far(), names, published=sts(Mode.TESTING, "other.test"), authorities=authorities)) == ""
    assert "not in the policy" in caplog.text


def test_testing_that_finds_nothing_wrong(names: NameServer, pki: Pki, authorities: str) -> None:
    far = Far(OFFERED, pki.context())
    assert used(call(far, names, published=sts(Mode.TESTING), authorities=authorities)) == "TLSv1.3 sts"
    assert far.connections == 1


def test_sts_never_overrides_dane(names: NameServer, pki: Pki, other: Pki, authorities: str) -> None:
    """RFC 8461 §2."""
    far = Far(OFFERED, pki.context())
    wrong = record(3, 1, 1, other.der("leaf"))
    assert used(call(far, names, wrong, published=sts(), authorities=authorities)).startswith("waits: ")


def test_authorities_that_cannot_be_read_let_nobody_pass(names: NameServer, pki: Pki, tmp_path: Path) -> None:
    far = Far(OFFERED, pki.context())
    found = used(call(far, names, published=sts(), authorities=str(tmp_path / "none.pem")))
    assert found == "waits: tls 4.7.5 [delivery] authorities: No such file or directory"


# --- the postmaster's word --------------------------------------------------------------------------------------------


def test_opportunistic_written_down_sets_policies_aside(names: NameServer, pki: Pki, other: Pki) -> None:
    far = Far(OFFERED, pki.context())
    wrong = record(3, 1, 1, other.der("leaf"))
    assert used(call(far, names, wrong, published=sts(mx="other.test"), setting="opportunistic")) == "TLSv1.3"
    assert names.queries == []


def test_required_is_a_floor(names: NameServer, pki: Pki) -> None:
    assert used(call(Far(OFFERED, pki.context()), names, setting="required")) == "TLSv1.3"
    assert "STARTTLS not offered" in used(call(Far(), names, setting="required"))
    good = record(3, 1, 1, pki.der("leaf"))
    assert used(call(Far(OFFERED, pki.context()), names, good, setting="required")) == "TLSv1.3 dane"


def test_a_fixed_route_has_the_postmaster_s_word_only(names: NameServer) -> None:
    async def never(domain: str) -> StsPolicy | None:
        raise AssertionError(domain)

    base = Config()
    routed = replace(base, delivery=replace(base.delivery, routes={"meg.test": "127.0.0.1:25"}))
    calling = Caller(routed, Means(Resolver([names.address]), Trust(), never))
    place = Destination(NAME, "127.0.0.1", 25, NAME)
    assert asyncio.run(calling.policy("meg.test", place)) == caller.Opportunistic()
    assert names.queries == []
