"""One SMTP conversation at a real socket, with the limits of the server made small: times, counts, sizes.

The listener runs in this process, in a thread, so that its constants can be changed; all behind it is real.
Long because every way a conversation can end is here.
"""

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from pysqlite3 import dbapi2

from relay.smtp import conversation
from relay.smtp import listener as listening
from relay.spool import SMALL
from relay.store import database
from relay.store.database import open_for_reading, rows
from tests.support.clients import Dialogue, Reply, mail, stuffed
from tests.support.documents import pdf
from tests.support.door import Door, Open, doors, issue

SENDER, CLIENT, MEG = "compta@cabinet.example", "ventes+dupont@welyb.fr", "meg+dupont@welyb.fr"
INVOICE = ("facture.pdf", "application/pdf", pdf())


@pytest.fixture
def open_door(tmp_path: Path) -> Iterator[Open]:
    with doors(tmp_path) as open_:
        yield open_


@pytest.fixture
def door(open_door: Open) -> Door:
    return open_door()


def greeted(door: Door, source: str = "") -> Dialogue:
    dialogue = Dialogue(door.port, source=source)
    dialogue.hello()
    return dialogue


def hung_up(dialogue: Dialogue) -> bool:
    try:
        dialogue.reply()
    except ConnectionError:
        return True
    return False


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- times -----------------------------------------------------------------------------------------------------------


def test_who_says_nothing_is_told_so_and_left(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "COMMAND_TIMEOUT", 0.1)
    with greeted(door) as dialogue:
        assert dialogue.reply() == Reply(421, ("4.4.2 Delai depasse (timeout)",))
        assert hung_up(dialogue)


def test_mail_data_that_stops_is_told_so_and_nothing_of_it_stays(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "CHUNK_TIMEOUT", 0.2)
    with greeted(door) as dialogue:
        dialogue.envelope(SENDER, CLIENT)
        dialogue.say("DATA")
        dialogue.send(b"Subject: x\r\n\r\n" + b"a" * 70 * 1024)
        assert dialogue.reply().code == 421
    eventually(lambda: not door.spooled_files())
    assert door.messages() == []


