"""Content-Transfer-Encoding: its names as mailers write them, and incremental decoding.

Knows alone: what a generous reader makes of damaged base64, quoted-printable and uuencode, and how whole chunks of
regular base64 lines are proven and decoded in one pass. Results do not depend on how the input is cut.
Limits: a uuencode line has at most 256 bytes; after 10,000 bad or very short ones, and after 100,000 paddings of
base64, the rest is not looked at, and the content is "truncated". 1,000 characters name an encoding.
"""

import re
from binascii import Error, a2b_base64, a2b_qp, a2b_uu
from typing import Literal, Protocol

from pybase64 import b64decode

from rules.names import token

Encoding = Literal["identity", "base64", "quoted-printable", "uuencode"]

_NAMES: dict[str, Encoding] = {
    "": "identity",
    "7bit": "identity",
    "8bit": "identity",
    "binary": "identity",
    "base64": "base64",
    "quoted-printable": "quoted-printable",
    "quotedprintable": "quoted-printable",
    "xuuencode": "uuencode",
    "uuencode": "uuencode",
    "xuue": "uuencode",
    "uue": "uuencode",
}
_COMMENT = re.compile(r"\((?:[^()\\]|\\.)*\)", re.DOTALL)
_PUNCTUATION = re.compile(r"[^a-z0-9]+")
MAX_NAME = 1000


def encoding_of(value: bytes) -> Encoding | None:
    """The encoding a Content-Transfer-Encoding names, whatever its case, spaces and comments; None: unknown."""
    plain = _NAMES.get(value.strip().decode("latin-1").lower())
    if plain:
        return plain
    words = _COMMENT.sub("", value[:MAX_NAME].decode("latin-1").lower())
    found = _NAMES.get(_PUNCTUATION.sub("", words))
    return found or _NAMES.get(_PUNCTUATION.sub("", token(value)))


class _Codec(Protocol):
    defects: set[str]

    def feed(self, data: bytes) -> bytes: ...
    def close(self) -> bytes: ...


class Decoder:
    """Encoded bytes in, content out: what can be known so far from `feed`, the rest from `close`."""

    __slots__ = ("_codec", "close", "feed")

    def __init__(self, encoding: Encoding) -> None:
        self._codec: _Codec = _CODECS[encoding]()
        self.feed = self._codec.feed
        self.close = self._codec.close

    @property
    def defects(self) -> frozenset[str]:
        return frozenset(self._codec.defects)

    def regular(self, buffer: bytes, start: int, end: int) -> tuple[bytes, int]:
        """The content of the regular base64 lines at `start`, and where they end; see `_Base64.regular`."""
        return self._codec.regular(buffer, start, end) if isinstance(self._codec, _Base64) else (b"", start)


class _Identity:
    def __init__(self) -> None:
        self.defects: set[str] = set()

    def feed(self, data: bytes) -> bytes:
        return data

    def close(self) -> bytes:
        return b""


_SPACE = b" \t\r\n"
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_JUNK = bytes(sorted(set(range(256)) - set(_ALPHABET + b"=")))
FEWEST_LINES = 8
LONGEST_LINE = 1000
MAX_PADDINGS = 100_000  # each costs as much as a kilobyte without


