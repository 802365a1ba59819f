"""The far side as the internet shows it: MX records that lead to a collector on port 25.

Limits: loopback; root, for the port; no DNSSEC.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.support import debian
from tests.support.collector import Collector
from tests.support.program import free_address
from tests.support.zone import Zone, zone_text

DOMAINS = ("factures-meg.fr", "achats.factures-meg.fr", "dext.cc")


@dataclass(frozen=True, slots=True)
class Partner:
    """A collector, and the name server that knows where it is."""

    collector: Collector
    zone: Zone

    @classmethod
    def start(cls, folder: Path, *, domains: Sequence[str] = DOMAINS, **behaviour: Any) -> Self:
        """Both, for all `domains`; whatever else is asked of the name server does not exist."""
        debian.require("postfix", "knot", "port 25")
        collector = Collector.start(folder, domains=domains, address=free_address(25), port=25, **behaviour)
        zones = {domain: zone_text("@ MX 10 mx", f"mx A {collector.address}") for domain in domains}
        try:
            return cls(collector, Zone.start(folder, {**zones, ".": zone_text()}))
        except BaseException:
            collector.stop()
            raise

    def stop(self) -> None:
        self.zone.stop()
        self.collector.stop()
