"""Who may send where: trusted senders everywhere, strangers where the rule is open to anyone."""

from dataclasses import replace
from importlib.resources import files

import pytest

from rules import access, ruleset
from rules.access import Allow, AllowIf, Refuse, Route
from rules.address import Bounce, File, Postmaster, Relay
from rules.authentication import Authentication, Dmarc, DmarcResult, Policy, Signature, Spf
from rules.peer import Forwarders, Peer, forwarders
from rules.replies import NOT_ALLOWED, SEVERAL_AUTHORS, UNVERIFIED

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


@pytest.mark.parametrize(
    ("rules", "may"), [(frozenset(), True), (frozenset({"meg", "ventes"}), True), (frozenset({"meg-achats"}), False)]
)
def test_a_user_may_use_the_rules_he_was_given_and_all_where_none_was_named(rules: frozenset[str], may: bool) -> None:
    user = Peer("192.0.2.1", trusted=True, user="scanner", rules=rules)
    assert access.may_send(RELAY, user) == (Allow() if may else Refuse(NOT_ALLOWED))
    for route in (FILE, Postmaster("postmaster@welyb.fr"), Bounce("retours+x@welyb.fr", "x")):
        assert access.may_send(route, user) == Allow()  # as anyone
    closed = replace(FILE, rule=replace(VENTES, senders="trusted"))
    assert access.may_send(closed, user) == (Allow() if may else Refuse(NOT_ALLOWED))


def test_the_rule_decides_not_its_kind() -> None:
    closed, opened = replace(VENTES, senders="trusted"), replace(MEG, senders="anyone")
    assert access.may_send(replace(FILE, rule=closed), STRANGER) == Refuse(NOT_ALLOWED)
    assert access.may_send(replace(RELAY, rule=opened), STRANGER) == Allow()


LISTED = replace(RELAY, rule=replace(MEG, senders=frozenset({"cabinet.example"})))


def test_a_list_of_domains_is_a_condition_for_strangers_alone() -> None:
    assert access.may_send(LISTED, STRANGER) == AllowIf(frozenset({"cabinet.example"}))
    assert access.may_send(LISTED, OURS) == Allow()


@pytest.mark.parametrize(
    ("sender", "answer"),
    [
        ("forwarding-noreply@google.com", AllowIf()),
        ("3abc@forwarding.bounces.google.com", AllowIf()),
        ("x@accountprotection.microsoft.com", AllowIf()),
        ("x@notgoogle.com", Refuse(NOT_ALLOWED)),
        ("google.com@example.com", Refuse(NOT_ALLOWED)),
        ("x@gmail.com", Refuse(NOT_ALLOWED)),
        ("", Refuse(NOT_ALLOWED)),
    ],
)
def test_a_mailbox_service_may_ask_for_a_forward_to_be_confirmed(sender: str, answer: AllowIf | Refuse) -> None:
    assert access.may_send(RELAY, STRANGER, sender) == answer


# --- at the end of DATA ---------------------------------------------------------------------------------------------


def known(result: DmarcResult, policy: Policy = "none", *, spf: Spf | None = None) -> Authentication:
    return Authentication(spf or Spf("fail", "cabinet.example"), (), Dmarc(result, "cabinet.example", policy))


def last_word(
    route: Route, facts: Authentication, *, peer: Peer = STRANGER, trusted: Forwarders | None = None
) -> Allow | Refuse:
    return access.at_end([route], peer, sender="a@b.example", known=facts, trusted=trusted or Forwarders())


REJECTED = known("fail", "reject")


@pytest.mark.parametrize(
    ("result", "policy", "filed", "listed"),
    [
        ("pass", "reject", "allow", "allow"),
        ("pass", "none", "allow", "allow"),
        ("fail", "reject", "dmarc", "dmarc"),
        ("fail", "quarantine", "allow", "refuse"),
        ("fail", "none", "allow", "refuse"),
        ("none", "none", "allow", "refuse"),
        ("permerror", "reject", "several", "several"),  # several authors
        ("permerror", "none", "allow", "refuse"),
        ("temperror", "reject", "allow", "wait"),
        ("temperror", "none", "allow", "wait"),
    ],
)
def test_what_dmarc_is_worth(result: DmarcResult, policy: Policy, filed: str, listed: str) -> None:
    """Open to anyone unless the author's domain asks for a refusal; listed domains must pass; trouble is none of theirs."""
    answers = {"allow": Allow(), "refuse": Refuse(NOT_ALLOWED), "wait": Refuse(UNVERIFIED)}
    answers["several"] = Refuse(SEVERAL_AUTHORS)
    for route, wanted in ((FILE, filed), (LISTED, listed)):
        word = last_word(route, known(result, policy))
        if wanted == "dmarc":
            assert isinstance(word, Refuse) and (word.reply.code, word.reply.enhanced) == (550, "5.7.1")
        else:
            assert word == answers[wanted]


