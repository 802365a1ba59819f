"""What the far side, the network and DNS can do to a delivery, and who is told of it.

Long because each trouble is a row of a table or a short story of its own.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.support import documents as made
from tests.support.clients import CLIENTS, Sent, mail
from tests.support.debian import faked_time
from tests.support.farside import HANG_UP, Far, in_a_thread
from tests.support.firm import SENDERS, Firm
from tests.support.nameserver import NameServer
from tests.support.partner import Partner
from tests.support.program import free_port
from tests.support.relay import Relay, toml
from tests.support.zone import zone_text

SENDER = f"compta@{SENDERS}"
PDF = ("facture.pdf", "application/pdf", made.pdf())
NewRelay = Callable[..., Relay]


# --- scripted hosts, each behind a rule of its own -------------------------------------------------------------------


@dataclass
class Hosts:
    """`far` by name; NAME+x@welyb.fr leads to x@NAME.test."""

    far: dict[str, Far] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    def settings(self, folder: Path, names: list[str]) -> dict[str, Any]:
        rules = {name: {"address": f"{name}+{{name}}", "relay": f"{{name}}@{name}.test"} for name in names}
        (folder / "rules.toml").write_text(toml({"rule": rules}))
        routes = {f"{name}.test": f"127.0.0.1:{port}" for name, port in self.ports.items()}
        return {
            "relay": {"rules": str(folder / "rules.toml")},
            "run": {"settle": "0 s"},
            "delivery": {"routes": routes},
        }


@contextmanager
def hosts(scripts: Mapping[str, Mapping[str, Any]]) -> Iterator[Hosts]:
    """One server a script."""
    far = {name: Far(script) for name, script in scripts.items()}
    with in_a_thread(far.values()) as ports:
        yield Hosts(far, dict(zip(far, ports, strict=True)))


def send(relay: Relay, *recipients: str, message: bytes | None = None, sender: str = SENDER) -> Sent:
    return CLIENTS["python"](relay.port, sender, recipients, message or mail(sender or "x@y.fr", recipients, PDF))


def run(relay: Relay) -> dict[str, Any]:
    (counts,) = relay.json("runs", "now")
    assert counts["eligible"] == sum(counts[k] for k in ("sent", "deferred", "refused", "held", "duplicate"))
    return counts


def events(relay: Relay, delivery: str) -> list[str]:
    return [row["event"] for row in relay.json("trace", delivery) if row["delivery"] == delivery]


NO_EIGHT_BIT = b"250-mx.meg.test\r\n250 SIZE 20000000\r\n"
ANSWERS: dict[str, tuple[dict[str, Any], str, set[str]]] = {
    # name: what it says, the state that leaves, and what else is to be seen
    "banner4": ({"BANNER": b"450 4.7.0 occupe\r\n"}, "waiting", set()),
    "banner5": ({"BANNER": b"554 5.7.1 non\r\n"}, "waiting", {"warned"}),
    "garbage": ({"BANNER": b"SSH-2.0-OpenSSH\r\n"}, "waiting", set()),
    "ehlo5": ({"EHLO": b"550 5.7.1 non\r\n", "HELO": b"550 5.7.1 non\r\n"}, "waiting", {"warned"}),
    "mail4": ({"MAIL": b"450 4.3.0 plus tard\r\n"}, "waiting", set()),
    "mail421": ({"MAIL": b"421 4.3.2 arret\r\n"}, "waiting", set()),
    "mail5": ({"MAIL": b"550 5.7.1 expediteur refuse\r\n"}, "waiting", {"warned"}),
    "rcpt4": ({"RCPT": b"450 4.2.1 liste grise\r\n"}, "waiting", set()),
    "rcpt552": ({"RCPT": b"552 5.2.2 trop de destinataires\r\n"}, "waiting", set()),
    "rcpt5": ({"RCPT": b"550 5.1.1 inconnu\r\n"}, "failed", set()),
    "data4": ({"DATA": b"451 4.3.0 plus tard\r\n"}, "waiting", set()),
    "data5": ({"DATA": b"554 5.7.1 non\r\n"}, "failed", set()),
    "dot4": ({"DOT": b"451 4.3.0 plus tard\r\n"}, "waiting", set()),
    "dot5": ({"DOT": b"554 5.6.0 contenu refuse\r\n"}, "failed", set()),
    "dotcut": ({"DOT": HANG_UP}, "waiting", {"uncertain"}),
    "datacut": ({"DATA": HANG_UP}, "waiting", set()),
    "small": ({"EHLO": b"250-mx.meg.test\r\n250 SIZE 100\r\n"}, "failed", set()),
    "seven": ({"EHLO": NO_EIGHT_BIT}, "failed", set()),
    "notls": ({}, "waiting", {"warned"}),
    "fine": ({}, "sent", set()),
}


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Any]]]:
    """One run against all of ANSWERS, and a host nobody is at: name → the delivery as listed, `seen` added."""
    folder = tmp_path_factory.mktemp("answers")
    with hosts({name: script for name, (script, _, _) in ANSWERS.items()}) as found:
        found.ports["nobody"] = free_port()
        relay = Relay(folder, found.settings(folder, [*ANSWERS, "nobody"]))
        relay.configure({"delivery": {"tls": {"notls.test": "required"}}})
        relay.start()
        try:
            for name in found.ports:
                eight_bit = mail(SENDER, f"{name}+x@welyb.fr", PDF).replace(b"Bonjour,", b"\xc3\xa9t\xc3\xa9")
                assert send(relay, f"{name}+x@welyb.fr", message=eight_bit).accepted
            run(relay)
            listed = {row["target"].partition("@")[2][:-5]: row for row in relay.json("queue", "list")}
            for row in listed.values():
                told = events(relay, row["id"])
                row["seen"] = {"warned"} & set(told) | ({"uncertain"} if row["uncertain"] else set())
            yield listed
        finally:
            relay.stop()


@pytest.mark.parametrize("name", ANSWERS)
def test_what_an_answer_does_to_the_delivery(answered: dict[str, dict[str, Any]], name: str) -> None:
    script, state, seen = ANSWERS[name]
    row = answered[name]
    assert (row["state"], row["attempts"], row["seen"]) == (state, 1, seen)
    if state == "waiting":
        assert row["due_at"] > row["received_at"]
        assert re.search(r"En attente d'envoi, nouvel essai à \d\d h \d\d\. Dernière réponse : .", row["reason"])
    for said in script.values():
        if isinstance(said, bytes) and said[:1] in (b"4", b"5"):
            assert said.decode().strip() == row["reply"]


def test_what_else_is_shown(answered: dict[str, dict[str, Any]]) -> None:
    assert "Trop volumineux pour le destinataire" in answered["small"]["reason"]
    assert "limite annoncée 100 octets" in answered["small"]["reason"]
    assert "8 bits (5.6.3)" in answered["seven"]["reason"]
    assert answered["nobody"]["state"] == "waiting"
    assert answered["fine"]["reply"] == "250 2.0.0 queued as A1"
    assert answered["fine"]["mx"].startswith("[127.0.0.1]:")


def test_a_host_that_turns_us_away_is_asked_once_a_run(tmp_path: Path, new_relay: NewRelay) -> None:
    with hosts({"away": {"BANNER": b"554 5.7.1 non\r\n"}}) as found:
        relay = new_relay(found.settings(tmp_path, ["away"])).start()
        for name in "abcdef":
            send(relay, f"away+{name}@welyb.fr")
        assert run(relay)["deferred"] == 6
        assert found.far["away"].connections == 1
        assert sorted(row["attempts"] for row in relay.json("queue", "list")) == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(("allowed", "least", "most"), [(1, 1, 1), (3, 2, 3)])
def test_many_documents_over_few_connections(
    tmp_path: Path, new_relay: NewRelay, allowed: int, least: int, most: int
) -> None:
    with hosts({"far": {}}) as found:
        relay = new_relay(found.settings(tmp_path, ["far"]))
        relay.configure({"delivery": {"connections_per_destination": allowed}})
        relay.start()
        for number in range(12):
            send(relay, f"far+c{number % 3}@welyb.fr")
        assert run(relay)["sent"] == 12
        assert least <= found.far["far"].connections <= most
        assert len(found.far["far"].messages) == 12


def test_a_line_lost_after_the_dot_is_retried_as_the_same_message_and_flagged(
    tmp_path: Path, new_relay: NewRelay
) -> None:
    with hosts({"far": {"DOT": [HANG_UP, b"250 2.0.0 ok\r\n"]}}) as found:
        relay = new_relay(found.settings(tmp_path, ["far"])).start()
        send(relay, "far+x@welyb.fr")
        assert run(relay)["deferred"] == 1
        assert run(relay)["sent"] == 1
        first, second = found.far["far"].messages
        assert first == second
        assert re.search(rb"(?m)^Message-ID: <.+>\r$", first)
        (document,) = relay.json("documents", "list")
        assert (document["status"], document["uncertain"]) == ("validated", True)


# --- DNS --------------------------------------------------------------------------------------------------------------

ZONE = """
null.test. MX 0 .
gone.test. MX 10 mx.nowhere.test.
trouble.test. MX 10 mx.trouble.test.
"""


def test_what_dns_says_and_what_it_does_not(tmp_path: Path, new_relay: NewRelay) -> None:
    names = ["null", "gone", "trouble", "nx"]
    with NameServer(ZONE) as server:
        server.fail("trouble.test.", "servfail")
        relay = new_relay(Hosts().settings(tmp_path, names))
        relay.configure({"delivery": {"dns": [server.address], "routes": {}}})
        relay.start()
        for name in names:
            send(relay, f"{name}+a@welyb.fr", f"{name}+b@welyb.fr")
        run(relay)
        rows = {row["recipient"].partition("@")[0]: row for row in relay.json("queue", "list", "--collector", "")}
        assert {name: rows[f"{name}+a"]["state"] for name in names} == {
            "null": "failed",
            "gone": "waiting",
            "trouble": "waiting",
            "nx": "waiting",
        }
        assert "MX nul, 5.1.10" in rows["null+a"]["reason"]
        assert rows["null+b"]["state"] == "failed"
        assert "NXDOMAIN" in rows["nx+a"]["reply"]
        assert sorted((rows["nx+a"]["attempts"], rows["nx+b"]["attempts"])) == [0, 1]


@pytest.mark.debian("postfix", "knot", "port 25")
def test_the_domain_that_did_not_exist_gets_its_mx(relay: Relay, partner: Partner) -> None:
    before = dict(partner.zone.zones)
    partner.zone.change({domain: text for domain, text in before.items() if domain != "factures-meg.fr"})
    send(relay, "meg+macon-dupont@welyb.fr", "meg+achats+macon-dupont@welyb.fr")
    counts = run(relay)
    assert (counts["sent"], counts["deferred"]) == (1, 1)
    partner.zone.change(before)
    assert run(relay)["sent"] == 1
    there = {message.envelope_recipient for message in partner.collector.wait(2)}
    assert there == {"macon-dupont@factures-meg.fr", "macon-dupont@achats.factures-meg.fr"}
    assert {row["mx"] for row in relay.json("queue", "list")} == {
        f"mx.{domain}[{partner.collector.address}]:25" for domain in ("factures-meg.fr", "achats.factures-meg.fr")
    }


@pytest.mark.debian("postfix", "knot", "port 25")
def test_the_second_mx_is_tried_where_the_first_is_away(relay: Relay, partner: Partner) -> None:
    away = zone_text("@ MX 10 down", "@ MX 20 mx", "down A 127.0.0.99", f"mx A {partner.collector.address}")
    partner.zone.change({**partner.zone.zones, "factures-meg.fr": away})
    send(relay, "meg+macon-dupont@welyb.fr")
    assert run(relay)["sent"] == 1


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.debian("faketime")
def test_five_days_of_trying(tmp_path: Path, new_relay: NewRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    """15, 15, 30, 60 minutes, then hourly; a warning after 4 hours; given up, and told, after 5 days."""
    settings = Hosts(ports={"away": free_port()}).settings(tmp_path, ["away"])
    relay = new_relay(settings, env=faked_time("@2026-03-02 10:01:00"))
    relay.configure({"run": {"every": "15 min"}, "relay": {"postmaster": f"postmaster@{SENDERS}"}})
    relay.configure({"delivery": {"routes": {SENDERS: f"127.0.0.1:{free_port()}"}}})
    relay.start()
    send(relay, "away+x@welyb.fr")
    relay.stop()
    (row,) = relay.json("queue", "list")

    def tried_at(instant: str) -> dict[str, Any]:
        for name, value in faked_time(f"@{instant[:19].replace('T', ' ')}").items():
            monkeypatch.setenv(name, value)
        run(relay)
        return next(found for found in relay.json("queue", "list") if found["id"] == row["id"])

    due = [row["due_at"]]
    for _ in range(7):
        due.append(tried_at(due[-1])["due_at"])
    assert [instant[11:16] for instant in due] == [
        *("10:15", "10:30", "10:45", "11:15", "12:15", "13:15", "14:15", "15:15"),
    ]
    assert events(relay, row["id"]).count("warned") == 1
    last = tried_at("2026-03-07T10:15:00")
    assert (last["state"], last["attempts"]) == ("failed", 8)
    assert last["reason"].startswith("Abandonné après 5 jours d'essais. Dernière réponse : ")
    notices = {found["route"]: found for found in relay.json("queue", "list") if found["route"] != "away"}
    assert notices.keys() == {"dsn", "warning"}
    assert notices["dsn"]["target"] == SENDER


def test_whoever_waits_behind_a_host_that_is_away_is_given_up_and_told_too(tmp_path: Path, new_relay: NewRelay) -> None:
    relay = new_relay(Hosts(ports={"away": free_port()}).settings(tmp_path, ["away"]))
    relay.configure(
        {"delivery": {"give_up_after": "1 s"}},
    )
    relay.start()
    senders = [f"{name}@{SENDERS}" for name in "abc"]
    for number, sender in enumerate(senders):
        send(relay, f"away+{number}@welyb.fr", sender=sender)
    _wait_until_given_up(relay)
    assert run(relay)["refused"] == 3
    told = [row["target"] for row in relay.json("queue", "list") if row["route"] == "dsn"]
    assert sorted(told) == senders


def test_whoever_waits_behind_a_host_that_is_away_is_warned_of_too(tmp_path: Path, new_relay: NewRelay) -> None:
    relay = new_relay(Hosts(ports={"away": free_port()}).settings(tmp_path, ["away"]))
    relay.configure({"relay": {"warn_after": "1 s", "postmaster": f"postmaster@{SENDERS}"}})
    relay.start()
    ids = [send(relay, f"away+{n}@welyb.fr").text.rsplit(maxsplit=1)[-1] for n in range(3)]
    _wait_until_given_up(relay)
    run(relay)
    assert [events(relay, f"{id_}-1").count("warned") for id_ in ids] == [1, 1, 1]
    (warning,) = (row for row in relay.json("queue", "list") if row["route"] == "warning")
    run(relay)  # once is enough
    body = relay.cli("queue", "body", warning["id"]).stdout
    assert warning["target"] == f"postmaster@{SENDERS}"
    assert "Subject: welyb-relay" in body
    assert len([row for row in relay.json("queue", "list") if row["route"] == "warning"]) == 1


def _wait_until_given_up(relay: Relay) -> None:
    """A second after the newest delivery came."""
    newest = max(datetime.fromisoformat(row["received_at"]) for row in relay.json("queue", "list"))
    time.sleep(max(0.0, newest.timestamp() + 1.1 - time.time()))


# --- a real collector -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def firm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firm]:
    firm = Firm.start(tmp_path_factory.mktemp("firm"), reject=["parti@factures-meg.fr"])
    yield firm
    firm.stop()


def delivery_of(firm: Firm, sent: Sent) -> dict[str, Any]:
    (row,) = firm.relay.json("queue", "list", "--id", sent.text.rsplit(maxsplit=1)[-1])
    return row


def arrived_at(firm: Firm, recipient: str) -> list[Any]:
    return [message for message in firm.collector.messages() if message.envelope_recipient == recipient]


@pytest.mark.debian("postfix")
def test_the_collector_goes_away_and_comes_back(firm: Firm) -> None:
    with firm.collector_away():
        sent = firm.mail("meg+absent@welyb.fr", mail(SENDER, "meg+absent@welyb.fr", PDF))
        firm.run()
        assert delivery_of(firm, sent)["state"] == "waiting"
        firm.run()
        assert delivery_of(firm, sent)["attempts"] == 2
    firm.run()
    row = delivery_of(firm, sent)
    assert (row["state"], row["attempts"]) == ("sent", 3)
    assert len(arrived_at(firm, "absent@factures-meg.fr")) == 1


@pytest.mark.debian("postfix")
def test_the_size_a_collector_announces(firm: Firm, tmp_path: Path) -> None:
    large = ("scan.pdf", "application/pdf", made.pdf_of_size(300_000))
    firm.collector.change(size_limit=100_000)
    try:
        sent = firm.mail("meg+petit@welyb.fr", mail(SENDER, "meg+petit@welyb.fr", large))
        firm.run()
    finally:
        firm.collector.change(size_limit=50_000_000)
    row = delivery_of(firm, sent)
    assert row["state"] == "failed"
    assert "limite annoncée 100\u202f000 octets" in row["reason"]


@pytest.mark.debian("postfix")
def test_tls_is_used_where_offered_and_waited_for_where_required(firm: Firm, certificate: tuple[Path, Path]) -> None:
    def sent_with(policy: str) -> dict[str, Any]:
        with firm.set_to({"delivery": {"tls": {"factures-meg.fr": policy}}}):
            sent = firm.mail("meg+discret@welyb.fr", mail(SENDER, "meg+discret@welyb.fr", PDF))
            firm.run()
        return delivery_of(firm, sent)

    clear = sent_with("opportunistic")
    assert (clear["state"], clear["tls"]) == ("sent", "")
    waiting = sent_with("required")
    assert (waiting["state"], "STARTTLS not offered" in waiting["reply"]) == ("waiting", True)
    firm.collector.change(certificate=certificate)
    secured = sent_with("opportunistic")
    assert (secured["state"], secured["tls"]) == ("sent", "TLSv1.3")
    (waited,) = firm.relay.json("queue", "list", "--id", waiting["id"])
    assert (waited["state"], waited["tls"]) == ("sent", "TLSv1.3")
    assert [m.over_tls for m in arrived_at(firm, "discret@factures-meg.fr")] == [False, True, True]


@pytest.mark.debian("postfix")
def test_the_sender_of_a_mail_that_failed_is_told_and_learns_no_name(firm: Firm) -> None:
    typed = "MEG+Parti@welyb.fr"
    sent = firm.mail(typed, mail("patron@cabinet.example", typed, PDF), sender="patron@cabinet.example")
    firm.run()
    assert delivery_of(firm, sent)["state"] == "failed"
    firm.run()
    (report,) = arrived_at(firm, "patron@cabinet.example")
    assert report.envelope_sender == ""
    assert re.search(rb"(?mi)^Final-Recipient: rfc822; meg\+parti@welyb\.fr\r$", report.transmitted)
    assert b"Action: failed" in report.transmitted
    assert b"factures-meg" not in report.transmitted.lower()
    assert b"Remote-MTA" not in report.transmitted
    assert "notified" in events(firm.relay, delivery_of(firm, sent)["id"])


@pytest.mark.debian("postfix")
def test_the_null_sender_and_a_deposits_firm_get_no_report(firm: Firm) -> None:
    firm.relay.client("parti")
    (firm.relay.ged / "parti/Achats").mkdir()
    firm.relay.cli(
        *("connections", "add", "--application", "meg", "--client", "parti"),
        *("--folder", "Achats", "--address", "parti@factures-meg.fr"),
    )
    (firm.relay.ged / "parti/Achats/facture.pdf").write_bytes(made.pdf("a deposit"))
    firm.mail("meg+parti@welyb.fr", mail(SENDER, "meg+parti@welyb.fr", PDF), sender="")
    before = [row["id"] for row in firm.relay.json("queue", "list") if row["route"] == "dsn"]
    assert firm.run()["refused"] == 2
    assert [row["id"] for row in firm.relay.json("queue", "list") if row["route"] == "dsn"] == before


@pytest.mark.debian("postfix")
def test_a_stranger_gets_no_report(tmp_path: Path, firm: Firm, new_relay: NewRelay) -> None:
    (tmp_path / "rules.toml").write_text(
        '[rule.meg]\naddress = "meg+{name}"\nrelay = "{name}@factures-meg.fr"\nsenders = "anyone"\n'
    )
    relay = new_relay({"smtp": {"trusted_networks": []}, "relay": {"rules": str(tmp_path / "rules.toml")}})
    relay.configure({"delivery": {"routes": {"factures-meg.fr": firm.collector.destination}}})
    relay.start()
    assert send(relay, "meg+parti@welyb.fr").accepted
    assert run(relay)["refused"] == 1
    assert [row["route"] for row in relay.json("queue", "list")] == ["meg"]


# --- what comes back --------------------------------------------------------------------------------------------------

REPORT = """\
From: MAILER-DAEMON@mx.factures-meg.fr
To: {to}
Subject: Undelivered Mail Returned to Sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b"

