"""Who wrote a mail, and what it is worth: by the real command, with a name server and mails that their authors signed."""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from relay import sign
from tests.support import documents as made
from tests.support.author import Author
from tests.support.clients import Dialogue, Reply, mail
from tests.support.collector import Received
from tests.support.firm import COLLECTORS, Firm, digest, documents_of
from tests.support.nameserver import NameServer
from tests.support.relay import Relay
from tests.support.validator import Validator
from tests.support.zone import Zone, zone_text

STRANGER = "127.0.0.2"  # the relay trusts 127.0.0.1 alone
VENTES, MEG, LISTED = "ventes+durand@welyb.fr", "meg+durand@welyb.fr", "liste+durand@welyb.fr"

STRICT, LAX = Author("strict.example"), Author("lax.example", "")
GOOGLE, APPLICATION = Author("google.com"), Author("factures-meg.fr", "none")
RULES = (
    (Path(__file__).resolve().parents[2] / "rules/welyb.toml").read_text("utf-8")
    + """
[rule.liste]
address = "liste+{name}"
relay = "{name}@factures-meg.fr"
senders = ["strict.example"]
"""
)


@pytest.fixture(scope="module")
def names() -> Iterator[NameServer]:
    with NameServer("".join(author.zone for author in (STRICT, LAX, GOOGLE, APPLICATION))) as server:
        yield server


def settings(names: NameServer, folder: Path, **smtp: Any) -> Mapping[str, Any]:
    """Everybody's mail is looked up; the rules stand in `folder`."""
    (folder / "rules.toml").write_text(RULES, "utf-8")
    return {
        "relay": {"rules": str(folder / "rules.toml")},
        "smtp": {"trusted_networks": ["127.0.0.1/32"], **smtp},
        "authentication": {"verify": "all"},
        "delivery": {"dns": [names.address]},
    }


@pytest.fixture(scope="module")
def firm(tmp_path_factory: pytest.TempPathFactory, names: NameServer) -> Iterator[Firm]:
    folder = tmp_path_factory.mktemp("authors")
    firm = Firm.start(folder, settings(names, folder))
    firm.relay.client("Durand")
    firm.relay.cli("keys", "create", "s1", "--kind", "ed25519")
    firm.relay.configure({"dkim": {"selector": "s1"}})
    yield firm
    firm.stop()
    told = firm.relay.program.err.read_text()
    assert "trouble" not in told and "Traceback" not in told


def offered(relay: Relay, message: bytes, *recipients: str, sender: str, peer: str = STRANGER) -> Reply:
    """The answer to the end of the mail; every recipient is taken."""
    with Dialogue(relay.port, source=peer) as dialogue:
        dialogue.hello()
        assert {reply.code for reply in dialogue.envelope(sender, *recipients)} == {250}
        return dialogue.data(message)


def accepted(relay: Relay, message: bytes, *recipients: str, sender: str, peer: str = STRANGER) -> str:
    """The id it was answered."""
    reply = offered(relay, message, *recipients, sender=sender, peer=peer)
    assert reply.code == 250, reply
    return reply.text.split()[-1]


def invoice(name: str) -> tuple[str, str, bytes]:
    return (f"{name}.pdf", "application/pdf", made.pdf(name))


# --- at the door ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2])
def test_a_forged_mail_is_refused_and_trace_says_why(
    new_relay: Any, names: NameServer, tmp_path: Path, processes: int
) -> None:
    relay = new_relay(settings(names, tmp_path, processes=processes))
    relay.client("Durand")
    relay.start()
    reply = offered(relay, STRICT.mail(VENTES, invoice("forgee")), VENTES, sender=LAX.address)
    assert (reply.code, reply.text) == (
        550,
        "5.7.1 strict.example : expediteur non authentifie, SPF fail, DKIM none, ce domaine demande le refus"
        " (DMARC reject policy)",
    )
    (told,) = relay.json("trace", "forgee.pdf")
    assert (told["event"], told["detail"]["authentication"]["dmarc"]["result"]) == ("refused", "fail")
    assert relay.json("queue", "list") == []
    genuine = accepted(relay, STRICT.signed(STRICT.mail(VENTES, invoice("vraie"))), VENTES, sender=LAX.address)
    shown = relay.cli("trace", genuine).stdout
    assert "dkim=pass strict.example, dmarc=pass strict.example (reject)" in " ".join(shown.split())


