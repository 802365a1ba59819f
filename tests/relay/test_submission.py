"""A user's conversation at a real socket: what is asked before mail is taken, AUTH word by word, TLS and its certificate."""

import asyncio
import base64
import contextlib
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from relay import passwords
from relay.smtp import session
from relay.store import directory, users
from relay.store.database import open_existing, transaction
from tests.support.clients import Dialogue, Reply, encoded, mail
from tests.support.documents import pdf
from tests.support.door import Door, Open, doors, issue

SENDER, SALES = "compta@cabinet.example", "ventes+dupont@welyb.fr"
MEG, ACHATS = "meg+dupont@welyb.fr", "meg+achats+dupont@welyb.fr"
INVOICE = ("facture.pdf", "application/pdf", pdf())
NAME, PASSWORD = "scanner-1", "corréct cheval 37"
HASH = passwords.hashed(PASSWORD)
WRONG = Reply(535, ("5.7.8 Identifiant ou mot de passe incorrect (invalid credentials)",))
OVER = Reply(421, ("4.7.0 Trop d'echecs d'authentification (too many authentication failures)",))


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def open_door(tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    monkeypatch.setattr(session, "FAILURE_DELAY", 0.0)
    issue(authority, tmp_path)
    with doors(tmp_path) as open_:
        yield open_


@pytest.fixture
def door(open_door: Open) -> Door:
    """Its ports: the MX, 587, 465."""
    door = open_door('certificate = "chain.pem"', 'key = "key.pem"', 'submission = ["127.0.0.1:0", "127.0.0.1:0 tls"]')
    put(door, NAME)
    return door


def put(door: Door, name: str, *rules: str, state: str = "active", stored: str = HASH) -> None:
    """What `users add`, `users passwd` and `users remove` do."""
    with contextlib.closing(open_existing(door.folder / "var/relay.db")) as db, transaction(db):
        users.put(db, users.User(name, stored if state == "active" else "", rules, "2026-11-24T00:00:00.000Z", state))
        directory.touch(db)


def authority_of(door: Door) -> Path:
    return door.folder / "authority.pem"


def secured(door: Door) -> Dialogue:
    """At 587, inside TLS, greeted."""
    dialogue = Dialogue(door.ports[1])
    dialogue.hello()
    dialogue.starttls(authority_of(door))
    dialogue.hello()
    return dialogue


def code_of_meg(dialogue: Dialogue, address: str = MEG) -> int:
    dialogue.say("RSET")
    return dialogue.envelope(SENDER, address)[1].code


# --- before a mail ---------------------------------------------------------------------------------------------------


def test_first_tls_then_a_password_and_only_then_mail(door: Door) -> None:
    with Dialogue(door.ports[1]) as dialogue:
        assert dialogue.say(f"MAIL FROM:<{SENDER}>").code == 503
        assert dialogue.hello().lines[1:] == (
            *("PIPELINING", "SIZE 50000000", "8BITMIME", "STARTTLS"),
            *("ENHANCEDSTATUSCODES", "CHUNKING"),
        )
        assert dialogue.plain(NAME, PASSWORD).text == (
            "5.7.11 Chiffrement requis pour s'authentifier (encryption required)"
        )
        refused = dialogue.say(f"MAIL FROM:<{SENDER}>")
        assert refused == Reply(530, ("5.7.0 Lancez d'abord STARTTLS (must issue STARTTLS first)",))
        assert dialogue.say(f"RCPT TO:<{SALES}>").code == 503
        dialogue.starttls(authority_of(door))
        assert "AUTH PLAIN LOGIN" in dialogue.hello().lines
        refused = dialogue.say(f"MAIL FROM:<{SENDER}>")  # 127.0.0.1 is in a trusted network, and it does not help
        assert refused == Reply(530, ("5.7.0 Authentification requise (authentication required)",))
        assert dialogue.last_chunk(b"x").code == 503
        assert dialogue.plain(NAME, PASSWORD).code == 235
        dialogue.envelope(SENDER, MEG, SALES)
        assert dialogue.data(mail(SENDER, MEG, INVOICE)).code == 250
    row = ("ESMTPSA", NAME, 1, "TLSv1.3", "127.0.0.1")
    assert door.rows("SELECT protocol, user, trusted, tls, peer FROM message") == [row]
    (told,) = door.rows("SELECT detail ->> 'user' FROM event WHERE event = 'accepted'")
    assert told == (NAME,)


def test_tls_may_come_first(door: Door) -> None:
    with Dialogue(door.ports[2], authority=authority_of(door)) as dialogue:
        assert dialogue.greeting.code == 220
        offers = dialogue.hello().lines
        assert "AUTH PLAIN LOGIN" in offers and "STARTTLS" not in offers
        assert dialogue.say("STARTTLS").code == 502
        assert dialogue.say(f"MAIL FROM:<{SENDER}>").code == 530
        assert dialogue.plain(NAME, PASSWORD).code == 235
        dialogue.hello()
        dialogue.envelope(SENDER, MEG)
        assert dialogue.data(mail(SENDER, MEG, INVOICE)).code == 250
    assert door.rows("SELECT protocol, user FROM message") == [("ESMTPSA", NAME)]


def test_where_tls_comes_first_nothing_is_said_in_clear(door: Door) -> None:
    with socket.create_connection(("127.0.0.1", door.ports[2]), 10) as plain:
        plain.sendall(b"EHLO x\r\n")
        heard = plain.recv(1000)
        assert b"220" not in heard and b"250" not in heard
        with contextlib.suppress(ConnectionError):
            assert plain.recv(1000) == b""


def test_the_mx_has_no_auth(door: Door) -> None:
    with Dialogue(door.ports[0]) as dialogue:
        dialogue.hello()
        assert dialogue.plain(NAME, PASSWORD).code == 502
        dialogue.starttls(authority_of(door))
        assert not [line for line in dialogue.hello().lines if "AUTH" in line]
        assert dialogue.plain(NAME, PASSWORD).code == 502
        assert dialogue.say(f"MAIL FROM:<{SENDER}> AUTH=<>").code == 555


# --- AUTH ------------------------------------------------------------------------------------------------------------

PLAIN = encoded(f"\0{NAME}\0{PASSWORD}")
GIVEN: dict[str, list[tuple[str, int]]] = {
    "plain": [(f"AUTH PLAIN {PLAIN}", 235)],
    "plain, asked for": [("auth plain", 334), (PLAIN, 235)],
    "plain, for oneself": [("AUTH PLAIN " + encoded(f"{NAME}\0{NAME}\0{PASSWORD}"), 235)],
    "login": [("AUTH LOGIN", 334), (encoded(NAME), 334), (encoded(PASSWORD), 235)],
    "login, named at once": [(f"AUTH login {encoded(NAME.upper())}", 334), (encoded(PASSWORD), 235)],
    "spelled otherwise": [("AUTH PLAIN " + encoded(f"\0{NAME}\0corre\u0301ct\u00a0cheval 37"), 235)],
    "wrong": [("AUTH PLAIN " + encoded(f"\0{NAME}\0{PASSWORD}x"), 535)],
    "no password": [("AUTH PLAIN " + encoded(f"\0{NAME}\0"), 535)],
    "nobody": [("AUTH PLAIN " + encoded(f"\0personne\0{PASSWORD}"), 535)],
    "no name": [("AUTH PLAIN " + encoded(f"\0\0{PASSWORD}"), 535)],
    "for another": [("AUTH PLAIN " + encoded(f"autre\0{NAME}\0{PASSWORD}"), 535)],
    "a control": [("AUTH LOGIN", 334), (encoded(NAME), 334), (encoded(f"{PASSWORD}\r"), 535)],
    "cancelled": [("AUTH PLAIN", 334), ("*", 501), ("NOOP", 250)],
    "cancelled later": [("AUTH LOGIN", 334), (encoded(NAME), 334), ("*", 501), ("NOOP", 250)],
    "no base64": [("AUTH PLAIN !", 501), ("AUTH PLAIN", 334), ("Zm9v Zm9v", 501), ("NOOP", 250)],
    "half of it": [("AUTH LOGIN", 334), ("Zm9", 501)],
    "no UTF-8": [("AUTH PLAIN " + base64.b64encode(b"\0\xff\0\xff").decode(), 501)],
    "too few parts": [("AUTH PLAIN " + encoded(f"{NAME}\0{PASSWORD}"), 501)],
    "too many parts": [("AUTH PLAIN " + encoded(f"\0{NAME}\0{PASSWORD}\0"), 501)],
    "empty": [("AUTH PLAIN =", 501), ("AUTH PLAIN", 334), ("", 501)],
    "empty name": [("AUTH LOGIN =", 334), (encoded(PASSWORD), 535)],
    "too long": [("AUTH PLAIN", 334), ("A" * 5000, 501), ("NOOP", 250)],
    "other mechanisms": [("AUTH CRAM-MD5", 504), ("AUTH", 504), ("AUTH XOAUTH2 eA==", 504)],
    "twice": [(f"AUTH PLAIN {PLAIN}", 235), (f"AUTH PLAIN {PLAIN}", 503), ("EHLO x", 250), ("AUTH PLAIN", 503)],
    "without EHLO": [("HELO x", 250), (f"AUTH PLAIN {PLAIN}", 503)],
}


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA, request: pytest.FixtureRequest
) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("shared")
    issue(authority, folder)
    with pytest.MonkeyPatch.context() as patch, doors(folder) as open_:
        patch.setattr(session, "FAILURE_DELAY", 0.0)
        door = open_door_with_tls(open_)
        put(door, NAME)
        yield door