--b

Voici ce qui s'est passe.
--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.factures-meg.fr

Final-Recipient: rfc822; {recipient}
Action: {action}
Status: {status}
Diagnostic-Code: smtp; 550 dossier cloture

--b--
"""


def came_back(firm: Firm, name: str, action: str, status: str = "5.1.1") -> tuple[dict[str, Any], list[str]]:
    """A mail is sent, then a report comes for it: (the document as the firm sees it, its events)."""
    sent = firm.mail(f"meg+{name}@welyb.fr", mail(SENDER, f"meg+{name}@welyb.fr", PDF))
    firm.run()
    (received,) = arrived_at(firm, f"{name}@factures-meg.fr")
    report = REPORT.format(
        to=received.envelope_sender, recipient=received.envelope_recipient, action=action, status=status
    )
    assert firm.mail(received.envelope_sender, report.replace("\n", "\r\n").encode(), sender="").accepted
    (document,) = firm.relay.json("documents", "list", "--id", sent.text.rsplit(maxsplit=1)[-1])
    return document, events(firm.relay, document["delivery"])


@pytest.mark.debian("postfix")
def test_a_bounce_withdraws_validated_and_shows_its_text(firm: Firm) -> None:
    document, told = came_back(firm, "revenu", "failed")
    assert (document["status"], document["validated_at"]) == ("bounced", None)
    assert document["reason"] == "Retourné par le destinataire : 550 dossier cloture"
    assert told[-2:] == ["sent", "bounced"]


@pytest.mark.debian("postfix")
@pytest.mark.parametrize(("action", "status"), [("delayed", "4.4.1"), ("delivered", "2.0.0")])
def test_another_report_joins_the_history(firm: Firm, action: str, status: str) -> None:
    document, told = came_back(firm, f"rapport-{action}", action, status)
    assert document["status"] == "validated"
    assert told[-2:] == ["sent", "reported"]


@pytest.mark.debian("postfix")
def test_an_answer_joins_the_history_and_a_forged_token_is_unknown(firm: Firm) -> None:
    sent = firm.mail("meg+bavard@welyb.fr", mail(SENDER, "meg+bavard@welyb.fr", PDF))
    firm.run()
    (received,) = arrived_at(firm, "bavard@factures-meg.fr")
    back = received.envelope_sender
    answer = mail("robot@factures-meg.fr", back, subject="Absent du bureau")
    assert firm.mail(back, answer, sender="robot@factures-meg.fr").accepted
    row = delivery_of(firm, sent)
    assert (row["state"], events(firm.relay, row["id"])[-1]) == ("sent", "reported")
    letter = back[8]
    forged = back[:8] + ("a" if letter != "a" else "b") + back[9:]
    refused = firm.mail(forged, answer, sender="")
    assert (refused.code, refused.text) == (550, "5.1.1 Adresse de collecte inconnue (unknown address)")


# --- a server that repeats a mail whose 250 it lost -------------------------------------------------------------------


def accepted_id(sent: Sent) -> str:
    assert sent.accepted, sent
    return sent.text.rsplit(maxsplit=1)[-1]


@pytest.mark.debian("postfix")
def test_a_repeat_is_answered_250_with_the_first_id_and_adds_nothing(firm: Firm) -> None:
    typed = "meg+encore@welyb.fr"
    message = mail(SENDER, typed, PDF)
    hop = b"Received: from a by b; Mon, 2 Mar 2026 10:00:00 +0000\r\n"
    first = accepted_id(firm.mail(typed, message))
    assert accepted_id(firm.mail(typed, message)) == first
    assert accepted_id(firm.mail(typed, hop + message)) == first, "the leading trace is not part of it"
    firm.run()
    assert accepted_id(firm.mail(typed, message)) == first, "nor does it matter that it has left"
    firm.run()
    assert len(arrived_at(firm, "encore@factures-meg.fr")) == 1
    assert [row["event"] for row in firm.relay.json("trace", first)].count("repeated") == 3


@pytest.mark.debian("postfix")
def test_what_is_no_repeat(firm: Firm) -> None:
    typed = "meg+pareil@welyb.fr"
    message = mail(SENDER, typed, PDF)
    nameless = re.sub(rb"Message-ID: .*\r\n", b"", message)
    told = [
        firm.mail(typed, message),
        firm.mail(typed, message.replace(b"Bonjour", b"Bonsoir")),
        firm.mail(typed, message, sender="autre@cabinet.example"),
        firm.mail("meg+pareil2@welyb.fr", message),
        firm.mail(typed, nameless),
        firm.mail(typed, nameless),
    ]
    assert len({accepted_id(sent) for sent in told}) == 6


@pytest.mark.debian("postfix")
@pytest.mark.parametrize("ending", ["dropped", "failed", "bounced"])
def test_a_mail_is_added_again_where_the_first_came_to_nothing(firm: Firm, ending: str) -> None:
    name = "parti" if ending == "failed" else f"fini-{ending}"
    typed = f"meg+{name}@welyb.fr"
    message = mail(SENDER, typed, PDF)
    first = accepted_id(firm.mail(typed, message))
    if ending == "dropped":
        firm.relay.cli("queue", "drop", f"{first}-1", "--reason", "essai")
    else:
        firm.run()
    if ending == "bounced":
        (received,) = arrived_at(firm, f"{name}@factures-meg.fr")
        fields = {"to": received.envelope_sender, "recipient": received.envelope_recipient}
        report = REPORT.format(**fields, action="failed", status="5.1.1").replace("\n", "\r\n")
        assert firm.mail(received.envelope_sender, report.encode(), sender="").accepted
    assert firm.relay.json("queue", "list", "--id", first)[0]["state"] == ending
    again = accepted_id(firm.mail(typed, message))
    assert again != first
    assert firm.relay.json("queue", "list", "--id", again)[0]["state"] == "waiting"
