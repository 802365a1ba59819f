"""The milter protocol in octets: every packet of the MTA, every answer, and which may answer which."""

import doctest
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.milter import answers, commands, mail
from relay.milter.answers import (
    MAY_ANSWER,
    Accept,
    AddHeader,
    AddRecipient,
    Agreed,
    Answer,
    ChangeSender,
    Continue,
    DeleteRecipient,
    Discard,
    Progress,
    ReplyCode,
    Skip,
    Steps,
    agree,
    answered,
    render,
)
from relay.milter.commands import (
    MAX_PACKET,
    Abort,
    Body,
    Command,
    Connect,
    Data,
    EndOfHeaders,
    EndOfMessage,
    Header,
    Helo,
    Macros,
    Mail,
    Negotiate,
    Packets,
    ProtocolError,
    Quit,
    QuitNewConnection,
    Rcpt,
    Unknown,
)


def packet(content: bytes) -> bytes:
    """With its length before it; the doctests have both spelled out."""
    return len(content).to_bytes(4) + content


WIRE: list[tuple[bytes, Command]] = [
    (packet(wire), command)
    for wire, command in (
        (b"O\0\0\0\x06\0\0\x01\xff\0\x1f\xff\xff", Negotiate(6, 0x1FF, 0x1FFFFF)),
        (b"DMi\x004F1\0{x}\0\0", Macros(b"M", ((b"i", b"4F1"), (b"{x}", b"")))),
        (b"DT", Macros(b"T", ())),
        (b"Cmx.a\x004\0\x19192.0.2.7\0", Connect(b"mx.a", b"4", 25, b"192.0.2.7")),
        (b"Cmx.a\x006\xea\x60IPv6:2001:db8::1\0", Connect(b"mx.a", b"6", 60000, b"IPv6:2001:db8::1")),
        (b"Clocal\0L\0\0/run/x\0", Connect(b"local", b"L", 0, b"/run/x")),
        (b"Cunknown\0U", Connect(b"unknown", b"U", 0, b"")),
        (b"Hmx.a\0", Helo(b"mx.a")),
        (b"M<a@b.example>\0SIZE=9\0", Mail(b"<a@b.example>", (b"SIZE=9",))),
        (b"M<>\0", Mail(b"<>", ())),
        (b"R<x@y.fr>\0", Rcpt(b"<x@y.fr>", ())),
        (b"T", Data()),
        (b"LSubject\0 \xe9t\xe9\n\tb\0", Header(b"Subject", b" \xe9t\xe9\n\tb")),
        (b"N", EndOfHeaders()),
        (b"B\0\r\n.", Body(b"\0\r\n.")),
        (b"B", Body(b"")),
        (b"E", EndOfMessage()),
        (b"Eend", EndOfMessage(b"end")),
        (b"A", Abort()),
        (b"Q", Quit()),
        (b"K", QuitNewConnection()),
        (b"UXYZZ\0", Unknown(b"XYZZ")),
    )
]

BROKEN = [
    pytest.param(b"\0\0\0\0", id="no-letter"),
    pytest.param((MAX_PACKET + 1).to_bytes(4) + b"B", id="too-long"),
    pytest.param(b"GET / HTTP/1.0\r\n", id="a-browser"),
    pytest.param(b"EHLO mx.dupont.example\r\n", id="a-mail-client"),
    pytest.param(packet(b"?"), id="unknown-letter"),
    pytest.param(packet(b"Tx"), id="something-in-nothing"),
    pytest.param(packet(b"O\0\0\0\x06"), id="negotiation-cut-short"),
    pytest.param(packet(b"R<x@"), id="text-without-end"),
    pytest.param(packet(b"M"), id="mail-without-path"),
    pytest.param(packet(b"La\0b"), id="header-without-end"),
    pytest.param(packet(b"DMa\0b"), id="macro-without-end"),
    pytest.param(packet(b"DMa\0"), id="macro-without-value"),
    pytest.param(packet(b"D"), id="macro-of-nothing"),
    pytest.param(packet(b"Cmx.a\0"), id="no-family"),
    pytest.param(packet(b"Cmx.a\0004\0"), id="no-address"),
]

