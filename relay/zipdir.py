"""The directory of a ZIP and the beginning of its members, read with bounds from a file nobody vouches for.

Knows alone: what an exact end of central directory is (domain.md §4), ZIP64, and that a member counts only if its
local header agrees with the directory. zipfile is not used: it finds a directory in a PDF/A-3 that holds an xlsx,
reads a directory of any length, and skips over what does not fit. Numbers are those of APPNOTE.TXT 6.3.10.
Limits: stored and deflated members only; members that the directory does not list are not looked for.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import BinaryIO, NamedTuple

LOCAL = b"PK\3\4"
END = b"PK\5\6"
SPANNED = (b"PK\7\x08" + LOCAL, b"PK00" + LOCAL)  # §8.5.3: the mark of a split archive, or of one that needed no split
_CENTRAL = b"PK\1\2"
_LOCATOR64 = b"PK\6\7"
_END64 = b"PK\6\6"

TAIL = 66 * 1024  # the longest comment (65,535), the end record (22) and the ZIP64 locator (20) fit
MAX_ENTRIES = 10_000
# An entry takes 76 bytes, twice its name and what is packed: in any real package more than this. Without such a bound a
# mail of many files could ask for more work than one of its size may.
LEAST_ENTRY, FREE_ENTRIES = 200, 100
MAX_DIRECTORY = 4 << 20
BUDGET = 32 << 20  # bytes read from one file, and unpacked from it, together
FREE, PER_BYTE = 1 << 20, 4  # … and less of a small file: this much, and this much more for each byte of it
MAX_MARKS = 200  # signatures of an end in one tail: more are there to be counted
_MAX_ENDS = 4  # exact ends of one tail that are tried

_END_RECORD = struct.Struct("<4s4HIIH")
_LOCATOR64_RECORD = struct.Struct("<4sIQI")
_END64_RECORD = struct.Struct("<4sQHHIIQQQQ")
_CENTRAL_RECORD = struct.Struct("<4s6H3I5H2I")
_LOCAL_RECORD = struct.Struct("<4s5H3I2H")
_SATURATED = 0xFFFFFFFF
_STORED, _DEFLATED = 0, 8


class Malformed(Exception):
    """The structure contradicts itself, or cannot be read."""


class TooMuch(Exception):
    """More entries, a longer directory or more bytes than we are ready to look at."""


class Entry(NamedTuple):  # not a dataclass: there may be ten thousand, and its construction takes a third
    """One line of the directory. `name` is its bytes as Latin-1: faithful, and ASCII reads as it is."""

    name: str
    flags: int
    method: int
    packed: int
    size: int
    offset: int  # of its local header, in the file

    @property
    def encrypted(self) -> bool:
        return bool(self.flags & 0x2041)  # §4.4.4: bit 0 encrypted, bit 6 strongly, bit 13 masked headers

    @property
    def path(self) -> str:
        """As parts are compared: without case (ECMA-376-2 §6.2.2); early .NET wrote backslashes."""
        return self.name.replace("\\", "/").lower().lstrip("/")


@dataclass(frozen=True, slots=True)
class Directory:
    entries: tuple[Entry, ...]
    start: int  # where it stands in the file
    plain: bool  # one exact end, one disk, the count right, nothing in front: as every writer makes it


@dataclass(slots=True)
class Window:
    """Random access with a budget: the hostile file decides where we look, not how much."""

    file: BinaryIO
    size: int
    left: int = BUDGET
    depth: int = 0  # packages around this one

    def read(self, at: int, length: int) -> bytes:
        """Exactly `length` bytes at `at`; Malformed where the file has them not."""
        if at < 0 or length < 0 or at + length > self.size:
            raise Malformed("outside the file")
        self.spend(length)
        self.file.seek(at)
        data = self.file.read(length)
        if len(data) != length:
            raise Malformed("shorter than it was said to be")
        return data

    def spend(self, length: int) -> None:
        self.left -= length
        if self.left < 0:
            raise TooMuch("budget")


# --- the directory --------------------------------------------------------------------------------------------------


def exact_ends(tail: bytes) -> Iterator[int]:
    """Positions in `tail` of end records whose comment reaches exactly the end of the file, the last one first."""
    at = tail.rfind(END)
    while at >= 0:
        if len(tail) - at >= 22 and at + 22 + int.from_bytes(tail[at + 20 : at + 22], "little") == len(tail):
            yield at
        at = tail.rfind(END, 0, at + 3)


def is_flooded(tail: bytes) -> bool:
    """So many signatures that to look at each is what they are there for."""
    return tail.count(END) > MAX_MARKS


def budget(size: int) -> int:
    """How much is read from a file of `size` bytes, and unpacked from it."""
    return min(BUDGET, FREE + PER_BYTE * size)


def directory(window: Window, tail: bytes) -> Directory | None:
    """The directory of the first exact end whose directory parses; None if there is none."""
    if is_flooded(tail):
        raise TooMuch("ends")
    ends = list(islice(exact_ends(tail), _MAX_ENDS))
    for at in ends:
        try:
            found = _parse(window, window.size - len(tail) + at)
        except (Malformed, struct.error):
            continue
        # Two ends are two opinions on what the file holds: whatever it is, it is not a plain one.
        return found if len(ends) == 1 else replace(found, plain=False)
    return None


def _parse(window: Window, end: int) -> Directory:
    _, disk, first_disk, here, count, length, offset, _ = _END_RECORD.unpack(window.read(end, _END_RECORD.size))
    limit = end
    if end >= 20 and (locator := window.read(end - 20, 20)).startswith(_LOCATOR64):
        limit, count, length, offset = _end64(window, end, locator)
    most = min(MAX_ENTRIES, FREE_ENTRIES + window.size // LEAST_ENTRY)
    if length > MAX_DIRECTORY or count > most:
        raise TooMuch("directory")
    start = _start(window, limit - length, offset, length)
    entries = _entries(window.read(start, length), start - offset, most=most)
    regular = disk == first_disk == 0 and here & 0xFFFF in (count & 0xFFFF, 0xFFFF) and count == len(entries)
    return Directory(entries, start, plain=regular and start == offset)


def _end64(window: Window, end: int, locator: bytes) -> tuple[int, int, int, int]:
    """Where the ZIP64 end record stands, and its count, length and offset (§4.3.14)."""
    _, _, position, _ = _LOCATOR64_RECORD.unpack(locator)
    for at in (position, end - 20 - _END64_RECORD.size):  # the second if something was put in front of the archive
        if 0 <= at <= end - 20 - _END64_RECORD.size:
            record = _END64_RECORD.unpack(window.read(at, _END64_RECORD.size))
            if record[0] == _END64:
                return at, record[7], record[8], record[9]
    raise Malformed("ZIP64 locator without its record")


def _start(window: Window, before_end: int, offset: int, length: int) -> int:
    """Where the directory begins: right before its end, or where the end record says (a signature stands between)."""
    if length == 0:
        return max(before_end, 0)
    for at in (before_end, offset):
        if 0 <= at <= window.size - length and window.read(at, 4) == _CENTRAL:
            return at
    raise Malformed("no directory where it should be")


def _entries(data: bytes, shift: int, *, most: int) -> tuple[Entry, ...]:
    entries: list[Entry] = []
    at = 0
    while at < len(data):
        record = _CENTRAL_RECORD.unpack_from(data, at)
        signature, flags, method = record[0], record[3], record[4]
        packed, size, name_length, extra_length, comment_length, offset = *record[8:13], record[16]
        name_at = at + _CENTRAL_RECORD.size
        extra_at = name_at + name_length
        at = extra_at + extra_length + comment_length
        if signature != _CENTRAL or at > len(data):
            raise Malformed("directory entry")
        if _SATURATED in (packed, size, offset):
            size, packed, offset = _extended(data[extra_at : extra_at + extra_length], size, packed, offset)
        entries.append(
            Entry(data[name_at:extra_at].decode("latin-1"), flags, method, packed, size, offset + shift),
        )
        if len(entries) > most:
            raise TooMuch("entries")
    return tuple(entries)


def _extended(extra: bytes, *values: int) -> tuple[int, int, int]:
    """Size, packed size and offset, the saturated ones taken in this order from the ZIP64 extra field (§4.5.3)."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, at)
        if tag == 1:
            words = iter(struct.unpack_from(f"<{length // 8}Q", extra, at + 4))
            size, packed, offset = (next(words, -1) if value == _SATURATED else value for value in values)
            if min(size, packed, offset) < 0:
                break
            return size, packed, offset
        at += 4 + length
    raise Malformed("ZIP64 sizes are missing")


