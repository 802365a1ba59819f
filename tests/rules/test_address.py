"""Where mail for an address goes: golden tables of the shipped rules, and the exact round trip of connections."""

from importlib.resources import files

import pytest

from rules import address, path, replies, ruleset
from rules.address import Bounce, File, Postmaster, Refuse, Registered, Relay
from rules.replies import Reply

SHIPPED = ruleset.load((files("rules") / "welyb.toml").read_text("utf-8"), "rules/welyb.toml")
MEG, ACHATS = SHIPPED.named("meg"), SHIPPED.named("meg-achats")
assert MEG is not None and ACHATS is not None
TOKEN = "abcdefghijklmnopqrstuv27"


def route(
    text: str, registered: dict[str, Registered] | None = None, rules: ruleset.RuleSet = SHIPPED
) -> address.Route:
    found = path.parse(f"<{text}>".encode())
    assert isinstance(found, path.Path), found
    return address.route(found, rules, "welyb.fr", registered or {})


def refusal(text: str) -> Reply:
    """What RCPT would be answered: by the path itself, or by the rules."""
    found = path.parse(f"<{text}>".encode())
    if isinstance(found, path.Problem):
        return path.REPLIES[found]
    refused = address.route(found, SHIPPED, "welyb.fr", {})
    assert isinstance(refused, Refuse), refused
    return refused.reply


@pytest.mark.parametrize(
    ("typed", "collector"),
    [
        ("meg+macon-dupont@welyb.fr", "macon-dupont@factures-meg.fr"),  # S11
        ("meg+achats+macon-dupont@welyb.fr", "macon-dupont@achats.factures-meg.fr"),  # S12
        ("MEG+Achats+Macon-Dupont@Welyb.FR", "macon-dupont@achats.factures-meg.fr"),
        ('"meg+dupont"@welyb.fr', "dupont@factures-meg.fr"),  # quoted, but plain
        ("@mx.ailleurs.example:meg+dupont@welyb.fr", "dupont@factures-meg.fr"),  # source route, stripped
        ("meg+achatsdupont@welyb.fr", "achatsdupont@factures-meg.fr"),  # only `achats+` is a keyword
        ("meg+achats.dupont@welyb.fr", "achats.dupont@factures-meg.fr"),
        ("meg+a_b.c-1-@welyb.fr", "a_b.c-1-@factures-meg.fr"),
        ("meg+0@welyb.fr", "0@factures-meg.fr"),
        ("meg+achats+" + "a" * 64 + "@welyb.fr", "a" * 64 + "@achats.factures-meg.fr"),
    ],
)
def test_a_legal_address_leads_to_its_collector(typed: str, collector: str) -> None:
    found = route(typed)
    assert isinstance(found, Relay)
    assert found.collector == collector
    assert found.address == found.address.lower() and found.client == ""


@pytest.mark.parametrize(
    ("typed", "slug"), [("ventes+macon-dupont@welyb.fr", "macon-dupont"), ("Ventes+DUPONT@welyb.fr", "dupont")]
)
def test_sales_are_filed_for_the_client_named(typed: str, slug: str) -> None:
    found = route(typed)
    assert isinstance(found, File) and found.client == slug


@pytest.mark.parametrize(
    "typed",
    [
        "meg+@welyb.fr",
        "meg@welyb.fr",
        "meg+achats@welyb.fr",  # the forgotten name, not the company « achats »
        "meg+achats+@welyb.fr",
        "MEG+ACHATS@welyb.fr",
        "meg+achats+a+b@welyb.fr",
        "meg+a+b@welyb.fr",
        "meg++a@welyb.fr",
        "meg+achats++a@welyb.fr",
        "ventes+@welyb.fr",
        "ventes@welyb.fr",
        "ventes+a+b@welyb.fr",
        "meg-dupont@welyb.fr",
        "dupont@welyb.fr",
        "achats+dupont@welyb.fr",
        "meg+-dupont@welyb.fr",
        "meg+.dupont@welyb.fr",
        "meg+dupont.@welyb.fr",
        "meg+du..pont@welyb.fr",
        "meg+_dupont@welyb.fr",
        "meg+dupont%evil.example@welyb.fr",
        "meg+dupont!evil@welyb.fr",
        "meg+x@evil.example@welyb.fr",
        '"meg+x@evil.example"@welyb.fr',
        '"meg+x y"@welyb.fr',
        '"meg+"@welyb.fr',
        "meg+dupont'@welyb.fr",
        "meg+" + "a" * 65 + "@welyb.fr",
        "retours@welyb.fr",
    ],
)
def test_what_has_no_legal_form_is_malformed_never_guessed(typed: str) -> None:
    assert refusal(typed) == replies.MALFORMED


@pytest.mark.parametrize(
    "typed",
    [
        "meg+dupont@welyb.com",
        "dupont@factures-meg.fr",  # the collector itself: no relay for any other domain, ever
        "dupont@achats.factures-meg.fr",
        "meg+dupont@sub.welyb.fr",
        "meg+dupont@[127.0.0.1]",
        "postmaster@ailleurs.example",
        "abuse",
        "meg+dupont",
    ],
)
def test_no_other_domain_is_ours(typed: str) -> None:
    assert refusal(typed) == replies.NOT_ALLOWED


def test_letters_beyond_ascii_are_refused_before_anything_folds_them() -> None:
    assert refusal("meg+dépôt@welyb.fr") == replies.NOT_ASCII
    assert refusal("meg+ſmith@welyb.fr") == replies.NOT_ASCII


@pytest.mark.parametrize("typed", ["postmaster@welyb.fr", "postmaster", "PostMaster", "ABUSE@Welyb.fr"])
def test_postmaster_and_abuse_are_always_there(typed: str) -> None:
    assert isinstance(route(typed), Postmaster)


