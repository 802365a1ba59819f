"""Users and their programs: msmtp, swaks and curl hand in mail with a password, at 587 and at 465, to the real command."""

import json
import os
import pty
import select
import signal
import subprocess
import termios
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import pytest
import trustme

from tests.support import documents as made
from tests.support.clients import SUBMITTERS, Account, Dialogue, mail
from tests.support.program import free_port
from tests.support.relay import Relay, command

SENDER, SALES = "compta@cabinet.example", "ventes+martin@welyb.fr"
MEG, ACHATS = "meg+martin@welyb.fr", "meg+achats+martin@welyb.fr"
PDF = ("facture.pdf", "application/pdf", made.pdf())
PASSWORD, OTHER = "un mot de passe 'assez' long", "un autre, tout aussi long"


def settings(certificate: tuple[Path, Path], **more: object) -> dict[str, object]:
    chain, key = map(str, certificate)
    ports = [f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()} tls"]
    return {"smtp": {"submission": ports, "certificate": chain, "key": key, "trusted_networks": [], **more}}


def ports(relay: Relay) -> tuple[int, int]:
    starttls, tls = relay.settings["smtp"]["submission"]
    return int(starttls.rpartition(":")[2]), int(tls.removesuffix(" tls").rpartition(":")[2])


@pytest.fixture
def relay(new_relay: Callable[..., Relay], certificate: tuple[Path, Path]) -> Iterator[Relay]:
    relay = new_relay(settings(certificate))
    relay.client("Martin")
    yield relay.start()


def add(relay: Relay, name: str, *words: str, password: str = PASSWORD) -> None:
    relay.cli("users", "add", name, *words, "--reason", "nouveau scanner", text=f"{password}\n")


