"""How many may come, from where and for whom, and when the next one may."""

from dataclasses import replace
from importlib.resources import files

import pytest

from rules import ruleset, throttle
from rules.address import Bounce, File, Postmaster, Relay
from rules.path import Path
from rules.throttle import Account, Subject
from rules.units import OFF, Limit

SHIPPED = ruleset.load((files("rules") / "welyb.toml").read_text("utf-8"), "rules/welyb.toml")
MEG, VENTES = SHIPPED.named("meg"), SHIPPED.named("ventes")
assert MEG is not None and VENTES is not None

FOUR = Limit(4, 3600)  # one every quarter of an hour
QUARTER = 900.0


# --- who it counts against --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ip", "name"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:0DB8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::/64", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("nonsense:", "nonsense:"),
    ],
)
def test_a_peer_is_an_address_or_a_64(ip: str, name: str) -> None:
    assert throttle.network(ip) == name
    assert throttle.of_probe(ip) == Subject("unknown", name)


@pytest.mark.parametrize(
    ("sender", "domain"),
    [
        ("a@Fournisseur.FR", "fournisseur.fr"),
        ('"a@b"@x.example', "x.example"),
        ("a@[192.0.2.1]", "[192.0.2.1]"),
        ("", ""),  # reports of failure must come in
        ("postmaster", ""),
    ],
)
def test_a_mail_counts_against_its_peer_and_its_domain(sender: str, domain: str) -> None:
    peer = Subject("peer", "192.0.2.1")
    both = (peer, Subject("sender_domain", domain)) if domain else (peer,)
    assert throttle.of_mail("192.0.2.1", sender) == both


RELAY = Relay(MEG, "meg+x@welyb.fr", "X@factures-meg.fr", client="")
FILED = File(VENTES, "ventes+x@welyb.fr", "x")


@pytest.mark.parametrize(
    ("route", "slug", "name"),
    [
        (FILED, "", "x"),
        (FILED, "macon-dupont", "macon-dupont"),  # x was its name before
        (RELAY, "", "x@factures-meg.fr"),
        (replace(RELAY, client="macon-dupont"), "", "macon-dupont"),
        (Postmaster("abuse@welyb.fr"), "", None),
        (Bounce("retours+x@welyb.fr", "x"), "", None),
    ],
)
def test_a_recipient_counts_against_its_client(
    route: Relay | File | Postmaster | Bounce, slug: str, name: str | None
) -> None:
    found = throttle.of_route(route, slug)
    assert (found and found.name) == name
    assert found is None or found.kind == "client"


def test_who_reads_it_are_people() -> None:
    assert throttle.is_for_people(Path("Postmaster", "", {}))
    assert throttle.is_for_people(Path("abuse", "welyb.fr", {}))
    assert not throttle.is_for_people(Path("ventes+abuse", "welyb.fr", {}))


# --- how many, and when -----------------------------------------------------------------------------------------------


def after(times: list[float], limit: Limit = FOUR) -> Account | None:
    """What mails at these times, in seconds, leave."""
    account = None
    for at in times:
        account = throttle.taken(account, limit, at)
    return account


@pytest.mark.parametrize(
    ("times", "now", "wait"),
    [
        ([], 0, 0),
        ([0, 0, 0], 0, 0),  # three of four
        ([0, 0, 0, 0], 0, QUARTER),  # all four: the next in a quarter of an hour
        ([0, 0, 0, 0], 300, 600),
        ([0, 0, 0, 0], QUARTER, 0),
        ([0, 0, 0, 0, QUARTER], QUARTER, QUARTER),  # and then at the limit's pace
        ([0, 0, 0, 0], 3600, 0),
        ([0, 0, 0, 0, 3600, 3600, 3600], 3600, 0),  # a full one again after an hour
        ([0, 0, 0, 0, 3600, 3600, 3600, 3600], 3600, QUARTER),
        ([0, 0, 0, 0, 0, 0], 0, 3 * QUARTER),  # let in at once by many connections: owed
        ([0] * 100, 0, 5 * QUARTER),  # but never more than the limit again
        ([1000, 1000, 1000, 1000], 0, QUARTER),  # a clock put back gives nothing and takes nothing
    ],
)
def test_when_the_next_one_may_come(times: list[float], now: float, wait: float) -> None:
    assert throttle.wait(after(times), FOUR, now) == pytest.approx(wait)


@pytest.mark.parametrize("limit", [Limit(1, 1), Limit(3, 60), Limit(7, 3600), Limit(999_999_999, 86_400)])
def test_whoever_waits_as_long_as_told_is_let_in(limit: Limit) -> None:
    account = Account(-limit.count, 0.1)
    assert throttle.wait(account, limit, 0.1 + throttle.wait(account, limit, 0.1)) == 0


@pytest.mark.parametrize(("mails", "waits"), [(4, False), (7, False), (8, True), (100, True)])
def test_people_are_reached_short_of_abuse(mails: int, waits: bool) -> None:
    account = after([0.0] * mails)
    assert throttle.wait(account, FOUR, 0) > 0
    assert bool(throttle.wait_for_people(account, FOUR, 0)) is waits


def test_another_limit_is_in_force_at_once() -> None:
    """What was left under the old one, or owed, is no more than the new one has."""
    assert throttle.wait(Account(10_000, 0), FOUR, 0) == 0
    assert throttle.taken(Account(10_000, 0), FOUR, 0) == Account(3, 0)
    assert throttle.wait(Account(-10_000, 0), FOUR, 0) == 5 * QUARTER
    assert throttle.wait(Account(-10_000, 0), FOUR, 5 * QUARTER) == 0


def test_without_a_limit_nobody_waits() -> None:
    account = Account(-5, 0)
    assert throttle.wait(account, OFF, 0) == throttle.wait_for_people(account, OFF, 0) == 0


def test_over_a_day_the_limit_holds_whatever_the_pace() -> None:
    """Tried every second: the limit at first, then one for each quarter of an hour."""
    account, let_in = None, 0
    for now in range(86_400):
        if not throttle.wait(account, FOUR, now):
            account, let_in = throttle.taken(account, FOUR, now), let_in + 1
    assert let_in == 4 + 24 * 4 - 1
