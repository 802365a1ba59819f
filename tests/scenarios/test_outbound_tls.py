"""DANE and MTA-STS with the real parts: a signed zone (Knot) and who validates it (Unbound), a policy on port 443, a
collector on port 25. What is proved is used and recorded; what is not waits, and goes once it is mended.

`factures-meg.fr` is signed and has TLSA records; `achats.factures-meg.fr`, delegated without a key, has MTA-STS.
"""

import hashlib
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support import debian
from tests.support import documents as made
from tests.support.clients import CLIENTS, mail
from tests.support.collector import Collector
from tests.support.policyhost import PolicyHost, policy
from tests.support.program import free_address
from tests.support.relay import Relay
from tests.support.validator import Validator
from tests.support.zone import Zone, zone_text

pytestmark = pytest.mark.debian("postfix", "knot", "unbound", "port 25", "port 443")

DANE, STS = "factures-meg.fr", "achats.factures-meg.fr"
SENDER = "compta@cabinet.example"
ENFORCED = policy("enforce", f"mx.{STS}")


@dataclass
class Authority:
    """Who signs here, and the files of what it signed."""

    folder: Path
    ca: trustme.CA = field(default_factory=trustme.CA)

    @property
    def pem(self) -> Path:
        path = self.folder / "authority.pem"
        self.ca.cert_pem.write_to_path(str(path))
        return path

    def issue(self, *names: str) -> tuple[Path, Path]:
        issued = self.ca.issue_cert(*names)
        chain, key = (self.folder / f"{names[0]}.{kind}.pem" for kind in ("chain", "key"))
        chain.write_bytes(b"".join(pem.bytes() for pem in (*issued.cert_chain_pems, self.ca.cert_pem)))
        issued.private_key_pem.write_to_path(str(key))
        return chain, key

    def serving(self, *names: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names).configure_cert(context)
        return context


def digest(chain: Path, number: int) -> str:
    """As in a TLSA record 1 1: SHA-256 of the key of a certificate."""
    certificate = x509.load_pem_x509_certificates(chain.read_bytes())[number]
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).hexdigest()


