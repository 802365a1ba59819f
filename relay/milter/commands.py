r"""What the MTA sends by the milter protocol, version 6: packets read from octets. No I/O.

Knows alone: how a packet is cut and read. It is a length of four octets, a letter and what belongs to it:

>>> packets = Packets()
>>> list(packets.feed(b"\0\0\0\x09Hmx.dupo"))
[]
>>> list(packets.feed(b"\0\0\0\0\x01T"))
[Helo(name=b'mx.dupo'), Data()]

Sources: libmilter's mfdef.h and engine.c, Postfix's milter8.c. Limits: a header field with a NUL in it ends there, as
in the MTA's own C.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAX_PACKET = 1 << 20  # sendmail's MDS_1M, the most that is ever agreed; body chunks are of 65,535 octets


class ProtocolError(Exception):
    """The other end does not speak this protocol: nothing can be understood any more, and the connection ends."""


@dataclass(frozen=True, slots=True)
class Negotiate:
    version: int
    actions: int
    steps: int


@dataclass(frozen=True, slots=True)
class Connect:
    """`address` is b"" where the MTA does not know it (`family` b"U"), a path for b"L", an IP address for b"4", b"6"."""

    hostname: bytes
    family: bytes
    port: int
    address: bytes


@dataclass(frozen=True, slots=True)
class Macros:
    """What the MTA knows, said before the packet with the letter `of`."""

    of: bytes
    values: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Helo:
    name: bytes


@dataclass(frozen=True, slots=True)
class Mail:
    """`path` as the client wrote it, `<…>`; the ESMTP parameters each apart."""

    path: bytes
    parameters: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Rcpt:
    path: bytes
    parameters: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Data:
    pass


@dataclass(frozen=True, slots=True)
class Header:
    """All that stood before and after the colon, leading space included; folded lines are joined by LF."""

    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class EndOfHeaders:
    pass


@dataclass(frozen=True, slots=True)
class Body:
    """A piece cut anywhere; lines end in CRLF."""

    chunk: bytes


@dataclass(frozen=True, slots=True)
class EndOfMessage:
    chunk: bytes = b""


@dataclass(frozen=True, slots=True)
class Abort:
    """This message is given up; the connection stays."""


@dataclass(frozen=True, slots=True)
class Quit:
    pass


@dataclass(frozen=True, slots=True)
class QuitNewConnection:
    """The client is gone; another one follows on this connection."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """An SMTP command that the MTA does not know."""

    line: bytes


Command = (
    Negotiate
    | Connect
    | Macros
    | Helo
    | Mail
    | Rcpt
    | Data
    | Header
    | EndOfHeaders
    | Body
    | EndOfMessage
    | Abort
    | Quit
    | QuitNewConnection
    | Unknown
)


def parse(letter: bytes, data: bytes) -> Command:
    r"""One packet of the MTA, without its length. ProtocolError where it is none.

    >>> parse(b"C", b"mail.dupont.example\0" b"4" b"\x04\0" b"192.0.2.7\0")
    Connect(hostname=b'mail.dupont.example', family=b'4', port=1024, address=b'192.0.2.7')
    >>> parse(b"R", b"<meg+x@welyb.fr>\0NOTIFY=NEVER\0")
    Rcpt(path=b'<meg+x@welyb.fr>', parameters=(b'NOTIFY=NEVER',))
    >>> parse(b"D", b"Mi\0" b"4F1\0{auth_authen}\0compta\0")
    Macros(of=b'M', values=((b'i', b'4F1'), (b'{auth_authen}', b'compta')))
    """
    read = _READ.get(letter)
    if read is None:
        raise ProtocolError(f"packet {letter!r}")
    return read(data)


def _strings(data: bytes) -> list[bytes]:
    """Texts that each end in NUL, one at least."""
    *texts, rest = data.split(b"\0")
    if rest or not texts:
        raise ProtocolError("text without its end")
    return texts


def _exactly(count: int, data: bytes) -> list[bytes]:
    texts = _strings(data)
    if len(texts) != count:
        raise ProtocolError(f"{len(texts)} texts for {count}")
    return texts


def _macros(data: bytes) -> Macros:
    texts = _strings(data[1:]) if data[1:] else []
    if not data or len(texts) % 2:
        raise ProtocolError("macro without a value")
    return Macros(data[:1], tuple(zip(texts[::2], texts[1::2], strict=True)))


def _connect(data: bytes) -> Connect:
    hostname, nul, rest = data.partition(b"\0")
    family, rest = rest[:1], rest[1:]
    if not nul or not family:
        raise ProtocolError("connection without a family")
    if family == b"U":
        return Connect(hostname, family, 0, b"")
    if len(rest) < 3:
        raise ProtocolError("connection without an address")
    (address,) = _exactly(1, rest[2:])
    return Connect(hostname, family, int.from_bytes(rest[:2]), address)


def _mail(data: bytes) -> Mail:
    path, *parameters = _strings(data)
    return Mail(path, tuple(parameters))


def _rcpt(data: bytes) -> Rcpt:
    path, *parameters = _strings(data)
    return Rcpt(path, tuple(parameters))


def _negotiate(data: bytes) -> Negotiate:
    if len(data) < 12:
        raise ProtocolError("negotiation cut short")
    return Negotiate(*struct.unpack(">III", data[:12]))


def _plain(kind: Callable[[], Command]) -> Callable[[bytes], Command]:
    def read(data: bytes) -> Command:
        if data:
            raise ProtocolError(f"{len(data)} octets where none belong")
        return kind()

    return read


_READ: dict[bytes, Callable[[bytes], Command]] = {
    b"A": _plain(Abort),
    b"B": Body,
    b"C": _connect,
    b"D": _macros,
    b"E": EndOfMessage,
    b"H": lambda data: Helo(*_exactly(1, data)),
    b"K": _plain(QuitNewConnection),
    b"L": lambda data: Header(*_exactly(2, data)),
    b"M": _mail,
    b"N": _plain(EndOfHeaders),
    b"O": _negotiate,
    b"Q": _plain(Quit),
    b"R": _rcpt,
    b"T": _plain(Data),
    b"U": lambda data: Unknown(*_exactly(1, data)),
}


class Packets:
    """Cuts what comes in pieces of any size into packets."""

    def __init__(self) -> None:
        self._waiting = b""

    def feed(self, data: bytes) -> Iterator[Command]:
        """Every packet that `data` completes. Raises ProtocolError, after the packets before it."""
        waiting = self._waiting + data
        at = 0
        try:
            while len(waiting) - at >= 5:
                size = int.from_bytes(waiting[at : at + 4])
                if not 0 < size <= MAX_PACKET:
                    raise ProtocolError(f"packet of {size} octets")
                end = at + 4 + size
                if len(waiting) < end:
                    break
                letter, body = waiting[at + 4 : at + 5], waiting[at + 5 : end]
                at = end
                yield parse(letter, body)
        finally:
            self._waiting = waiting[at:]
