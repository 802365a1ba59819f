"""Connections of a proxy, written by hand: who the peer is then, and what becomes of a header that is none."""

import random
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from relay.smtp import arrival
from relay.smtp import listener as listening
from tests.support.clients import Dialogue, Reply, mail
from tests.support.documents import pdf
from tests.support.door import Door, Open, doors, issue

SENDER, MEG, SALES = "compta@cabinet.example", "meg+dupont@welyb.fr", "ventes+dupont@welyb.fr"
INVOICE = ("facture.pdf", "application/pdf", pdf())
PROXY = "127.0.0.9"  # the network of the proxy; others on loopback are none
TRUSTED, STRANGER = "192.0.2.7", "198.51.100.7"


def version_1(ip: str) -> bytes:
    kind = "TCP6 {} ::1" if ":" in ip else "TCP4 {} 127.0.0.1"
    return f"PROXY {kind.format(ip)} 4711 25\r\n".encode()


def version_2(ip: str, more: bytes = b"\x04\0\x03abc") -> bytes:
    """With a value behind the addresses, as proxies add them."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    packed = socket.inet_pton(family, ip)
    place = packed + packed + b"\x12\x67\x00\x19" + more
    kind = b"\x21" if ":" in ip else b"\x11"
    return b"\r\n\r\n\0\r\nQUIT\n\x21" + kind + len(place).to_bytes(2, "big") + place


LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"
SPOKEN = {"v1": version_1, "v2": version_2}


@pytest.fixture
def open_door(tmp_path: Path) -> Iterator[Open]:
    issue(trustme.CA(), tmp_path)
    with doors(tmp_path) as open_:
        yield open_


@pytest.fixture
def door(open_door: Open) -> Door:
    return open_door(
        f'proxy = ["{PROXY}/32"]',
        f'trusted_networks = ["{TRUSTED}/32", "2001:db8::/32", "127.0.0.0/8"]',
        'certificate = "chain.pem"',
        'key = "key.pem"',
        'submission = ["127.0.0.1:0 tls"]',
    )


def through(door: Door, header: bytes) -> Dialogue:
    dialogue = Dialogue(door.port, source=PROXY, first=header)
    assert dialogue.hello().code == 250
    return dialogue


def silent(door: Door, said: bytes, source: str = PROXY, port: int = 0) -> bool:
    """Is the connection closed without a word?"""
    with socket.create_connection(("127.0.0.1", port or door.port), 10, (source, 0)) as connection:
        connection.sendall(said)
        try:
            return connection.recv(100) == b""
        except ConnectionError:
            return True


@pytest.mark.parametrize("version", SPOKEN)
@pytest.mark.parametrize("ip", [TRUSTED, "2001:db8::7"])
def test_the_peer_is_whom_the_proxy_names(door: Door, version: str, ip: str) -> None:
    with through(door, SPOKEN[version](ip)) as dialogue:
        assert [reply.code for reply in dialogue.envelope(SENDER, MEG)] == [250, 250]
        assert dialogue.data(mail(SENDER, MEG, INVOICE)).code == 250
    assert door.rows("SELECT peer, trusted FROM message") == [(ip, 1)]


@pytest.mark.parametrize("version", SPOKEN)
def test_an_ipv4_client_seen_through_a_dual_stack_proxy(door: Door, version: str) -> None:
    with through(door, SPOKEN[version](f"::ffff:{TRUSTED}")) as dialogue:
        assert [reply.code for reply in dialogue.envelope(SENDER, MEG)] == [250, 250]
        assert dialogue.data(mail(SENDER, MEG, INVOICE)).code == 250
    assert door.rows("SELECT peer, trusted FROM message") == [(TRUSTED, 1)]


@pytest.mark.parametrize("header", [version_1(STRANGER), version_2(STRANGER), LOCAL, b"PROXY UNKNOWN\r\n"])
def test_nobody_is_trusted_for_the_proxy_he_came_by(door: Door, header: bytes) -> None:
    with through(door, header) as dialogue:
        assert [reply.code for reply in dialogue.envelope(SENDER, MEG, SALES)] == [250, 550, 250]
        assert dialogue.data(mail(SENDER, SALES, INVOICE)).code == 250
    peer = STRANGER if STRANGER.encode() in header or socket.inet_aton(STRANGER) in header else PROXY
    assert door.rows("SELECT peer, trusted FROM message") == [(peer, 0)]


def test_however_it_is_cut(door: Door) -> None:
    dice = random.Random(7)
    for number in range(12):
        said = SPOKEN["v1" if number % 2 else "v2"](TRUSTED) + b"EHLO x\r\nNOOP\r\n"
        with socket.create_connection(("127.0.0.1", door.port), 10, (PROXY, 0)) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while said:
                size = dice.randint(1, len(said))
                connection.sendall(said[:size])
                said = said[size:]
            heard = b""
            while heard.count(b"250 ") < 2:
                heard += connection.recv(1000)
            assert heard.startswith(b"220 ") and heard.count(b"220 ") == 1


@pytest.mark.parametrize(
    "said",
    [
        b"EHLO x\r\n",
        b"\x16\x03\x01\x02\0",
        b"PROXY TCP4 1.2.3.4\r\n",
        b"PROXY " * 40,
        version_1(TRUSTED).lower(),
        version_2(TRUSTED)[:12] + b"\x31" + version_2(TRUSTED)[13:],
    ],
)
def test_who_should_say_it_and_does_not_is_cut_off_without_a_word(
    door: Door, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert silent(door, said)
    assert f"proxy-refused peer={PROXY} why=malformed" in caplog.messages


def test_a_header_is_not_waited_for_long(
    door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(arrival, "HEADER_TIMEOUT", 0.1)
    assert silent(door, b"") and silent(door, b"PROXY TCP4 1") and silent(door, b"", port=door.ports[1])
    assert caplog.messages.count(f"proxy-refused peer={PROXY} why=no header") == 3


def test_from_others_it_is_not_understood(door: Door) -> None:
    with Dialogue(door.port, first=version_1(TRUSTED), source="127.0.0.8") as stranger:
        assert stranger.greeting.code == 220
        assert stranger.reply().code == 500
        stranger.hello()
        stranger.envelope(SENDER, MEG)
        assert stranger.data(mail(SENDER, MEG, INVOICE)).code == 250
    assert door.rows("SELECT peer FROM message") == [("127.0.0.8",)]
    with Dialogue(door.port, first=version_2(TRUSTED), source="127.0.0.8") as stranger:
        assert stranger.reply().code == 500


def test_limits_are_those_of_the_client(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "MAX_PER_PEER", 1)
    with through(door, version_1(STRANGER)), through(door, version_2("203.0.113.1")):
        for version in SPOKEN.values():
            with Dialogue(door.port, source=PROXY, first=version(STRANGER)) as again:
                assert again.greeting == Reply(421, ("4.7.0 Trop de connexions (too many connections)",))
    through(door, version_1(TRUSTED)).close()


@pytest.mark.parametrize("version", SPOKEN)
def test_tls_comes_after_the_header(door: Door, version: str) -> None:
    authority = door.folder / "authority.pem"
    header = SPOKEN[version](STRANGER)
    with Dialogue(door.ports[1], source=PROXY, first=header, authority=authority) as dialogue:
        assert "AUTH PLAIN LOGIN" in dialogue.hello().lines
    with Dialogue(door.port, source=PROXY, first=header) as dialogue:
        dialogue.hello()
        assert dialogue.starttls(authority).code == 220
        dialogue.hello()
        dialogue.envelope(SENDER, SALES)
        assert dialogue.data(mail(SENDER, SALES, INVOICE)).code == 250
    assert door.rows("SELECT peer, protocol FROM message") == [(STRANGER, "ESMTPS")]


def test_the_hello_of_tls_in_one_piece_with_the_header(door: Door) -> None:
    context = ssl.create_default_context(cafile=str(door.folder / "authority.pem"))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with socket.create_connection(("127.0.0.1", door.ports[1]), 10, (PROXY, 0)) as connection:
        first = version_2(STRANGER)
        while True:
            try:
                client.do_handshake()
                break
            except ssl.SSLWantReadError:
                connection.sendall(first + outgoing.read())
                first = b""
                incoming.write(connection.recv(65536))
        connection.sendall(outgoing.read())
        while True:
            try:
                assert client.read(4) == b"220 "
                break
            except ssl.SSLWantReadError:
                incoming.write(connection.recv(65536))


def test_a_stop_waits_for_no_header(door: Door) -> None:
    with socket.create_connection(("127.0.0.1", door.port), 10, (PROXY, 0)) as connection:
        with Dialogue(door.port) as other:  # after it: both are known now
            door.stop()
            assert other.reply().code == 421
        try:
            assert connection.recv(100) == b""
        except ConnectionError:
            pass