class _Base64:
    def __init__(self) -> None:
        self.defects: set[str] = set()
        self._rest = b""  # less than a quantum of four
        self._padded = False  # there was a "="
        self._paddings = 0
        self._over = False  # there were too many

    def regular(self, buffer: bytes, start: int, end: int) -> tuple[bytes, int]:
        """Decode lines of equal length from `start` (a line's start) on, without the last line's CRLF.

        What it returns is proven to hold the alphabet and CRLF at the same distance and nothing else, so no delimiter,
        no bare CR or LF and no byte over 0x7f: CR and LF stand where two strided slices say, and a decoder that
        drops foreign bytes gave three bytes for every four places left, so none was foreign. (b"", start) otherwise.
        """
        width = buffer.find(b"\n", start, min(start + LONGEST_LINE, end)) + 1 - start
        count = (end + 2 - start) // width if width > 2 else 0
        if self._rest or self._padded or count < FEWEST_LINES or (width - 2) % 4:
            return b"", start
        stop = start + count * width - 2
        ends = buffer[start + width - 2 : stop : width], buffer[start + width - 1 : stop : width]
        if ends != (b"\r" * (count - 1), b"\n" * (count - 1)):
            return b"", start
        try:
            content = b64decode(memoryview(buffer)[start:stop])
        except Error:
            return b"", start
        return (content, stop) if len(content) * 4 == count * (width - 2) * 3 else (b"", start)

    def feed(self, data: bytes) -> bytes:
        text = b"" if self._over else data.translate(None, _SPACE)
        if not text:
            return b""
        if self._rest:
            text = self._rest + text
        if self._padded or b"=" in text:
            return self._end(text)
        whole = len(text) & ~3
        try:
            content = b64decode(text[:whole], validate=True)
        except Error:
            return self._generous(text)
        self._rest = text[whole:]
        if self._rest and self._rest.translate(None, _ALPHABET):
            return content + self._generous(self._rest)
        return content

    def _end(self, text: bytes) -> bytes:
        """With a "=" in it: as most bodies end, padded as RFC 4648 §4 has it, or else read generously."""
        if not self._padded and len(text) % 4 == 0:
            try:
                content = b64decode(text, validate=True)
            except Error:
                return self._generous(text)
            self._rest, self._padded = b"", True
            self._paddings += text.count(b"=")
            return content
        return self._generous(text)

    def _generous(self, text: bytes) -> bytes:
        """Junk is skipped; padding ends a quantum, after which decoding goes on (some mailers join padded pieces)."""
        clean = text.translate(None, _JUNK)
        if len(clean) != len(text):
            self.defects.add("bad-base64")
        *padded, last = clean.split(b"=")
        if len(padded) > MAX_PADDINGS - self._paddings:
            del padded[MAX_PADDINGS - self._paddings + 1 :]
            last = padded.pop()
            self._over = True
            self.defects |= {"bad-base64", "truncated"}
        self._paddings += len(padded)
        if (self._padded and clean.strip(b"=")) or any(padded[1:]) or (padded and last):
            self.defects.add("bad-base64")  # readers differ: some stop at the padding
        self._padded = self._padded or bool(padded)
        whole = len(last) & ~3
        self._rest = b"" if self._over else last[whole:]
        return b"".join([*[self._quanta(piece) for piece in padded if piece], self._quanta(last[:whole])])

    def _quanta(self, piece: bytes) -> bytes:
        """The content of a piece without "=", whose last quantum may be short."""
        short = len(piece) % 4
        if short == 1:
            self.defects.add("bad-base64")
            piece = piece[:-1]
        return b64decode(piece, validate=True) if short < 2 else a2b_base64(piece + b"=" * (4 - short))

    def close(self) -> bytes:
        rest, self._rest = self._rest, b""
        if not rest:
            return b""
        if len(rest) == 1:
            self.defects.add("truncated")  # six bits are no byte: something is missing
            return b""
        self.defects.add("bad-base64")  # only its padding is missing: some senders never write it
        return a2b_base64(rest + b"=" * (4 - len(rest)))


