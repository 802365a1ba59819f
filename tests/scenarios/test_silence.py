"""A client that usually sends, and has stopped: the postmaster is told, once."""

from collections.abc import Callable
from contextlib import closing
from sqlite3 import connect

import pytest

from tests.support import documents as made
from tests.support.clients import CLIENTS, mail
from tests.support.debian import faked_time
from tests.support.relay import Relay

SENDER = "compta@cabinet.example"
WEEKS = ("2026-03-02", "2026-03-09", "2026-03-16")
FULL = "SELECT RAISE(FAIL, 'the disk is full')"


def warnings(relay: Relay) -> list[str]:
    listed = relay.json("queue", "list", "--json")
    return [relay.cli("queue", "body", row["id"]).stdout for row in listed if row["route"] == "warning"]


def test_a_client_that_stopped_is_named_once(new_relay: Callable[..., Relay], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "relay": {"postmaster": "postmaster@welyb.fr", "language": "en"},
        "silence": {"weeks": 4, "usual": 3, "after": "10 days"},
    }
    relay = new_relay(settings)
    relay.client("Maçon & Dupont")
    relay.client("martin")
    for number, day in enumerate(WEEKS):
        relay.program.env |= faked_time(f"@{day} 10:00:00")
        relay.start()
        clients = ["macon-dupont"] if number == 1 else ["macon-dupont", "martin"]
        recipients = [f"ventes+{client}@welyb.fr" for client in clients]
        document = (f"{day}.pdf", "application/pdf", made.pdf(day))
        assert CLIENTS["python"](relay.port, SENDER, recipients, mail(SENDER, recipients[0], document)).accepted
        relay.stop()

    def run(day: str, *, check: bool = True) -> None:
        for name, value in faked_time(f"@{day} 10:00:00").items():
            monkeypatch.setenv(name, value)
        relay.cli("runs", "now", check=check)
        for name in faked_time("+0"):
            monkeypatch.delenv(name)

    run("2026-03-26")
    assert warnings(relay) == []
    with closing(connect(relay.folder / "var" / "relay.db", isolation_level=None)) as store:
        store.execute(f"CREATE TRIGGER full BEFORE INSERT ON delivery BEGIN {FULL}; END")
        run("2026-03-27", check=False)  # ends before the warning is queued
        assert warnings(relay) == []
        store.execute("DROP TRIGGER full")
    run("2026-03-27")
    run("2026-03-27")
    run("2026-03-28")
    (warning,) = warnings(relay)
    assert "macon-dupont: no document since 2026-03-16, 3 before." in decoded(warning)
    assert "martin" not in decoded(warning)


def decoded(message: str) -> str:
    from email import message_from_string

    body = message_from_string(message).get_payload(decode=True)
    assert isinstance(body, bytes)
    return body.decode()
