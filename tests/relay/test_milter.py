"""The milter at a real socket, with an MTA that says what it likes: the order of packets, whom it speaks for, its limits.

The listener runs in this process, in a thread, so that its constants can be changed; all behind it is real.
"""

import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from miltertest import MilterConnection, constants

from relay import config as configuration
from relay.accept import Intake
from relay.milter import connection as connecting
from relay.milter import listener as listening
from relay.milter import mail as mails
from relay.milter.listener import Milter, bind
from relay.spool import Spool
from relay.store.database import open_for_reading, rows
from rules import replies
from tests.support.behind import until
from tests.support.clients import mail
from tests.support.documents import pdf
from tests.support.door import served
from tests.support.mta import TALKATIVE, Mta

SENDER, VENTES, MEG = "compta@cabinet.example", "ventes+dupont@welyb.fr", "meg+dupont@welyb.fr"
THEIRS = "paul@dupont.example"
TRUSTED = "127.0.0.1"
INVOICE = ("facture.pdf", "application/pdf", pdf())
TAKEN = [(b"d", b"")]
CONTINUE = (b"c", b"")


@dataclass(frozen=True, slots=True)
class Door:
    """The milter at work; `place` is its port, or the path of its socket."""

    folder: Path
    place: int | str
    intake: Intake
    stop: Callable[[], None]

    def mta(self, **more: int) -> Mta:
        return Mta(self.place, **more)

    def client(self, address: str = TRUSTED) -> Mta:
        return self.mta().client(address)

    def stored(self, columns: str = "id", table: str = "message") -> list[tuple[object, ...]]:
        with contextlib.closing(open_for_reading(self.folder / "var/relay.db")) as db:
            return [tuple(row) for row in rows(db, f"SELECT {columns} FROM {table} ORDER BY 1", ())]

    def octets(self) -> list[bytes]:
        """What is in the spool of every message."""
        found = []
        for _, key in self.stored("id, spool"):
            with self.intake.spool.open(str(key)) as body:
                found.append(b"".join(body.pieces()))
        return found


Open = Callable[..., Door]


@pytest.fixture
def open_door(tmp_path: Path) -> Iterator[Open]:
    """Opens a door at `listen`, with the lines given below [smtp]."""
    with served(tmp_path, _filtering) as start:

        def open_(*smtp: str, listen: str = "inet:127.0.0.1:0") -> Door:
            at_work = start(["[milter]", f'listen = ["{listen}"]', "[smtp]", *smtp])
            return Door(tmp_path, at_work.place, at_work.intake, at_work.stop)

        yield open_


@contextlib.asynccontextmanager
async def _filtering(config: configuration.Config, intake: Intake) -> AsyncIterator[int | str]:
    milter = Milter(intake)
    (sock,) = bind(config)
    name = sock.getsockname()
    await milter.start([sock])
    yield name if isinstance(name, str) else name[1]
    await milter.stop()


@pytest.fixture
def door(open_door: Open) -> Door:
    return open_door()


def invoice(to: str = MEG) -> bytes:
    return mail(SENDER, to, INVOICE)


def reply(code: replies.Reply) -> tuple[bytes, bytes]:
    return b"y", code.render().removesuffix(b"\r\n").replace(b"%", b"%%") + b"\0"


# --- what becomes of a mail -------------------------------------------------------------------------------------------


def test_ours_alone_is_stored_and_discarded(door: Door) -> None:
    letter = invoice()
    with door.client() as mta:
        assert mta.post(SENDER, [MEG], letter) == TAKEN
    assert door.octets() == [letter]
    assert door.stored("kind, state, target", "delivery") == [("send", "waiting", "dupont@factures-meg.fr")]


def test_ours_among_others_is_stored_and_deleted_there(door: Door) -> None:
    with door.client() as mta:
        answers = mta.post(SENDER, [MEG, THEIRS, VENTES], invoice())
    assert answers == [(b"-", f"<{MEG}>\0".encode()), (b"-", f"<{VENTES}>\0".encode()), CONTINUE]
    assert len(door.stored()) == 1 and len(door.stored(table="delivery")) == 2


def test_a_recipient_named_twice_is_deleted_once(door: Door) -> None:
    with door.client() as mta:
        assert mta.post(SENDER, [MEG, MEG, THEIRS], invoice()) == [(b"-", f"<{MEG}>\0".encode()), CONTINUE]
    assert len(door.stored(table="delivery")) == 1


