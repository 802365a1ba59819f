"""What is known of one MX host → the TLS it must give us before a message may go there.

Knows alone: the order of precedence. A host's usable TLSA records decide alone, so that MTA-STS never overrides a DANE
failure (RFC 8461 §2); then the domain's MTA-STS policy; then the postmaster's word; else encryption for whoever answers.
The postmaster's word, `[delivery.tls]`: "required" is a floor, and what DANE or MTA-STS ask beyond it holds. "opportunistic"
written down lets neither be asked: it is for a partner whose published policy is broken, and nobody else writes it.
Limits: a domain whose MX records are not signed has no DANE here, even if its hosts have TLSA records.
"""

from dataclasses import dataclass

from rules import dane, sts
from rules.dane import Tlsa
from rules.outcome import Fault
from rules.sts import Mode, StsPolicy


@dataclass(frozen=True, slots=True)
class Opportunistic:
    """TLS where it is to be had, in clear where not (RFC 7435)."""


@dataclass(frozen=True, slots=True)
class Required:
    """TLS, with whoever answers."""


@dataclass(frozen=True, slots=True)
class Verified:
    """TLS with a certificate of a known authority for the name of the MX host (RFC 8461 §4.1)."""


@dataclass(frozen=True, slots=True)
class Dane:
    """TLS with a certificate that one of `records` names; under DANE-TA it must bear one of `names`, the SNI first."""

    records: tuple[Tlsa, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Withheld:
    """Nothing may go to this host now."""

    fault: Fault
    why: str


@dataclass(frozen=True, slots=True)
class Trial:
    """MTA-STS in mode testing: what `asked` finds wrong is told, and the message goes as under `otherwise`."""

    asked: Verified | Withheld
    otherwise: Opportunistic | Required


Policy = Opportunistic | Required | Verified | Dane | Withheld | Trial


@dataclass(frozen=True, slots=True)
class Host:
    """An MX host of `domain`; `base` is where its TLSA records were found (RFC 7672 §2.2.2), its own name or an alias's."""

    name: str
    domain: str
    base: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """The DNS did not say whether a signed host has TLSA records."""

    why: str


def policy(setting: str, host: Host, *, tlsa: tuple[Tlsa, ...] | Unknown, published: StsPolicy | None) -> Policy:
    """`setting` is "opportunistic", "required" or "" where the postmaster says nothing; `tlsa` what DNSSEC vouches for,
    `published` the domain's MTA-STS policy."""
    if setting == "opportunistic":
        return Opportunistic()
    if isinstance(tlsa, Unknown):  # RFC 7672 §2.1.1: to go on would be the downgrade an attacker wants
        return Withheld(Fault.DNS, tlsa.why)
    records = dane.usable(tlsa)
    if records:
        return Dane(records, tuple(dict.fromkeys((host.base, host.name, host.domain))))
    # RFC 7672 §2.2: records that cannot be used still say that there is TLS.
    least = Required() if tlsa or setting == "required" else Opportunistic()
    if published is None or published.mode is Mode.NONE:
        return least
    asked = (
        Verified()
        if sts.allows(published, host.name)
        else Withheld(Fault.TLS, f"{host.name} is not in the MTA-STS policy of {host.domain}")
    )
    return asked if published.mode is Mode.ENFORCE else Trial(asked, least)


def word(policy: Policy) -> str:
    """For people, and beside the TLS version of a delivery: how a host is known."""
    match policy:
        case Dane():
            return "dane"
        case Verified():
            return "sts"
        case Trial():
            return "sts-testing"
        case Required():
            return "required"
        case Withheld():
            return "withheld"
        case Opportunistic():
            return "opportunistic"
