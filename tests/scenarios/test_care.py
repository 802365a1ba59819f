"""Store care with the real command: a backup while mail flows, its restoration elsewhere, and a store that is lost."""

import shutil
import threading
from pathlib import Path

import pytest

from tests.support import documents as made
from tests.support.clients import CLIENTS, mail
from tests.support.firm import Firm
from tests.support.relay import Relay

SENDER = "compta@cabinet.example"
BIG = b"%" + b"0123456789abcdef" * 20_000  # behind a PDF: beyond what shares a segment


def send(relay: Relay, name: str, *, large: bool = False) -> str:
    """A mail for meg+`name`; its id."""
    to = f"meg+{name}@welyb.fr"
    content = made.pdf(name) + (BIG if large else b"")
    sent = CLIENTS["python"](relay.port, SENDER, [to], mail(SENDER, to, (f"{name}.pdf", "application/pdf", content)))
    assert sent.accepted, sent
    return sent.text.rsplit(maxsplit=1)[-1]


def sound(relay: Relay) -> bool:
    return relay.cli("check", "--store", "--deep").returncode == 0


def test_a_backup_while_mail_flows_is_whole_and_holds_what_was_on_its_way(tmp_path: Path) -> None:
    """Every mail answered before the backup began is in it, with its bytes; none leaves again without a word."""
    relay = Relay(tmp_path / "here").start()
    other = Relay(tmp_path / "there")
    other.configure({"run": {"settle": "0 s"}})
    answered: list[str] = []
    enough, stop = threading.Event(), threading.Event()

    def load() -> None:
        while not stop.is_set():
            answered.append(send(relay, f"societe-{len(answered)}", large=len(answered) % 3 == 0))
            if len(answered) == 10:
                enough.set()

    sending = threading.Thread(target=load)
    sending.start()
    try:
        assert enough.wait(60)
        before = list(answered)
        (told,) = relay.json("backup", tmp_path / "copy")
        stop.set()
        sending.join(60)
        assert told["missing"] == 0
        assert sound(relay)
        assert relay.cli("restore", tmp_path / "copy", check=False).returncode == 1, "somebody serves there"
    finally:
        stop.set()
        sending.join(60)
        relay.stop()
    assert relay.cli("restore", tmp_path / "copy", check=False).returncode == 1, "there is a store"
    held = other.json("restore", tmp_path / "copy", "--reason", "disque perdu")
    assert {f"{message}-1" for message in before} <= {row["id"] for row in held}
    assert sound(other)
    other.start()
    try:
        (counts,) = other.json("runs", "now")
        assert counts["eligible"] == 0, "nothing leaves by itself"
        assert {row["state"] for row in other.json("queue", "list")} == {"held"}
        assert other.cli("queue", "body", held[0]["id"]).stdout
        first = other.json("trace", before[0])
        assert first[-1]["event"] == "held"
        assert other.cli("queue", "release", held[0]["id"], "--reason", "vu").returncode == 0
    finally:
        other.stop()
    assert (relay.folder / "var/token.key").read_bytes() == (other.folder / "var/token.key").read_bytes()


def test_a_deposit_sent_after_the_backup_is_not_sent_again(tmp_path: Path) -> None:
    firm = Firm.start(tmp_path / "firm")
    try:
        client = firm.client()
        client.connect()
        client.put("Achats/avant.pdf", made.pdf("avant"))
        firm.run()
        firm.relay.cli("backup", tmp_path / "copy")
        client.put("Achats/apres.pdf", made.pdf("apres"))
        firm.run()
        assert client.names() == ["apres.pdf", "avant.pdf"]
        firm.relay.stop()
        shutil.rmtree(firm.relay.folder / "var")
        firm.relay.cli("restore", tmp_path / "copy", "--reason", "disque perdu")
        (client.path / "Achats/apres.pdf").touch()
        firm.run()
        assert client.names() == ["apres.pdf", "avant.pdf"]
        assert client.statuses() == {"avant.pdf": "validated", "apres.pdf": "held"}
        client.put("Achats/nouveau.pdf", made.pdf("nouveau"))
        firm.run()
        assert client.names() == ["apres.pdf", "avant.pdf", "nouveau.pdf"], "life goes on"
    finally:
        firm.stop()


def test_a_run_before_the_ged_is_back_ends_no_doubt(tmp_path: Path) -> None:
    """The machine is lost, GED and all; the GED comes back later, with times and inodes of its own."""
    firm = Firm.start(tmp_path / "firm")
    try:
        client = firm.client()
        client.connect()
        firm.relay.cli("backup", tmp_path / "copy")
        client.put("Achats/apres.pdf", made.pdf("apres"))
        firm.run()
        assert client.names() == ["apres.pdf"]
        firm.relay.stop()
        shutil.rmtree(firm.relay.folder / "var")
        firm.relay.cli("restore", tmp_path / "copy", "--reason", "disque perdu")
        away = firm.relay.ged.rename(tmp_path / "away")
        firm.run()
        shutil.copytree(away, firm.relay.ged)
        for link in firm.relay.json("connections", "list"):
            firm.relay.cli("connections", "accept", link["id"], "--reason", "restauree")
        firm.run()
        assert client.names() == ["apres.pdf"]
        assert client.statuses() == {"apres.pdf": "held"}
    finally:
        firm.stop()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A backup of a relay that had taken two mails; the relay stands beside it, stopped."""
    relay = Relay(tmp_path / "here").start()
    try:
        send(relay, "petite")
        send(relay, "grande", large=True)
    finally:
        relay.stop()
    relay.cli("backup", tmp_path / "copy")
    return tmp_path / "copy"


def test_a_damaged_backup_puts_nothing_in_place(copy: Path, tmp_path: Path) -> None:
    other = Relay(tmp_path / "there")
    for path in [p for p in copy.rglob("*") if p.is_file() and p.name != "manifest.json"]:
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]) if whole else b"x")
        assert other.cli("restore", copy, check=False).returncode == 1, path
        path.write_bytes(whole)
        assert not (other.folder / "var/relay.db").exists()
    other.cli("restore", copy)


def test_a_backup_never_replaces_one(copy: Path, tmp_path: Path) -> None:
    relay_config = tmp_path / "here/relay/relay.toml"
    assert relay_config.exists()
    other = Relay(tmp_path / "there")
    other.cli("restore", copy)
    assert other.cli("backup", copy, check=False).returncode == 1
    assert (copy / "manifest.json").exists()


def test_a_lost_store_is_never_replaced_by_an_empty_one(copy: Path, tmp_path: Path) -> None:
    """The messages would be taken for refuse, and removed."""
    relay = Relay(tmp_path / "there")
    relay.cli("restore", copy)
    (relay.folder / "var/relay.db").rename(tmp_path / "aside.db")
    messages = {path for path in (relay.folder / "var/spool").rglob("*") if path.is_file()}
    for words in (["serve"], ["runs", "now"], ["queue", "drop", "x", "--reason", "x"], ["check"]):
        done = relay.cli(*words, check=False)
        assert done.returncode == 1, words
        assert "welyb-relay restore" in done.stdout + done.stderr, words
    assert {path for path in (relay.folder / "var/spool").rglob("*") if path.is_file()} == messages
    assert not (relay.folder / "var/relay.db").exists()
    (tmp_path / "aside.db").rename(relay.folder / "var/relay.db")
    assert sound(relay)