def test_a_listed_domain_must_prove_itself_and_explain_says_so(firm: Firm) -> None:
    (told,) = firm.relay.json("explain", LISTED, "--peer", STRANGER, "--sender", STRICT.address)
    assert told["decision"] == "relay" and "DMARC" in told["reason"] and "strict.example" in told["reason"]
    (told,) = firm.relay.json("explain", LISTED, "--peer", "127.0.0.1")
    assert "DMARC" not in told["reason"]
    message = STRICT.mail(LISTED, invoice("liste"))
    assert offered(firm.relay, LAX.signed(LAX.mail(LISTED)), LISTED, sender=STRICT.address).code == 550
    accepted(firm.relay, STRICT.signed(message), LISTED, sender=STRICT.address)


def test_new_forwarders_count_from_the_next_mail_on(new_relay: Any, names: NameServer, tmp_path: Path) -> None:
    relay = new_relay(settings(names, tmp_path))
    relay.client("Durand")
    relay.start()
    forged = STRICT.mail(VENTES, invoice("liste-de-diffusion"))
    assert offered(relay, forged, VENTES, sender=LAX.address).code == 550
    relay.configure({"authentication": {"forwarders": [f"{STRANGER}/32"]}})
    os.kill(relay.program.pid, signal.SIGHUP)
    deadline = time.monotonic() + 20
    while offered(relay, forged, VENTES, sender=LAX.address).code != 250:
        assert time.monotonic() < deadline, relay.program.told()


def test_without_a_name_server_mail_is_taken(new_relay: Any, names: NameServer, tmp_path: Path) -> None:
    nobody = {"delivery": {"dns": ["127.0.0.1:9"]}}  # discard: nobody listens there
    relay = new_relay({**settings(names, tmp_path), **nobody})
    relay.client("Durand")
    relay.start()
    message = accepted(relay, STRICT.mail(VENTES, invoice("panne")), VENTES, sender=LAX.address)
    (told,) = [row for row in relay.json("trace", message) if row["event"] == "accepted"]
    assert told["detail"]["authentication"]["dmarc"]["result"] == "temperror"


# --- with DNSSEC: signed zones (Knot) behind who validates them (Unbound) -----------------------------------------------

PROVED, STRIPPED, TAKEN_OVER = (Author(f"{name}.example") for name in ("proved", "stripped", "taken-over"))
SIGNED = [author.domain for author in (PROVED, STRIPPED, TAKEN_OVER)]
ZONES = {author.domain: zone_text(author.zone) for author in (PROVED, STRIPPED, TAKEN_OVER)} | {".": zone_text()}


@dataclass(frozen=True, slots=True)
class Validated:
    folder: Path
    zone: Zone
    validator: Validator
    relay: Relay

    def policy(self, author: Author) -> tuple[str, bool]:
        """What the resolver says of the author's DMARC record: an rcode, and whether it vouches for it."""
        question = dns.message.make_query(f"_dmarc.{author.domain}", "TXT", flags=dns.flags.RD | dns.flags.AD)
        answer = dns.query.udp(question, "127.0.0.1", timeout=10, port=self.validator.port)
        return dns.rcode.to_text(answer.rcode()), bool(answer.flags & dns.flags.AD)

    def facts(self, message: str) -> dict[str, Any]:
        """What was kept of who wrote a mail."""
        (told,) = [row for row in self.relay.json("trace", message) if row["event"] == "accepted"]
        found: dict[str, Any] = told["detail"]["authentication"]
        return found


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Validated]:
    folder = tmp_path_factory.mktemp("validated")
    zone = Zone.start(folder, ZONES, signed=SIGNED)
    validator = Validator.start(folder, zone)
    looked_up = {"authentication": {"verify": "all"}, "delivery": {"dns": [validator.server]}}
    relay = Relay(folder, {"smtp": {"trusted_networks": ["127.0.0.1/32"]}, **looked_up})
    relay.client("Durand")
    yield Validated(folder, zone, validator, relay.start())
    for part in (relay, validator, zone):
        part.stop()


