r"""What we answer by the milter protocol, version 6: which answer a packet may have, and how it is written. No I/O.

Knows alone: what is agreed at the beginning of a connection, and that a packet agreed to be quiet is answered by
nothing. Limits: versions before 6 (Postfix 2.5, sendmail 8.13) are refused: without LEADING_SPACE the first space of
every header field is lost, and with it the author's signature.

>>> render(ReplyCode(b"550 5.1.1 Inconnue (unknown)"))
b'\x00\x00\x00\x1ey550 5.1.1 Inconnue (unknown)\x00'
"""

import struct
from dataclasses import dataclass, fields
from enum import IntFlag
from typing import assert_never

from relay.milter.commands import (
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
    ProtocolError,
    Quit,
    QuitNewConnection,
    Rcpt,
    Unknown,
)

VERSION = 6


class Actions(IntFlag):
    """What a milter may do to a message (SMFIF_*): what we ever ask for."""

    ADD_HEADERS = 0x01
    ADD_RECIPIENTS = 0x04
    DELETE_RECIPIENTS = 0x08
    CHANGE_SENDER = 0x40
    SYMBOLS = 0x100


class Steps(IntFlag):
    """Packets that are not to be sent (NO_*), that are not to be answered (QUIET_*), and habits (SMFIP_*)."""

    NO_UNKNOWN = 0x100
    SKIP = 0x400
    QUIET_HEADER = 0x80
    QUIET_CONNECT = 0x1000
    QUIET_HELO = 0x2000
    QUIET_MAIL = 0x4000
    QUIET_END_OF_HEADERS = 0x40000
    QUIET_BODY = 0x80000
    LEADING_SPACE = 0x100000


@dataclass(frozen=True, slots=True)
class Agreed:
    """What of the MTA's offer we take; `symbols` are the macros wanted at a stage (SMFIM_*)."""

    actions: Actions
    steps: Steps
    symbols: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Continue:
    pass


@dataclass(frozen=True, slots=True)
class Accept:
    """We have nothing to say of this message, whatever follows."""


@dataclass(frozen=True, slots=True)
class Discard:
    """The MTA answers 250 and keeps nothing."""


@dataclass(frozen=True, slots=True)
class Skip:
    """No more body, please."""


@dataclass(frozen=True, slots=True)
class Progress:
    """We are at work: do not lose patience."""


@dataclass(frozen=True, slots=True)
class ReplyCode:
    """An SMTP reply for the client: `550 5.1.1 …`, lines parted by CRLF, none at the end."""

    text: bytes


@dataclass(frozen=True, slots=True)
class AddRecipient:
    path: bytes


@dataclass(frozen=True, slots=True)
class DeleteRecipient:
    """`path` exactly as the MTA gave it."""

    path: bytes


@dataclass(frozen=True, slots=True)
class ChangeSender:
    path: bytes


@dataclass(frozen=True, slots=True)
class AddHeader:
    name: bytes
    value: bytes


Edit = AddRecipient | DeleteRecipient | ChangeSender | AddHeader
Answer = Agreed | Continue | Accept | Discard | Skip | Progress | ReplyCode | Edit

_VERDICT = frozenset({Continue, Accept, Discard, ReplyCode})

# What may answer what. A packet that is quiet, by nature or as agreed, is answered by nothing at all: one answer too
# many is read as the answer to the next packet, and so are all that follow.
MAY_ANSWER: dict[type[Command], frozenset[type[Answer]]] = {
    Negotiate: frozenset({Agreed}),
    Connect: _VERDICT,
    Macros: frozenset(),
    Helo: _VERDICT,
    Mail: _VERDICT,
    Rcpt: _VERDICT,
    Data: _VERDICT,
    Header: _VERDICT,
    EndOfHeaders: _VERDICT,
    Body: _VERDICT | {Skip, Progress},
    EndOfMessage: _VERDICT | {Progress, AddRecipient, DeleteRecipient, ChangeSender, AddHeader},
    Abort: frozenset(),
    Quit: frozenset(),
    QuitNewConnection: frozenset(),
    Unknown: _VERDICT,
}

