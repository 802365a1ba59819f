"""TOML → rule set: what each key means, and what each mistake is answered."""

from pathlib import Path

import pytest

import rules
from rules.ruleset import KINDS, Pattern, Rule, RuleError, RuleSet, load

SHIPPED = Path(rules.__file__).with_name("welyb.toml")
MINIMAL = '[rule.x]\naddress = "x+{name}"\nrelay = "{name}@far.test"\n'


def one(text: str) -> Rule:
    (rule,) = load(text, "t.toml").rules
    return rule


# --- good ones --------------------------------------------------------------------------------------------------------


def test_the_shipped_rules() -> None:
    ruleset = load(SHIPPED.read_text("utf-8"), "rules/welyb.toml")
    assert [rule.name for rule in ruleset.rules] == ["meg-achats", "ventes", "meg"]  # the longer beginning first
    achats, meg, ventes = (ruleset.named(name) for name in ("meg-achats", "meg", "ventes"))
    assert achats and meg and ventes
    assert achats.relay == Pattern("", "name", "@achats.factures-meg.fr")
    assert meg.relay == Pattern("", "name", "@factures-meg.fr")
    assert (meg.senders, meg.names, meg.documents, meg.case) == ("trusted", "any", "optional", "lower")
    assert meg.origins == achats.origins == {"factures-meg.fr", "achats.factures-meg.fr"}
    assert (ventes.file, ventes.senders, ventes.documents) == ("Ventes/{year}/{month}", "anyone", "required")
    assert {rule.max_document_size for rule in ruleset.rules} == {10_000_000}
    assert {rule.refuse for rule in ruleset.rules} == {frozenset(KINDS)}


def test_a_rule_of_three_lines_has_safe_defaults() -> None:
    expected = Rule("x", Pattern("x+", "name", ""), Pattern("", "name", "@far.test"))
    assert one(MINIMAL) == expected
    assert expected.relay_as == "auto"
    assert (expected.senders, expected.max_document_size, expected.refuse) == ("trusted", 10_000_000, set(KINDS))


def test_every_key() -> None:
    rule = one(
        MINIMAL + 'senders = "anyone"\nnames = "registered"\ndocuments = "required"\nmax_document_size = "10 MiB"\n'
        'refuse = ["zip"]\naccept = ["Application/PDF"]\ncase = "preserve"\norigins = ["Far.Test"]\n'
        'small_image = "5 kB"\nsender = "compta@cabinet.example"\n'
    )
    assert (rule.senders, rule.names, rule.documents, rule.case) == ("anyone", "registered", "required", "preserve")
    assert (rule.max_document_size, rule.small_image) == (10_485_760, 5_000)
    assert (rule.refuse, rule.accept, rule.origins) == ({"zip"}, {"application/pdf"}, {"far.test"})
    assert rule.sender == "compta@cabinet.example"


@pytest.mark.parametrize(
    ("relay", "value", "filled"),
    [
        ("{name}@factures-meg.fr", "macon-dupont", "macon-dupont@factures-meg.fr"),
        ("{name}+ventes@dext.cc", "dupont", "dupont+ventes@dext.cc"),
        ("achat.{name}@inqombox.com", "dupont", "achat.dupont@inqombox.com"),
        ("invoice+{name}@conciliator.ai", "dupont", "invoice+dupont@conciliator.ai"),
        ("collecte@far.test", "dupont", "collecte@far.test"),
    ],
)
def test_what_a_relay_can_say(relay: str, value: str, filled: str) -> None:
    pattern = one(f'[rule.x]\naddress = "x+{{name}}"\nrelay = "{relay}"\n').relay
    assert pattern is not None
    assert pattern.fill(value) == filled
    assert pattern.match(filled.upper()) == (value.upper() if pattern.field else "")
    assert pattern.match("autre" + filled) in (None, "autre" + value)


def test_the_longer_beginning_is_asked_first_whatever_the_order() -> None:
    forms = ("a+{name}", "a+b+{name}", "a+b+c+{name}", "abc+{name}", "a")
    text = "".join(f'[rule.r{i}]\naddress = "{form}"\nrelay = "x@far.test"\n' for i, form in enumerate(forms))
    assert [r.address.before for r in load(text, "t").rules] == ["a+b+c+", "a+b+", "abc+", "a+", "a"]


def test_named_finds_or_not() -> None:
    assert load(MINIMAL, "t").named("x") is not None
    assert load(MINIMAL, "t").named("y") is None
    assert RuleSet(()).named("x") is None


# --- bad ones: what was wrong, where, and what to do ------------------------------------------------------------------

