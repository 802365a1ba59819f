"""What Prometheus reads of a relay at work, and what it must never read: an address."""

import re
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support import documents as made
from tests.support.clients import CLIENTS, Document, Sent, mail
from tests.support.farside import Far, in_a_thread
from tests.support.program import free_port
from tests.support.relay import Relay

SENDER, MEG, ACHATS = "compta@cabinet.example", "meg+martin@welyb.fr", "meg+achats+martin@welyb.fr"
PDF: Document = ("facture.pdf", "application/pdf", made.pdf())


@dataclass
class Watched:
    relay: Relay
    port: int

    def text(self, path: str = "/metrics") -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return str(answer.read().decode())

    def figures(self) -> dict[tuple[str, ...], float]:
        """(name, values of its labels in their alphabet) → value."""
        families = text_string_to_metric_families(self.text())
        samples = [sample for family in families for sample in family.samples]
        return {(s.name, *(s.labels[label] for label in sorted(s.labels))): s.value for s in samples}

    def mail(self, *to: str, document: Document = PDF) -> Sent:
        return CLIENTS["python"](self.relay.port, SENDER, to, mail(SENDER, to, document))


@pytest.fixture
def watched(new_relay: Callable[..., Relay]) -> Iterator[Watched]:
    port = free_port()
    with in_a_thread([Far(), Far({"RCPT": b"550 5.1.1 martin@achats.factures-meg.fr ?\r\n"})]) as (taking, refusing):
        routes = {"factures-meg.fr": f"127.0.0.1:{taking}", "achats.factures-meg.fr": f"127.0.0.1:{refusing}"}
        yield Watched(
            new_relay({"metrics": {"listen": f"127.0.0.1:{port}"}, "delivery": {"routes": routes}}).start(), port
        )


def test_what_happens_is_counted(watched: Watched) -> None:
    began = watched.figures()
    assert began["welyb_relay_queue", "waiting"] == began["welyb_relay_accept_seconds_count",] == 0
    assert watched.mail(MEG, ACHATS).accepted
    assert watched.mail(MEG, document=("releve.zip", "application/zip", made.plain_zip())).code == 554
    before = watched.figures()
    assert before["welyb_relay_queue", "waiting"] == 2
    assert before["welyb_relay_refusals_total", "554 5.6.1"] == 1
    assert before["welyb_relay_accept_seconds_count",] == before["welyb_relay_accept_seconds_bucket", "+Inf"] == 2
    assert before["welyb_relay_spool_bytes",] > 500
    assert ("welyb_relay_run_age_seconds",) not in before
    watched.relay.cli("runs", "now")
    after = watched.figures()
    counted = {key: value for key, value in after.items() if key[0].endswith(("_total", "_count"))}
    assert counted.items() <= watched.figures().items(), "looking changes nothing"
    assert after["welyb_relay_outcomes_total", "250", "factures-meg.fr", "sent"] == 1
    assert after["welyb_relay_outcomes_total", "550", "achats.factures-meg.fr", "failed"] == 1
    assert (after["welyb_relay_queue", "waiting"], after["welyb_relay_queue", "failed"]) == (1, 1)  # the DSN waits
    assert 0 <= after["welyb_relay_run_duration_seconds",] <= after["welyb_relay_run_age_seconds",] < 300


def test_how_late_the_oldest_is_shows(watched: Watched) -> None:
    oldest = ("welyb_relay_oldest_due_seconds",)
    assert watched.figures()[oldest] == 0
    assert watched.mail(MEG).accepted
    assert watched.figures()[oldest] == 0, "it is due at the next run, which is to come"
    with closing(sqlite3.connect(watched.relay.folder / "var/relay.db")) as db, db:
        db.execute("UPDATE delivery SET due_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-1 hour')")
    assert 3600 <= watched.figures()[oldest] < 3900
    watched.relay.cli("runs", "now")
    assert watched.figures()[oldest] == 0


def test_no_address_is_ever_read(watched: Watched) -> None:
    assert watched.mail(MEG, ACHATS).accepted
    watched.relay.cli("runs", "now")
    watched.relay.cli("runs", "now")  # the report to the sender: its domain is away
    text = watched.text()
    assert 'collector="dsn"' in text
    assert re.findall(r"@|cabinet|martin|facture\.pdf", text) == []


def test_only_that_is_answered(watched: Watched) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        watched.text("/etc/passwd")


def test_a_port_that_is_taken_is_named(watched: Watched) -> None:
    watched.relay.stop()
    with in_a_thread([Far()]) as (taken,):
        watched.relay.configure({"metrics": {"listen": f"127.0.0.1:{taken}"}})
        done = watched.relay.cli("serve", check=False)
    assert done.returncode != 0 and "Remedy: see what listens there, or [metrics] listen" in done.stderr
