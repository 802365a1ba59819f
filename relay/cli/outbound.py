"""What `check` says of the way out: where each collector's mail goes, and under which TLS.

Limits: it looks at what is published, and calls nobody: whether a host keeps its word shows when mail is sent.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator

from relay import mtasts
from relay.caller import Caller, Means
from relay.cli.language import t
from relay.config import Config
from relay.deliver import Destination, destinations
from relay.dns import Records, Resolver
from relay.trust import Trust
from rules.outcome import Outcome
from rules.ruleset import RuleSet
from rules.sts import StsPolicy, parse
from rules.tls import Policy, Withheld, word

Found = tuple[str, bool, str, str]  # a Finding: subject, ok, finding, remedy


def findings(config: Config, ruleset: RuleSet) -> Iterator[Found]:
    """MX and TLS of every collector's domain, or its fixed route."""

    async def all_of_them() -> list[Found]:
        return [found async for found in _findings(config, ruleset)]

    yield from _authorities(config)
    yield from asyncio.run(all_of_them())


def _authorities(config: Config) -> Iterator[Found]:
    own = config.delivery.authorities
    try:
        known = Trust(own).known
    except OSError as error:
        remedy = t("corrigez [delivery] authorities", "mend [delivery] authorities")
        yield "authorities", False, f"{own}: {error.strerror or error}", remedy
        return
    finding = t("celles du système", "the system's") + (f", {own}" if own else "")
    none = t("aucune : MTA-STS ne peut être vérifié", "none: MTA-STS cannot be verified")
    yield "authorities", known, finding if known else none, "" if known else "apt-get install ca-certificates"


async def _findings(config: Config, ruleset: RuleSet) -> AsyncIterator[Found]:
    resolver, trust = Resolver(config.delivery.dns), Trust(config.delivery.authorities)

    async def published(domain: str) -> StsPolicy | None:
        if await mtasts.announced(domain, resolver) is None:
            return None
        text = await mtasts.fetched(domain, resolver, trust)
        return parse(text) if isinstance(text, str) else None

    caller = Caller(config, Means(resolver, trust, published))
    domains = {rule.relay.fill("x").rpartition("@")[2].lower() for rule in ruleset.rules if rule.relay}
    for domain in sorted(domains):
        found = await destinations(domain, config.delivery.routes, resolver)
        if isinstance(found, Outcome):
            remedy = t("vérifiez [delivery] dns, ou fixez une route", "look at [delivery] dns, or set a route")
            yield f"dns {domain}", False, found.reply, remedy
            continue
        yield f"dns {domain}", True, ", ".join(map(str, found)), ""
        yield await _tls(domain, found, caller)
    if not domains <= config.delivery.routes.keys():
        async for advice in _validation(resolver):
            yield advice


async def _tls(domain: str, places: tuple[Destination, ...], caller: Caller) -> Found:
    hosts = {place.host: place for place in places}
    policies = {host: await caller.policy(domain, place) for host, place in hosts.items()}
    told = ", ".join(f"{host}: {_told(policy)}" for host, policy in policies.items())
    ok = not any(isinstance(policy, Withheld) for policy in policies.values())
    remedy = t(
        f'prévenez {domain} ; d\'ici là [delivery.tls] "{domain}" = "opportunistic" passe outre',
        f'tell {domain}; until then [delivery.tls] "{domain}" = "opportunistic" sets it aside',
    )
    return f"tls {domain}", ok, told, "" if ok else remedy


def _told(policy: Policy) -> str:
    return f"{word(policy)} ({policy.why})" if isinstance(policy, Withheld) else word(policy)


async def _validation(resolver: Resolver) -> AsyncIterator[Found]:
    """The root is signed: a resolver that does not say so does not look."""
    root = await resolver.records(".", "NS")
    if isinstance(root, Records) and not root.secure:
        finding = t("pas de DNSSEC validé sur cette machine : DANE ne sert pas", "no DNSSEC validated here: no DANE")
        yield "dnssec", True, finding, 'apt-get install unbound; [delivery] dns = ["127.0.0.1:53"]'
