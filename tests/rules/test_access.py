"""Who may send where: trusted senders everywhere, strangers where the rule is open to anyone."""

from dataclasses import replace
from importlib.resources import files

import pytest

from rules import access, ruleset
from rules.access import Allow, Peer, Refuse
from rules.address import Bounce, File, Postmaster, Relay
from rules.replies import NOT_ALLOWED

SHIPPED = ruleset.load((files("rules") / "welyb.toml").read_text("utf-8"), "rules/welyb.toml")
MEG, VENTES = SHIPPED.named("meg"), SHIPPED.named("ventes")
assert MEG is not None and VENTES is not None

OURS, STRANGER = Peer("127.0.0.1", trusted=True), Peer("192.0.2.1", trusted=False)
RELAY = Relay(MEG, "meg+x@welyb.fr", "x@factures-meg.fr", client="")
FILE = File(VENTES, "ventes+x@welyb.fr", "x")


@pytest.mark.parametrize("route", [RELAY, FILE, Postmaster("postmaster@welyb.fr"), Bounce("retours+x@welyb.fr", "x")])
def test_trusted_senders_may_send_anywhere(route: Relay | File | Postmaster | Bounce) -> None:
    assert access.may_send(route, OURS) == Allow()


@pytest.mark.parametrize("route", [FILE, Postmaster("postmaster@welyb.fr"), Bounce("retours+x@welyb.fr", "x")])
def test_anyone_may_send_sales_to_the_postmaster_and_bounces(route: File | Postmaster | Bounce) -> None:
    assert access.may_send(route, STRANGER) == Allow()


def test_a_stranger_may_not_use_a_collection_address() -> None:
    assert access.may_send(RELAY, STRANGER) == Refuse(NOT_ALLOWED)


def test_the_rule_decides_not_its_kind() -> None:
    closed, opened = replace(VENTES, senders="trusted"), replace(MEG, senders="anyone")
    assert access.may_send(replace(FILE, rule=closed), STRANGER) == Refuse(NOT_ALLOWED)
    assert access.may_send(replace(RELAY, rule=opened), STRANGER) == Allow()


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
    networks = access.networks(["127.0.0.0/8", "192.0.2.0/29", "::1/128", "fe80::/10"])
    assert access.is_trusted(ip, networks) is trusted


def test_nobody_is_trusted_where_no_network_is() -> None:
    assert not access.is_trusted("127.0.0.1", access.networks([]))


def test_a_bad_network_is_named() -> None:
    with pytest.raises(ValueError, match=r"192\.0\.2\.1/24"):
        access.networks(["127.0.0.0/8", "192.0.2.1/24"])
