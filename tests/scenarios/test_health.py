"""`check --health`: what a probe is told of a relay that works, and of one that does not."""

import json
from collections.abc import Callable

import pytest

from tests.support import documents as made
from tests.support.clients import CLIENTS, mail
from tests.support.debian import faked_time
from tests.support.program import free_port
from tests.support.relay import Relay

SENDER, MEG = "compta@cabinet.example", "meg+dupont@welyb.fr"
PDF = ("facture.pdf", "application/pdf", made.pdf())
FINE = {"smtp": True, "disk": True, "run": True, "queue": True}


def health(relay: Relay) -> tuple[int, dict[str, bool]]:
    """The exit code, and what was found of each subject."""
    done = relay.cli("check", "--health", "--json", check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(row["remedy"] for row in rows if not row["ok"])
    return done.returncode, {row["subject"].split()[0]: row["ok"] for row in rows}


def test_a_relay_that_works_and_then_does_not(new_relay: Callable[..., Relay], monkeypatch: pytest.MonkeyPatch) -> None:
    relay = new_relay({"delivery": {"routes": {"factures-meg.fr": f"127.0.0.1:{free_port()}"}}}).start()
    assert health(relay) == (0, FINE)
    assert CLIENTS["python"](relay.port, SENDER, [MEG], mail(SENDER, MEG, PDF)).accepted
    relay.cli("runs", "now")
    assert health(relay) == (0, FINE)
    relay.stop()
    assert health(relay) == (1, {**FINE, "smtp": False})
    for name, value in faked_time("+4d").items():  # nobody has run anything for four days
        monkeypatch.setenv(name, value)
    assert health(relay) == (1, {"smtp": False, "disk": True, "run": False, "queue": False})


def test_a_relay_behind_a_proxy_on_the_same_machine(new_relay: Callable[..., Relay]) -> None:
    relay = new_relay({"smtp": {"proxy": ["127.0.0.0/8"]}}).start()
    assert health(relay) == (0, FINE)


def test_without_a_store_it_is_exit_3(new_relay: Callable[..., Relay]) -> None:
    assert new_relay().cli("check", "--health", check=False).returncode == 3