_QUIET: dict[type[Command], Steps] = {
    Connect: Steps.QUIET_CONNECT,
    Helo: Steps.QUIET_HELO,
    Mail: Steps.QUIET_MAIL,
    Header: Steps.QUIET_HEADER,
    EndOfHeaders: Steps.QUIET_END_OF_HEADERS,
    Body: Steps.QUIET_BODY,
}


def answered(agreed: Steps) -> frozenset[type[Command]]:
    """The packets that the MTA waits for a word on.

    >>> Body in answered(Steps.QUIET_BODY), Data in answered(Steps.QUIET_BODY)
    (False, True)
    """
    return frozenset(kind for kind, may in MAY_ANSWER.items() if may and not agreed & _QUIET.get(kind, Steps(0)))


NEEDED = Actions.DELETE_RECIPIENTS | Actions.ADD_RECIPIENTS | Actions.CHANGE_SENDER | Actions.ADD_HEADERS
_WELCOME = (
    Steps.NO_UNKNOWN
    | Steps.SKIP
    | Steps.QUIET_CONNECT
    | Steps.QUIET_HELO
    | Steps.QUIET_MAIL
    | Steps.QUIET_HEADER
    | Steps.QUIET_END_OF_HEADERS
    | Steps.QUIET_BODY
)
# SMFIM_HELO, SMFIM_ENVFROM, SMFIM_EOM, SMFIM_EOH. For the last we have no use, but sendmail (8.14 to 8.17) looks whether
# it was asked for when it decides on the macros of EOM.
_SYMBOLS = ((1, b"{tls_version}"), (2, b"{auth_authen}"), (5, b"i"), (6, b"i"))


def agree(offer: Negotiate) -> Agreed:
    """The answer to what the MTA offers; ProtocolError where it offers too little to work with.

    >>> agree(Negotiate(6, 0x1FF, 0x1FFFFF)).steps == _WELCOME | Steps.LEADING_SPACE
    True
    """
    if offer.version < VERSION:
        raise ProtocolError(f"version {offer.version}, needs {VERSION}: Postfix 2.6 or sendmail 8.14, or later")
    if offer.actions & NEEDED != NEEDED or not offer.steps & Steps.LEADING_SPACE:
        raise ProtocolError(f"actions {offer.actions:#x} and steps {offer.steps:#x} are too few")
    steps = Steps.LEADING_SPACE | (_WELCOME & offer.steps)
    if offer.actions & Actions.SYMBOLS:
        return Agreed(NEEDED | Actions.SYMBOLS, steps, _SYMBOLS)
    return Agreed(NEEDED, steps)


_LETTERS: dict[type[Answer], bytes] = {
    Agreed: b"O",
    Continue: b"c",
    Accept: b"a",
    Discard: b"d",
    Skip: b"s",
    Progress: b"p",
    ReplyCode: b"y",
    AddRecipient: b"+",
    DeleteRecipient: b"-",
    ChangeSender: b"e",
    AddHeader: b"h",
}


def render(answer: Answer) -> bytes:
    r"""The answer as it goes on the wire.

    >>> render(Continue()), render(DeleteRecipient(b"<a@welyb.fr>"))
    (b'\x00\x00\x00\x01c', b'\x00\x00\x00\x0e-<a@welyb.fr>\x00')
    """
    data = _LETTERS[type(answer)] + _content(answer)
    return len(data).to_bytes(4) + data


def _content(answer: Answer) -> bytes:
    match answer:
        case Agreed(actions, steps, symbols):
            wanted = (stage.to_bytes(4) + names + b"\0" for stage, names in symbols)
            return struct.pack(">III", VERSION, actions, steps) + b"".join(wanted)
        case ReplyCode(text):
            return text.replace(b"%", b"%%") + b"\0"  # both MTAs read it as a format
        case AddRecipient() | DeleteRecipient() | ChangeSender() | AddHeader():
            return b"".join(getattr(answer, field.name) + b"\0" for field in fields(answer))
        case Continue() | Accept() | Discard() | Skip() | Progress():
            return b""
        case _:
            assert_never(answer)