# --- members --------------------------------------------------------------------------------------------------------


def beginning(window: Window, entry: Entry, *, length: int) -> bytes:
    """Up to `length` unpacked bytes from the beginning of a member."""
    name_length = len(entry.name)
    header = window.read(entry.offset, _LOCAL_RECORD.size + name_length)
    record = _LOCAL_RECORD.unpack_from(header)
    if record[0] != LOCAL or record[3] != entry.method or header[_LOCAL_RECORD.size :] != entry.name.encode("latin-1"):
        raise Malformed("local header and directory disagree")
    at = entry.offset + len(header) + record[10]
    if record[9] != name_length or entry.method not in (_STORED, _DEFLATED):
        raise Malformed("member")
    if entry.method == _STORED:
        return window.read(at, min(entry.packed, length))
    # A Huffman table takes up to 320 bytes before the first byte comes out; stored blocks add a little (RFC 1951 §3.2).
    packed = window.read(at, min(entry.packed, length + 512 + length // 1000))
    window.spend(length)
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, length)
    except zlib.error as error:
        raise Malformed(str(error)) from None


def whole(window: Window, entry: Entry, *, limit: int) -> bytes:
    """A whole member; TooMuch if it is longer than `limit`, Malformed if it is not as long as the directory says."""
    if entry.size > limit:
        raise TooMuch("member")
    data = (
        beginning(window, entry, length=entry.size + 1)
        if entry.method == _DEFLATED
        else beginning(window, entry, length=limit)
    )
    if len(data) != entry.size:
        raise Malformed("size")
    return data