def account(authority: Path, name: str = "scanner", password: str = PASSWORD, **more: object) -> Account:
    return Account(name, password, authority, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("program", SUBMITTERS)
def test_a_users_program(relay: Relay, authority_file: Path, program: str) -> None:
    add(relay, "scanner")
    send = SUBMITTERS[program]
    for mechanism, tls_first in product(("PLAIN", "LOGIN"), (False, True)):
        who = account(authority_file, mechanism=mechanism, tls_first=tls_first)
        sent = send(ports(relay)[tls_first], SENDER, [MEG], mail(SENDER, MEG, PDF), account=who)
        assert sent.accepted, sent
    wrong = account(authority_file, password=OTHER)
    assert send(ports(relay)[0], SENDER, [MEG], mail(SENDER, MEG, PDF), account=wrong).code == 535
    assert len(relay.json("queue", "list")) == 4
    log = relay.program.err.read_text()
    assert log.count(" authenticated user=") == 4 and log.count(" not-authenticated user=") == 1
    assert "scanner" not in log


def test_without_a_password_not_even_from_here(relay: Relay, authority_file: Path) -> None:
    relay.configure({"smtp": {"trusted_networks": ["127.0.0.0/8"]}})
    os.kill(relay.program.pid, signal.SIGHUP)
    for number, first in enumerate((None, authority_file)):
        with Dialogue(ports(relay)[number], authority=first) as dialogue:
            dialogue.hello()
            assert dialogue.say(f"MAIL FROM:<{SENDER}>").code == 530


def test_users_come_change_and_go_without_a_restart(relay: Relay, authority_file: Path) -> None:
    def code(name: str, password: str, to: str = MEG) -> int:
        who = account(authority_file, name, password)
        return SUBMITTERS["swaks"](ports(relay)[0], SENDER, [to], mail(SENDER, to, PDF), account=who).code

    assert code("Scanner", PASSWORD) == 535
    add(relay, "Scanner", "--rule", "meg-achats")
    assert [code("scanner", PASSWORD, to) for to in (MEG, ACHATS, SALES)] == [550, 250, 250]
    relay.cli("users", "passwd", "scanner", text=f"{OTHER}\n")
    assert [code("scanner", password, ACHATS) for password in (PASSWORD, OTHER)] == [535, 250]
    relay.cli("users", "remove", "scanner")
    assert code("scanner", OTHER, ACHATS) == 535
    (row,) = relay.json("users", "list")
    assert (row["name"], row["rules"], row["state"]) == ("scanner", ["meg-achats"], "removed")


def test_the_history_says_who(relay: Relay, authority_file: Path) -> None:
    add(relay, "scanner")
    who = account(authority_file)
    sent = SUBMITTERS["curl"](
        ports(relay)[1],
        SENDER,
        [MEG],
        mail(SENDER, MEG, PDF),
        account=Account(who.name, who.password, who.authority, tls_first=True),
    )
    (accepted,) = [row for row in relay.json("trace", sent.text.split()[-1]) if row["event"] == "accepted"]
    assert accepted["detail"] == {"sender": SENDER, "recipients": [MEG], "user": "scanner"}
    assert "user=scanner" in relay.cli("trace", "facture.pdf").stdout
    (added,) = [event for event in events(relay) if event[1] == "user-added"]
    assert '"user": "scanner"' in added[2] and '"why": "nouveau scanner"' in added[2] and "scrypt" not in added[2]


def events(relay: Relay) -> list[tuple[str, str, str]]:
    from relay.store.database import open_for_listing, rows

    db = open_for_listing(relay.folder / "var/relay.db")
    found = rows(db, "SELECT actor, event, detail FROM event ORDER BY id")
    db.close()
    return [(str(actor), str(event), str(detail)) for actor, event, detail in found]


def test_in_several_processes_too(
    new_relay: Callable[..., Relay], certificate: tuple[Path, Path], authority_file: Path
) -> None:
    relay = new_relay(settings(certificate, processes=2)).start()
    add(relay, "scanner")
    for number in range(6):
        who = account(authority_file, tls_first=bool(number % 2))
        port = ports(relay)[number % 2]
        assert SUBMITTERS["swaks"](port, SENDER, [MEG], mail(SENDER, MEG, PDF), account=who).accepted
    assert len(relay.json("queue", "list")) == 6
    with Dialogue(relay.port) as stranger:
        assert not [line for line in stranger.hello().lines if "AUTH" in line]


def test_a_renewed_certificate_needs_no_restart(
    relay: Relay, authority: trustme.CA, authority_file: Path, certificate: tuple[Path, Path]
) -> None:
    """What a renewal hook does: the chain, then the key, each by a rename."""
    add(relay, "scanner")
    with Dialogue(ports(relay)[1], authority=authority_file) as open_before:
        issued = authority.issue_cert("127.0.0.1")
        chain, key = certificate
        issued.cert_chain_pems[0].write_to_path(str(chain.with_suffix(".new")))
        issued.private_key_pem.write_to_path(str(key.with_suffix(".new")))
        chain.with_suffix(".new").rename(chain)
        sent = SUBMITTERS["msmtp"](
            ports(relay)[0], SENDER, [MEG], mail(SENDER, MEG, PDF), account=account(authority_file)
        )
        assert sent.accepted
        key.with_suffix(".new").rename(key)
        with Dialogue(ports(relay)[1], authority=authority_file) as new:
            (before, after) = (d.socket.getpeercert(True) for d in (open_before, new))  # type: ignore[attr-defined]
            assert before != after
        open_before.hello()
        assert open_before.plain("scanner", PASSWORD).code == 235


# --- what is refused at once ------------------------------------------------------------------------------------------


def test_it_does_not_start_without_a_certificate_it_can_use(
    new_relay: Callable[..., Relay], certificate: tuple[Path, Path]
) -> None:
    relay = new_relay(settings(certificate))
    relay.configure({"smtp": {"certificate": "", "key": ""}})
    done = relay.cli("serve", check=False)
    assert done.returncode == 2
    assert "[smtp] submission: needs a certificate. Remedy: set certificate and key" in done.stderr
    chain, key = certificate
    for spoil in (lambda: chain.write_text("x"), chain.unlink):
        spoil()
        relay.configure({"smtp": {"certificate": str(chain), "key": str(key)}})
        done = relay.cli("serve", check=False)
        assert done.returncode == 1
        assert f"[smtp] certificate {chain}" in done.stderr and "Remedy: PEM files" in done.stderr


@pytest.mark.parametrize("text", ["587", "127.0.0.1:465 ssl", "127.0.0.1:465  tls", "127.0.0.1:465 ", "x:99999"])
def test_an_address_for_submission_is_one(new_relay: Callable[..., Relay], text: str) -> None:
    relay = new_relay({"smtp": {"submission": [text]}})
    done = relay.cli("serve", check=False)
    assert done.returncode == 2
    assert "[smtp] submission: «" in done.stderr and '"192.0.2.1:465 tls"' in done.stderr


@pytest.mark.parametrize(
    ("typed", "code"), [("court", 2), ("", 2), ("a" * 257, 2), ("douze lettres", 0), ("é" * 12, 0)]
)
def test_a_password_is_long_enough(relay: Relay, typed: str, code: int) -> None:
    done = relay.cli("users", "add", "scanner", text=f"{typed}\n", check=False)
    assert done.returncode == code
    assert len(relay.json("users", "list")) == (code == 0)


def test_at_a_terminal_it_is_asked_for_twice_and_not_shown(relay: Relay) -> None:
    ours, its = pty.openpty()
    words = [*command(), "--config", str(relay.config), "users", "add", "scanner"]
    process = subprocess.Popen(words, stdin=its, stdout=its, stderr=its, start_new_session=True)
    os.close(its)
    told = b""
    with os.fdopen(ours, "r+b", buffering=0) as terminal:
        for prompts in (1, 2):
            while told.count(b":") < prompts or termios.tcgetattr(ours)[3] & termios.ECHO:
                if select.select([ours], [], [], 0.02)[0]:
                    told += terminal.read(1000)
            terminal.write(f"{PASSWORD}\n".encode())
        while b"scanner" not in told:
            told += terminal.read(1000)
        assert process.wait(60) == 0
    assert PASSWORD.encode() not in told
    assert [row["name"] for row in relay.json("users", "list")] == ["scanner"]


# --- check ------------------------------------------------------------------------------------------------------------


def test_check_says_what_is_missing(relay: Relay) -> None:
    def findings() -> dict[str, dict[str, object]]:
        done = relay.cli("check", "--json", check=False)
        return {row["subject"]: row for row in map(json.loads, done.stdout.splitlines())}

    found = findings()
    assert found["submission"]["ok"] is False and found["submission"]["remedy"] == "welyb-relay users add NAME"
    assert found["certificate"]["ok"] is True
    add(relay, "scanner", "--rule", "meg")
    rules = Path(__file__).resolve().parents[2] / "rules/welyb.toml"
    (relay.folder / "rules.toml").write_text(rules.read_text().replace("[rule.meg]", "[rule.autre]"))
    relay.configure({"relay": {"rules": "rules.toml"}, "smtp": {"proxy": ["10.0.0.0/8"]}})
    relay.configure({"smtp": {"trusted_networks": ["10.1.0.0/16"]}})
    found = findings()
    assert found["submission"]["ok"] is True
    assert found["user scanner"]["ok"] is False and "meg" in str(found["user scanner"]["finding"])
    assert found["proxy"]["ok"] is True and found["proxy"]["remedy"]
