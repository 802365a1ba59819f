"""Who hears that a mail finally failed, and what they read: as the sender's own server gets it."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from tests.support import documents as made
from tests.support.clients import CLIENTS, mail
from tests.support.debian import faked_time
from tests.support.farside import SILENT, Far, in_a_thread
from tests.support.program import Program
from tests.support.relay import Relay, command

SENDER, POSTMASTER = "compta@cabinet.example", "chef@cabinet.example"
GONE = b"550 5.1.1 <parti@factures-meg.fr>: MEG ne connait pas ce dossier (mx.factures-meg.fr)\r\n"
PDF = ("facture.pdf", "application/pdf", made.pdf())


@dataclass
class Office:
    """A relay whose collector refuses everybody, and the server of those who write to it."""

    relay: Relay
    theirs: Far

    def mail(self, *to: str, sender: str = SENDER, extra: bytes = b"") -> str:
        """A mail with `extra` fields; its id."""
        sent = CLIENTS["python"](self.relay.port, sender, to, extra + mail(SENDER, to, PDF))
        assert sent.accepted, sent
        return sent.text.rsplit(maxsplit=1)[-1]

    def fail(self, *to: str, sender: str = SENDER, extra: bytes = b"") -> str:
        """And the run at which it fails."""
        id_ = self.mail(*to, sender=sender, extra=extra)
        self.relay.cli("runs", "now")
        return id_

    def notified(self) -> list[str]:
        return [row["target"] for row in self.relay.json("queue", "list") if row["route"] == "dsn"]

    def history(self, id_: str) -> list[tuple[str, str]]:
        """(event, why) of what was told of a mail, or not."""
        rows = [row for row in self.relay.json("trace", id_) if row["event"] in ("notified", "not-notified")]
        return [(row["event"], _detail(row).get("why", "")) for row in rows]

    def received(self) -> list[bytes]:
        """What the sender's server got, after the run at which it left; by null senders, or it is an error."""
        self.relay.cli("runs", "now")
        assert {line for line in self.theirs.commands if line.startswith("MAIL")} <= {"MAIL FROM:<>", *self._sized()}
        return [re.sub(rb"(?m)^\.", b"", message) for message in self.theirs.messages]

    def _sized(self) -> list[str]:
        return [line for line in self.theirs.commands if line.startswith("MAIL FROM:<> ")]


def _detail(row: dict[str, Any]) -> dict[str, Any]:
    detail = row["detail"]
    found = json.loads(detail) if isinstance(detail, str) else detail
    return found if isinstance(found, dict) else {}


@pytest.fixture
def office(new_relay: Callable[..., Relay]) -> Iterator[Office]:
    theirs = Far()
    with in_a_thread([Far({"RCPT": GONE}), theirs]) as (collector, ours):
        routes = {"factures-meg.fr": f"127.0.0.1:{collector}", "achats.factures-meg.fr": f"127.0.0.1:{collector}"}
        routes |= {"cabinet.example": f"127.0.0.1:{ours}"}
        yield Office(new_relay({"delivery": {"routes": routes}}).start(), theirs)


def partners_in(text: str) -> list[str]:
    """S4: where `text` names MEG or a collector. What its reader typed is no news to them."""
    return re.findall(r"(?i)\bMEG\b(?!\+)|factures-meg|\b550\b|ne connait pas", text)