def test_a_slow_sender_is_kept_while_bytes_flow(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "CHUNK_TIMEOUT", 0.5)
    monkeypatch.setattr(conversation, "COMMAND_TIMEOUT", 0.5)
    message = stuffed(mail(SENDER, CLIENT, INVOICE))
    with greeted(door) as dialogue:
        dialogue.envelope(SENDER, CLIENT)
        dialogue.say("DATA")
        for start in range(0, len(message), len(message) // 8):
            dialogue.send(message[start : start + len(message) // 8])
            time.sleep(0.1)
        assert dialogue.reply().code == 250


def test_a_mail_may_not_take_for_ever(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "DATA_TIMEOUT", 0.2)
    with greeted(door) as dialogue:
        dialogue.envelope(SENDER, CLIENT)
        dialogue.say("DATA")
        for _ in range(20):
            with contextlib.suppress(ConnectionError):
                dialogue.send(b"a")
            time.sleep(0.02)
        assert dialogue.reply().code == 421
    assert door.messages() == []


# --- counts ----------------------------------------------------------------------------------------------------------


def test_too_many_errors_end_the_conversation(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "MAX_ERRORS", 3)
    with greeted(door) as dialogue:
        dialogue.say(f"MAIL FROM:<{SENDER}>")
        assert [dialogue.say("RCPT TO:<ventes+quidam@welyb.fr>").code for _ in range(4)] == [550] * 4
        assert dialogue.reply() == Reply(421, ("4.7.0 Trop d'erreurs (too many errors)",))
        assert hung_up(dialogue)


def test_a_peer_may_hold_so_many_connections_and_others_still_come_in(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "MAX_PER_PEER", 2)
    one, two = greeted(door), greeted(door)
    with Dialogue(door.port) as third:
        assert third.greeting == Reply(421, ("4.7.0 Trop de connexions (too many connections)",))
        assert hung_up(third)
    with Dialogue(door.port, source="127.0.0.2") as other:
        assert other.greeting.code == 220
    one.close()
    eventually(lambda: _greets(door))
    two.close()


def _greets(door: Door) -> bool:
    with Dialogue(door.port) as dialogue:
        return dialogue.greeting.code == 220


def test_the_server_holds_so_many_connections_in_all(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "MAX_CONNECTIONS", 1)
    with greeted(door), Dialogue(door.port, source="127.0.0.2") as other:
        assert other.greeting.code == 421


def test_whoever_gives_way_gives_its_descriptor_too(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that never reads cannot be told: it is cut, or it would stay open and be counted no more."""
    monkeypatch.setattr(listening, "MAX_CONNECTIONS", 3)
    with contextlib.ExitStack() as stuck:
        for _ in range(3):
            dialogue = stuck.enter_context(greeted(door))
            dialogue.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    dialogue.socket.send(b"HELP\r\n" * 1000)
        before = len(os.listdir("/proc/self/fd"))
        with Dialogue(door.port, source="127.0.0.2") as other:
            assert other.greeting.code == 220
            eventually(lambda: len(os.listdir("/proc/self/fd")) == before + 1)  # both ends of the new one, less one


def test_the_101st_recipient_is_for_another_mail(door: Door) -> None:
    with greeted(door) as dialogue:
        dialogue.say(f"MAIL FROM:<{SENDER}>")
        codes = [dialogue.say(f"RCPT TO:<meg+n{number}@welyb.fr>").code for number in range(101)]
        assert codes == [250] * 100 + [452]
        assert dialogue.say("RCPT TO:<meg+x@welyb.fr>").text == "4.5.3 Trop de destinataires (too many recipients)"
        assert dialogue.data(mail(SENDER, MEG)).code == 250


@pytest.mark.parametrize("length", [5000, 3_000_000])
def test_a_command_line_too_long_is_read_away_and_refused(door: Door, length: int) -> None:
    with greeted(door) as dialogue:
        assert dialogue.say("NOOP " + "x" * length).code == 500
        assert dialogue.say("NOOP").code == 250


def test_commands_pipelined_beyond_what_is_kept_are_all_answered(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "MAX_WAITING", 1000)
    with greeted(door) as dialogue:
        assert {reply.code for reply in dialogue.pipeline(*["NOOP"] * 20_000)} == {250}


# --- ends of a connection --------------------------------------------------------------------------------------------


def test_a_connection_lost_in_the_middle_of_a_mail_leaves_nothing(door: Door) -> None:
    for body in (b"a" * 100, b"a" * 2 * SMALL):
        dialogue = greeted(door)
        dialogue.envelope(SENDER, CLIENT)
        dialogue.say("DATA")
        dialogue.send(b"Subject: x\r\n\r\n" + body)
        dialogue.close()
    with greeted(door) as dialogue:
        dialogue.envelope(SENDER, CLIENT)
        dialogue.send(b"BDAT %d\r\n" % (2 * SMALL) + b"a" * (SMALL + 1))
    eventually(lambda: not door.spooled_files())
    assert door.messages() == []


def test_a_client_that_hangs_up_after_the_dot_is_served_and_its_repeat_adds_nothing(door: Door) -> None:
    message = mail(SENDER, CLIENT, INVOICE)
    dialogue = greeted(door)
    dialogue.envelope(SENDER, CLIENT)
    dialogue.say("DATA")
    dialogue.send(stuffed(message))
    # A reset, not a goodbye: the answer finds nobody.
    dialogue.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    dialogue.close()
    eventually(lambda: len(door.messages()) == 1)
    with greeted(door) as dialogue:
        dialogue.envelope(SENDER, CLIENT)
        assert dialogue.data(message).code == 250
    assert len(door.messages()) == 1


def test_a_client_that_closes_its_half_after_the_dot_gets_its_answer(door: Door) -> None:
    with greeted(door) as dialogue:
        dialogue.envelope(SENDER, CLIENT)
        dialogue.say("DATA")
        dialogue.send(stuffed(mail(SENDER, CLIENT, INVOICE)) + b"QUIT\r\n")
        dialogue.socket.shutdown(socket.SHUT_WR)
        assert [dialogue.reply().code, dialogue.reply().code] == [250, 221]


def test_a_half_closed_mail_without_its_dot_is_none(door: Door) -> None:
    with greeted(door) as dialogue:
        dialogue.envelope(SENDER, CLIENT)
        dialogue.say("DATA")
        dialogue.send(b"Subject: x\r\n\r\n.")
        dialogue.socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            assert dialogue.reply().code == 421
    assert door.messages() == []


def test_when_it_stops_idle_clients_are_told_and_mail_in_progress_is_finished(door: Door) -> None:
    idle, busy = greeted(door), greeted(door)
    message = stuffed(mail(SENDER, CLIENT, INVOICE))
    busy.envelope(SENDER, CLIENT)
    busy.say("DATA")
    busy.send(message[:300])
    door.stop()
    assert idle.reply() == Reply(421, ("4.3.2 Arret en cours, reessayez plus tard (shutting down)",))
    with pytest.raises(ConnectionRefusedError):
        Dialogue(door.port)
    busy.send(message[300:])
    assert busy.reply().code == 250
    assert busy.reply().code == 421
    idle.close()
    busy.close()


# --- our trouble -----------------------------------------------------------------------------------------------------


def test_a_spool_that_cannot_be_written_is_our_trouble_never_theirs(door: Door) -> None:
    files = door.folder / "var/spool/files"
    files.rmdir()
    files.write_text("not a folder")
    with greeted(door) as dialogue:
        dialogue.envelope(SENDER, MEG)
        assert dialogue.data(mail(SENDER, MEG, text="a" * SMALL)).code == 452
        dialogue.envelope(SENDER, MEG)
        assert dialogue.data(mail(SENDER, MEG, INVOICE)).code == 250
    assert len(door.messages()) == 1


def test_a_store_that_cannot_be_written_is_our_trouble_never_theirs(
    open_door: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT", 0.2)
    door = open_door()
    with contextlib.closing(_locked(door.folder / "var/relay.db")) as lock, greeted(door) as dialogue:
        dialogue.envelope(SENDER, MEG)
        reply = dialogue.data(mail(SENDER, MEG, INVOICE, text="a" * SMALL))
        assert reply == Reply(451, ("4.3.0 Incident temporaire (temporary failure)",))
        assert door.spooled_files() == []
        lock.rollback()
        dialogue.envelope(SENDER, MEG)
        assert dialogue.data(mail(SENDER, MEG, INVOICE)).code == 250
    assert len(door.messages()) == 1


def _locked(path: Path) -> dbapi2.Connection:
    connection = dbapi2.connect(str(path), isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return connection


# --- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(open_door: Open, authority: trustme.CA, tmp_path: Path) -> Door:
    issue(authority, tmp_path)
    return open_door('certificate = "chain.pem"', 'key = "key.pem"')


def test_starttls_is_offered_taken_once_and_recorded(secure: Door) -> None:
    with greeted(secure) as dialogue:
        assert "STARTTLS" in dialogue.hello().lines
        dialogue.envelope(SENDER, CLIENT)
        assert dialogue.say("STARTTLS x").code == 501
        assert dialogue.starttls(secure.folder / "authority.pem").code == 220
        assert dialogue.say(f"MAIL FROM:<{SENDER}>").code == 503  # RFC 3207 §4.2: as if nothing had been said
        assert "STARTTLS" not in dialogue.hello().lines
        assert dialogue.say("STARTTLS").code == 502
        dialogue.envelope(SENDER, CLIENT)
        assert dialogue.data(mail(SENDER, CLIENT, INVOICE)).code == 250
    db = open_for_reading(secure.folder / "var/relay.db")
    with contextlib.closing(db):
        assert rows(db, "SELECT tls, protocol FROM message", ()) == [("TLSv1.3", "ESMTPS")]


@pytest.mark.parametrize("packets", [1, 2])
def test_plaintext_injected_before_the_handshake_is_never_answered(secure: Door, packets: int) -> None:
    injected = b"EHLO evil.example\r\nMAIL FROM:<evil@evil.example>\r\n"
    with greeted(secure) as dialogue:
        if packets == 1:
            dialogue.send(b"STARTTLS\r\n" + injected)
        else:
            dialogue.send(b"STARTTLS\r\n")
            dialogue.send(injected)
        assert dialogue.reply().code == 220
        context = ssl.create_default_context(cafile=str(secure.folder / "authority.pem"))
        try:
            dialogue.socket = context.wrap_socket(dialogue.socket, server_hostname="127.0.0.1")
        except OSError:
            assert packets == 2  # it came after the 220, and was taken for a handshake
            return
        dialogue._input = dialogue.socket.makefile("rb")
        assert dialogue.say("NOOP").code == 250
        assert dialogue.say(f"MAIL FROM:<{SENDER}>").code == 503


def test_without_a_certificate_starttls_is_neither_offered_nor_taken(door: Door) -> None:
    with greeted(door) as dialogue:
        assert "STARTTLS" not in dialogue.hello().lines
        assert dialogue.say("STARTTLS").code == 502
        assert dialogue.say("NOOP").code == 250


def test_a_handshake_that_fails_ends_the_conversation_and_leaves_nothing_behind(
    secure: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "MAX_PER_PEER", 1)
    for attempt in (b"MAIL FROM:<x@y.example>\r\n" * 10, b""):
        with greeted(secure) as dialogue:
            assert dialogue.say("STARTTLS").code == 220
            dialogue.send(attempt)
            dialogue.socket.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                assert dialogue.socket.recv(100)[:3] != b"250"
        eventually(lambda: _greets(secure))


def test_a_certificate_that_changes_is_read_again_and_a_bad_one_is_not_used(
    secure: Door, authority: trustme.CA
) -> None:
    assert _certificate(secure) == _certificate(secure)
    renewed = issue(authority, secure.folder)
    assert _certificate(secure) == renewed
    (secure.folder / "chain.pem").write_text("half written")
    assert _certificate(secure) == renewed


def _certificate(door: Door) -> bytes:
    with greeted(door) as dialogue:
        dialogue.starttls(door.folder / "authority.pem")
        assert isinstance(dialogue.socket, ssl.SSLSocket)
        found = dialogue.socket.getpeercert(binary_form=True)
        assert found is not None
        return found
