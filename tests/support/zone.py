"""A real authoritative name server (Knot, from Debian) on a free loopback port.

Knows alone: how knotd runs from an unpacked package, and how it signs a zone (DNSSEC, keys of its own).
Limits: it answers for its zones only, REFUSED for the rest (give it a zone "." and the rest is NXDOMAIN); it is no
resolver, so names a zone points at must be in a zone here too.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Self

import dns.exception
import dns.message
import dns.query

from tests.support import debian
from tests.support.program import Program, free_port

SECURE_ENTRY_POINT = 257  # flags of a DNSKEY (RFC 4034 §2.1.1)

CONFIG = """\
server:
  rundir: "{folder}"
  listen: {address}@{port}
  udp-workers: 1
  tcp-workers: 1
  background-workers: 1
log:
- target: stderr
  any: info
database:
  storage: "{folder}"
template:
- id: default
  storage: "{folder}"
  file: "%s.zone"
  zonefile-sync: -1
  journal-content: none
zone:
"""


def zone_text(*records: str, ttl: int = 5) -> str:
    """A zone of `records` ("@ MX 10 mx", "mx A 127.0.0.25"), below the SOA and NS that every zone has."""
    head = [f"$TTL {ttl}", f"@ SOA ns.invalid. hostmaster.invalid. 1 3600 600 86400 {ttl}", "@ NS ns.invalid."]
    return "\n".join([*head, *records, ""])


class Zone:
    """Knot with `zones`: domain → text of its zone file. Those in `signed` it signs."""

    def __init__(
        self,
        folder: Path,
        zones: Mapping[str, str],
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        signed: Collection[str] = (),
    ) -> None:
        debian.require("knot")
        self.folder, self.zones, self.signed = folder, dict(zones), signed
        self.address, self.port = address, port or free_port(address)
        self.program = Program(
            [debian.root_of("knot") / "usr/sbin/knotd", "-c", folder / "knot.conf"],
            folder,
            name="knot",
            env={"LD_LIBRARY_PATH": debian.library_path("knot")},
        )

    @classmethod
    def start(
        cls,
        folder: Path,
        zones: Mapping[str, str],
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        signed: Collection[str] = (),
    ) -> Self:
        """Start one under `folder`/zone."""
        zone = cls(folder / "zone", zones, address=address, port=port, signed=signed)
        zone.resume()
        return zone

    @property
    def server(self) -> str:
        """As [delivery] dns wants it."""
        return f"{self.address}:{self.port}"

    def resume(self) -> None:
        """Start, or start again, on the same port."""
        config = CONFIG.format(folder=self.folder, address=self.address, port=self.port)
        signing = {domain: "  dnssec-signing: on\n" if domain in self.signed else "" for domain in self.zones}
        zones = "".join(f'- domain: "{domain}"\n{more}' for domain, more in signing.items())
        (self.folder / "knot.conf").write_text(config + zones)
        for domain, text in self.zones.items():
            # "%s" in the settings is the name without its final dot; the root's name is nothing but one.
            (self.folder / f"{domain.rstrip('.')}.zone").write_text(text)
        self.program.start(self._loaded)

    def stop(self) -> None:
        self.program.stop()

    def change(self, zones: Mapping[str, str], *, signed: Collection[str] | None = None) -> None:
        """Go on with these zones instead; the keys of those that were signed stay."""
        self.stop()
        self.zones = dict(zones)
        self.signed = self.signed if signed is None else signed
        self.resume()

    def key(self, domain: str) -> str:
        """The key that a validating resolver is to trust, as a record."""
        answer = dns.query.tcp(dns.message.make_query(domain, "DNSKEY"), self.address, port=self.port, timeout=5)
        (found,) = (each for rrset in answer.answer for each in rrset if each.flags == SECURE_ENTRY_POINT)
        return f"{domain}. DNSKEY {found.to_text()}"

    def _loaded(self) -> bool:
        return all(self._answers(domain) for domain in self.zones)

    def _answers(self, domain: str) -> bool:
        question = dns.message.make_query(domain, "DNSKEY" if domain in self.signed else "SOA")
        try:
            return bool(dns.query.udp(question, self.address, timeout=0.05, port=self.port).answer)
        except (dns.exception.Timeout, OSError):
            return False
