"""Where mail for an address goes, and which Welyb address stands for which collector.

Knows alone: what a legal address form is (domain.md §4 "Addresses"). When an address does not parse exactly it is
refused: a guess could reach another company's books.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rules import replies
from rules.path import Path
from rules.replies import Reply
from rules.ruleset import Rule, RuleSet

NAME = re.compile(r"[a-z0-9](?:\.?[a-z0-9_-])*")  # no doubled or trailing dot
MAX_NAME = 64
BOUNCE_PREFIX = "retours+"
TOKEN = re.compile(r"[a-z2-7]{24}")
_PROOF = re.compile(r"(?<=retours\+)[a-z2-7]{24}(?![a-z2-7])", re.IGNORECASE)
MAILBOXES = ("postmaster", "abuse")  # RFC 5321 §4.5.1, RFC 2142


@dataclass(frozen=True, slots=True)
class Relay:
    """Sent on at the next run. `address` is the Welyb address in its one spelling, `collector` where it goes."""

    rule: Rule
    address: str
    collector: str
    client: str  # "" where no connection registered the address


@dataclass(frozen=True, slots=True)
class File:
    """Filed for the client with this slug. Whether there is such a client is the shell's to know."""

    rule: Rule
    address: str
    client: str


@dataclass(frozen=True, slots=True)
class Postmaster:
    address: str


@dataclass(frozen=True, slots=True)
class Bounce:
    """For `retours+TOKEN`. That the token is one of ours is the shell's to verify."""

    address: str
    token: str


@dataclass(frozen=True, slots=True)
class Refuse:
    reply: Reply


@dataclass(frozen=True, slots=True)
class Registered:
    """What a connection registered for one Welyb address: rule, collector in its registered spelling, client's slug."""

    rule: str
    collector: str
    client: str


Route = Relay | File | Postmaster | Bounce | Refuse


def route(path: Path, ruleset: RuleSet, domain: str, registered: Mapping[str, Registered]) -> Route:
    """Where mail for `path` goes. `registered` maps lower-case Welyb local parts to what connections registered."""
    local = path.local.lower()
    if local == "postmaster" and not path.domain:
        return Postmaster(f"postmaster@{domain}")
    if path.domain.lower() != domain.lower():
        return Refuse(replies.NOT_ALLOWED)
    address = f"{local}@{domain.lower()}"
    if local in MAILBOXES:
        return Postmaster(address)
    if local.startswith(BOUNCE_PREFIX):
        token = local.removeprefix(BOUNCE_PREFIX)
        return Bounce(address, token) if TOKEN.fullmatch(token) else Refuse(replies.UNKNOWN)
    entry = registered.get(local)
    rule = ruleset.named(entry.rule) if entry else None
    if entry and rule and rule.relay:
        return Relay(rule, address, entry.collector, client=entry.client)
    return _by_form(path.local, address, ruleset)


def _by_form(local: str, address: str, ruleset: RuleSet) -> Route:
    rule, value = _matching(local, ruleset)
    if rule is None or value is None:
        return Refuse(replies.MALFORMED)
    if rule.file is not None:
        return File(rule, address, value.lower())
    if rule.names == "registered":
        return Refuse(replies.UNKNOWN)
    assert rule.relay is not None  # the rule set holds one or the other
    spelled = value if rule.case == "preserve" else value.lower()
    return Relay(rule, address, rule.relay.fill(spelled), client="")


def _matching(local: str, ruleset: RuleSet) -> tuple[Rule | None, str | None]:
    """The rule whose form `local` has, with the name it holds; (None, None) if it has none exactly."""
    for rule in ruleset.rules:
        value = rule.address.match(local)
        if value is None:
            continue
        if rule.address.field and not is_name(value.lower()):
            return None, None  # it has this rule's beginning: no shorter form may claim it
        if _forgotten_name(local, ruleset):
            return None, None
        return rule, value
    return None, None


def _forgotten_name(local: str, ruleset: RuleSet) -> bool:
    """`meg+achats` is the beginning of `meg+achats+NAME` without the name, not the company « achats »."""
    return any(rule.address.field and f"{local}+".lower() == rule.address.before.lower() for rule in ruleset.rules)


def is_name(text: str) -> bool:
    """NAME of domain.md §4: lower-case ASCII, 64 at most, no doubled, leading or trailing dot, no `+`."""
    return len(text) <= MAX_NAME and NAME.fullmatch(text) is not None


def unproved(text: str) -> str:
    """What a far side says, without the tokens it quotes: whoever has one may report a failure to `retours+TOKEN`."""
    return _PROOF.sub("***", text)


# --- connections: which two addresses belong together ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pair:
    """A Welyb address and its collector; `exact` is false where only registration makes the Welyb address legal."""

    rule: Rule
    welyb: str
    collector: str
    exact: bool


def to_collector(welyb: str, ruleset: RuleSet, domain: str) -> str | None:
    """The collector a Welyb address of a legal form stands for, else None."""
    local, _, host = welyb.rpartition("@")
    if host.lower() != domain.lower():
        return None
    found = _by_form(local, welyb, ruleset)
    return found.collector if isinstance(found, Relay) else None


def to_welyb(collector: str, ruleset: RuleSet, domain: str) -> str | None:
    """The Welyb address that stands for a collector address, exactly (`to_collector` gives it back), else None."""
    for rule in ruleset.rules:
        value = rule.relay.match(collector) if rule.relay else None
        if value is None:
            continue
        welyb = f"{rule.address.fill(value.lower())}@{domain.lower()}"
        if (to_collector(welyb, ruleset, domain) or "").lower() == collector.lower():
            return welyb
    return None


def pair(typed: str, rule: Rule, ruleset: RuleSet, domain: str) -> Pair | None:
    """What is typed at a connection, a Welyb or a collector address → both. None if it is neither, or means another.

    A name that the form alone would refuse (`a+b`) is taken here, since a person registers it; one that the form
    gives to another rule or name is not.
    """
    if rule.relay is None or not typed.isascii() or not typed.isprintable() or " " in typed:
        return None
    local, _, host = typed.rpartition("@")
    ours = host.lower() == domain.lower()
    value = rule.address.match(local) if ours else rule.relay.match(typed)
    if value is None or (rule.address.field and not is_loose_name(value)):
        return None
    welyb_local = rule.address.fill(value.lower())
    spelled = value.lower() if ours and rule.case == "lower" else value
    collector = rule.relay.fill(spelled)
    found, _ = _matching(welyb_local, ruleset)
    meant = to_collector(f"{welyb_local}@{domain}", ruleset, domain)
    if found is not None and (found.name != rule.name or (meant is not None and meant.lower() != collector.lower())):
        return None
    return Pair(rule, f"{welyb_local}@{domain.lower()}", collector, exact=found is not None)


def is_loose_name(value: str) -> bool:
    """What may be registered by hand: dot-atom characters only, never `%`, `!`, `@` or a quote."""
    return bool(re.fullmatch(r"[A-Za-z0-9](?:\.?[A-Za-z0-9_+-])*", value)) and len(value) <= MAX_NAME