def test_theirs_alone_is_not_looked_at(door: Door) -> None:
    with door.client() as mta:
        mta.mail(SENDER)
        assert mta.rcpt(THEIRS) == mta.rcpt("postmaster") == CONTINUE
        assert mta.ask(b"T") == (b"a", b"")
        assert mta.post(SENDER, [MEG], invoice()) == TAKEN
    assert len(door.stored()) == 1


@pytest.mark.parametrize(
    ("recipient", "expected"),
    [
        ("meg+@welyb.fr", replies.MALFORMED),
        ("meg+a%b@welyb.fr", replies.MALFORMED),
        ("meg+a b@welyb.fr", replies.MALFORMED),
        ("meg+a@WELYB.FR.", replies.MALFORMED),
        ("meg+a@welyb.fr (Paul)", replies.MALFORMED),  # sendmail would go on with meg+a@welyb.fr
        ("liste:meg+a@(et)Welyb.fr;", replies.MALFORMED),
        ("ventes+inconnu@welyb.fr", replies.UNKNOWN),
        ("contact@welyb.fr", replies.MALFORMED),
        ("meg+é@welyb.fr", replies.NOT_ASCII),
    ],
)
def test_a_recipient_is_refused_in_the_words_of_the_smtp_server(
    door: Door, recipient: str, expected: replies.Reply
) -> None:
    with door.client() as mta:
        mta.mail(SENDER)
        assert mta.rcpt(recipient) == reply(expected)
        assert mta.rcpt(MEG) == CONTINUE


@pytest.mark.parametrize("recipient", ["paul@dupont.example (Paul)", "a@welyb.fr.example (x)", "a@b@jwelyb.fr", "@@"])
def test_what_cannot_be_read_and_does_not_lead_to_us_is_theirs(door: Door, recipient: str) -> None:
    with door.client() as mta:
        mta.mail(SENDER)
        assert mta.rcpt(recipient) == CONTINUE


def test_what_is_refused_at_the_end_is_refused_for_all(door: Door) -> None:
    """Theirs too: SMTP has one answer. A name with a percent sign comes through."""
    with door.client() as mta:
        letter = mail(SENDER, MEG, ("100%.pdf", "application/pdf", b""))
        ((letter_, text),) = mta.post(SENDER, [MEG, THEIRS], letter)
        assert (letter_, text[:9]) == (b"y", b"554 5.6.0")
        assert b"100%%.pdf : document vide" in text
    assert not door.stored() and len(door.stored(table="refusal")) == 1


def test_a_stranger_that_asks_for_too_many_unknown_addresses(open_door: Open) -> None:
    door = open_door("[throttle]", 'unknown = "2 / hour"')
    with door.client("192.0.2.7") as mta:
        mta.mail(SENDER)
        for name in "ab":
            assert mta.rcpt(f"ventes+{name}@welyb.fr") == reply(replies.UNKNOWN)
        assert mta.rcpt("ventes+c@welyb.fr") == mta.rcpt(VENTES) == reply(replies.THROTTLED)
        assert mta.rcpt(THEIRS) == CONTINUE


def test_a_client_made_a_minute_ago(door: Door) -> None:
    with door.client() as mta:
        mta.mail(SENDER)
        (door.folder / "ged/Durand").mkdir()
        assert mta.rcpt("ventes+durand@welyb.fr") == CONTINUE


def test_the_same_mail_again_after_an_answer_that_was_lost(door: Door) -> None:
    letter = invoice()
    with door.client() as mta:
        mta.mail(SENDER)
        mta.rcpt(MEG)
        mta.ask(b"T")
        mta.content(letter)
        mta.send(b"E")  # and is gone before the answer
    deadline = time.monotonic() + 15
    while not door.stored() and time.monotonic() < deadline:
        time.sleep(0.01)
    with door.client() as mta:
        assert mta.post(SENDER, [MEG], letter) == TAKEN
    assert len(door.stored()) == 1


# --- octets -----------------------------------------------------------------------------------------------------------


def test_octets_are_those_of_the_mail(door: Door) -> None:
    """Spaces around the colon, folds by space and tab, 8 bits, no final CRLF, dots at the beginning of a line."""
    letter = (
        b"Received: by a.example;\r\n\tMon, 2 Mar 2026 10:00:00 +0100\r\nSubject:sans espace\r\nX-Two:  two\r\n"
        b"X-Empty:\r\nX-Before : colon\r\nX-Eight: \xc3\xa9\xe9\r\nMessage-ID: <1@a.example>\r\n"
        b"X-Fold: a\r\n b\r\n\t c\r\n\r\n.\r\n..\r\ncorps \xe9"
    )
    with door.client() as mta:
        assert mta.post(SENDER, [MEG], letter) == TAKEN
    assert door.octets() == [letter]