def test_one_report_for_a_mail_with_each_address_as_it_was_typed(office: Office) -> None:
    typed = ["MEG+Parti@welyb.fr", "meg+Achats+PARTI@welyb.fr"]
    id_ = office.fail(*typed, extra="Subject: réclamation é\r\nX-Long: ".encode() + b"x" * 2000 + b"\r\n")
    assert office.history(id_) == [("notified", "")] * 2
    (raw,) = office.received()
    assert raw.isascii()
    report = message_from_bytes(raw)
    assert (report.get_content_type(), report.get_param("report-type")) == ("multipart/report", "delivery-status")
    fields = {name: report[name] for name in ("From", "To", "Subject", "Auto-Submitted", "X-Welyb-Relay")}
    assert fields == {
        "From": "Welyb <postmaster@welyb.fr>",
        "To": f"<{SENDER}>",
        "Subject": "Message non transmis (undelivered mail)",
        "Auto-Submitted": "auto-replied",
        "X-Welyb-Relay": "welyb.fr",
    }
    text, status, original = _parts(report)
    words = text.get_payload(decode=True).decode()
    assert words.index("n'a pas pu être transmis à :") < words.index("could not be passed on to:")
    about, *recipients = _parts(status)
    assert about["Reporting-MTA"] == "dns; mx.welyb.fr"
    assert sorted((r["Final-Recipient"], r["Action"], r["Status"]) for r in recipients) == sorted(
        (f"rfc822; {address}", "failed", "5.1.1") for address in typed
    )
    assert {name for group in (about, *recipients) for name in group} == {
        *("Reporting-MTA", "Arrival-Date", "Final-Recipient", "Action", "Status"),
    }
    header = original.get_payload(decode=True)
    assert header.startswith("Subject: réclamation é\r\nX-Long: xxx".encode()) and b"%PDF" not in header
    told = [part.get_payload(decode=True).decode() for part in (text, original)]
    assert partners_in("\n".join([raw.decode(), *told])) == []


def _parts(message: Message) -> list[Any]:
    payload = message.get_payload()
    assert isinstance(payload, list)
    return payload


MACHINES = [
    (b"Auto-Submitted: auto-generated\r\n", SENDER, "auto-submitted"),
    (b"List-Id: <clients.cabinet.example>\r\n", SENDER, "list"),
    (b"Precedence: bulk\r\n", SENDER, "bulk"),
    (b"Content-Type: multipart/report; boundary=x\r\n", SENDER, "report"),
    (b"", "", "null-sender"),
    (b"", "automate@welyb.fr", "own-domain"),
    (b"", "MAILER-DAEMON@cabinet.example", "daemon"),
    (b"", "clients-request@cabinet.example", "list"),
]


def test_no_machine_is_told_and_the_history_says_why(office: Office) -> None:
    office.relay.configure({"relay": {"postmaster": POSTMASTER}})
    sent = [office.mail("meg+parti@welyb.fr", sender=sender, extra=extra) for extra, sender, _ in MACHINES]
    office.relay.cli("runs", "now")
    assert [office.history(id_) for id_ in sent] == [[("not-notified", why)] for *_, why in MACHINES]
    assert office.notified() == []
    (warning,) = office.received()  # the postmaster hears of them all
    told = message_from_bytes(warning).get_payload(decode=True)
    assert isinstance(told, bytes) and all(id_.encode() in told for id_ in sent)


def test_a_person_who_says_so_is_told(office: Office) -> None:
    assert office.history(office.fail("meg+parti@welyb.fr", extra=b"Auto-Submitted: no\r\n")) == [("notified", "")]


