"""Several processes at one door: what they take is written by one, and none of them is missed."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import documents as made
from tests.support.clients import CLIENTS, Dialogue, mail, stuffed
from tests.support.relay import Relay

SENDER = "compta@cabinet.example"
SALES, MEG = "ventes+martin@welyb.fr", "meg+martin@welyb.fr"
PDF = ("facture.pdf", "application/pdf", made.pdf())
BIG = ("plan.pdf", "application/pdf", made.pdf_of_size(2_000_000))
SEVERAL = 24  # connections: that all should meet one of two workers happens once in eight million times


@pytest.fixture
def relay(new_relay: Callable[..., Relay]) -> Iterator[Relay]:
    relay = new_relay({"smtp": {"processes": 2}})
    relay.client("Martin")
    yield relay.start()


def workers(relay: Relay) -> list[int]:
    children = Path(f"/proc/{relay.program.pid}/task/{relay.program.pid}/children").read_text().split()
    return [int(pid) for pid in children]


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def until(holds: Callable[[], object], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_both_take_mail_large_and_small_and_it_is_filed_at_once(relay: Relay) -> None:
    before = {pid: descriptors(pid) for pid in workers(relay)}
    assert len(before) == 2
    answered = []
    with ExitStack() as stack:
        dialogues = [stack.enter_context(Dialogue(relay.port)) for _ in range(SEVERAL)]
        for number, dialogue in enumerate(dialogues):
            dialogue.hello()
            dialogue.envelope(SENDER, SALES, MEG)
            reply = dialogue.data(mail(SENDER, SALES, BIG if number % 3 == 0 else PDF, subject=str(number)))
            assert reply.code == 250
            answered.append(reply.lines[-1].split()[-1])
        assert all(descriptors(pid) > before[pid] for pid in before)
    assert {row["message"] for row in relay.json("queue", "list", "--state", "waiting")} == set(answered)
    until(lambda: len(relay.json("queue", "list", "--state", "filed")) == SEVERAL)
    assert len(list(relay.ged.rglob("*.pdf"))) == SEVERAL


def test_one_that_is_killed_is_not_missed(relay: Relay) -> None:
    victim, other = workers(relay)
    codes: list[int] = []
    with ExitStack() as stack:
        dialogues = [stack.enter_context(Dialogue(relay.port)) for _ in range(SEVERAL)]
        for dialogue in dialogues:
            dialogue.hello()
            dialogue.envelope(SENDER, MEG)
            dialogue.say("DATA")
            dialogue.send(stuffed(mail(SENDER, MEG, PDF))[:400])
        os.kill(victim, signal.SIGKILL)
        for dialogue in dialogues:
            try:
                dialogue.send(stuffed(mail(SENDER, MEG, PDF))[400:])
                codes.append(dialogue.reply().code)
            except (OSError, AssertionError, EOFError):
                codes.append(0)
    assert 0 in codes and 250 in codes and set(codes) == {0, 250}
    until(lambda: f"worker-lost pid={victim}" in relay.program.err.read_text())
    for _ in range(SEVERAL):  # half of them meet the socket that was its own
        assert CLIENTS["python"](relay.port, SENDER, [MEG], mail(SENDER, MEG, PDF)).accepted
    assert len(relay.json("queue", "list")) == codes.count(250) + SEVERAL
    assert alive(other)
    assert relay.stop() == 0


def test_without_their_daemon_they_end_and_the_next_one_starts_at_once(relay: Relay) -> None:
    assert CLIENTS["python"](relay.port, SENDER, [MEG], mail(SENDER, MEG, PDF)).accepted
    pids = workers(relay)
    os.kill(relay.program.pid, signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in pids))
    relay.kill()
    relay.start()
    assert CLIENTS["python"](relay.port, SENDER, [MEG], mail(SENDER, MEG, PDF)).accepted
    assert len(relay.json("queue", "list")) == 2


def test_SIGTERM_finishes_the_mail_in_progress_everywhere(relay: Relay) -> None:
    pids = workers(relay)
    with ExitStack() as stack:
        dialogues = [stack.enter_context(Dialogue(relay.port)) for _ in range(6)]
        messages = [stuffed(mail(SENDER, MEG, BIG)) for _ in dialogues]
        for dialogue, message in zip(dialogues, messages, strict=True):
            dialogue.hello()
            dialogue.envelope(SENDER, MEG)
            dialogue.say("DATA")
            dialogue.send(message[:100_000])
        for pid in (relay.program.pid, *pids):  # as a terminal or systemd does
            os.kill(pid, signal.SIGTERM)
        for dialogue, message in zip(dialogues, messages, strict=True):
            dialogue.send(message[100_000:])
            assert dialogue.reply().code == 250
    assert relay.stop() == 0
    assert len(relay.json("queue", "list")) == 6


def test_all_read_their_rules_again(relay: Relay) -> None:
    shipped = Path(__file__).resolve().parents[2] / "rules/welyb.toml"
    dext = '\n[rule.dext]\naddress = "dext+{name}"\nrelay = "{name}+ventes@dext.cc"\n'
    (relay.folder / "rules.toml").write_text(shipped.read_text() + dext)
    relay.configure({"relay": {"rules": "rules.toml"}})
    os.kill(relay.program.pid, signal.SIGHUP)
    until(lambda: "reloaded" in relay.program.err.read_text())

    def knows() -> bool:
        with Dialogue(relay.port) as dialogue:
            dialogue.hello()
            return dialogue.envelope(SENDER, "dext+dupont@welyb.fr")[1].code == 250

    until(knows)
    assert all(knows() for _ in range(SEVERAL))


def test_a_port_that_another_relay_serves_is_not_shared_with_it(relay: Relay, tmp_path: Path) -> None:
    second = Relay(tmp_path / "second", {"smtp": {"processes": 2, "listen": [f"127.0.0.1:{relay.port}"]}})
    done = second.cli("serve", check=False)
    assert done.returncode == 1
    assert f"127.0.0.1:{relay.port}" in done.stderr and "Remedy" in done.stderr