def test_an_mta_that_folds_with_crlf(door: Door) -> None:
    with door.client() as mta:
        mta.mail(SENDER)
        mta.rcpt(MEG)
        mta.ask(b"L", b"X-Fold\0 a\r\n b\0")
        mta.ask(b"N")
        assert mta.end() == TAKEN
    assert door.octets() == [b"X-Fold: a\r\n b\r\n\r\n"]


def test_a_bare_cr_in_a_field_is_refused(door: Door) -> None:
    with door.client() as mta:
        assert mta.post(SENDER, [MEG], b"Subject: a\rb\r\n\r\n") == [reply(replies.BARE_NEWLINE)]


@pytest.mark.parametrize("step", [1, 7])
def test_packets_in_small_pieces(door: Door, step: int) -> None:
    letter = mail(SENDER, MEG, text="x" * 500)
    with door.mta(step=step).client(TRUSTED) as mta:
        assert mta.post(SENDER, [MEG], letter) == TAKEN
    assert door.octets() == [letter]


def test_a_large_mail_goes_to_disk_as_it_comes(door: Door) -> None:
    """Long before its end it is there, all but what is under way."""
    letter = mail(SENDER, MEG, ("scan.pdf", "application/pdf", pdf() + b"\n%" + b"x" * 3_000_000))
    files = door.folder / "var/spool/files"
    with door.client() as mta:
        mta.mail(SENDER)
        mta.rcpt(MEG)
        mta.ask(b"T")
        mta.content(letter)
        until(lambda: sum(path.stat().st_size for path in files.glob("*/*")) >= len(letter) - 65_536)
        assert not door.stored()
        assert mta.end() == TAKEN
    assert door.octets() == [letter]


# --- whom the MTA speaks for ------------------------------------------------------------------------------------------


def test_the_peer_is_the_client_of_the_connection(door: Door) -> None:
    with door.client("192.0.2.7") as mta:
        mta.mail(SENDER)
        assert mta.rcpt(MEG) == reply(replies.NOT_ALLOWED)
        assert mta.rcpt(VENTES) == CONTINUE
        mta.ask(b"T")
        mta.content(invoice(VENTES))
        assert mta.end() == TAKEN
    told = door.stored("peer, helo, protocol, sender, trusted, tls")
    assert told == [("192.0.2.7", "mail.dupont.example", "ESMTP", SENDER, 0, "")]


def test_a_client_that_authenticated_at_the_mta_is_trusted_for_that_mail(door: Door) -> None:
    with door.mta() as mta:
        mta.macros(b"H", tls_version="TLSv1.3")
        mta.client("2001:db8::7")
        mta.macros(b"M", i="4F1", auth_authen="compta")
        assert mta.post(SENDER, [MEG], invoice()) == TAKEN
        mta.mail(SENDER)
        assert mta.rcpt(MEG) == reply(replies.NOT_ALLOWED)
    assert door.stored("peer, protocol, trusted, user, tls") == [("2001:db8::7", "ESMTPSA", 1, "compta", "TLSv1.3")]


def test_another_client_on_the_same_connection(door: Door) -> None:
    """QUIT_NC: nothing of the one before holds."""
    with door.client() as mta:
        mta.mail(SENDER)
        mta.send(b"K")
        mta.client("192.0.2.7").mail(SENDER)
        assert mta.rcpt(MEG) == reply(replies.NOT_ALLOWED)
        mta.send(b"K")
        mta.client("IPv6:::1").mail(SENDER)
        assert mta.rcpt(MEG) == CONTINUE


@pytest.mark.parametrize("place", [b"U", b"L\0\0/run/x\0", b"4\0\0nonsense\0"])
def test_a_client_the_mta_does_not_know_cannot_be_judged(door: Door, place: bytes) -> None:
    with door.mta() as mta:
        mta.ask(b"C", b"unknown\0" + place)
        mta.mail(SENDER)
        assert mta.rcpt(VENTES) == reply(replies.TROUBLE)
        assert mta.rcpt(THEIRS) == CONTINUE


@pytest.mark.parametrize(
    ("sender", "expected"), [("a@@b", replies.MALFORMED), ("é@b.example", replies.NOT_ASCII), ("<", replies.MALFORMED)]
)
def test_a_sender_that_cannot_be_read_is_told_to_our_recipients(
    door: Door, sender: str, expected: replies.Reply
) -> None:
    with door.client() as mta:
        mta.mail(sender)
        assert mta.rcpt(MEG) == reply(expected)
        assert mta.rcpt(THEIRS) == CONTINUE


