"""Who speaks to us: an address, the networks it may lie in, and what is known of whoever is behind it.

Knows alone: how networks and forwarders are written, and that an IPv4 address has an IPv6 form. Limits: behind a
proxy or an MTA every stranger comes from loopback, so who the peer really is is the shell's to find out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Network = IPv4Network | IPv6Network


def networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """The networks of a setting; ValueError names the bad one."""
    return tuple(ip_network(text) for text in texts)


@lru_cache(1024)  # asked several times for each connection
def plain(ip: str) -> str:
    """`ip`, but an IPv4 address in its IPv6 form (::ffff:192.0.2.1, ::ffff:c000:201) as the IPv4 address that it is."""
    if ":" not in ip:
        return ip
    try:
        mapped = IPv6Address(ip).ipv4_mapped
    except ValueError:
        return ip
    return str(mapped) if mapped else ip


def is_trusted(peer: str, trusted: Sequence[Network]) -> bool:
    """Does `peer`, an IP address in text, lie in one of the trusted networks? An unreadable one never does."""
    try:
        address = ip_address(plain(peer.partition("%")[0]))
    except ValueError:
        return False
    return any(address in network for network in trusted if network.version == address.version)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who speaks to us: its address, and whether we trust it, for its network or for the password it gave.

    `rules` are those a user may use; none named: every rule.
    """

    ip: str
    trusted: bool
    user: str = ""
    rules: frozenset[str] = frozenset()

    def is_trusted_for(self, rule: str) -> bool:
        return self.trusted and (not self.rules or rule in self.rules)


@dataclass(frozen=True, slots=True)
class Forwarders:
    """Who passes on others' mail with our leave: mailing lists and mailboxes that break what DMARC asks for."""

    networks: tuple[Network, ...] = ()
    domains: frozenset[str] = frozenset()


_DOMAIN = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_-]{1,63}\.)+[a-z][a-z0-9-]{0,62}")


def forwarders(texts: Sequence[str]) -> Forwarders:
    """Networks and domains of a setting, mixed; ValueError names the bad one."""
    domains = frozenset(text.lower() for text in texts if _DOMAIN.fullmatch(text.lower()))
    return Forwarders(networks([text for text in texts if text.lower() not in domains]), domains)
