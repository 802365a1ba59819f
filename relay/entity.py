"""A header block: where it ends, which fields it has, what they say of the body below, and where that body stands.

Knows alone: which lines still belong to a header in damaged mail, what the Content-* fields mean for structure, and how
parts are numbered.
A line that is no field ends the block, as if the blank line had been there, unless the next line is a field again:
some readers skip such a line, and what they find below must be found here too.
Limits: a field's name has at most 200 characters; a boundary of more than 1,000 is none.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from relay.encodings import Encoding, encoding_of
from rules.attachment import Leaf
from rules.names import Parameters, file_name, parameters, raw_parameter, token

Fields = tuple[tuple[str, bytes], ...]  # in order: name in lower case, value as written, folds included

MAX_BOUNDARY = 1000
MAX_BOUNDARIES = 20  # of one multipart: the first and the last, which are the ones that readers take
SHORT, REMEMBERED = 256, 512  # bytes of a block whose meaning is remembered, and how many such blocks are
PLAIN = 16 * 1024  # bytes of a block that may be plain: one that turns out not to be is read twice
DECIDABLE = 2048  # more bytes than a line that is no field may have, and the start of the field after it

_FIELD_START = rb"(?:[!-9;-~]{0,200}+[ \t]{0,200}+:|[ \t])"
_BLOCK = re.compile(
    # "From " is the envelope of a mailbox file; ">From " is how some attach one.
    rb"(?:>?From [^\n]{0,998}+\n)?"
    rb"(?:" + _FIELD_START + rb"[^\n]*+\n|(?!\r?\n)[^\n]{1,998}+\n(?=[A-Za-z][A-Za-z0-9-]{0,75}+:(?!/)))*"
)
# A whole block as most are: fields and their folds, none that may be a delimiter, and the blank line behind them.
_PLAIN_BLOCK = re.compile(rb"((?:[!-,.-9;-~][!-9;-~]{0,199}+[ \t]{0,200}+:[^\n]*+\n(?:[ \t][^\n]*+\n)*)+)\r?\n")
_FIELD_LINE = re.compile(_FIELD_START)
_JUNK = re.compile(rb"\n(?!" + _FIELD_START + rb"|>?From |\Z)")
_BLANK = re.compile(rb"\r?\n")
# Both are searched in a block with a line feed put in front: a literal first byte makes the search fast.
_FIELD = re.compile(rb"\n([!-9;-~]+)[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)")
_CONTENT_FIELD = re.compile(
    rb"\n(content-(?:type|disposition|transfer-encoding|id))[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)", re.IGNORECASE
)
# What every server on the way adds or replaces: the same mail comes again with other ones.
_TRACE = re.compile(rb"(?:(?:return-path|received|delivered-to)[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*)*", re.IGNORECASE)
_TYPE = re.compile(rb"(?:\s|\((?:[^()\\]|\\.)*\))*\"?([^\s/;=\"()]++)(?:\s*+/\s*+([^\s/;=\"()]++))?(?!\s*+=)")


def block_end(buffer: bytes, start: int) -> int:
    """Where the header lines that are complete in `buffer` end; the blank line is not one of them."""
    return _BLOCK.match(buffer, start).end()  # type: ignore[union-attr]  # it matches the empty string


def plain_block(buffer: bytes, start: int) -> tuple[int, int] | None:
    """Where a block ends that leaves no question open, and its blank line; None where the other functions must look."""
    found = _PLAIN_BLOCK.match(buffer, start, start + PLAIN)
    return (found.end(1), found.end()) if found else None


def blank_end(buffer: bytes, start: int) -> int:
    """Behind the blank line at `start`, if there is one."""
    found = _BLANK.match(buffer, start)
    return found.end() if found else start


def is_field(buffer: bytes, start: int) -> bool:
    """Does a field, or a fold of one, begin here?"""
    return bool(_FIELD_LINE.match(buffer, start))


def is_undecided(buffer: bytes, end: int) -> bool:
    """Could bytes still to come change what `block_end` said?"""
    if _BLANK.match(buffer, end):
        return False
    return is_field(buffer, end) or (len(buffer) - end < DECIDABLE and buffer.count(b"\n", end) < 2)


def has_junk(block: bytes) -> bool:
    """Is one of these header lines no field?"""
    return bool(_JUNK.search(b"\n" + block))


def trace_end(block: bytes) -> int:
    """Where the leading Return-Path, Received and Delivered-To fields of a block end."""
    return _TRACE.match(block).end()  # type: ignore[union-attr]  # it matches the empty string


def fields(block: bytes) -> Fields:
    return tuple([(_lower(name), value.rstrip(b"\r\n")) for name, value in _FIELD.findall(b"\n" + block)])


def content_fields(block: bytes) -> Fields:
    """Type, disposition, transfer encoding and id alone."""
    return tuple([(_lower(name), value.rstrip(b"\r\n")) for name, value in _CONTENT_FIELD.findall(b"\n" + block)])


@lru_cache(512)
def _lower(name: bytes) -> str:
    return name.decode("ascii").lower()


@dataclass(frozen=True, slots=True)
class Entity:
    """What a header block says of its body."""

    type: str
    boundaries: tuple[bytes, ...]  # the declared one first, then what other readers may take for it
    encoding: Encoding
    disposition: str
    name: str | None
    content_id: str
    defects: tuple[str, ...]

    @property
    def is_multipart(self) -> bool:
        return self.type.startswith("multipart/")

    @property
    def is_message(self) -> bool:
        return self.type in ("message/rfc822", "message/global", "message/news")  # RFC 2046 §5.2.1, RFC 6532 §3.7

    @property
    def is_fragment(self) -> bool:
        return self.type in ("message/partial", "message/external-body")  # RFC 2046 §5.2.2, §5.2.3


def described(block: bytes, default_type: str) -> Entity:
    """What a block says. Short ones recur from mail to mail (text/plain in UTF-8), but for those that name something."""
    if len(block) > SHORT or b"name" in block or b"boundary" in block:
        return entity(content_fields(block), default_type)
    return _recurring(block, default_type)


@lru_cache(REMEMBERED)
def _recurring(block: bytes, default_type: str) -> Entity:
    return entity(content_fields(block), default_type)


def entity(found: Fields, default_type: str = "text/plain") -> Entity:
    """From the content fields of a block."""
    first = dict(reversed(found))
    content_type, disposition = first.get("content-type", b""), first.get("content-disposition", b"")
    typed, disposed = parameters(content_type), parameters(disposition)
    encoding = encoding_of(first.get("content-transfer-encoding", b""))
    declared = _type(content_type)
    boundaries: tuple[bytes, ...] = ()
    if declared.startswith("multipart/"):
        others = [value for name, value in found[1:] if name == "content-type"]
        if len(others) > MAX_BOUNDARIES:
            others = others[: MAX_BOUNDARIES // 2] + others[-MAX_BOUNDARIES // 2 :]
        boundaries = _boundaries([typed, *map(parameters, others)])
    repeated = len(found) > len(first) or len(boundaries) > 1
    defects = () if encoding else ("unknown-encoding",)
    return Entity(
        type=declared or default_type,
        boundaries=boundaries,
        encoding=encoding or "identity",
        disposition=token(disposition) if disposition else "",
        name=file_name(disposed, typed) if disposed or typed else None,
        content_id=first.get("content-id", b"").decode("latin-1").strip().strip("<>"),
        defects=(*defects, "ambiguous") if repeated and _is_ambiguous(found, typed) else defects,
    )


def _is_ambiguous(found: Fields, typed: Parameters) -> bool:
    """Is something said twice, and differently? Readers take the first, or the last."""
    said = [(name, b" ".join(value.lower().split())) for name, value in found if name != "content-id"]
    said += [("boundary", value) for name, value in typed if name == "boundary"]
    once = len(dict(said))
    return len(said) > once and len(set(said)) > once


def _type(value: bytes) -> str:
    """Lower case, without parameters; "" where nothing is said, and what is said but is no type is unknown content."""
    found = _TYPE.match(value)
    if not found:
        return "application/octet-stream" if value.strip() else ""
    main, sub = found[1].decode("latin-1").lower(), (found[2] or b"").decode("latin-1").lower()
    if sub:
        return f"{main}/{sub}"
    # RFC 1049 mailers write "text" alone.
    return {"text": "text/plain", "multipart": "multipart/mixed"}.get(main, "application/octet-stream")


def _boundaries(types: Iterable[Parameters]) -> tuple[bytes, ...]:
    """Every boundary one of the readers may use: of each field and parameter that says one, and its first word."""
    found: list[bytes] = []
    for typed in types:
        found.append((raw_parameter(typed, "boundary") or b"").rstrip())
        found += [value.rstrip() for name, value in typed if name == "boundary"]
    # An unquoted boundary ends at white space for some readers.
    found += [value.split()[0] for value in found if b" " in value]
    boundaries = [value for value in dict.fromkeys(found) if 0 < len(value) <= MAX_BOUNDARY]
    if len(boundaries) > MAX_BOUNDARIES:
        boundaries = boundaries[: MAX_BOUNDARIES // 2] + boundaries[-MAX_BOUNDARIES // 2 :]
    return tuple(boundaries)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entity stands: what the numbers of RFC 3501 §6.4.5 need, and what Leaf says of its surroundings."""

    container: str = ""  # the number of the multipart or message around it
    index: int = 0  # among the parts of a multipart; 0: it is the whole of a message
    depth: int = 0
    related: bool = False
    report: bool = False
    default_type: str = "text/plain"

    @property
    def path(self) -> str:
        return f"{self.container}.{self.index or 1}" if self.container else str(self.index or 1)

    def part(self, index: int, kind: str) -> "Place":
        """The `index`-th part of the multipart that stands here."""
        return Place(
            self.path if self.index else self.container,
            index,
            self.depth,
            self.related or kind == "multipart/related",
            self.report or kind == "multipart/report",
            "message/rfc822" if kind == "multipart/digest" else "text/plain",  # RFC 2046 §5.1.5
        )

    def message(self) -> "Place":
        """The message attached here."""
        return Place(self.path, depth=self.depth + 1, report=self.report)

    def leaf(self, head: Entity, *defects: str) -> Leaf:
        return Leaf(
            path=self.path,
            type=head.type,
            disposition=head.disposition,
            name=head.name,
            content_id=head.content_id,
            related=self.related,
            report=self.report,
            depth=self.depth,
            defects=head.defects + defects,
        )
