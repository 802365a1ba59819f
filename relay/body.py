"""One leaf while it passes: its digest, its two ends, what its HTML refers to; and the record that stays of it.

Knows alone: what is kept of a part whose bytes are not (the first 64 KiB for its type, the last for a ZIP's directory),
how a message is told from another by hashing each of its bodies once, decoded, and how a part is read again.
Limits: HTML is searched in its first MiB; a uuencoded file inside a text is noticed in its first 64 KiB.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from html import unescape
from itertools import islice
from typing import Protocol
from urllib.parse import unquote

from relay.encodings import Decoder, Encoding
from rules.attachment import Leaf

HEAD = 64 * 1024
TAIL = 65_557 + 1024  # the longest end of central directory (22 bytes and a comment of 65,535), and what is before it
HTML = 1024 * 1024
MAX_CIDS = 1_000

_CID = re.compile(rb"cid:([^\s\"'<>)\\]{1,250})")
_NO_LINE_END = bytes(sorted(set(range(256)) - set(b"\r\n")))
_UUENCODED = re.compile(rb"^begin [0-7]{3,4} \S", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Span:
    """Where encoded bytes lie: in the message, or in the decoded content of the span before."""

    offset: int
    length: int
    encoding: Encoding


@dataclass(frozen=True, slots=True)
class Part:
    leaf: Leaf
    spans: tuple[Span, ...]
    size: int  # decoded, as are sha256, head and tail
    sha256: str  # hexadecimal
    head: bytes  # the first 64 KiB
    tail: bytes  # the last TAIL bytes; may overlap head


class Reader(Protocol):
    def feed(self, chunk: bytes) -> None: ...


class Body:
    """A leaf that is open. With `inner` its content goes there: it is a message of its own."""

    def __init__(self, leaf: Leaf, encoding: Encoding, offset: int, *, inner: Reader | None = None) -> None:
        self.leaf = leaf
        self.encoding = encoding
        self.offset = offset
        self.decoder = Decoder(encoding)
        self._inner = inner
        self._size = 0
        self._digest = sha256()
        self._head: list[bytes] = []
        self._tail: deque[bytes] = deque()
        self._tail_size = 0
        self._html = bytearray() if leaf.type == "text/html" else None

    def feed(self, data: bytes) -> None:
        self.add(self.decoder.feed(data))

    def add(self, content: bytes) -> None:
        """The next decoded bytes."""
        if not content:
            return
        if self._inner is not None:
            self._inner.feed(content)
            return
        self._digest.update(content)
        if self._size < HEAD:
            self._head.append(content[: HEAD - self._size])
        if self._html is not None and self._size < HTML:
            self._html += content[: HTML - self._size]
        self._size += len(content)
        end = content[-TAIL:]
        self._tail.append(end)
        self._tail_size += len(end)
        while self._tail_size - len(self._tail[0]) >= TAIL:
            self._tail_size -= len(self._tail.popleft())

    def close(self, length: int) -> Part:
        """The raw body had `length` bytes."""
        self.add(self.decoder.close())
        head = b"".join(self._head)
        defects = self.decoder.defects.union(self.leaf.defects)
        if self.leaf.type.startswith("text/") and b"begin " in head and _UUENCODED.search(head):
            defects |= {"uuencoded"}
        return Part(
            leaf=replace(self.leaf, defects=tuple(sorted(defects))) if defects else self.leaf,
            spans=(Span(self.offset, length, self.encoding),),
            size=self._size,
            sha256=self._digest.hexdigest(),
            head=head,
            tail=head if self._size <= HEAD else b"".join(self._tail)[-TAIL:],
        )

    @property
    def html_size(self) -> int:
        """How much of it `cids` searches."""
        return len(self._html or b"")

    def cids(self) -> set[str]:
        """The Content-IDs its HTML refers to (RFC 2392)."""
        if not self._html:
            return set()
        html = bytes(self._html)
        # Searched in lower case for speed: an ignore-case search has no literal prefix.
        found = {html[slice(*match.span(1))] for match in islice(_CID.finditer(html.lower()), MAX_CIDS)}
        return {unquote(unescape(cid.decode("latin-1"))) for cid in found}


class Ledger:
    """What holds for the bytes of a message as they came, and the digest that tells it from another message.

    Bytes outside leaf bodies are hashed as they are; a body stands in by its place, raw length and decoded SHA-256.
    """

    def __init__(self) -> None:
        self.eight_bit = False
        self.bare_cr = False
        self.bare_lf = False
        self._structure = sha256()
        self._bodies: list[str] = []
        self._origin = 0

    def examine(self, data: bytes) -> None:
        """`data` neither begins nor ends inside a CRLF."""
        if not self.eight_bit:
            self.eight_bit = not data.isascii()
        if not (self.bare_cr and self.bare_lf):
            pairs = data.count(b"\r\n")
            if len(data.translate(None, _NO_LINE_END)) == 2 * pairs:  # the usual case: none that is no pair
                return
            self.bare_cr = self.bare_cr or data.count(b"\r") != pairs
            self.bare_lf = self.bare_lf or data.count(b"\n") != pairs

    def structure(self, data: bytes) -> None:
        if data:
            self.examine(data)
            self._structure.update(data)

    def skip(self, data: bytes) -> None:
        """The fields at the top that change on the way: they do not tell messages apart."""
        self.examine(data)
        self._origin = len(data)

    def body(self, offset: int, length: int, digest: str) -> None:
        self._bodies.append(f"{offset - self._origin} {length} {digest}\n")

    def content_hash(self) -> str:
        return sha256(self._structure.digest() + "".join(self._bodies).encode()).hexdigest()


# --- reading again ---------------------------------------------------------------------------------------------------


def decoded(read: Callable[[int, int], bytes], spans: tuple[Span, ...], chunk: int = 1 << 18) -> Iterator[bytes]:
    """The decoded bytes of a part; `read(offset, length)` gives bytes of the message, as pread does of a file."""
    first, *others = spans
    stream = _decoded(_read(read, first, chunk), first)
    for span in others:
        stream = _decoded(_window(stream, span), span)
    return stream


def _read(read: Callable[[int, int], bytes], span: Span, chunk: int) -> Iterator[bytes]:
    position, end = span.offset, span.offset + span.length
    while position < end:
        data = read(position, min(chunk, end - position))
        if not data:
            return
        position += len(data)
        yield data


def _window(stream: Iterator[bytes], span: Span) -> Iterator[bytes]:
    skip, wanted = span.offset, span.length
    for data in stream:
        piece = data[skip : skip + wanted]
        skip = max(0, skip - len(data))
        wanted -= len(piece)
        if piece:
            yield piece
        if not wanted:
            return


def _decoded(stream: Iterator[bytes], span: Span) -> Iterator[bytes]:
    decoder = Decoder(span.encoding)
    for data in stream:
        content = decoder.feed(data)
        if content:
            yield content
    rest = decoder.close()
    if rest:
        yield rest
