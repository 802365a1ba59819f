"""Opens sessions with the hosts of a destination, each under the TLS that is asked of it.

Knows alone: which facts that rests on, and in which order they are had: the postmaster's word, the host's TLSA records,
the MTA-STS policy of the domain, once a run. A fixed route has the postmaster's word only: its host is named by us.
Limits: where the addresses of a host are not signed its TLSA records are not asked for, even if the alias that led
there is (RFC 7672 §2.2.2 would allow it).
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import assert_never

from dns.rdtypes.ANY.TLSA import TLSA

from relay import log
from relay.config import Config
from relay.deliver import Connection, Destination, Tls
from relay.dns import DnsTrouble, Records, Resolver
from relay.trust import Trust
from rules import tls
from rules.dane import Tlsa
from rules.outcome import Outcome, of_fault
from rules.sts import StsPolicy
from rules.tls import Host, Opportunistic, Trial, Unknown, Withheld


@dataclass(frozen=True, slots=True)
class Means:
    """`published` gives the MTA-STS policy of a domain, if there is one."""

    resolver: Resolver
    trust: Trust
    published: Callable[[str], Awaitable[StsPolicy | None]]


class Caller:
    """For one run."""

    def __init__(self, config: Config, means: Means) -> None:
        self._config = config
        self._means = means
        self._published: dict[str, StsPolicy | None] = {}

    async def call(self, domain: str, place: Destination) -> Connection | Outcome:
        """A session with this host of `domain`, or why there is none."""
        policy = await self.policy(domain, place)
        match policy:
            case Withheld(fault, why):
                return of_fault("starttls", fault, why)
            case Trial():
                return await self._tried(place, policy)
            case _:
                return await self._opened(place, policy)

    async def policy(self, domain: str, place: Destination) -> tls.Policy:
        setting = self._config.delivery.tls.get(domain.lower(), "")
        if setting == "opportunistic" or domain.lower() in self._config.delivery.routes:
            return tls.Required() if setting == "required" else Opportunistic()
        base, records = await self._tlsa(place)
        host = Host(place.host, domain.lower(), base)
        return tls.policy(setting, host, tlsa=records, published=await self._sts(domain.lower()))

    async def _tlsa(self, place: Destination) -> tuple[str, tuple[Tlsa, ...] | Unknown]:
        """Where the TLSA records of a host are, and what they say: none, perhaps (RFC 7672 §2.2.3)."""
        for base in dict.fromkeys(name for name in (place.alias_of, place.host) if place.alias_of):
            answer = await self._means.resolver.records(f"_{place.port}._tcp.{base}", "TLSA")
            if isinstance(answer, DnsTrouble):
                return base, Unknown(answer.text)
            if isinstance(answer, Records) and answer.secure and answer.data:
                found = [each for each in answer.data if isinstance(each, TLSA)]
                return base, tuple(Tlsa(each.usage, each.selector, each.mtype, each.cert) for each in found)
        return place.host, ()

    async def _sts(self, domain: str) -> StsPolicy | None:
        if domain not in self._published:
            self._published[domain] = await self._means.published(domain)
        return self._published[domain]

    async def _tried(self, place: Destination, trial: Trial) -> Connection | Outcome:
        """Under a policy in mode testing: what it would have refused is told, and goes all the same."""
        match trial.asked:
            case Withheld():
                why = "not in the policy"
            case tls.Verified():
                opened = await self._opened(place, trial.asked)
                if isinstance(opened, Connection) or opened.stage != "starttls":
                    return opened
                why = opened.text if opened.fault else str(opened.code)  # a log has no words of the far side
            case _:
                assert_never(trial.asked)
        log.sts_testing(str(place), why)
        return await self._opened(place, trial.otherwise)

    async def _opened(self, place: Destination, asked: Tls) -> Connection | Outcome:
        return await Connection.open(place, hostname=self._config.relay.hostname, tls=asked, trust=self._means.trust)