@contextmanager
def stripped(world: Validated) -> Iterator[None]:
    """The signatures are gone, as if nobody had promised any."""
    world.zone.change(ZONES, signed=[])
    try:
        yield
    finally:
        world.zone.change(ZONES, signed=SIGNED)


@contextmanager
def taken_over(world: Validated) -> Iterator[None]:
    """Somebody else answers, who signs with keys of their own."""
    world.zone.stop()
    other = Zone.start(world.folder / "other", ZONES, port=world.zone.port, signed=SIGNED)
    try:
        yield
    finally:
        other.stop()
        world.zone.resume()


@pytest.mark.debian("knot", "unbound")
def test_what_a_signed_zone_asks_is_done(validated: Validated) -> None:
    assert validated.policy(PROVED) == ("NOERROR", True)
    unsigned = PROVED.mail(VENTES, invoice("sans-signature"))
    reply = offered(validated.relay, unsigned, VENTES, sender=PROVED.address)
    assert reply.code == 550 and reply.text.startswith("5.7.1 proved.example : expediteur non authentifie"), reply
    genuine = PROVED.signed(PROVED.mail(VENTES, invoice("signee")))
    facts = validated.facts(accepted(validated.relay, genuine, VENTES, sender=PROVED.address))
    assert (facts["dmarc"]["result"], facts["dmarc"]["policy"]) == ("pass", "reject")


@pytest.mark.debian("knot", "unbound")
@pytest.mark.parametrize(("author", "forgery"), [(STRIPPED, stripped), (TAKEN_OVER, taken_over)])
def test_a_zone_that_is_not_proved_refuses_nobody(
    validated: Validated, author: Author, forgery: Callable[[Validated], AbstractContextManager[None]]
) -> None:
    with forgery(validated):
        assert validated.policy(author) == ("SERVFAIL", False)
        for message in (author.mail(VENTES, invoice("nue")), author.signed(author.mail(VENTES, invoice("signee")))):
            facts = validated.facts(accepted(validated.relay, message, VENTES, sender=author.address))
            assert facts["dmarc"]["result"] == "temperror"


# --- on the way out -------------------------------------------------------------------------------------------------


def arrived(firm: Firm, message: str) -> Received:
    """What a run brings to the collector of a mail's one delivery."""
    assert firm.run()["deferred"] == 0
    (delivery,) = (row for row in firm.relay.json("queue", "list", "--id", message) if row["kind"] == "send")
    sender = delivery["target"]
    return [one for one in firm.collector.messages() if one.envelope_recipient == sender][-1]