ANSWERS: list[tuple[Answer, bytes]] = [
    (Continue(), b"c"),
    (Accept(), b"a"),
    (Discard(), b"d"),
    (Skip(), b"s"),
    (Progress(), b"p"),
    (ReplyCode(b"554 5.6.1 100%.zip"), b"y554 5.6.1 100%%.zip\0"),
    (AddRecipient(b"<a@b.fr>"), b"+<a@b.fr>\0"),
    (DeleteRecipient(b"<a@b.fr>"), b"-<a@b.fr>\0"),
    (ChangeSender(b"<>"), b"e<>\0"),
    (AddHeader(b"X", b"y"), b"hX\0y\0"),
    (
        agree(Negotiate(6, 0x1FF, 0x1FFFFF)),
        b"O\0\0\0\x06\0\0\x01\x4d\0\x1c\x75\x80"
        b"\0\0\0\x01{tls_version}\0\0\0\0\x02{auth_authen}\0\0\0\0\x05i\0\0\0\0\x06i\0",
    ),
]


@pytest.mark.parametrize("module", [commands, answers, mail], ids=lambda module: module.__name__)
def test_the_examples_of_the_docstrings(module: ModuleType) -> None:
    done = doctest.testmod(module)
    assert done.attempted and not done.failed


@pytest.mark.parametrize(("wire", "command"), WIRE, ids=[type(command).__name__ for _, command in WIRE])
def test_what_the_mta_sends(wire: bytes, command: Command) -> None:
    assert list(Packets().feed(wire)) == [command]


def test_every_packet_is_in_the_table_of_answers_and_in_these_tests() -> None:
    assert {type(command) for _, command in WIRE} == set(MAY_ANSWER)
    assert {letter for letter, *_ in (wire[4:5] for wire, _ in WIRE)} == {ord(letter) for letter in commands._READ}


@pytest.mark.parametrize("wire", BROKEN)
def test_what_is_no_packet(wire: bytes) -> None:
    packets = Packets()
    with pytest.raises(ProtocolError):
        list(packets.feed(wire + b"\0" * 4))


@given(order=st.lists(st.sampled_from(WIRE), max_size=12), cuts=st.lists(st.integers(1, 40)), begun=st.integers(0, 4))
def test_pieces_of_any_size(order: list[tuple[bytes, Command]], cuts: list[int], begun: int) -> None:
    """However the octets come, the packets are the same; what is not whole yet is waited for."""
    octets = b"".join(wire for wire, _ in order) + b"\0\0\0\x09"[:begun]
    packets, found, at = Packets(), [], 0
    for cut in cuts:
        found += packets.feed(octets[at : at + cut])
        at += cut
    found += packets.feed(octets[at:])
    assert found == [command for _, command in order]


@given(octets=st.binary(max_size=200), at=st.integers(0, 200))
def test_octets_of_any_kind(octets: bytes, at: int) -> None:
    """They are packets, or they are named as none; nothing else happens."""
    packets = Packets()
    try:
        list(packets.feed(octets[:at]))
        list(packets.feed(octets[at:]))
    except ProtocolError:
        pass


@pytest.mark.parametrize(("answer", "wire"), ANSWERS, ids=[type(answer).__name__ for answer, _ in ANSWERS])
def test_what_we_answer(answer: Answer, wire: bytes) -> None:
    assert render(answer) == packet(wire)


@pytest.mark.parametrize(
    ("version", "actions", "steps"),
    [
        pytest.param(2, 0x3F, 0x7F, id="version-2"),
        pytest.param(6, 0x1FF & ~0x08, 0x1FFFFF, id="recipients-stay"),
        pytest.param(6, 0x1FF, 0x0FFFFF, id="no-leading-space"),
    ],
)
def test_an_mta_that_offers_too_little(version: int, actions: int, steps: int) -> None:
    with pytest.raises(ProtocolError):
        agree(Negotiate(version, actions, steps))


def test_every_answer_is_in_these_tests() -> None:
    assert {type(answer) for answer, _ in ANSWERS} == set(answers._LETTERS)


def test_nothing_is_taken_that_was_not_offered() -> None:
    assert agree(Negotiate(6, 0x4D, 0x100000)) == Agreed(answers.NEEDED, Steps.LEADING_SPACE)
    all_of_it = agree(Negotiate(7, 0xFFFFFFFF, 0xFFFFFFFF))
    assert not all_of_it.steps & ~0x1FFFFF


QUIET = [Connect, Helo, Mail, Header, EndOfHeaders, Body]


@pytest.mark.parametrize(("wire", "command"), WIRE, ids=[type(command).__name__ for _, command in WIRE])
def test_a_quiet_packet_is_answered_by_nothing(wire: bytes, command: Command) -> None:
    """As agreed; by nature; and otherwise the MTA waits."""
    agreed = agree(Negotiate(6, 0x1FF, 0x1FFFFF)).steps
    never = not MAY_ANSWER[type(command)]
    assert (type(command) in answered(agreed)) == (not never and type(command) not in QUIET)
    assert (type(command) in answered(Steps.LEADING_SPACE)) == (not never)
