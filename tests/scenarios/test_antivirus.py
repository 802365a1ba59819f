"""The scanner at the door: infected mail is refused, and while nobody can say whether mail is clean it waits outside."""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import documents as made
from tests.support.clamd import FOUND, Clamd
from tests.support.clients import CLIENTS, Document, Sent, mail
from tests.support.farside import Far, in_a_thread
from tests.support.relay import Relay

pytestmark = pytest.mark.debian("clamav-daemon")

SENDER = "compta@cabinet.example"
SALES, MEG = "ventes+martin@welyb.fr", "meg+martin@welyb.fr"
NewRelay = Callable[..., Relay]


@pytest.fixture
def clamd(tmp_path: Path) -> Iterator[Clamd]:
    clamd = Clamd(tmp_path / "clamd").start()
    yield clamd
    clamd.stop()


@pytest.fixture
def relay(new_relay: NewRelay, clamd: Clamd) -> Relay:
    relay = new_relay({"antivirus": {"clamd": clamd.unix}})
    relay.client("Martin")
    return relay.start()


def send(relay: Relay, *to: str, document: bytes, sender: str = SENDER) -> Sent:
    attached: Document = ("facture.pdf", "application/pdf", document)
    return CLIENTS["python"](relay.port, sender, to, mail(SENDER, to, attached))


def checked(relay: Relay) -> dict[str, Any]:
    """What `check`, which may find other faults, finds of the scanner."""
    found = map(json.loads, relay.cli("check", "--json", check=False).stdout.splitlines())
    return next(row for row in found if row["subject"] == "antivirus")


def infected(clamd: Clamd, size: int = 0) -> bytes:
    """A PDF to everybody else."""
    return made.pdf_of_size(size or 3_000) + f"\n%{clamd.evil}\n".encode()


@pytest.mark.parametrize("size", [0, 1_000_000], ids=["small", "large"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_virus_is_refused_by_name_for_all_and_remembered(
    relay: Relay, clamd: Clamd, size: int, processes: int
) -> None:
    if processes > 1:
        relay.stop()
        relay.configure({"smtp": {"processes": processes}, "antivirus": {"clamd": clamd.tcp}})
        relay.start()
    sent = send(relay, MEG, SALES, document=infected(clamd, size))
    assert (sent.code, sent.text) == (554, f"5.7.1 Message refuse : virus detecte, {FOUND} (virus found)")
    assert relay.json("queue", "list") == []
    assert [path for path in (relay.folder / "var/spool/files").rglob("*") if path.is_file()] == []
    (row,) = relay.json("trace", SENDER)
    assert row["event"] == "refused" and FOUND in str(row["detail"])
    assert send(relay, MEG, SALES, document=made.pdf_of_size(size or 3_000)).accepted


def test_what_the_documents_deserve_is_said_first(relay: Relay, clamd: Clamd) -> None:
    """A sender who can do something about it is told; and a ZIP costs no scan."""
    archive = made.plain_zip()
    sent = CLIENTS["python"](
        relay.port, SENDER, [MEG], mail(SENDER, MEG, ("releve.zip", "application/zip", archive), text=clamd.evil)
    )
    assert sent.code == 554 and "releve.zip" in sent.text


def test_mail_for_the_postmaster_is_scanned_too(relay: Relay, clamd: Clamd) -> None:
    assert send(relay, "postmaster@welyb.fr", document=infected(clamd)).code == 554
    assert send(relay, "postmaster@welyb.fr", document=made.plain_zip()).accepted


def test_while_the_scanner_is_away_mail_waits_outside(relay: Relay, clamd: Clamd) -> None:
    assert send(relay, MEG, document=made.pdf("1")).accepted
    clamd.stop()
    sent = send(relay, MEG, SALES, document=made.pdf("2"))
    assert (sent.code, sent.text) == (451, "4.3.0 Incident temporaire (temporary failure)")
    assert len(relay.json("queue", "list")) == 1
    log = relay.program.err.read_text()
    assert " scanner-away " in log and "start clamav-daemon" in log
    row = checked(relay)
    assert (row["ok"], "start clamav-daemon" in row["remedy"]) == (False, True)
    clamd.start()
    assert send(relay, MEG, document=made.pdf("2")).accepted


def test_a_report_that_comes_back_is_heard_even_then(relay: Relay, clamd: Clamd) -> None:
    """It goes no further than us, and the far side says it only once."""
    far = Far()
    with in_a_thread([far]) as (port,):
        relay.configure({"delivery": {"routes": {"factures-meg.fr": f"127.0.0.1:{port}"}}})
        assert send(relay, MEG, document=made.pdf()).accepted
        relay.cli("runs", "now")
    (return_path,) = re.findall(r"MAIL FROM:<(retours\+[^>]+)>", "\n".join(far.commands))
    clamd.stop()
    assert send(relay, return_path, document=made.pdf(), sender="").accepted
    assert send(relay, return_path, MEG, document=made.pdf(), sender="").code == 451


def test_a_scanner_that_takes_less_than_we_is_named(new_relay: NewRelay, tmp_path: Path) -> None:
    small = Clamd(tmp_path / "small", most="1M").start()
    try:
        relay = new_relay({"antivirus": {"clamd": small.tcp}, "smtp": {"max_message_size": "2 MB"}}).start()
        assert send(relay, MEG, document=made.pdf_of_size(1_200_000)).code == 451
        assert "StreamMaxLength" in relay.program.err.read_text()
        row = checked(relay)
        assert (row["ok"], "StreamMaxLength" in row["remedy"]) == (False, True)
    finally:
        small.stop()


def test_a_scanner_that_is_well(relay: Relay, clamd: Clamd) -> None:
    row = checked(relay)
    assert row["ok"] and row["finding"].startswith(f"{clamd.unix}: ClamAV ") and not row["remedy"]


def test_a_scanner_is_told_of_by_a_reload(new_relay: NewRelay, clamd: Clamd) -> None:
    relay = new_relay().start()
    assert send(relay, MEG, document=infected(clamd)).accepted
    relay.configure({"antivirus": {"clamd": clamd.unix}})
    assert relay.program.process is not None
    relay.program.process.send_signal(signal.SIGHUP)
    end = time.monotonic() + 20
    while "reloaded" not in relay.program.err.read_text():
        assert time.monotonic() < end
        time.sleep(0.02)
    assert send(relay, MEG, document=infected(clamd)).code == 554
