"""One invariant sentence per reader of addresses, for any bytes and any names at all."""

from importlib.resources import files

from hypothesis import example, given
from hypothesis import strategies as st

from rules import address, path, ruleset
from rules.address import Refuse, Relay
from rules.ruleset import Rule

SHIPPED = ruleset.load((files("rules") / "welyb.toml").read_text("utf-8"), "rules/welyb.toml")
RELAYING = [rule for rule in SHIPPED.rules if rule.relay]

names = st.from_regex(r"[a-z0-9](\.?[a-z0-9_-]){0,63}", fullmatch=True).filter(address.is_name)
# Addresses in which the dangerous things are common.
PIECES = [b"meg", b"achats", b"ventes", b"+", b"@", b"welyb.fr", b"factures-meg.fr", b".", b"%", b"!", b'"', b"\\"]
PIECES += [b"<", b">", b" ", b":", b",", b"\x00", b"\xc5\xbf", b"\xe9", b"dupont", b"SIZE=1", b"(", b"[127.0.0.1]"]
awkward = st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=12).map(b"".join)


@given(awkward)
@example(b'<"meg+\\"x"@welyb.fr>')
def test_a_path_is_a_problem_or_reads_back_as_itself(argument: bytes) -> None:
    found = path.parse(argument)
    if isinstance(found, path.Path):
        again = path.parse(f"<{found.address}>".encode("ascii"))
        assert isinstance(again, path.Path)
        assert (again.local, again.domain) == (found.local, found.domain)
        assert found.address.isascii() and found.address.isprintable()


@given(awkward)
def test_nothing_leads_to_a_collector_but_the_address_that_stands_for_it(argument: bytes) -> None:
    found = path.parse(argument)
    if not isinstance(found, path.Path):
        return
    led = address.route(found, SHIPPED, "welyb.fr", {})
    if isinstance(led, Relay):
        assert found.address.lower() == led.address
        name, _, domain = led.collector.partition("@")
        assert address.is_name(name)
        assert domain in ("factures-meg.fr", "achats.factures-meg.fr")
        assert address.to_welyb(led.collector, SHIPPED, "welyb.fr") == led.address


@given(names, st.sampled_from(RELAYING))
@example("achats", RELAYING[-1])
def test_both_addresses_of_a_name_lead_to_each_other_exactly_or_not_at_all(name: str, rule: Rule) -> None:
    assert rule.relay is not None
    collector = rule.relay.fill(name)
    welyb = address.to_welyb(collector, SHIPPED, "welyb.fr")
    if name == "achats" and rule.name == "meg":
        assert welyb is None  # meg+achats@ is the forgotten name
    else:
        assert welyb is not None
        assert address.to_collector(welyb, SHIPPED, "welyb.fr") == collector
        assert isinstance(path.parse(f"<{welyb}>".encode()), path.Path)


@given(names, names, st.sampled_from(RELAYING), st.sampled_from(RELAYING))
def test_two_companies_never_share_an_address(one: str, other: str, rule: Rule, second: Rule) -> None:
    if (one, rule.name) != (other, second.name):
        assert rule.address.fill(one) != second.address.fill(other)


@given(st.text(max_size=30) | awkward.map(lambda b: b.decode("latin-1")), st.sampled_from(RELAYING))
def test_what_a_connection_takes_is_routed_where_it_says(typed: str, rule: Rule) -> None:
    pair = address.pair(typed, rule, SHIPPED, "welyb.fr")
    if pair is None:
        return
    found = path.parse(f"<{pair.welyb}>".encode())
    assert isinstance(found, path.Path)
    entry = {pair.welyb.partition("@")[0]: address.Registered(rule.name, pair.collector, "x")}
    led = address.route(found, SHIPPED, "welyb.fr", entry)
    assert isinstance(led, Relay) and led.collector == pair.collector
    unregistered = address.route(found, SHIPPED, "welyb.fr", {})
    if pair.exact:
        assert isinstance(unregistered, Relay) and unregistered.collector.lower() == pair.collector.lower()
    else:
        assert isinstance(unregistered, Refuse)