@pytest.mark.debian("faketime")
def test_once_a_day_and_no_more(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    relay = office.relay

    def at(instant: str) -> None:
        relay.stop()
        for name, value in faked_time(f"@{instant}").items():
            relay.program.env[name] = value
            monkeypatch.setenv(name, value)
        relay.start()

    at("2026-03-02 10:00:00")
    same = [office.mail(f"meg+{n}@welyb.fr", sender=who) for n, who in enumerate((SENDER, SENDER, SENDER.upper()))]
    other = office.fail("meg+autre@welyb.fr", sender="b@cabinet.example")
    told = [event for id_ in same for event in office.history(id_)]
    assert sorted(told) == [("not-notified", "told-today"), ("not-notified", "told-today"), ("notified", "")]
    assert office.history(other) == [("notified", "")]
    at("2026-03-03 10:30:00")
    assert office.history(office.fail("meg+parti@welyb.fr")) == [("notified", "")]
    assert len(office.notified()) == 3


def test_a_run_that_is_killed_leaves_what_it_did_not_tell_to_the_next(tmp_path: Path, office: Office) -> None:
    office.relay.configure({"relay": {"postmaster": POSTMASTER}})
    office.relay.cli("runs", "now")
    failing = office.mail("meg+parti@welyb.fr")
    with in_a_thread([Far({"BANNER": SILENT})]) as (port,):  # keeps the run from its end
        office.relay.configure({"delivery": {"routes": {"achats.factures-meg.fr": f"127.0.0.1:{port}"}}})
        office.mail("meg+achats+x@welyb.fr")
        run = Program([*command(), "--config", office.relay.config, "runs", "now"], tmp_path, name="run")
        run.start(lambda: "failed" in [row["event"] for row in office.relay.json("trace", failing)], timeout=60)
        run.kill()
    assert office.history(failing) == []
    office.relay.cli("runs", "now")
    assert office.history(failing) == [("notified", "")]
    told = office.received()
    assert len([message for message in told if b"delivery-status" in message]) == 1
    assert len([message for message in told if f"- envoi {failing}-1 ".encode() in _text(message)]) == 1
    office.relay.cli("runs", "now")
    assert office.history(failing) == [("notified", "")], "and that is all"


@pytest.mark.parametrize(("verb", "states"), [("retry", ["sent"]), ("resend", ["failed", "sent"])])
def test_what_was_tried_again_and_arrived_is_not_told_of(
    tmp_path: Path, new_relay: Callable[..., Relay], verb: str, states: list[str]
) -> None:
    """Who is told to send again sends again: a purchase twice in the books."""
    collector = Far({"RCPT": [GONE, b"250 2.1.5 ok\r\n"]})
    with in_a_thread([collector, Far({"BANNER": SILENT})]) as (port, silent):
        routes = {"factures-meg.fr": f"127.0.0.1:{port}", "achats.factures-meg.fr": f"127.0.0.1:{silent}"}
        office = Office(new_relay({"delivery": {"routes": routes}}).start(), Far())
        office.relay.cli("runs", "now")
        failing = office.mail("meg+parti@welyb.fr")
        office.mail("meg+achats+x@welyb.fr")  # keeps the run from its end
        run = Program([*command(), "--config", office.relay.config, "runs", "now"], tmp_path, name="run")
        run.start(lambda: "failed" in [row["event"] for row in office.relay.json("trace", failing)], timeout=60)
        run.kill()
        office.relay.cli("queue", verb, f"{failing}-1", "--reason", "MEG l'a ouvert")
        office.relay.configure({"delivery": {"routes": {"achats.factures-meg.fr": f"127.0.0.1:{port}"}}})
        office.relay.cli("runs", "now")
    listed = office.relay.json("queue", "list")
    assert sorted(row["state"] for row in listed if row["message"] == failing) == states
    assert (office.history(failing), office.notified()) == ([], [])


def _text(message: bytes) -> bytes:
    payload = message_from_bytes(message).get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def test_hostile_fields_stay_where_they_were(office: Office) -> None:
    hostile = (
        b"Subject: =?utf-8?q?x=0D=0ARemote-MTA:_dns;_mx.evil.test?=\r\n"
        b"X-Bound: \r\n --=_0123456789abcdef0123456789abcdef--\r\n"
        b"X-Ctl: a\x00b\x1b[31m\r\n"
    )
    office.fail("meg+parti@welyb.fr", extra=hostile)
    (raw,) = office.received()
    report = message_from_bytes(raw)
    assert b"\0" not in raw and report["Remote-MTA"] is None
    _, status, original = _parts(report)
    assert [list(group.keys()) for group in _parts(status)][1:] == [["Final-Recipient", "Action", "Status"]]
    assert hostile in original.get_payload(decode=True)