class Internet:
    """Everything a relay meets on its way out, and the relay."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.certificate = self.authority.issue(f"mx.{DANE}", f"mx.{STS}")
        self.others = self.authority.issue("mx.other.test")
        self.collector = Collector.start(
            folder, domains=(DANE, STS), address=free_address(25), port=25, certificate=self.certificate
        )
        self.host = PolicyHost(
            self.authority.serving(f"mta-sts.{STS}"), ENFORCED, address=free_address(443), port=443
        ).__enter__()
        self.zone = Zone.start(folder, self.zones(), signed=[DANE])
        self.validator = Validator.start(folder, self.zone)
        settings = {"delivery": {"dns": [self.validator.server], "authorities": str(self.authority.pem)}}
        self.relay = Relay(folder, settings).start()

    @classmethod
    def start(cls, folder: Path) -> Self:
        debian.require("postfix", "knot", "unbound", "port 25", "port 443")
        return cls(folder)

    def stop(self) -> None:
        self.relay.stop()
        self.validator.stop()
        self.zone.stop()
        self.host.__exit__()
        self.collector.stop()

    def zones(self, *, tlsa: str = "", id_: str = "1") -> dict[str, str]:
        """`tlsa` is of the collector's key by default; no record of MTA-STS without `id_`."""
        address = self.collector.address
        named = tlsa or f"3 1 1 {digest(self.certificate[0], 0)}"
        signed = ["@ MX 10 mx", f"mx A {address}", f"_25._tcp.mx TLSA {named}", "achats NS ns.invalid."]
        plain = ["@ MX 10 mx", f"mx A {address}", f"mta-sts A {self.host.server_address[0]}"]
        record = [f'_mta-sts TXT "v=STSv1; id={id_};"'] if id_ else []
        return {DANE: zone_text(*signed), STS: zone_text(*plain, *record), ".": zone_text()}

    def send(self, name: str, domain: str) -> str:
        """Has a mail taken for NAME at a collector's domain; its message id."""
        typed = f"meg+{name}@welyb.fr" if domain == DANE else f"meg+achats+{name}@welyb.fr"
        message = mail(SENDER, typed, ("facture.pdf", "application/pdf", made.pdf(name)))
        sent = CLIENTS["python"](self.relay.port, SENDER, [typed], message)
        assert sent.accepted
        return f"{name}@{domain}"

    def run(self, target: str) -> dict[str, Any]:
        """A run, and what became of the delivery to `target`."""
        self.relay.cli("runs", "now")
        (row,) = [each for each in self.relay.json("queue", "list") if each["target"] == target]
        return row

    def arrived(self, target: str) -> list[bool]:
        """Over TLS, or not, each."""
        return [each.over_tls for each in self.collector.messages() if each.envelope_recipient == target]

    def check(self) -> dict[str, dict[str, Any]]:
        lines = self.relay.cli("check", "--json", check=False).stdout.splitlines()
        return {row["subject"]: row for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    internet = Internet.start(tmp_path_factory.mktemp("internet"))
    yield internet
    internet.stop()


@pytest.fixture(autouse=True)
def as_it_was(internet: Internet) -> Iterator[None]:
    yield
    internet.zone.change(internet.zones(), signed=[DANE])
    internet.collector.change(certificate=internet.certificate)
    internet.host.says = ENFORCED


def waits(internet: Internet, target: str, why: str) -> None:
    row = internet.run(target)
    assert (row["state"], row["tls"]) == ("waiting", ""), row["reply"]
    assert why in row["reply"]
    assert internet.arrived(target) == []


def goes(internet: Internet, target: str, tls: str) -> dict[str, Any]:
    row = internet.run(target)
    assert (row["state"], row["tls"]) == ("sent", tls), row["reply"]
    assert internet.arrived(target) == [True]
    (sent,) = [each for each in internet.relay.json("trace", row["id"]) if each["event"] == "sent"]
    assert sent["detail"]["tls"] == tls
    return row


# --- DANE -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("usage", "number"), [(3, 0), (2, 1)], ids=["DANE-EE", "DANE-TA"])
def test_a_host_that_its_zone_vouches_for(internet: Internet, usage: int, number: int) -> None:
    internet.zone.change(internet.zones(tlsa=f"{usage} 1 1 {digest(internet.certificate[0], number)}"))
    goes(internet, internet.send(f"ancre{usage}", DANE), "TLSv1.3 dane")


def test_a_host_with_another_key_waits_until_it_is_put_right(internet: Internet) -> None:
    target = internet.send("autre-cle", DANE)
    internet.collector.change(certificate=internet.others)
    waits(internet, target, "no TLSA record names its certificate")
    internet.collector.change(certificate=None)
    waits(internet, target, "STARTTLS not offered")
    internet.collector.change(certificate=internet.certificate)
    goes(internet, target, "TLSv1.3 dane")


def test_the_next_host_is_tried_where_the_first_proves_nothing(internet: Internet) -> None:
    zones = internet.zones()
    first = ["@ MX 5 premier", f"premier A {internet.collector.address}", f"_25._tcp.premier TLSA 3 1 1 {'00' * 32}"]
    zones[DANE] += "\n".join([*first, ""])
    internet.zone.change(zones)
    row = goes(internet, internet.send("suivant", DANE), "TLSv1.3 dane")
    assert row["mx"].startswith(f"mx.{DANE}[")


def test_a_zone_whose_signatures_were_stripped_waits(internet: Internet) -> None:
    """As one would do who wants the TLSA records not to be seen."""
    target = internet.send("depouille", DANE)
    internet.zone.change(internet.zones(), signed=[])
    waits(internet, target, "SERVFAIL")
    internet.zone.change(internet.zones(), signed=[DANE])
    internet.validator.stop()
    internet.validator.resume()
    goes(internet, target, "TLSv1.3 dane")


# --- MTA-STS ----------------------------------------------------------------------------------------------------------


def test_a_host_of_the_policy_goes_and_another_waits(internet: Internet) -> None:
    goes(internet, internet.send("conforme", STS), "TLSv1.3 sts")
    internet.host.says = policy("enforce", "mx.other.test")
    internet.zone.change(internet.zones(id_="2"))
    target = internet.send("hors-liste", STS)
    waits(internet, target, f"mx.{STS} is not in the MTA-STS policy of {STS}")
    internet.host.says = ENFORCED
    internet.zone.change(internet.zones(id_="3"))
    goes(internet, target, "TLSv1.3 sts")


def test_a_policy_once_had_outlives_dns_and_restarts(internet: Internet) -> None:
    goes(internet, internet.send("avant", STS), "TLSv1.3 sts")
    internet.zone.change(internet.zones(id_=""))
    internet.collector.change(certificate=internet.others)
    target = internet.send("silence", STS)
    internet.relay.stop()
    internet.relay.start()
    waits(internet, target, "Hostname mismatch")
    internet.collector.change(certificate=None)
    waits(internet, target, "STARTTLS not offered")
    internet.collector.change(certificate=internet.certificate)
    goes(internet, target, "TLSv1.3 sts")


def test_in_mode_testing_it_goes_all_the_same(internet: Internet) -> None:
    internet.host.says = policy("testing", f"mx.{STS}")
    internet.zone.change(internet.zones(id_="4"))
    internet.collector.change(certificate=internet.others)
    goes(internet, internet.send("essai", STS), "TLSv1.3")


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_tells_what_each_collector_asks(internet: Internet) -> None:
    internet.host.says = policy("enforce", "mx.other.test")
    found = internet.check()
    assert (found[f"tls {DANE}"]["ok"], found[f"tls {DANE}"]["finding"]) == (True, f"mx.{DANE}: dane")
    assert found[f"tls {STS}"]["ok"] is False
    assert "is not in the MTA-STS policy" in found[f"tls {STS}"]["finding"]
    assert f'"{STS}" = "opportunistic"' in found[f"tls {STS}"]["remedy"]
    internet.host.says = ENFORCED
    assert internet.check()[f"tls {STS}"]["finding"] == f"mx.{STS}: sts"
    assert found["authorities"]["ok"] and "dnssec" in found  # the root has no signatures here