def open_door_with_tls(open_: Open) -> Door:
    return open_('certificate = "chain.pem"', 'key = "key.pem"', 'submission = ["127.0.0.1:0"]')


@pytest.mark.parametrize("how", GIVEN)
def test_auth(shared: Door, how: str) -> None:
    with secured(shared) as dialogue:
        replies = [(line, dialogue.say(line).code) for line, _ in GIVEN[how]]
        assert replies == GIVEN[how]
        authenticated = any(code == 235 for _, code in replies)
        assert dialogue.hello().code == 250
        assert dialogue.say("MAIL FROM:<> AUTH=<>").code == (250 if authenticated else 530)


def test_after_the_handshake_a_client_greets_again_before_it_gives_its_password(shared: Door) -> None:
    with Dialogue(shared.ports[1]) as dialogue:
        dialogue.hello()
        dialogue.starttls(authority_of(shared))
        assert dialogue.plain(NAME, PASSWORD).code == 503  # RFC 3207 §4.2: what it knew of us is forgotten
        dialogue.hello()
        assert dialogue.plain(NAME, PASSWORD).code == 235


def test_the_words_of_auth(shared: Door) -> None:
    with secured(shared) as dialogue:
        assert dialogue.say("AUTH PLAIN") == Reply(334, ("",))
        assert dialogue.say("*").text == "5.7.0 Authentification abandonnee (authentication cancelled)"
        assert dialogue.say("AUTH LOGIN") == Reply(334, (encoded("Username:"),))
        assert dialogue.say(encoded(NAME)) == Reply(334, (encoded("Password:"),))
        assert dialogue.say(encoded(PASSWORD)).text == "2.7.0 Authentification reussie (authentication succeeded)"


