"""May this peer send there? (domain.md §4 "Addresses and who may use them".)

Knows alone: what trust is needed for which address form. Limits: it judges the peer it is given; behind a proxy or an
MTA every stranger comes from loopback, so who the peer really is is the shell's to find out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import assert_never

from rules.address import Bounce, File, Postmaster, Relay
from rules.replies import NOT_ALLOWED, Reply

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Allow:
    pass


@dataclass(frozen=True, slots=True)
class Refuse:
    reply: Reply


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """The networks of a setting; ValueError names the bad one."""
    return tuple(ip_network(text) for text in texts)


def is_trusted(peer: str, trusted: Sequence[Network]) -> bool:
    """Does `peer`, an IP address in text, lie in one of the trusted networks? An unreadable one never does."""
    try:
        address = ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped  # ::ffff:127.0.0.1 is 127.0.0.1 seen through a dual-stack socket
    return any(address in network for network in trusted if network.version == address.version)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who speaks to us: its address, and whether it stands in a trusted network."""

    ip: str
    trusted: bool


def may_send(route: Relay | File | Postmaster | Bounce, peer: Peer) -> Allow | Refuse:
    match route:
        case Relay(rule=rule) | File(rule=rule):
            return Allow() if rule.senders == "anyone" or peer.trusted else Refuse(NOT_ALLOWED)
        case Postmaster() | Bounce():
            return Allow()  # RFC 5321 §4.5.1; a bounce carries its own proof, the token
        case _:
            assert_never(route)