BAD: list[tuple[str, str, str]] = [
    # name, text, what the message holds
    ("no TOML", "[rule.x\n", "t.toml:1: not TOML: "),
    ("empty", "", "t.toml:1: no rule. Remedy: add a [rule.NAME] table"),
    ("rule is no table", "rule = 3\n", "t.toml:1: no rule"),
    ("a stray table", MINIMAL + "[relay]\n", "t.toml:4: unknown key « relay ». Remedy: rules stand in [rule.NAME]"),
    ("a rule that is a text", '[rule]\nx = "y"\n', "t.toml:1: [rule.x] x: is not a table"),
    ("an unknown key", MINIMAL + 'adress = "y"\n', "t.toml:4: [rule.x] adress: unknown key. Remedy: one of"),
    ("a key of elsewhere", MINIMAL + 'every = "15 min"\n', "t.toml:4: [rule.x] every: unknown key"),
    ("neither relay nor file", '[rule.x]\naddress = "x+{name}"\n', "t.toml:2: [rule.x] address: must have either"),
    ("both", MINIMAL + 'file = "Ventes"\n', "t.toml:2: [rule.x] address: must have either relay or file"),
    ("no address", '[rule.x]\nrelay = "a@far.test"\n', "t.toml:1: [rule.x] address: «  » is not a local part"),
    ("an address with domain", MINIMAL.replace("x+{name}", "x+{name}@welyb.fr"), "a local part like meg+{name}"),
    ("a relay without domain", MINIMAL.replace("@far.test", ""), "an address like {name}@example.org"),
    ("a domain of one label", MINIMAL.replace("far.test", "far"), "« far » is not a domain. Remedy: write the coll"),
    ("a placeholder in the domain", MINIMAL.replace("{name}@far.test", "x@{name}.test"), "is not a domain"),
    ("two placeholders", MINIMAL.replace("{name}@", "{name}.{name}@"), "t.toml:3: [rule.x] relay: takes one {name}"),
    ("another placeholder", MINIMAL.replace("{name}@", "{nom}@"), "t.toml:3: [rule.x] relay: takes one {name}"),
    ("one the address lacks", MINIMAL.replace("x+{name}", "x"), "t.toml:3: [rule.x] relay: uses {name}, which the"),
    ("a space in a local part", MINIMAL.replace("x+{name}", "x y+{name}"), "is not a local part like meg+{name}"),
    ("an odd choice", MINIMAL + 'senders = "all"\n', "t.toml:4: [rule.x] senders: « all » is not known"),
    ("no domain", MINIMAL + 'senders = ["a.example", "b c"]\n', "t.toml:4: [rule.x] senders: « b c » is not a domain"),
    ("nobody", MINIMAL + "senders = []\n", 't.toml:4: [rule.x] senders: an empty list. Remedy: write "trusted"'),
    ("a form", MINIMAL + 'relay_as = "as is"\n', "t.toml:4: [rule.x] relay_as: « as is » is not known"),
    (
        "a filing relayed",
        '[rule.v]\naddress = "v+{client}"\nfile = "V"\nrelay_as = "new"\n',
        "t.toml:4: [rule.v] relay_as: a filing rule relays nothing. Remedy: remove the line",
    ),
    ("a list for a choice", MINIMAL + 'names = ["any"]\n', "t.toml:4: [rule.x] names: « ['any'] » is not known"),
    ("a text for a list", MINIMAL + 'refuse = "zip"\n', "t.toml:4: [rule.x] refuse: must be a list of texts"),
    ("an unknown kind", MINIMAL + 'refuse = ["zip", "rar"]\n', "« rar » is not a kind. Remedy: some of zip, archive"),
    ("numbers in a list", MINIMAL + "accept = [1]\n", "t.toml:4: [rule.x] accept: must be a list of texts"),
    ("a bare number of bytes", MINIMAL + "max_document_size = 10\n", "is not a size: write"),
    ("an unknown unit", MINIMAL + 'small_image = "20 px"\n', "t.toml:4: [rule.x] small_image: « 20 px » is not a size"),
    ("a number for a text", MINIMAL + "sender = 3\n", "t.toml:4: [rule.x] sender: must be a text"),
    ("a line break in a text", MINIMAL + 'sender = "a\\nb"\n', "t.toml:4: [rule.x] sender: must be a text"),
    ("a filing rule with {name}", '[rule.v]\naddress = "v+{name}"\nfile = "Ventes"\n', "a filing rule needs {client}"),
    ("out of the tree", '[rule.v]\naddress = "v+{client}"\nfile = "../x"\n', "t.toml:3: [rule.v] file: « ../x »"),
    ("an absolute folder", '[rule.v]\naddress = "v+{client}"\nfile = "/x"\n', "« /x » is not a folder"),
    ("an empty folder", '[rule.v]\naddress = "v+{client}"\nfile = ""\n', "«  » is not a folder"),
    ("an unknown part", '[rule.v]\naddress = "v+{client}"\nfile = "{day}"\n', "« {day} » is not a folder"),
    ("the same address twice", MINIMAL + MINIMAL.replace(".x]", ".y]"), ":5: [rule.y] address: the same as [rule.x]'s"),
]


@pytest.mark.parametrize(("text", "told"), [bad[1:] for bad in BAD], ids=[bad[0] for bad in BAD])
def test_what_is_wrong_is_told_with_its_place_and_remedy(text: str, told: str) -> None:
    with pytest.raises(RuleError) as error:
        load(text, "t.toml")
    assert told in str(error.value)
    assert "Remedy: " in str(error.value)
    assert "\n" not in str(error.value).rstrip("\n")


def test_the_line_named_is_that_of_the_rule_meant() -> None:
    second = MINIMAL + '\n[rule."y"]\naddress = "y+{name}"\nrelay = "y@far.test"\nsenders = "all"\n'
    with pytest.raises(RuleError, match=r"^t\.toml:8: \[rule\.y\] senders: "):
        load(second, "t.toml")