@pytest.mark.debian("postfix")
def test_the_next_host_is_told_who_wrote_it(firm: Firm) -> None:
    message = STRICT.signed(STRICT.mail("meg+resultats@welyb.fr", invoice("resultats")))
    forged = b"Authentication-Results: mx.welyb.fr; dmarc=pass header.from=banque.example\r\n" + message
    came = arrived(firm, accepted(firm.relay, forged, "meg+resultats@welyb.fr", sender=LAX.address, peer="127.0.0.1"))
    fields = sign.fields(came.transmitted.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    (field,) = (value for name, value in fields if name == b"Authentication-Results")
    assert b" ".join(field.split()) == (
        b"mx.welyb.fr; spf=fail smtp.mailfrom=lax.example; dkim=pass header.d=strict.example header.s=a1; "
        b"dmarc=pass (p=reject) header.from=strict.example"
    )
    assert came.transmitted.endswith(message)
    assert [name for name, _ in fields[:4]] == [
        b"DKIM-Signature",
        b"Authentication-Results",
        b"Received",
        b"X-Welyb-Relay",
    ]
    ours = came.transmitted[: -len(message)]
    assert not any(name.encode() in ours for name in (*COLLECTORS, "meg"))


@pytest.mark.debian("postfix")
def test_what_would_fail_dmarc_there_leaves_as_a_message_of_ours(firm: Firm) -> None:
    documents = (invoice("facture n° 1"), ("photo.jpg", "image/jpeg", made.jpeg(400_000)))
    mailed = STRICT.mail("meg+neuf@welyb.fr", *documents, subject="Vos factures d'été")
    id_ = accepted(firm.relay, mailed, "meg+neuf@welyb.fr", sender=STRICT.address, peer="127.0.0.1")
    with firm.collector_away():
        firm.run()
    (waiting,) = firm.relay.json("queue", "list", "--id", id_)
    assert waiting["state"] == "waiting"  # tried, or put off behind another that was
    came = arrived(firm, id_)
    assert re.fullmatch(r"retours\+[a-z2-7]+@welyb\.fr", came.envelope_sender)
    found = documents_of(came)
    assert {one.name: one.sha256 for one in found} == {name: digest(content) for name, _, content in documents}
    message = found[0].message
    assert (message["From"], message["Subject"]) == ("Welyb <automate@welyb.fr>", "Vos factures d'été")
    assert message["Message-ID"] == f"<{id_}-1@welyb.fr>" and message["Reply-To"] is None
    shown = {row["id"]: row for row in firm.relay.json("documents", "list", "--id", id_)}
    for part in list(message.iter_parts())[1:]:
        row = shown[part["X-Welyb-Document-Id"]]
        assert (row["sha256"], row["status"]) == (part["X-Welyb-Document-SHA256"], "validated")
    (dkim_signature,) = (value for name, value in message.items() if name == "DKIM-Signature")
    assert "d=welyb.fr" in dkim_signature and b"strict.example" not in came.transmitted


@pytest.mark.debian("postfix")
def test_a_document_that_the_application_signed_never_goes_back_to_it(firm: Firm) -> None:
    bill = invoice("emise")
    accepted(firm.relay, APPLICATION.signed(LAX.mail(VENTES, bill)), VENTES, sender=LAX.address)
    back = accepted(firm.relay, LAX.mail(MEG, bill), MEG, sender=LAX.address, peer="127.0.0.1")
    (row,) = firm.relay.json("queue", "list", "--id", back)
    assert (row["state"], row["reason_code"]) == ("held", "origin")


# --- a forward to be confirmed ----------------------------------------------------------------------------------------


@pytest.mark.debian("postfix")
def test_a_request_to_confirm_a_forward_is_kept_listed_and_never_sent_on(firm: Firm) -> None:
    link = "https://mail-settings.google.com/mail/vf-%5BABC%5D-x1"
    request = mail("Gmail <forwarding-noreply@google.com>", MEG, subject="(#123456789) Confirmation", text=link)
    assert offered(firm.relay, request, MEG, sender="x@google.com").code == 550
    id_ = accepted(firm.relay, GOOGLE.signed(request), MEG, sender="x@google.com")
    (listed,) = firm.relay.json("forwarding", "list")
    assert {key: listed[key] for key in ("id", "recipient", "service", "code", "link", "state")} == {
        **{"id": id_, "recipient": MEG, "service": "gmail"},
        **{"code": "123456789", "link": link, "state": "pending"},
    }
    shown = firm.relay.cli("forwarding", "show", id_).stdout
    assert "123456789" in shown and link in shown
    firm.run()  # what others left
    before = len(firm.collector.messages())
    firm.run()
    assert len(firm.collector.messages()) == before
    assert firm.relay.json("queue", "list", "--id", id_) == []
    assert [row["event"] for row in firm.relay.json("trace", id_)] == ["accepted", "forwarding"]
    assert firm.relay.cli("queue", "resend", "--id", id_, check=False).returncode == 1
    assert firm.relay.cli("forwarding", "show", "rien", check=False).returncode == 1
    assert json.loads(firm.relay.cli("forwarding", "show", id_, "--json").stdout)["id"] == id_
    for filter_ in ("--sender", "--client", "--collector", "--state", "--after"):
        assert firm.relay.json("forwarding", "list", filter_, "0") == []
    assert len(firm.relay.json("forwarding", "list", "--state", "pending", "--limit", "1", "--client", "durand")) == 1