def test_the_refusal_names_the_domain_and_why_in_ascii() -> None:
    signature = Signature("fail", "cabinet.example", "s1", "body hash")
    word = last_word(FILE, replace(REJECTED, dkim=(signature,)))
    assert isinstance(word, Refuse)
    assert word.reply.render() == (
        b"550 5.7.1 cabinet.example : expediteur non authentifie, SPF fail, DKIM fail, ce domaine demande le refus "
        b"(DMARC reject policy)\r\n"
    )
    hostile = replace(REJECTED, dmarc=Dmarc("fail", "\u00e9\r\n250 x." + "y" * 600, "reject"))
    word = last_word(FILE, hostile)
    assert isinstance(word, Refuse) and len(word.reply.render()) <= 512
    assert word.reply.render().count(b"\n") == 1 and word.reply.render().isascii()


@pytest.mark.parametrize("route", [FILE, LISTED, RELAY])
def test_who_is_trusted_is_believed_whatever_the_mail_says(route: Route) -> None:
    assert last_word(route, REJECTED, peer=OURS) == Allow()


@pytest.mark.parametrize("route", [Postmaster("postmaster@welyb.fr"), Bounce("retours+x@welyb.fr", "x")])
def test_people_and_reports_are_reached_whatever_the_author_asks_for(route: Route) -> None:
    assert last_word(route, REJECTED) == Allow()


def test_one_refusal_is_the_mail_s() -> None:
    routes = [Postmaster("postmaster@welyb.fr"), FILE, LISTED]
    facts = known("none")
    assert access.at_end(routes[:2], STRANGER, sender="", known=facts, trusted=Forwarders()) == Allow()
    assert access.at_end(routes, STRANGER, sender="", known=facts, trusted=Forwarders()) == Refuse(NOT_ALLOWED)


def test_another_domain_that_passes_is_not_the_listed_one() -> None:
    facts = Authentication(Spf(), (), Dmarc("pass", "mail.cabinet.example"))
    assert last_word(LISTED, facts) == Refuse(NOT_ALLOWED)
    assert last_word(LISTED, replace(facts, dmarc=Dmarc("pass", "Cabinet.Example"))) == Allow()


def test_a_service_that_asked_for_nothing_is_a_stranger() -> None:
    facts = Authentication(Spf(), (), Dmarc("pass", "google.com"))
    word = access.at_end([RELAY], STRANGER, sender="x@google.com", known=facts, trusted=Forwarders())
    assert word == Refuse(NOT_ALLOWED)


@pytest.mark.parametrize(
    ("setting", "spf", "allowed"),
    [
        (["192.0.2.0/24"], Spf("fail", "x.example"), True),
        (["198.51.100.0/24"], Spf("pass", "x.example"), False),
        (["lists.example.org"], Spf("pass", "Lists.example.org"), True),
        (["lists.example.org"], Spf("softfail", "lists.example.org"), False),
        (["lists.example.org"], Spf("pass", "x.lists.example.org"), False),
        (["LISTS.example.org", "::1", "192.0.2.1"], Spf(), True),
        ([], Spf("pass", ""), False),
    ],
)
def test_a_trusted_forwarder_is_not_refused_for_what_it_passes_on(setting: list[str], spf: Spf, allowed: bool) -> None:
    trusted = forwarders(setting)
    assert isinstance(last_word(FILE, replace(REJECTED, spf=spf), trusted=trusted), Allow) is allowed
    assert last_word(LISTED, known("fail", spf=spf), trusted=trusted) == Refuse(NOT_ALLOWED)  # it proves nobody
