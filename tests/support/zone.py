"""A real authoritative name server (Knot, from Debian) on a free loopback port.

Knows alone: how knotd runs from an unpacked package. Limits: it answers for its zones only, REFUSED for the rest (give
it a zone "." and the rest is NXDOMAIN); it is no resolver, so names a zone points at must be in a zone here too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import dns.exception
import dns.message
import dns.query

from tests.support import debian
from tests.support.program import Program, free_port

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
    """Knot with `zones`: domain → text of its zone file."""

    def __init__(self, folder: Path, zones: Mapping[str, str], *, address: str = "127.0.0.1", port: int = 0) -> None:
        debian.require("knot")
        self.folder, self.zones = folder, dict(zones)
        self.address, self.port = address, port or free_port(address)
        self.program = Program(
            [debian.root_of("knot") / "usr/sbin/knotd", "-c", folder / "knot.conf"],
            folder,
            name="knot",
            env={"LD_LIBRARY_PATH": debian.library_path("knot")},
        )

    @classmethod
    def start(cls, folder: Path, zones: Mapping[str, str], *, address: str = "127.0.0.1", port: int = 0) -> Self:
        """Start one under `folder`/zone."""
        zone = cls(folder / "zone", zones, address=address, port=port)
        zone.resume()
        return zone

    @property
    def server(self) -> str:
        """As [delivery] dns wants it."""
        return f"{self.address}:{self.port}"

    def resume(self) -> None:
        """Start, or start again, on the same port."""
        config = CONFIG.format(folder=self.folder, address=self.address, port=self.port)
        (self.folder / "knot.conf").write_text(config + "".join(f'- domain: "{domain}"\n' for domain in self.zones))
        for domain, text in self.zones.items():
            # "%s" in the settings is the name without its final dot; the root's name is nothing but one.
            (self.folder / f"{domain.rstrip('.')}.zone").write_text(text)
        self.program.start(self._loaded)

    def stop(self) -> None:
        self.program.stop()

    def change(self, zones: Mapping[str, str]) -> None:
        """Go on with these zones instead."""
        self.stop()
        self.zones = dict(zones)
        self.resume()

    def _loaded(self) -> bool:
        return all(self._answers(domain) for domain in self.zones)

    def _answers(self, domain: str) -> bool:
        question = dns.message.make_query(domain, "SOA")
        try:
            return bool(dns.query.udp(question, self.address, timeout=0.05, port=self.port).answer)
        except (dns.exception.Timeout, OSError):
            return False
