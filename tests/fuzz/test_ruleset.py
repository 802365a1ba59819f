"""Whatever stands in a rules file, it is a rule set or one RuleError; and an address means one thing, both ways."""

import re
import tomllib
from importlib.resources import files

from hypothesis import example, given, settings
from hypothesis import strategies as st

from rules.address import Relay, is_name, route, to_collector, to_welyb
from rules.path import Path
from rules.ruleset import RuleError, RuleSet, load
from rules.units import parse_size
from tests.support.effort import examples

DOMAIN = "welyb.fr"
NAMES = st.from_regex(r"[a-z0-9](\.?[a-z0-9_-]){0,20}", fullmatch=True)
WORDS = st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True)
KEYS = (
    *("address", "relay", "file", "senders", "names", "documents", "max_document_size", "refuse", "accept", "case"),
    *("origins", "small_image", "sender", "adresse"),
)
SAYINGS = ("meg+{name}", "{name}@far.test", "{client}", "Ventes/{year}", "trusted", "any", "10 MB", "zip", "lower", "")
VALUES = st.one_of(st.sampled_from(SAYINGS), st.text(max_size=12), st.integers(), st.lists(st.sampled_from(SAYINGS)))


def written(value: str | int | list[str]) -> str:
    """As TOML: JSON's escapes are TOML's too, for a basic string."""
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, int):
        return str(value % 1000)
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in value) + '"'


TOLD = re.compile(r"t\.toml:(\d+): .+ Remedy: .+\.", re.DOTALL)
SHIPPED = (files("rules") / "welyb.toml").read_text("utf-8")


def assert_rules_or_told(text: str) -> None:
    try:
        assert load(text, "t.toml").rules
    except RuleError as error:
        told = TOLD.fullmatch(str(error))
        assert told and 1 <= int(told[1]) <= text.count("\n") + 1, error


@given(st.text(max_size=200))
@example("a = " + "[" * 5000)
@example("a = " + "9" * 5000)
@example('[rule.a]\naddress = "a"\nsenders' + ".a" * 5000 + " = 1")
@example('[rule.a]\naddress = "a"\nmax_document_size = "' + "9" * 400 + ' GB"')
@example('[rule.a]\naddress = "a"\nmax_document_size = 0x' + "f" * 9000)
def test_any_text_is_a_rule_set_or_a_rule_error(text: str) -> None:
    assert_rules_or_told(text)


@given(st.data())
@settings(max_examples=examples(200))
def test_the_shipped_rules_tampered_with_are_rules_or_a_rule_error(data: st.DataObject) -> None:
    text = SHIPPED
    for _ in range(data.draw(st.integers(1, 4))):
        at, length = data.draw(st.integers(0, len(text))), data.draw(st.integers(0, 30))
        added = data.draw(
            st.sampled_from(['"', "[", "]", "=", "\n", "#", "{", "}", "+", "@", ".", "\0"]) | st.text(max_size=6)
        )
        text = text[:at] + added + text[at + length :]
    assert_rules_or_told(text)


@given(st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5), min_size=1, max_size=3))
def test_any_tables_are_a_rule_set_or_a_rule_error(tables: list[dict[str, str | int | list[str]]]) -> None:
    text = "".join(
        f"[rule.r{i}]\n" + "".join(f"{k} = {written(v)}\n" for k, v in t.items()) for i, t in enumerate(tables)
    )
    tomllib.loads(text)
    try:
        ruleset = load(text, "t.toml")
    except RuleError as error:
        assert "Remedy: " in str(error)
    else:
        assert {rule.name for rule in ruleset.rules} == {f"r{i}" for i in range(len(tables))}
        assert all((rule.relay is None) != (rule.file is None) for rule in ruleset.rules)


@st.composite
def rule_sets(draw: st.DrawFn) -> RuleSet:
    """Rules of the kinds partners have: several prefixes, one the beginning of another, a placeholder anywhere."""
    prefixes = draw(
        st.lists(st.lists(WORDS, min_size=1, max_size=3).map("+".join), min_size=1, max_size=4, unique=True)
    )
    text = ""
    for i, prefix in enumerate(prefixes):
        head, tail = draw(st.sampled_from([("", ""), ("", "+ventes"), ("achat.", ""), ("invoice+", "")]))
        text += f'[rule.r{i}]\naddress = "{prefix}+{{name}}"\nrelay = "{head}{{name}}{tail}@c{i}.test"\n'
    return load(text, "t.toml")


@given(rule_sets(), NAMES)
def test_welyb_and_collector_address_go_back_and_forth_exactly(ruleset: RuleSet, name: str) -> None:
    for rule in ruleset.rules:
        assert rule.relay is not None
        collector = rule.relay.fill(name)
        welyb = to_welyb(collector, ruleset, DOMAIN)
        if welyb is not None:  # None where another rule owns the form: never a guess
            assert to_collector(welyb, ruleset, DOMAIN) == collector
            assert to_welyb(collector.upper(), ruleset, DOMAIN.upper()) == welyb


@given(rule_sets(), st.lists(st.one_of(WORDS, NAMES, st.just("")), min_size=1, max_size=5).map("+".join))
def test_what_is_relayed_has_a_rules_form_exactly(ruleset: RuleSet, local: str) -> None:
    found = route(Path(local, DOMAIN, {}), ruleset, DOMAIN, {})
    if isinstance(found, Relay):
        value = local.removeprefix(found.rule.address.before)
        assert found.rule.address.fill(value) == local
        assert is_name(value)
        assert found.rule.relay is not None
        assert found.collector == found.rule.relay.fill(value)
        longest = max((r.address.before for r in ruleset.rules if local.startswith(r.address.before)), key=len)
        assert found.rule.address.before == longest


@given(st.text(max_size=20))
def test_a_size_is_a_number_or_a_value_error(text: str) -> None:
    try:
        assert parse_size(text) >= 0
    except ValueError as error:
        assert "is not a size" in str(error)