def test_a_bounce_comes_back_by_its_token_in_any_case() -> None:
    found = route(f"Retours+{TOKEN.upper()}@welyb.fr")
    assert isinstance(found, Bounce) and found.token == TOKEN
    assert refusal("retours+abc@welyb.fr") == refusal("retours+@welyb.fr") == replies.UNKNOWN


# --- registered ------------------------------------------------------------------------------------------------------


def test_a_registered_address_leads_where_its_connection_says_in_its_spelling() -> None:
    connections = {"meg+dupont": Registered("meg", "Dupont@Factures-MEG.fr", "macon-dupont")}
    found = route("MEG+dupont@welyb.fr", connections)
    assert isinstance(found, Relay)
    assert (found.collector, found.client) == ("Dupont@Factures-MEG.fr", "macon-dupont")


@pytest.mark.parametrize("local", ["meg+achats", "meg+a+b"])
def test_registration_makes_a_form_legal_that_would_be_refused(local: str) -> None:
    connections = {local: Registered("meg", "x@factures-meg.fr", "x")}
    assert isinstance(route(f"{local}@welyb.fr", connections), Relay)
    assert route(f"{local}@welyb.fr") == Refuse(replies.MALFORMED)


def test_a_registration_whose_rule_is_gone_has_no_say() -> None:
    connections = {"meg+dupont": Registered("ancien", "ailleurs@ancien.example", "dupont")}
    found = route("meg+dupont@welyb.fr", connections)
    assert isinstance(found, Relay) and found.collector == "dupont@factures-meg.fr"


CLOSED = ruleset.load(
    '[rule.dext]\naddress = "dext+{name}"\nrelay = "{name}+ventes@dext.cc"\nnames = "registered"\ncase = "preserve"\n'
    '[rule.conciliator]\naddress = "conciliator+{name}"\nrelay = "invoice+{name}@conciliator.ai"\ncase = "preserve"\n'
    '[rule.verbatim]\naddress = "comptable"\nrelay = "boite@cabinet.example"\n',
    "test",
)


def test_a_rule_may_take_registered_names_only() -> None:
    assert route("dext+dupont@welyb.fr", rules=CLOSED) == Refuse(replies.UNKNOWN)
    connections = {"dext+dupont": Registered("dext", "Dupont+ventes@dext.cc", "dupont")}
    assert isinstance(route("dext+dupont@welyb.fr", connections, CLOSED), Relay)


def test_a_rule_may_keep_the_spelling_of_a_name_or_have_none() -> None:
    spelled, verbatim = (route(t, rules=CLOSED) for t in ("conciliator+DuPont@welyb.fr", "comptable@welyb.fr"))
    assert isinstance(spelled, Relay) and spelled.collector == "invoice+DuPont@conciliator.ai"
    assert isinstance(verbatim, Relay) and verbatim.collector == "boite@cabinet.example"


# --- connections: S10 ------------------------------------------------------------------------------------------------

PAIRS = [
    ("meg+macon-dupont@welyb.fr", "macon-dupont@factures-meg.fr"),
    ("meg+achats+macon-dupont@welyb.fr", "macon-dupont@achats.factures-meg.fr"),
]


@pytest.mark.parametrize(("welyb", "collector"), PAIRS)
def test_each_address_gives_the_other(welyb: str, collector: str) -> None:
    assert address.to_collector(welyb, SHIPPED, "welyb.fr") == collector
    assert address.to_welyb(collector, SHIPPED, "welyb.fr") == welyb


@pytest.mark.parametrize(
    "collector",
    [
        "achats@factures-meg.fr",  # its Welyb address would be the forgotten name
        "a+b@factures-meg.fr",
        "achats+b@factures-meg.fr",  # would be read as b's purchases
        "dupont@ailleurs.example",
        "@factures-meg.fr",
        "dépôt@factures-meg.fr",
    ],
)
def test_a_collector_that_no_welyb_address_stands_for_exactly_has_none(collector: str) -> None:
    assert address.to_welyb(collector, SHIPPED, "welyb.fr") is None


@pytest.mark.parametrize("typed", PAIRS[0])
def test_either_address_may_be_typed_at_a_connection(typed: str) -> None:
    pair = address.pair(typed, MEG, SHIPPED, "welyb.fr")
    assert pair is not None and pair.exact
    assert (pair.welyb, pair.collector) == PAIRS[0]


def test_a_collector_keeps_the_case_it_was_typed_in() -> None:
    pair = address.pair("Dupont@factures-meg.fr", MEG, SHIPPED, "welyb.fr")
    assert pair is not None and (pair.welyb, pair.collector) == ("meg+dupont@welyb.fr", "Dupont@factures-meg.fr")


@pytest.mark.parametrize("typed", ["meg+achats@welyb.fr", "achats@factures-meg.fr", "a+b@factures-meg.fr"])
def test_what_only_registration_makes_legal_is_said_to_be_so(typed: str) -> None:
    pair = address.pair(typed, MEG, SHIPPED, "welyb.fr")
    assert pair is not None and not pair.exact


@pytest.mark.parametrize(
    "typed",
    [
        "meg+achats+dupont@welyb.fr",  # the other rule's
        "dupont@achats.factures-meg.fr",
        "achats+dupont@factures-meg.fr",  # its Welyb address would be another company's
        "dupont",
        "dupont@ailleurs.example",
        "meg+du pont@welyb.fr",
        "meg+dépôt@welyb.fr",
        "meg+a%b@welyb.fr",
        '"a b"@factures-meg.fr',
        "",
    ],
)
def test_what_means_something_else_is_not_taken_at_a_connection(typed: str) -> None:
    assert address.pair(typed, MEG, SHIPPED, "welyb.fr") is None
