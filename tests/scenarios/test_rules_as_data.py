"""Other partners, and other manners, in a few lines of TOML: nothing here is known to the code."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import documents as made
from tests.support.clients import mail
from tests.support.firm import Arrived, Firm, documents_of
from tests.support.relay import CommandFailed

pytestmark = pytest.mark.debian("postfix")

SENDER = "compta@cabinet.example"
PDF = ("facture.pdf", "application/pdf", made.pdf())
RULES = """
[rule.dext]
address = "dext+{name}"
relay = "{name}@dext.cc"

[rule.dext-ventes]
address = "dextv+{name}"
relay = "{name}+ventes@dext.cc"

[rule.inqom]
address = "inqom+{name}"
relay = "achat.{name}@inqombox.com"

[rule.conciliator]
address = "conciliator+{name}"
relay = "invoice+{name}@conciliator.ai"
sender = "factures@cabinet.example"

[rule.verbatim]
address = "collecte"
relay = "collecte-75@dext.cc"
senders = "trusted"
documents = "required"
accept = ["application/pdf"]

[rule.spelled]
address = "spelled+{name}"
relay = "{name}@dext.cc"
case = "preserve"

[rule.known]
address = "known+{name}"
relay = "{name}@inqombox.com"
names = "registered"
"""
DOMAINS = ("dext.cc", "inqombox.com", "conciliator.ai")


@pytest.fixture(scope="module")
def firm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firm]:
    folder = tmp_path_factory.mktemp("rules")
    (folder / "rules.toml").write_text(RULES)
    settings: dict[str, Any] = {"relay": {"rules": str(folder / "rules.toml")}}
    firm = Firm.start(folder, settings)
    firm.relay.stop()
    firm.collector.change(domains=DOMAINS)
    firm.relay.configure({"delivery": {"routes": dict.fromkeys(DOMAINS, firm.collector.destination)}})
    firm.relay.start()
    yield firm
    firm.stop()


def arrived(firm: Firm, recipient: str) -> list[Arrived]:
    firm.run()
    found = [message for message in firm.collector.messages() if message.envelope_recipient == recipient]
    return [document for message in found for document in documents_of(message)]


COLLECTORS = {
    "dext+macon@welyb.fr": "macon@dext.cc",
    "DextV+Macon@welyb.fr": "macon+ventes@dext.cc",
    "inqom+macon@welyb.fr": "achat.macon@inqombox.com",
    "conciliator+macon@welyb.fr": "invoice+macon@conciliator.ai",
    "collecte@welyb.fr": "collecte-75@dext.cc",
    "spelled+MaconDupont@welyb.fr": "MaconDupont@dext.cc",
}


def test_a_mail_goes_where_its_rule_says(firm: Firm) -> None:
    for typed in COLLECTORS:
        assert firm.mail(typed, mail(SENDER, typed, PDF)).accepted
    firm.run()
    got = [message for message in firm.collector.messages() if message.envelope_recipient in COLLECTORS.values()]
    assert sorted(message.envelope_recipient for message in got) == sorted(COLLECTORS.values())
    documents = [document for message in got for document in documents_of(message)]
    assert {(d.content, d.message["From"]) for d in documents} == {(PDF[2], SENDER)}


@pytest.mark.parametrize(
    ("typed", "code"),
    [
        ("meg+macon@welyb.fr", 553),  # not among these rules
        ("collecte+x@welyb.fr", 553),
        ("dext+a+b@welyb.fr", 553),
        ("known+personne@welyb.fr", 550),
    ],
)
def test_what_no_rule_says_is_refused(firm: Firm, typed: str, code: int) -> None:
    assert firm.mail(typed, mail(SENDER, typed, PDF)).code == code


def test_documents_are_asked_for_and_chosen_by_the_rule(firm: Firm) -> None:
    to = "collecte@welyb.fr"
    without = firm.mail(to, mail(SENDER, to))
    assert (without.code, without.text) == (554, "5.6.0 Aucun document joint (no document attached)")
    image = firm.mail(to, mail(SENDER, to, ("scan.png", "image/png", made.png(50_000))))
    assert image.code == 554
    assert "scan.png : type image/png non pris en charge" in image.text
    elsewhere = "dext+autre@welyb.fr"
    assert firm.mail(elsewhere, mail(SENDER, elsewhere, ("scan.png", "image/png", made.png(50_000)))).accepted


def test_a_registered_name_is_known_from_that_moment_on(firm: Firm) -> None:
    to = "known+macon@welyb.fr"
    assert firm.mail(to, mail(SENDER, to, PDF)).code == 550
    client = firm.client()
    client.connect(application="known", address="macon@inqombox.com")
    assert firm.mail(to, mail(SENDER, to, PDF)).accepted
    assert len(arrived(firm, "macon@inqombox.com")) == 1


def test_a_deposit_leaves_under_the_identity_the_collector_wants(firm: Firm) -> None:
    client = firm.client()
    client.connect(application="conciliator", address="invoice+durand@conciliator.ai")
    assert client.connection()["welyb_address"] == "conciliator+durand@welyb.fr"
    client.put("Achats/facture.pdf", PDF[2])
    (document,) = arrived(firm, "invoice+durand@conciliator.ai")
    assert document.message["From"].addresses[0].addr_spec == "factures@cabinet.example"


def test_the_registered_spelling_is_kept(firm: Firm) -> None:
    client = firm.client()
    client.connect(application="dext", address="LeroyFils@dext.cc")
    (made_,) = firm.relay.json("connections", "list", "--client", client.slug)
    assert (made_["welyb_address"], made_["collector_address"]) == ("dext+leroyfils@welyb.fr", "LeroyFils@dext.cc")
    firm.mail("DEXT+LEROYFILS@welyb.fr", mail(SENDER, "x@y.fr", ("b.pdf", "application/pdf", made.pdf("b"))))
    assert [document.name for document in arrived(firm, "LeroyFils@dext.cc")] == ["b.pdf"]


def test_explain_names_the_rule(firm: Firm) -> None:
    (row,) = firm.relay.json("explain", "inqom+macon@welyb.fr")
    assert (row["decision"], row["rule"], row["target"]) == ("relay", "inqom", "achat.macon@inqombox.com")


def test_a_mistake_in_the_rules_is_told_before_anything_is_done(firm: Firm, tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(RULES.replace('names = "registered"', 'names = "knwon"'))
    with firm.set_to({"relay": {"rules": str(bad)}}), pytest.raises(CommandFailed) as failed:
        firm.relay.cli("runs", "now")
    assert "exit 2" in str(failed.value)
    line = RULES.splitlines().index('names = "registered"') + 1
    assert f"bad.toml:{line}: [rule.known] names: « knwon » is not known. Remedy: one of" in str(failed.value)
