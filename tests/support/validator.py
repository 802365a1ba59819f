"""A real validating resolver (Unbound, from Debian) on a free loopback port, in front of a Zone.

Knows alone: how unbound runs from an unpacked package. Limits: it trusts the keys that the zone's signed domains have
when it is made, and nothing else; it keeps no answer, so that a changed zone is seen at once.
"""

from pathlib import Path
from typing import Self

import dns.exception
import dns.message
import dns.query

from tests.support import debian
from tests.support.program import Program, free_port
from tests.support.zone import Zone

CONFIG = """\
server:
  directory: "{folder}"
  chroot: ""
  username: ""
  pidfile: ""
  use-syslog: no
  interface: 127.0.0.1
  port: {port}
  num-threads: 1
  module-config: "validator iterator"
  do-not-query-localhost: no
  cache-max-ttl: 0
  cache-max-negative-ttl: 0
  infra-host-ttl: 0
remote-control:
  control-enable: no
"""


class Validator:
    def __init__(self, folder: Path, zone: Zone) -> None:
        debian.require("unbound")
        self.zone, self.port = zone, free_port()
        anchors = "".join(f'server:\n  trust-anchor: "{zone.key(domain)}"\n' for domain in zone.signed)
        stubs = "".join(
            f'stub-zone:\n  name: "{domain}"\n  stub-addr: {zone.address}@{zone.port}\n' for domain in zone.zones
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "unbound.conf").write_text(CONFIG.format(folder=folder, port=self.port) + anchors + stubs)
        self.program = Program(
            [debian.root_of("unbound") / "usr/sbin/unbound", "-d", "-p", "-c", folder / "unbound.conf"],
            folder,
            name="unbound",
            env={"LD_LIBRARY_PATH": debian.library_path("unbound")},
        )

    @classmethod
    def start(cls, folder: Path, zone: Zone) -> Self:
        """Start one under `folder`/validator."""
        validator = cls(folder / "validator", zone)
        validator.resume()
        return validator

    @property
    def server(self) -> str:
        """As [delivery] dns wants it."""
        return f"127.0.0.1:{self.port}"

    def resume(self) -> None:
        """Start, or start again, on the same port; with it go a minute's doubts about keys that were not there."""
        self.program.start(self._answers)

    def stop(self) -> None:
        self.program.stop()

    def _answers(self) -> bool:
        question = dns.message.make_query(next(iter(self.zone.zones)), "SOA")
        try:
            return bool(dns.query.udp(question, "127.0.0.1", timeout=0.2, port=self.port).answer)
        except (dns.exception.Timeout, OSError):
            return False