# --- the order of packets ---------------------------------------------------------------------------------------------


def test_ten_mails_on_one_connection(door: Door) -> None:
    letters = [invoice() for _ in range(10)]
    with door.client() as mta:
        for number, letter in enumerate(letters):
            if number % 3 == 2:
                mta.send(b"A")
            assert mta.post(SENDER, [MEG], letter) == TAKEN
        mta.send(b"Q")
    assert sorted(door.octets()) == sorted(letters)


@pytest.mark.parametrize("size", [10, 400_000])
def test_a_mail_that_is_given_up(door: Door, size: int) -> None:
    with door.client() as mta:
        mta.mail(SENDER)
        mta.rcpt(MEG)
        mta.ask(b"T")
        mta.content(mail(SENDER, MEG, text="x" * size))
        mta.send(b"A")
        letter = invoice()
        assert mta.post(SENDER, [MEG], letter) == TAKEN
    assert door.octets() == [letter]
    assert not [path for path in (door.folder / "var/spool/files").rglob("*") if path.is_file()]


def test_an_mta_that_wants_every_packet_answered(door: Door) -> None:
    letter = mail(SENDER, MEG, INVOICE, text="x" * 200_000)
    with door.mta(actions=0x4D, steps=TALKATIVE).client(TRUSTED) as mta:
        assert mta.post(SENDER, [MEG], letter) == TAKEN
        assert mta.ask(b"U", b"XYZZY\0") == CONTINUE
    assert door.octets() == [letter]


def test_no_more_body_where_the_rest_is_in_vain(open_door: Open) -> None:
    door = open_door('max_message_size = "100 kB"')
    with door.mta(steps=TALKATIVE | 0x400).client(TRUSTED) as mta:
        mta.mail(SENDER)
        mta.rcpt(MEG)
        mta.ask(b"T")
        mta.ask(b"N")
        assert [mta.ask(b"B", b"x" * 65_535) for _ in range(2)] == [CONTINUE, (b"s", b"")]
        assert mta.end() == [reply(replies.MESSAGE_TOO_BIG)]
        mta.mail(SENDER, "SIZE=100001")
        assert mta.rcpt(MEG) == reply(replies.MESSAGE_TOO_BIG)
        mta.mail(SENDER, "SIZE=100000")
        assert mta.rcpt(MEG) == CONTINUE


@pytest.mark.parametrize(
    "packets",
    [
        pytest.param([(b"R", b"<a@welyb.fr>\0")], id="rcpt-without-mail"),
        pytest.param([(b"B", b"x")], id="body-without-mail"),
        pytest.param([(b"E", b"")], id="end-without-mail"),
        pytest.param([(b"T", b"")], id="data-without-mail"),
        pytest.param(
            [(b"M", b"<>\0"), (b"N", b""), (b"R", b"<ventes+dupont@welyb.fr>\0")],
            id="rcpt-after-the-mail",
        ),
        pytest.param([(b"O", b"\0" * 12)], id="second-negotiation"),
        pytest.param([(b"?", b"")], id="unknown"),
        pytest.param([(b"M", b"")], id="mail-of-nobody"),
    ],
)
def test_what_cannot_be_understood_ends_the_connection_without_a_verdict(
    door: Door, packets: list[tuple[bytes, bytes]]
) -> None:
    with door.client() as mta:
        for letter, data in packets:
            mta.send(letter, data)
        with pytest.raises(ConnectionError):
            mta.answer()
    with door.client() as mta:
        assert mta.post(SENDER, [MEG], invoice()) == TAKEN


def test_an_mta_of_long_ago_is_not_served(door: Door) -> None:
    with pytest.raises(ConnectionError):
        door.mta(actions=0x3F, steps=0x7F)


# --- our trouble ------------------------------------------------------------------------------------------------------


def test_progress_while_we_work(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mails, "PROGRESS_EVERY", 0.0001)
    with door.client() as mta:
        assert mta.post(SENDER, [MEG], invoice()) == TAKEN
        assert mta.progress
        assert mta.post(SENDER, [MEG], invoice()) == TAKEN


def test_a_disk_that_is_full_is_told_to_our_recipients_alone(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spool, "free", lambda _: (0.01, 0.5))
    with door.client() as mta:
        mta.mail(SENDER)
        assert mta.rcpt(MEG) == reply(replies.DISK_LOW)
        assert mta.rcpt(THEIRS) == CONTINUE


