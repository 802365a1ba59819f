"""The DNS records to publish for a domain, so that mail comes here and what we send is believed.

Knows alone: the text of each record, and the policy file of MTA-STS with the id that goes with it (RFC 8461 §3.1: another
text, another id; here one is made from the other).
Limits: the addresses of the machine are its postmaster's to say; the records of other MX hosts are not ours.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Literal

TTL = 3600
# How long a key stays published after its last signature: a host may keep a mail for 5 days (RFC 5321 §4.5.4.1) before
# it passes it on to whoever verifies it.
KEPT = timedelta(days=7)
POLICY_AGE = 604_800  # seconds a sender may rely on a policy it cannot look at again (RFC 8461 §3.2)
Mode = Literal["testing", "enforce"]


@dataclass(frozen=True, slots=True)
class Record:
    name: str  # whole, with its final dot
    type: str
    value: str  # as a zone file has it

    def __str__(self) -> str:
        return f"{self.name}\t{TTL}\tIN\t{self.type}\t{self.value}"


@dataclass(frozen=True, slots=True)
class DkimKey:
    """A public key; `text` is that of its TXT record."""

    selector: str
    text: str


@dataclass(frozen=True, slots=True)
class Certificate:
    """X.509, as TLSA records speak of it (RFC 6698 §2.1.2): all of it, and its public key alone, both as DER."""

    whole: bytes
    public_key: bytes


@dataclass(frozen=True, slots=True)
class Site:
    """What this installation is to the world. `chain` is what STARTTLS shows, our own certificate first."""

    domain: str
    hostname: str
    keys: tuple[DkimKey, ...] = ()
    chain: tuple[Certificate, ...] = ()
    addresses: tuple[str, ...] = ()  # as the postmaster says them
    mode: Mode = "testing"

    @property
    def root(self) -> str:
        return f"{self.domain.lower()}."

    @property
    def host(self) -> str:
        return f"{self.hostname.lower()}."

    @property
    def policy_url(self) -> str:
        return f"https://mta-sts.{self.domain.lower()}/.well-known/mta-sts.txt"


def records(site: Site) -> Iterator[Record]:
    """All of them, those of the zones of addresses (PTR) last."""
    yield mx(site)
    yield from (of_address(site, address) for address in site.addresses)
    yield spf(site)
    if site.host != site.root:
        yield spf_of_host(site)
    yield from (dkim(site, key) for key in site.keys)
    yield dmarc(site)
    yield mta_sts(site)
    yield tls_reports(site)
    if site.chain:
        yield tlsa(site)
    yield from (reverse(site, address) for address in site.addresses)


def needed_until(last_signed: datetime | None) -> datetime | None:
    """Until when a key that signs no more must stay published; None where nothing was ever signed with it."""
    return last_signed + KEPT if last_signed else None


def mx(site: Site) -> Record:
    return Record(site.root, "MX", f"10 {site.host}")


def of_address(site: Site, address: str) -> Record:
    return Record(site.host, "AAAA" if ip_address(address).version == 6 else "A", address)


def reverse(site: Site, address: str) -> Record:
    return Record(f"{ip_address(address).reverse_pointer}.", "PTR", site.host)


def spf(site: Site) -> Record:
    return Record(site.root, "TXT", quoted("v=spf1 mx -all"))


def spf_of_host(site: Site) -> Record:
    """Of the name in EHLO: a report of failure has no other sender (RFC 7208 §2.4)."""
    return Record(site.host, "TXT", quoted("v=spf1 a -all"))


def dkim(site: Site, key: DkimKey) -> Record:
    return Record(f"{key.selector.lower()}._domainkey.{site.root}", "TXT", quoted(key.text))


def dmarc(site: Site) -> Record:
    return Record(f"_dmarc.{site.root}", "TXT", quoted(f"v=DMARC1; p=reject; {_reports(site)}"))


def mta_sts(site: Site) -> Record:
    return Record(f"_mta-sts.{site.root}", "TXT", quoted(f"v=STSv1; id={policy_id(policy(site))};"))


def tls_reports(site: Site) -> Record:
    return Record(f"_smtp._tls.{site.root}", "TXT", quoted(f"v=TLSRPTv1; {_reports(site)}"))


def tlsa(site: Site) -> Record:
    """Of the public key: one that is kept over renewals needs no other record (RFC 7671 §5.1)."""
    return Record(f"_25._tcp.{site.host}", "TLSA", f"3 1 1 {hashlib.sha256(site.chain[0].public_key).hexdigest()}")


def policy(site: Site) -> str:
    """The policy file of MTA-STS (RFC 8461 §3.2), at `site.policy_url`."""
    lines = ("version: STSv1", f"mode: {site.mode}", f"mx: {site.hostname.lower()}", f"max_age: {POLICY_AGE}", "")
    return "\r\n".join(lines)


def policy_id(text: str) -> str:
    """The same however a text editor ends its lines."""
    return hashlib.sha256("\n".join(text.split()).encode()).hexdigest()[:16]


def quoted(text: str) -> str:
    """As a TXT record has it: a string holds 255 octets; whoever reads joins several (RFC 7208 §3.3, RFC 6376 §3.6.2.2)."""
    strings = (text[at : at + 255] for at in range(0, len(text), 255))
    return " ".join('"' + re.sub(r'(["\\])', r"\\\1", string) + '"' for string in strings)


def _reports(site: Site) -> str:
    return f"rua=mailto:postmaster@{site.domain.lower()}"
