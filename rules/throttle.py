"""May one more come now, from there or for that? (domain.md §2: probing is throttled; a flood must not fill one client.)

Knows alone: who a mail or a RCPT counts against, and the arithmetic, which is a bucket: it holds as many as the limit says,
every mail takes one out, and it fills again evenly. So a rush as large as the limit passes at once, a longer one at the
limit's pace, and whoever was held back is let through as soon as there is one to take.

Limits: who sends from many networks, or under many domains, has as many buckets. An IPv6 peer is its /64: one line of one
customer. A sender's domain is what the envelope says, proved by nobody. A host that forwards for thousands is one peer:
who probes from there makes the others wait too, never lose.
"""

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address
from typing import Literal, assert_never, get_args

from rules import peer
from rules.address import MAILBOXES, Bounce, File, Postmaster, Relay
from rules.path import Path
from rules.units import Limit

Kind = Literal["peer", "sender_domain", "client", "unknown", "passwords"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_ALMOST = 1e-6  # of one mail: what a division loses


# --- who it counts against --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subject:
    """`name`: an IPv4 address or an IPv6 /64, a domain, a client's slug or a collector's address."""

    kind: Kind
    name: str


@lru_cache(1024)  # asked several times for each mail of a conversation
def network(ip: str) -> str:
    """An IPv4 address as it is, an IPv6 one (or its /64) as its /64, in their one spelling."""
    if ":" not in ip:
        return ip
    bare = peer.plain(ip.partition("%")[0].removesuffix("/64"))
    if ":" not in bare:
        return bare
    try:
        address = IPv6Address(bare)
    except ValueError:
        return ip
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


def of_mail(ip: str, sender: str) -> tuple[Subject, ...]:
    """Peer and domain of the envelope sender; the null sender has none: reports of failure must come in."""
    return (of_peer(ip), *of_domain(sender))


def of_peer(ip: str) -> Subject:
    return Subject("peer", network(ip))


def of_domain(sender: str) -> tuple[Subject, ...]:
    domain = sender.rpartition("@")[2].lower() if "@" in sender else ""
    return (Subject("sender_domain", domain),) if domain else ()


def of_probe(ip: str) -> Subject:
    """Whoever asks for an address that is unknown."""
    return Subject("unknown", network(ip))


def of_guess(ip: str) -> Subject:
    """Whoever gives a password that is wrong."""
    return Subject("passwords", network(ip))


def of_route(route: Relay | File | Postmaster | Bounce, slug: str = "") -> Subject | None:
    """The client, by the `slug` it is known under, else the collector; None for what is for people, and for reports."""
    match route:
        case File(client=client):
            return Subject("client", slug or client)
        case Relay(client=client, collector=collector):
            return Subject("client", client or collector.lower())
        case Postmaster() | Bounce():
            return None
        case _:
            assert_never(route)


def is_for_people(asked: Path) -> bool:
    """postmaster@ and abuse@ (RFC 5321 §4.5.1), of whatever domain: they are held back only for abuse."""
    return asked.local.lower() in MAILBOXES


# --- how much is left -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Account:
    """How many were left at the instant `at`, in seconds of a clock that is never put back. None stands for a full one."""

    left: float
    at: float


def _left(account: Account | None, limit: Limit, now: float) -> float:
    if account is None:
        return limit.count
    left = max(account.left, -limit.count)  # never more is owed than the limit, which may be another than it was
    return min(limit.count, left + max(0.0, now - account.at) * limit.rate)


def taken(account: Account | None, limit: Limit, now: float) -> Account:
    """After one more. What many connections brought at once is owed."""
    return Account(_left(account, limit, now) - 1, now)


def wait(account: Account | None, limit: Limit, now: float) -> float:
    """Seconds until one more may come; 0: now."""
    return _until(1, account, limit, now)


def wait_for_people(account: Account | None, limit: Limit, now: float) -> float:
    """The same for mail to people, who must be reached short of abuse: it may come until the limit is owed once more."""
    return _until(1 - limit.count, account, limit, now)


def _until(wanted: float, account: Account | None, limit: Limit, now: float) -> float:
    if not limit.count:
        return 0.0
    missing = wanted - _left(account, limit, now)
    return missing / limit.rate if missing > _ALMOST else 0.0