def test_a_store_that_fails_is_451_and_nothing_is_stored(door: Door) -> None:
    with contextlib.closing(open_for_reading(door.folder / "var/relay.db")):
        (door.folder / "var/relay.db").rename(door.folder / "var/away.db")
        try:
            with door.client() as mta:
                assert mta.post(SENDER, [MEG], invoice()) == [reply(replies.TROUBLE)]
        finally:
            (door.folder / "var/away.db").rename(door.folder / "var/relay.db")
    assert not door.stored()


def test_more_connections_than_there_is_room_for(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "MAX_CONNECTIONS", 2)
    with door.client() as one, door.client():
        with pytest.raises(ConnectionError):
            door.client()
        assert one.post(SENDER, [MEG], invoice()) == TAKEN


def test_an_mta_that_is_silent_for_too_long(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "SILENT_AT_MOST", 0.05)
    with door.client() as mta, pytest.raises(ConnectionError):
        mta.answer()


def test_a_stop_waits_for_the_mail_in_progress(door: Door) -> None:
    letter = invoice()
    with door.client() as idle, door.client() as mta:
        mta.mail(SENDER)
        mta.rcpt(MEG)
        mta.ask(b"T")
        door.stop()
        with pytest.raises(ConnectionError):
            idle.answer()
        mta.content(letter)
        assert mta.end() == TAKEN


def test_250_connections_at_once(door: Door) -> None:
    """Each between two packets of its mail when the last one begins."""
    letters = [invoice() for _ in range(250)]
    with contextlib.ExitStack() as stack:
        mtas = [stack.enter_context(door.client()) for _ in letters]
        for mta, letter in zip(mtas, letters, strict=True):
            mta.mail(SENDER)
            assert mta.rcpt(MEG) == CONTINUE
            mta.ask(b"T")
            mta.content(letter)
        for mta in mtas:
            mta.send(b"E")
        assert all(mta.answer() == TAKEN[0] for mta in mtas)
    assert sorted(door.octets()) == sorted(letters)


# --- sockets ----------------------------------------------------------------------------------------------------------


def test_a_unix_socket(open_door: Open, tmp_path: Path) -> None:
    path = tmp_path / "milter.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    door = open_door(listen="unix:milter.sock")
    assert path.stat().st_mode & 0o777 == 0o660
    with door.client() as mta:
        assert mta.post(SENDER, [MEG], invoice()) == TAKEN
    door.stop()
    deadline = time.monotonic() + 15
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not path.exists()


def test_a_socket_somebody_listens_on_stays_theirs(tmp_path: Path) -> None:
    path = tmp_path / "milter.sock"
    (tmp_path / "file").write_text("mine")
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(str(path))
        theirs.listen()
        for place in (path, tmp_path / "file"):
            config = configuration.Config()
            config = replace(config, milter=configuration.Milter(listen=(f"unix:{place}",)))
            with pytest.raises(OSError, match=r"Remedy: see what listens there, or \[milter\] listen"):
                bind(config)
            assert place.exists()


# --- another's idea of the protocol -----------------------------------------------------------------------------------


def test_miltertest(door: Door) -> None:
    """PyPI's miltertest: a client that nobody here wrote."""
    with socket.create_connection((TRUSTED, int(door.place)), timeout=30) as sock:
        mta = MilterConnection(sock)
        mta.optneg_mta(constants.SMFI_V6_ACTS & ~constants.SMFIF_SETSYMLIST, constants.SMFIP_HDR_LEADSPC)
        mta.send(constants.SMFIC_CONNECT, hostname="mx", family="4", port=25, address=TRUSTED)
        mta.send(constants.SMFIC_HELO, helo="mx")
        mta.send_macro(constants.SMFIC_MAIL, i="4F1")
        mta.send(constants.SMFIC_MAIL, args=[f"<{SENDER}>"])
        refused = mta.send_ar(constants.SMFIC_RCPT, args=["<meg+@welyb.fr>"])
        assert (refused[1]["smtpcode"], refused[1]["text"]) == ("553", replies.MALFORMED.render()[4:-2].decode())
        mta.send(constants.SMFIC_RCPT, args=[f"<{MEG}>", "NOTIFY=NEVER"])
        mta.send(constants.SMFIC_DATA)
        mta.send_headers([("Subject", " Facture"), ("X", "")])
        mta.send(constants.SMFIC_EOH)
        mta.send_body("corps\r\n" * 20_000)
        assert mta.send_eom() == [(constants.SMFIR_DISCARD, {})]
    assert door.octets() == [b"Subject: Facture\r\nX:\r\n\r\n" + b"corps\r\n" * 20_000]
