"""Whose network an address lies in, and how networks and forwarders are written."""

import re

import pytest

from rules.peer import forwarders, is_trusted, networks, plain


@pytest.mark.parametrize(
    ("ip", "trusted"),
    [
        ("127.0.0.1", True),
        ("127.255.255.255", True),
        ("128.0.0.1", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("::1", True),
        ("::2", False),
        ("::ffff:127.0.0.1", True),  # seen through a dual-stack socket
        ("::ffff:192.0.2.8", False),
        ("fe80::1%eth0", True),
        ("", False),
        ("unknown", False),
        ("127.0.0.1.example", False),
    ],
)
def test_trust_is_of_networks(ip: str, trusted: bool) -> None:
    trusted_networks = networks(["127.0.0.0/8", "192.0.2.0/29", "::1/128", "fe80::/10"])
    assert is_trusted(ip, trusted_networks) is trusted


def test_nobody_is_trusted_where_no_network_is() -> None:
    assert not is_trusted("127.0.0.1", networks([]))


def test_a_bad_network_is_named() -> None:
    with pytest.raises(ValueError, match=r"192\.0\.2\.1/24"):
        networks(["127.0.0.0/8", "192.0.2.1/24"])


@pytest.mark.parametrize(
    ("seen", "meant"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::FFFF:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::1", "::1"),
        ("::ffff:1", "::ffff:1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("0:0:0:0:0:FFFF:C000:0201", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("::c000:201", "::c000:201"),
        ("::ffff:x", "::ffff:x"),
        ("", ""),
    ],
)
def test_an_address_seen_through_a_dual_stack_socket(seen: str, meant: str) -> None:
    assert plain(seen) == meant


@pytest.mark.parametrize("bad", ["192.0.2.1/24", "lists example", "localhost", "*.example.org", ""])
def test_a_bad_forwarder_is_named(bad: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(bad) if bad == "" else bad)):
        forwarders(["lists.example.org", bad])
