"""Held back by the real command: one peer waits while another sends on, and the postmaster sees it, daemon up or down."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import documents as made
from tests.support.clients import Dialogue, mail
from tests.support.relay import Relay

PROBER, OTHER, OURS = "127.0.0.2", "127.0.0.3", "127.0.0.1"
SENDER, DUPONT = "a@fournisseur.fr", "ventes+dupont@welyb.fr"
HELD = "450 4.7.1 Trop d'envois, reessayez plus tard (too much mail, try again later)"
INVOICE = mail(SENDER, DUPONT, ("facture.pdf", "application/pdf", made.pdf()))
SETTINGS = {
    "smtp": {"trusted_networks": ["127.0.0.1/32"]},
    "throttle": {"peer": "4 / hour", "unknown": "3 / hour"},
}


@pytest.fixture
def relay(new_relay: Callable[..., Relay]) -> Iterator[Relay]:
    relay = new_relay(SETTINGS)
    relay.client("Dupont")
    yield relay.start()
    assert "Traceback" not in relay.program.err.read_text()


def asked(relay: Relay, source: str, *recipients: str) -> list[str]:
    """What each is answered, in one conversation."""
    with Dialogue(relay.port, source=source) as dialogue:
        dialogue.hello()
        return [f"{reply.code} {reply.text}" for reply in dialogue.envelope(SENDER, *recipients)[1:]]


def sent(relay: Relay, source: str) -> int:
    with Dialogue(relay.port, source=source) as dialogue:
        dialogue.hello()
        (_, held) = dialogue.envelope(SENDER, DUPONT)
        return dialogue.data(INVOICE).code if held.code == 250 else held.code


def unknown(*numbers: int) -> list[str]:
    return [f"ventes+quidam-{number}@welyb.fr" for number in numbers]


def listed(relay: Relay) -> list[tuple[str, str, str]]:
    return [(row["kind"], row["subject"], row["state"]) for row in relay.json("throttles", "list")]


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_prober_is_held_back_and_nobody_else(relay: Relay) -> None:
    told = asked(relay, PROBER, *unknown(1, 2, 3, 4), DUPONT, "ventes+a+b@welyb.fr", "postmaster@welyb.fr")
    assert [text[:9] for text in told[:3]] == ["550 5.1.1"] * 3
    assert told[3:6] == [HELD] * 3, "known or not"
    assert told[6].startswith("250"), "people can be reached"
    assert sent(relay, PROBER) == 450
    assert sent(relay, OTHER) == 250
    assert [text[:3] for text in asked(relay, OURS, *unknown(1, 2, 3, 4, 5), DUPONT)] == ["550"] * 5 + ["250"]
    until(lambda: listed(relay) == [("unknown", PROBER, "held")])

    relay.stop()
    assert listed(relay) == [("unknown", PROBER, "held")], "with the daemon down too"
    logged = relay.program.err.read_text()
    assert re.search(rf"WARNING throttled kind=unknown peer={PROBER} held=1", logged)
    assert "dupont" not in logged and "quidam" not in logged


def test_a_flood_waits_and_loses_nothing(relay: Relay) -> None:
    assert [sent(relay, PROBER) for _ in range(6)] == [250] * 4 + [450] * 2
    assert [sent(relay, OTHER), *(sent(relay, OURS) for _ in range(6))] == [250] * 7
    until(lambda: listed(relay) == [("peer", PROBER, "held")])
    relay.cli("throttles", "clear", "peer", PROBER, "--reason", "scanner du cabinet")
    assert [sent(relay, PROBER) for _ in range(5)] == [250] * 4 + [450]
    until(lambda: len(listed(relay)) == 2)
    assert listed(relay) == [("peer", PROBER, "held"), ("peer", PROBER, "cleared")]


def test_what_was_held_back_gets_in_by_itself(new_relay: Callable[..., Relay]) -> None:
    """As a server does that keeps trying."""
    relay = new_relay(SETTINGS | {"throttle": {"peer": "1 / s"}})
    relay.client("Dupont")
    relay.start()
    codes = [sent(relay, PROBER) for _ in range(40)]
    assert set(codes) <= {250, 450}
    until(lambda: sent(relay, PROBER) == 250)


@pytest.mark.parametrize("word", ["off", ""])
def test_a_limit_is_lifted_while_it_serves(relay: Relay, word: str) -> None:
    asked(relay, PROBER, *unknown(1, 2, 3))
    assert asked(relay, PROBER, DUPONT) == [HELD]
    relay.configure({"throttle": {"unknown": word}})
    os.kill(relay.program.pid, signal.SIGHUP)
    until(lambda: asked(relay, PROBER, DUPONT) != [HELD])
    assert [text[:3] for text in asked(relay, PROBER, *unknown(*range(10)), DUPONT)] == ["550"] * 10 + ["250"]


def test_workers_tell_of_it_too(new_relay: Callable[..., Relay]) -> None:
    """Each counts its own: of two, one held the prober back at its fourth, and at the seventh at the latest."""
    relay = new_relay({**SETTINGS, "smtp": {**SETTINGS["smtp"], "processes": 2}})
    relay.client("Dupont")
    relay.start()
    told = [asked(relay, PROBER, address)[0] for address in unknown(*range(40))]
    assert 3 <= sum(text.startswith("550") for text in told) <= 6
    until(lambda: {row[:2] for row in listed(relay)} == {("unknown", PROBER)})
    relay.cli("throttles", "clear", "unknown", PROBER)
    assert asked(relay, PROBER, DUPONT)[0].startswith("250")


def test_without_a_store_nothing_is_listed_nor_cleared(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    assert relay.cli("throttles", "list", check=False).returncode == 3
    assert relay.cli("throttles", "clear", "peer", PROBER, check=False).returncode == 3
    assert not (relay.folder / "var").exists()
