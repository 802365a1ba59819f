"""What it is worth at the door who wrote a mail: real DNS, real signatures, real store."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay import forwards
from relay.mime import Scanner
from relay.store import erasure
from rules import replies
from rules.peer import Peer
from tests.support.author import Author
from tests.support.clients import mail
from tests.support.documents import pdf, plain_zip
from tests.support.inside import Inside, inside
from tests.support.nameserver import NameServer

VENTES, MEG, LISTED = "ventes+dupont@welyb.fr", "meg+dupont@welyb.fr", "liste+dupont@welyb.fr"
INVOICE = ("facture.pdf", "application/pdf", pdf())
STRANGER, KNOWN_HOST = "192.0.2.1", "192.0.2.25"

STRICT = Author("strict.example", spf=f"ip4:{KNOWN_HOST} -all")
CAREFUL = Author("careful.example", "quarantine")
LAX = Author("lax.example", "")
GOOGLE, MICROSOFT = Author("google.com"), Author("accountprotection.microsoft.com")
APPLICATION = Author("factures-meg.fr", "none")
EVERYBODY = (STRICT, CAREFUL, LAX, GOOGLE, MICROSOFT, APPLICATION)

RULES = """
[rule.meg]
address = "meg+{name}"
relay = "{name}@factures-meg.fr"
origins = ["factures-meg.fr"]
[rule.liste]
address = "liste+{name}"
relay = "{name}@collecteur.example"
senders = ["strict.example"]
[rule.ventes]
address = "ventes+{client}"
file = "Ventes/{year}/{month}"
senders = "anyone"
documents = "required"
"""


@pytest.fixture(scope="module")
def names() -> Iterator[NameServer]:
    with NameServer("".join(author.zone for author in EVERYBODY)) as server:
        yield server


@pytest.fixture
def relay(tmp_path: Path, names: NameServer) -> Iterator[Inside]:
    names.trouble.clear()
    names.queries.clear()
    with inside(tmp_path, names=names.address, rules=RULES) as relay:
        yield relay


def kept(relay: Inside, table: str = "message") -> dict[str, Any]:
    (text,) = relay.column(f"SELECT authentication FROM {table}")
    found: dict[str, Any] = json.loads(text)
    return found


# --- DMARC reject ---------------------------------------------------------------------------------------------------


def test_a_forged_author_who_asks_for_it_is_refused_and_the_refusal_remembered(relay: Inside) -> None:
    reply = relay.take(STRICT.mail(VENTES, INVOICE), VENTES, sender="x@lax.example", peer=STRANGER)
    assert (reply.code, reply.enhanced) == (550, "5.7.1")
    assert reply.text().startswith("strict.example : expediteur non authentifie, SPF fail, DKIM none, ")
    assert relay.column("SELECT count(*) FROM message") == [0] and relay.spooled() == []
    assert relay.column("SELECT reply FROM refusal") == [f"550 5.7.1 {reply.text()}"]
    dmarc = {"result": "fail", "domain": "strict.example", "policy": "reject", "signed": False}
    assert kept(relay, "refusal")["dmarc"] == dmarc


@pytest.mark.parametrize("author", [CAREFUL, LAX, APPLICATION], ids=lambda author: author.policy)
def test_who_asks_for_less_is_taken(relay: Inside, author: Author) -> None:
    assert relay.take(author.mail(VENTES, INVOICE), VENTES, sender=author.address, peer=STRANGER).code == 250


def test_a_signature_or_the_authors_own_host_vouch_for_it(relay: Inside) -> None:
    signed = STRICT.signed(STRICT.mail(VENTES, INVOICE))
    assert relay.take(signed, VENTES, sender="x@lax.example", peer=STRANGER).code == 250
    facts = kept(relay)
    assert facts["dkim"] == [{"result": "pass", "domain": "strict.example", "selector": "a1", "why": ""}]
    assert (facts["spf"]["result"], facts["dmarc"]["result"]) == ("fail", "pass")
    assert relay.take(STRICT.mail(VENTES, INVOICE), VENTES, sender=STRICT.address, peer=KNOWN_HOST).code == 250


def test_whom_we_trust_people_and_reports_are_not_refused_for_it(relay: Inside) -> None:
    forged = STRICT.mail(VENTES, INVOICE)
    assert relay.take(forged, VENTES, MEG, sender="x@lax.example").code == 250
    assert relay.take(forged, "postmaster", "abuse@welyb.fr", sender="x@lax.example", peer=STRANGER).code == 250
    (token,) = set(relay.column("SELECT sender FROM delivery WHERE sender <> '' AND recipient = ?", MEG))
    names_asked = relay.column("SELECT count(*) FROM message WHERE authentication IS NOT NULL")
    assert relay.take(mail(STRICT.address, token), token, sender="", peer=STRANGER).code == 250
    assert relay.column("SELECT count(*) FROM message WHERE authentication IS NOT NULL") == names_asked  # nobody asked


def test_a_second_author_does_not_evade_what_the_first_asks_for(relay: Inside) -> None:
    forged = STRICT.mail(VENTES, INVOICE)
    for twice in (
        b"From: x@lax.example\r\n" + forged,
        forged.replace(b"From: ", b"From: x@lax.example, "),
    ):
        assert relay.take(twice, VENTES, sender="x@lax.example", peer=STRANGER) == replies.SEVERAL_AUTHORS
        assert relay.take(twice, VENTES, sender="x@lax.example").code == 250  # of a network that is trusted
        assert relay.take(twice, "postmaster", sender="x@lax.example", peer=STRANGER).code == 250


def test_a_scanner_that_names_no_author_files(relay: Inside) -> None:
    nobody = STRICT.mail(VENTES, INVOICE).replace(b"From: ", b"X-From: ")
    assert relay.take(nobody, VENTES, sender="", peer=STRANGER).code == 250


def test_trouble_of_the_dns_refuses_nobody(relay: Inside, names: NameServer) -> None:
    names.fail("strict.example.", "servfail")
    assert relay.take(STRICT.mail(VENTES, INVOICE), VENTES, sender="x@lax.example", peer=STRANGER).code == 250
    assert kept(relay)["dmarc"]["result"] == "temperror"


def test_trusted_forwarders(tmp_path: Path, names: NameServer) -> None:
    names.trouble.clear()
    forwarders = f'[authentication]\nverify = "all"\nforwarders = ["{STRANGER}/32", "strict.example"]\n'
    with inside(tmp_path, names=names.address, rules=RULES) as relay:
        text = (tmp_path / "relay.toml").read_text()
        (tmp_path / "relay.toml").write_text(text.replace('[authentication]\nverify = "all"\n', forwarders))
        relay.adopt(tmp_path / "relay.toml")
        forged = GOOGLE.mail(VENTES, INVOICE)
        assert relay.take(forged, VENTES, sender="x@lax.example", peer=STRANGER).code == 250
        assert relay.take(forged, VENTES, sender="x@lax.example", peer="192.0.2.2").code == 550
        assert relay.take(forged, VENTES, sender="x@strict.example", peer=KNOWN_HOST).code == 250


def test_what_is_refused_anyway_is_not_looked_up(relay: Inside, names: NameServer) -> None:
    archive = ("releve.zip", "application/zip", plain_zip())
    assert relay.take(STRICT.mail(VENTES, archive), VENTES, sender=STRICT.address, peer=STRANGER).code == 554
    assert names.queries == [] and relay.column("SELECT authentication FROM refusal") == [None]


def test_a_user_of_other_rules_is_looked_up_where_a_domains_mail_alone_is_taken(
    tmp_path: Path, names: NameServer
) -> None:
    """As anybody is, whoever else is not looked up."""
    names.trouble.clear()
    user = Peer(STRANGER, trusted=True, user="scanner", rules=frozenset({"ventes"}))
    with inside(tmp_path, names=names.address, rules=RULES) as relay:
        text = (tmp_path / "relay.toml").read_text()
        (tmp_path / "relay.toml").write_text(text.replace('verify = "all"', 'verify = "strangers"'))
        relay.adopt(tmp_path / "relay.toml")
        signed, other = STRICT.signed(STRICT.mail(LISTED, INVOICE)), LAX.signed(LAX.mail(LISTED, INVOICE))
        assert relay.take(signed, LISTED, VENTES, sender=STRICT.address, peer=user).code == 250
        assert relay.take(other, LISTED, sender=LAX.address, peer=user) == replies.NOT_ALLOWED


@pytest.mark.parametrize(("verify", "asked"), [("strangers", [False, True]), ("none", [False, False])])
def test_who_is_looked_up_is_a_setting(tmp_path: Path, names: NameServer, verify: str, asked: list[bool]) -> None:
    names.trouble.clear()
    with inside(tmp_path, names=names.address, rules=RULES) as relay:
        text = (tmp_path / "relay.toml").read_text()
        (tmp_path / "relay.toml").write_text(text.replace('verify = "all"', f'verify = "{verify}"'))
        relay.adopt(tmp_path / "relay.toml")
        for peer in ("127.0.0.1", STRANGER):
            assert relay.take(LAX.mail(VENTES, INVOICE), VENTES, sender=LAX.address, peer=peer).code == 250
        assert relay.column("SELECT authentication IS NOT NULL FROM message ORDER BY id") == asked


# --- domains in `senders` -------------------------------------------------------------------------------------------


def test_a_listed_domain_that_proves_itself_may_use_a_collection_address(relay: Inside) -> None:
    message = STRICT.signed(STRICT.mail(LISTED, INVOICE))
    assert relay.take(message, LISTED, sender="x@lax.example", peer=STRANGER).code == 250
    assert relay.column("SELECT target FROM delivery") == ["dupont@collecteur.example"]


def test_a_stranger_who_does_not_prove_it_may_not(relay: Inside) -> None:
    for author in (STRICT, CAREFUL, LAX):
        message = author.mail(LISTED, INVOICE)
        assert relay.take(message, LISTED, sender="x@lax.example", peer=STRANGER).code == 550
    signed = CAREFUL.signed(CAREFUL.mail(LISTED, INVOICE))  # it passes, and is not listed
    assert relay.take(signed, LISTED, sender="x@strict.example", peer=STRANGER) == replies.NOT_ALLOWED
    assert relay.take(signed, VENTES, LISTED, sender="x@strict.example", peer=STRANGER) == replies.NOT_ALLOWED
    assert relay.column("SELECT count(*) FROM message") == [0]


def test_what_cannot_be_told_waits(relay: Inside, names: NameServer) -> None:
    names.fail("_dmarc.strict.example.", "servfail")
    message = STRICT.signed(STRICT.mail(LISTED, INVOICE))
    assert relay.take(message, LISTED, sender="x@lax.example", peer=STRANGER) == replies.UNVERIFIED
    assert relay.column("SELECT count(*) FROM refusal") == [0]


# --- relay_as = "auto" ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("author", "signed", "form"),
    [
        (STRICT, True, ""),
        (STRICT, False, "automate@welyb.fr"),
        (CAREFUL, False, "automate@welyb.fr"),
        (CAREFUL, True, ""),
        (LAX, False, ""),
    ],
)
def test_what_would_fail_further_on_leaves_as_a_message_of_ours(
    relay: Inside, author: Author, signed: bool, form: str
) -> None:
    message = author.mail(MEG, INVOICE)
    relay.take(author.signed(message) if signed else message, MEG, VENTES, sender=author.address)
    ((kind, found, id_, outbound),) = relay.rows(
        "SELECT kind, author, id, outbound_message_id FROM delivery WHERE kind = 'send'"
    )
    assert (kind, found) == ("send", form)
    assert (outbound == f"<{id_}@welyb.fr>") is bool(form)
    assert relay.column("SELECT author FROM delivery WHERE kind = 'file'") == [""]


def test_a_mail_without_a_document_leaves_as_it_came(relay: Inside) -> None:
    relay.take(STRICT.mail(MEG), MEG, sender=STRICT.address)
    assert relay.column("SELECT author FROM delivery") == [""]


# --- origins --------------------------------------------------------------------------------------------------------


def test_the_applications_signature_marks_its_documents_too(relay: Inside) -> None:
    message = APPLICATION.signed(LAX.mail(VENTES, INVOICE))
    relay.take(message, VENTES, sender=LAX.address, peer=STRANGER)
    assert relay.column("SELECT origin FROM document") == ["factures-meg.fr"]
    broken = APPLICATION.signed(LAX.mail(VENTES, ("autre.pdf", "application/pdf", pdf("autre")))).replace(
        b"Facture", b"Autre"
    )
    relay.take(broken, VENTES, sender=LAX.address, peer=STRANGER)
    assert relay.column("SELECT origin FROM document ORDER BY id") == ["factures-meg.fr", ""]


@pytest.mark.parametrize(
    ("written", "origin"),
    [
        (b"MEG: x@factures-meg.fr;", "factures-meg.fr"),
        (b"a@lax.example, x@Factures-MEG.fr", "factures-meg.fr"),
        (b'"x@factures-meg.fr" <a@lax.example>', ""),
        (b"a@lax.example (x@factures-meg.fr)", ""),
        (b"g:" * 3000 + b"x@factures-meg.fr", "factures-meg.fr"),
    ],
)
def test_whoever_is_named_beside_others_may_have_sent_it(relay: Inside, written: bytes, origin: str) -> None:
    message = LAX.mail(VENTES, INVOICE).replace(b"From: ", b"From: " + written + b"\r\nX-From: ", 1)
    assert relay.take(message, VENTES, sender="x@lax.example").code == 250
    assert relay.column("SELECT origin FROM document") == [origin]


# --- a forward to be confirmed ----------------------------------------------------------------------------------------

GMAIL, OUTLOOK = "forwarding-noreply@google.com", "account-security-noreply@accountprotection.microsoft.com"
LINK = "https://mail-settings.google.com/mail/vf-%5BABC%5D-x1"


def request(service: str, to: str) -> bytes:
    text = f"{LINK}\n" if service == GMAIL else "Code de sécurité : 483920\n"
    return mail(service, to, subject="(#123456789) Confirmation de transfert", text=text)


@pytest.mark.parametrize("peer", [STRANGER, "127.0.0.1"])
@pytest.mark.parametrize("to", [MEG, VENTES])
@pytest.mark.parametrize(("author", "service"), [(GOOGLE, GMAIL), (MICROSOFT, OUTLOOK)])
def test_it_is_kept_and_delivered_nowhere(relay: Inside, author: Author, service: str, to: str, peer: str) -> None:
    message = author.signed(request(service, to))
    assert relay.take(message, to, sender=f"x@{author.domain}", peer=peer).code == 250
    assert relay.column("SELECT count(*) FROM delivery") == relay.column("SELECT count(*) FROM document") == [0]
    assert relay.rows("SELECT address, route FROM recipient") == [(to, "forwarding")]
    (detail,) = relay.column("SELECT detail FROM event WHERE event = 'forwarding'")
    wanted = {GMAIL: ("gmail", "123456789", LINK), OUTLOOK: ("outlook", "483920", "")}[service]
    assert json.loads(detail) == dict(zip(("service", "confirmation", "link"), wanted, strict=True))


@pytest.mark.parametrize("peer", [STRANGER, "127.0.0.1"])
@pytest.mark.parametrize("to", [MEG, VENTES])
def test_one_that_is_not_signed_by_its_service_is_refused_whoever_brings_it(relay: Inside, to: str, peer: str) -> None:
    message = LAX.signed(request(GMAIL, to))
    assert relay.take(message, to, sender="x@google.com", peer=peer) == replies.NOT_ALLOWED
    assert relay.column("SELECT count(*) FROM message") == [0]
    assert relay.column("SELECT count(*) FROM refusal") == [1]


def test_one_whose_signature_cannot_be_looked_at_waits(relay: Inside, names: NameServer) -> None:
    names.fail("_domainkey.google.com.", "servfail")
    message = GOOGLE.signed(request(GMAIL, MEG))
    assert relay.take(message, MEG, sender="x@google.com", peer=STRANGER) == replies.UNVERIFIED


def test_it_is_never_sent_on_whoever_else_is_looked_up(tmp_path: Path, names: NameServer) -> None:
    names.trouble.clear()
    with inside(tmp_path, names=names.address, rules=RULES) as relay:
        text = (tmp_path / "relay.toml").read_text()
        (tmp_path / "relay.toml").write_text(text.replace('verify = "all"', 'verify = "none"'))
        relay.adopt(tmp_path / "relay.toml")
        assert relay.take(request(GMAIL, MEG), MEG, sender="x@google.com").code == 550
        assert relay.take(GOOGLE.signed(request(GMAIL, MEG)), MEG, sender="x@google.com").code == 250
        assert relay.column("SELECT count(*) FROM delivery") == [0]


def test_other_mail_of_such_a_sender_is_a_strangers(relay: Inside) -> None:
    message = GOOGLE.signed(GOOGLE.mail(MEG, INVOICE))
    assert relay.take(message, MEG, sender="x@google.com", peer=STRANGER) == replies.NOT_ALLOWED
    assert (
        relay.take(GOOGLE.signed(GOOGLE.mail(VENTES, INVOICE)), VENTES, sender="x@google.com", peer=STRANGER).code
        == 250
    )


def test_a_second_from_field_proves_nothing(relay: Inside) -> None:
    message = b"From: " + GMAIL.encode() + b"\r\n" + GOOGLE.signed(GOOGLE.mail(MEG))
    assert relay.take(message, MEG, sender="x@google.com", peer=STRANGER) == replies.NOT_ALLOWED


@pytest.mark.parametrize("junk", [b"a@b,", b"@", b"<", b"(", b'"a" <x@y.z>,'])
def test_a_large_from_field_costs_nothing(junk: bytes) -> None:
    written = GMAIL.encode() + b"," + junk * (2_000_000 // len(junk))
    message = Scanner()
    message.feed(b"From: x@y.z\r\n\r\n")
    large = replace(message.close(), headers=(("from", written),))
    began = time.process_time()
    assert forwards.authors(large) == []
    assert time.process_time() - began < 0.1


def test_the_postmaster_gets_one_that_is_for_him_too(relay: Inside) -> None:
    message = GOOGLE.signed(request(GMAIL, MEG))
    assert relay.take(message, MEG, "postmaster", sender="x@google.com", peer=STRANGER).code == 250
    assert relay.rows("SELECT recipient, kind FROM delivery") == [("postmaster@welyb.fr", "send")]


def test_one_is_scanned_as_all_that_people_read(tmp_path: Path, names: NameServer) -> None:
    nobody = f'[antivirus]\nclamd = "unix:{tmp_path}/no.sock"\n'
    with inside(tmp_path, nobody, names=names.address, rules=RULES) as relay:
        message = GOOGLE.signed(request(GMAIL, MEG))
        for to in [(MEG,), (MEG, "postmaster")]:
            assert relay.take(message, *to, sender="x@google.com", peer=STRANGER) == replies.TROUBLE
        assert relay.column("SELECT count(*) FROM message") == [0]


@pytest.mark.parametrize("what", ["client", "sender"])
def test_an_erasure_takes_the_request_and_what_was_known_of_its_author(relay: Inside, what: str) -> None:
    message = GOOGLE.signed(request(GMAIL, VENTES))
    assert relay.take(message, VENTES, sender="x@google.com", peer=STRANGER).code == 250
    asked = erasure.Asked(**{what: {"client": "dupont", "sender": "x@google.com"}[what]})
    relay.do(lambda db: erasure.erase(db, asked, at="2026-11-24T12:00:00.000Z", actor="x", why="demande"))
    assert relay.rows("SELECT sender, authentication FROM message") == [("erased", None)]
    assert relay.column("SELECT detail FROM event WHERE event = 'forwarding'") == ["{}"]