class _QuotedPrintable:
    def __init__(self) -> None:
        self.defects: set[str] = set()
        self._rest = b""  # an escape whose end has not come

    def feed(self, data: bytes) -> bytes:
        if self._rest:
            data = self._rest + data
        kept = self._unfinished(data)
        self._rest = data[len(data) - kept :]
        return self._decoded(data[: len(data) - kept])

    @staticmethod
    def _unfinished(data: bytes) -> int:
        """How many bytes at the end may belong to an escape that goes on; "==" is a whole one, meant as "="."""
        for behind in (0, 1):
            stem = data[: len(data) - behind]
            if stem.endswith(b"="):
                return behind + 1 if (len(stem) - len(stem.rstrip(b"="))) % 2 else 0
        return 0

    @staticmethod
    def _decoded(data: bytes) -> bytes:
        # a2b_qp drops everything from "=" CR to the next LF; a lone CR after "=" is a soft line break like any other.
        if b"=\r" in data and data.count(b"\r") != data.count(b"\r\n"):
            if b"==\r" in data:  # which of the two is the escape depends on what is before them
                data = data.replace(b"==", b"=3D")
            data = data.replace(b"=\r\n", b"=\n").replace(b"=\r", b"=\n")
        return a2b_qp(data)

    def close(self) -> bytes:
        rest, self._rest = self._rest, b""
        return self._decoded(rest)


_BEGIN = re.compile(rb"\nbegin [0-7]{3,4}(?: [^\n]*|\r*)(?=\n)")
_BLANK_LINES = re.compile(rb"\n[\r\n]*\n")
BLANK = (b"", b"\r")
LONGEST_UU_LINE, SHORTEST_UU_LINE = 256, 20
MAX_BAD_LINES = 10_000


class _Uuencode:
    def __init__(self) -> None:
        self.defects: set[str] = set()
        self._rest = b""
        self._state = "before"
        self._bad = 0

    def feed(self, data: bytes) -> bytes:
        if self._state == "after":
            return b""
        whole, feed, rest = (self._rest + data).rpartition(b"\n")
        # A longer line is junk whatever its end, so its beginning is enough.
        self._rest = rest[: LONGEST_UU_LINE + 1]
        return self._lines(whole + b"\n") if feed else b""

    def _lines(self, text: bytes) -> bytes:
        """Whole lines."""
        if self._state == "before":
            found = _BEGIN.search(b"\n" + text)
            if found is None:
                return b""
            self._state, text = "inside", text[found.end() :]
        if b"\n\n" in text or b"\n\r\n" in text:
            text = _BLANK_LINES.sub(b"\n", text)
        return b"".join([self._line(line) for line in text.split(b"\n") if line not in BLANK])

    def _line(self, line: bytes) -> bytes:
        line = line[: LONGEST_UU_LINE + 1].rstrip(b"\r")
        if self._state == "inside" and line:
            if line.strip() != b"end":
                return self._content(line)
            self._state = "after"
        return b""

    def _content(self, line: bytes) -> bytes:
        # Some encoders fill the last group with junk: the count says how much of the line is meant.
        meant = (((line[0] - 32) & 63) * 4 + 5) // 3
        # White space at the end, which stands for zeros, may be lost; a mail of such lines would be a bomb.
        if len(line) < meant // 2 or meant < SHORTEST_UU_LINE:
            self._count_bad()
        if len(line) <= LONGEST_UU_LINE:
            for candidate in (line, line[:meant]):
                try:
                    return a2b_uu(candidate)
                except Error:
                    continue
        self._count_bad()
        self.defects.add("bad-uuencode")
        return b""

    def _count_bad(self) -> None:
        self._bad += 1
        if self._bad == MAX_BAD_LINES:
            self.defects |= {"bad-uuencode", "truncated"}
            self._state = "after"

    def close(self) -> bytes:
        content = b"" if self._rest in BLANK else self._lines(self._rest + b"\n")
        self._rest = b""
        if self._state != "after":
            self.defects.add("truncated" if self._state == "inside" else "bad-uuencode")
        return content


_CODECS: dict[Encoding, type[_Identity] | type[_Base64] | type[_QuotedPrintable] | type[_Uuencode]] = {
    "identity": _Identity,
    "base64": _Base64,
    "quoted-printable": _QuotedPrintable,
    "uuencode": _Uuencode,
}