def test_not_within_a_mail(shared: Door) -> None:
    with secured(shared) as dialogue:
        assert dialogue.plain(NAME, PASSWORD).code == 235
        dialogue.envelope(SENDER, MEG)
        assert dialogue.plain(NAME, PASSWORD).code == 503
        assert dialogue.data(mail(SENDER, MEG, INVOICE)).code == 250


def test_what_is_pipelined_behind_it_waits_for_it(shared: Door) -> None:
    with secured(shared) as dialogue:
        lines = (f"AUTH PLAIN {PLAIN}", f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{MEG}>", "RSET")
        assert [reply.code for reply in dialogue.pipeline(*lines)] == [235, 250, 250, 250]


def test_the_third_failure_ends_it_whoever_fails(shared: Door) -> None:
    for name in (NAME, "personne"):
        with secured(shared) as dialogue:
            tried = [dialogue.plain(name, "faux") for _ in range(3)]
            assert tried == [WRONG, WRONG, OVER]
            with pytest.raises(ConnectionError):
                dialogue.say("NOOP")


def test_a_failure_takes_its_time(shared: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FAILURE_DELAY", 0.3)
    with secured(shared) as dialogue:
        began = time.monotonic()
        assert dialogue.plain("personne", PASSWORD) == WRONG
        assert time.monotonic() - began >= 0.3


def test_a_client_that_leaves_in_the_middle_leaves_nothing(shared: Door) -> None:
    for _ in range(3):
        dialogue = secured(shared)
        dialogue.send(b"AUTH PLAIN " + PLAIN.encode() + b"\r\n")
        dialogue.close()
    with secured(shared) as dialogue:
        while (code := dialogue.plain(NAME, PASSWORD).code) == 454:  # what is compared already is compared to its end
            time.sleep(0.5)
        assert code == 235


def test_more_than_can_be_compared_come_again_later(shared: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "WAITING", 0)
    with secured(shared) as dialogue:
        assert [dialogue.plain(NAME, PASSWORD).code for _ in range(4)] == [454] * 4  # and it is no failure of theirs


def test_one_network_keeps_no_other_from_its_password() -> None:
    """And what nobody waits for any more is not compared."""

    async def story() -> list[bool | type[BaseException]]:
        line = passwords.Comparisons()

        def asked(network: str, there: Callable[[], bool]) -> Awaitable[bool]:
            return line.matches(PASSWORD, HASH, network=network, is_there=there)

        some = [asked("192.0.2.1", lambda: True) for _ in range(4)]
        other, gone = asked("192.0.2.2", lambda: True), asked("192.0.2.3", lambda: False)
        found = await asyncio.gather(*some, other, gone, return_exceptions=True)
        assert not line._waiting
        return [each if isinstance(each, bool) else type(each) for each in found]

    assert asyncio.run(story()) == [True, True, passwords.Busy, passwords.Busy, True, passwords.Busy]


def test_who_guesses_too_often_is_compared_no_more(open_door: Open) -> None:
    door = open_door(
        *('certificate = "chain.pem"', 'key = "key.pem"', 'submission = ["127.0.0.1:0"]'),
        *('trusted_networks = ["127.0.0.1/32"]', "[throttle]", 'passwords = "4 / hour"'),
    )
    put(door, NAME)

    def codes(source: str, *given: str) -> list[int]:
        with Dialogue(door.ports[1], source=source) as dialogue:
            dialogue.hello()
            dialogue.starttls(authority_of(door))
            dialogue.hello()
            return [dialogue.plain(NAME, password).code for password in given]

    assert codes("127.0.0.5", "faux 1", "faux 2") == codes("127.0.0.5", "faux 3", "faux 4") == [535, 535]
    assert codes("127.0.0.5", PASSWORD, PASSWORD) == [454, 454]
    assert codes("127.0.0.6", PASSWORD) == [235]  # others are not kept out
    assert [codes("127.0.0.1", "faux", "faux", PASSWORD) for _ in range(3)] == [[535, 535, 235]] * 3  # one we trust
    end = time.monotonic() + 10
    while not (held := door.rows("SELECT kind, subject FROM throttle")):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert held == [("passwords", "127.0.0.5")]


def test_a_hash_that_cannot_be_read_is_our_trouble(shared: Door) -> None:
    with contextlib.closing(open_existing(shared.folder / "var/relay.db")) as db, transaction(db):
        users.put(db, users.User("abime", "scrypt$x", (), "2026-11-24T00:00:00.000Z", "active"))
        directory.touch(db)
    with secured(shared) as dialogue:
        assert dialogue.plain("abime", PASSWORD).code == 451


# --- users -----------------------------------------------------------------------------------------------------------


def test_a_user_has_the_rules_he_was_given_and_elsewhere_he_is_a_stranger(shared: Door) -> None:
    put(shared, "achats", "meg-achats")
    with secured(shared) as dialogue:
        assert dialogue.plain("achats", PASSWORD).code == 235
        codes = [code_of_meg(dialogue, address) for address in (ACHATS, MEG, SALES, "postmaster@welyb.fr")]
        assert codes == [250, 550, 250, 250]


def test_users_come_and_go_while_it_serves(shared: Door) -> None:
    with secured(shared) as dialogue, secured(shared) as other:
        assert dialogue.plain("passager", PASSWORD) == WRONG
        put(shared, "passager")
        assert dialogue.plain("passager", PASSWORD).code == 235
        assert code_of_meg(dialogue) == 250
        put(shared, "passager", state="removed")
        dialogue.say("RSET")
        assert dialogue.say(f"MAIL FROM:<{SENDER}>").code == 530
        assert other.plain("passager", PASSWORD) == WRONG


@pytest.mark.parametrize("state", ["active", "removed"])
def test_another_password_ends_what_was_opened_with_the_old_one(shared: Door, state: str) -> None:
    """`users passwd`, or `users remove` and `users add` of the same name."""
    put(shared, "change")
    with secured(shared) as dialogue:
        assert dialogue.plain("change", PASSWORD).code == 235
        assert code_of_meg(dialogue) == 250
        put(shared, "change", state=state)
        put(shared, "change", stored=passwords.hashed("un autre cheval 38"))
        dialogue.say("RSET")
        assert dialogue.say(f"MAIL FROM:<{SENDER}>").code == 530
        dialogue.say("EHLO x")
        assert dialogue.say(f"MAIL FROM:<{SENDER}>").code == 530


def test_rules_that_change_end_nothing(shared: Door) -> None:
    put(shared, "regles")
    with secured(shared) as dialogue:
        assert dialogue.plain("regles", PASSWORD).code == 235
        put(shared, "regles", "meg-achats")
        assert [code_of_meg(dialogue, address) for address in (ACHATS, MEG)] == [250, 550]


def test_a_user_nobody_knows_costs_as_much() -> None:
    """The same work for a hash that no password has."""
    nobody, somebody = passwords._NOBODY.split("$"), HASH.split("$")
    assert nobody[:4] == somebody[:4] and [*map(len, nobody)] == [*map(len, somebody)]
    assert not passwords.matches("", passwords._NOBODY)


@pytest.mark.parametrize("text", ["", "a\tb", "a\0b", "a\u200bb", "a\u202eb", "\ud800", "x" * 257])
def test_what_no_keyboard_types_is_no_password(text: str) -> None:
    assert passwords.prepared(text) is None


def test_a_hash_tells_neither_the_password_nor_who_has_the_same() -> None:
    other = passwords.hashed(PASSWORD)
    assert other != HASH and passwords.matches(PASSWORD, other)
    assert PASSWORD not in HASH and "hash" not in repr(users.User("a", HASH, (), "", "active"))


# --- TLS -------------------------------------------------------------------------------------------------------------


def test_nothing_below_tls_1_2(shared: Door) -> None:
    with socket.create_connection(("127.0.0.1", shared.ports[1]), 10) as plain:
        plain.sendall(b"EHLO x\r\nSTARTTLS\r\n")
        heard = b""
        while b"\n220" not in heard:
            heard += plain.recv(1000)
        context = ssl.create_default_context(cafile=str(authority_of(shared)))
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(
            ssl.SSLError,
            match=r"PROTOCOL_VERSION|EOF",  # by the server, that is
        ):
            context.wrap_socket(plain, server_hostname="127.0.0.1")


def shown(door: Door) -> bytes:
    with secured(door) as dialogue:
        return of(dialogue)


def of(dialogue: Dialogue) -> bytes:
    assert isinstance(dialogue.socket, ssl.SSLSocket)
    return dialogue.socket.getpeercert(binary_form=True) or b""


def test_a_renewed_certificate_is_shown_and_open_connections_go_on(door: Door, authority: trustme.CA) -> None:
    first = shown(door)
    waiting = Dialogue(door.ports[1])  # connected before, secured after
    with secured(door) as under_way, Dialogue(door.ports[2], authority=authority_of(door)) as other:
        under_way.plain(NAME, PASSWORD)
        under_way.envelope(SENDER, MEG)
        renewed = issue(authority, door.folder)
        assert renewed != first
        with waiting:
            waiting.hello()
            waiting.starttls(authority_of(door))
            assert of(waiting) == renewed
        with Dialogue(door.ports[2], authority=authority_of(door)) as another:
            assert of(another) == renewed
        assert under_way.data(mail(SENDER, MEG, INVOICE)).code == 250
        assert (of(under_way), of(other)) == (first, first)
        assert other.hello().code == 250


def test_a_pair_renamed_one_after_the_other_is_used_when_it_is_one(
    door: Door, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    first = shown(door)
    apart = door.folder / "new"
    apart.mkdir()
    renewed = issue(authority, apart)
    (apart / "chain.pem").rename(door.folder / "chain.pem")
    assert [shown(door) for _ in range(3)] == [first] * 3
    told = [line for line in caplog.messages if "certificate" in line]
    assert len(told) == 1 and told[0].startswith("trouble id=certificate error=SSLError")
    (apart / "key.pem").rename(door.folder / "key.pem")
    assert shown(door) == renewed


def test_a_pair_that_is_gone_or_half_written_leaves_the_last_one_in_use(door: Door) -> None:
    first = shown(door)
    chain, key = door.folder / "chain.pem", door.folder / "key.pem"
    whole = chain.read_bytes()
    chain.write_bytes(whole[: len(whole) // 2])
    assert shown(door) == first
    chain.write_bytes(whole)
    key.rename(key.with_name("away.pem"))
    assert shown(door) == first


def test_a_first_pair_that_cannot_be_read_costs_tls_and_no_mail(
    open_door: Open, authority: trustme.CA, caplog: pytest.LogCaptureFixture
) -> None:
    door = open_door()
    smtp = replace(door.intake.config.smtp, certificate=str(door.folder / "no.pem"), key=str(door.folder / "no.key"))
    door.intake.adopt(replace(door.intake.config, smtp=smtp), door.intake.ruleset)
    for _ in range(3):
        with Dialogue(door.port) as dialogue:
            assert "STARTTLS" not in dialogue.hello().lines
            assert dialogue.say("STARTTLS").code == 502
            assert dialogue.envelope(SENDER, SALES)[1].code == 250
    (told,) = [line for line in caplog.messages if line.startswith("trouble")]
    assert "id=certificate error=FileNotFoundError" in told
    issue(authority, door.folder)
    (door.folder / "chain.pem").rename(smtp.certificate)
    (door.folder / "key.pem").rename(smtp.key)
    with Dialogue(door.port) as dialogue:
        assert "STARTTLS" in dialogue.hello().lines


def test_a_handshake_in_progress_keeps_no_stop_waiting(door: Door) -> None:
    with socket.create_connection(("127.0.0.1", door.ports[2]), 10) as silent, Dialogue(door.ports[1]) as half:
        half.hello()
        assert half.say("STARTTLS").code == 220
        door.stop()
        for connection in (silent, half.socket):
            with contextlib.suppress(ConnectionError):
                assert connection.recv(100) == b""
