"""The delimiter lines of the multiparts that are open (RFC 2046 §5.1.1), found in chunks at the speed of memchr.

Knows alone: which lines are delimiters. A delimiter is a whole line: "--", the boundary, perhaps "--", white space. So
a boundary that begins another one is no trouble, and a line that goes on after a boundary is content, but noted,
since some readers (RFC 2046 allows them to) compare its beginning only.
Limits: a delimiter line has at most 4,096 bytes; more than `Delimiters.most` candidate lines are not looked at.
"""

from dataclasses import dataclass

LONGEST_LINE = 4096
MAX_NEEDLES = 16  # with more boundaries every line that begins with "--" is looked at


@dataclass(frozen=True, slots=True)
class Delimiter:
    start: int  # of its line
    stop: int  # behind its line
    level: int  # which of the open multiparts it belongs to
    closing: bool


class Delimiters:
    """Positions are those of the buffer given to `begin`; one byte before the first of interest must be in it."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.lookalikes = False  # a line began like a delimiter and went on
        self.exhausted = False  # there were more candidates than `most`, and no delimiter is found any more
        self._levels: list[list[bytes]] = []
        self._lines: dict[bytes, tuple[int, bool]] = {}
        self._needles: list[bytes] = []
        self._ahead: dict[bytes, int] = {}
        self._buffer = b""
        self._final = False
        self._counted = -1  # absolute position of the last candidate that was counted
        self._base = 0

    def __len__(self) -> int:
        return len(self._levels)

    def push(self, boundaries: tuple[bytes, ...]) -> None:
        """Open a multipart. Without a boundary, the first line that begins with "--" says which one it is."""
        self._levels.append(list(boundaries))
        self._rebuild()

    def cut(self, length: int) -> None:
        """Only the outer `length` multiparts stay open."""
        if length < len(self._levels):
            del self._levels[length:]
            self._rebuild()

    def _rebuild(self) -> None:
        # Where two multiparts share a line, the inner one has it; a declared boundary goes before another reading.
        self._lines = {}
        for rank in range(max(map(len, self._levels), default=0)):
            for level in range(len(self._levels) - 1, -1, -1):
                if rank < len(self._levels[level]):
                    line = b"--" + self._levels[level][rank]
                    self._lines.setdefault(line, (level, False))
                    self._lines.setdefault(line + b"--", (level, True))
        known = {b"\n--" + boundary for boundaries in self._levels for boundary in boundaries}
        self._needles = sorted(known) if all(self._levels) and len(known) <= MAX_NEEDLES else [b"\n--"]

    def begin(self, buffer: bytes, base: int) -> None:
        """Look at another buffer, which begins at position `base` of the whole."""
        self._buffer, self._base = buffer, base
        self._ahead.clear()

    def end(self) -> None:
        """Nothing will follow the buffer."""
        self._final = True

    def next(self, start: int, stop: int) -> Delimiter | None:
        """The first delimiter whose line begins from `start` to `stop`, both included, and is wholly there."""
        if not self._levels:
            return None
        at = max(start - 1, 0)
        while not self.exhausted and (at := self._candidate(at)) < stop:
            at += 1
            found = self._read(at)
            if found:
                return found
        return None

    def _candidate(self, at: int) -> int:
        """The next line feed from `at` on before what may be a delimiter."""
        dash = self._find(b"-", at)
        if dash == len(self._buffer):
            return dash
        needles = self._needles
        return min([self._find(needle, at) for needle in needles]) if len(needles) > 1 else self._find(needles[0], at)

    def _find(self, needle: bytes, at: int) -> int:
        # Each needle is searched once through the buffer, however many of the others are found before it.
        found = self._ahead.get(needle, -1)
        if found < at:
            found = self._buffer.find(needle, at)
            if found < 0:
                found = len(self._buffer)
            self._ahead[needle] = found
        return found

    def _read(self, at: int) -> Delimiter | None:
        buffer = self._buffer
        end = buffer.find(b"\n", at, at + LONGEST_LINE)
        if end < 0:
            if not self._final and len(buffer) - at < LONGEST_LINE:
                return None
            end = min(len(buffer), at + LONGEST_LINE)
        if self._base + at > self._counted:
            self._counted = self._base + at
            self.most -= 1
            if self.most < 0:
                self.exhausted = True
                return None
        line = buffer[at:end].rstrip(b" \t\r")
        if not self._levels[-1]:
            self._adopt(line)
        found = self._lines.get(line)
        if found is None or end == at + LONGEST_LINE:
            self.lookalikes = True
            return None
        return Delimiter(at, min(end + 1, len(buffer)), *found)

    def _adopt(self, line: bytes) -> None:
        if line not in self._lines:
            self._levels[-1].append(line[2:])
            self._rebuild()

    def content_end(self, start: int) -> int:
        """Up to where bytes from `start` on are content whatever follows: a last line that may become a delimiter
        is kept back with the line end before it, which would belong to it (RFC 2046 §5.1.1)."""
        buffer = self._buffer
        if self._final:
            return len(buffer)
        feed = buffer.rfind(b"\n", max(start - 1, 0)) if self._levels else -1
        if feed >= 0 and len(buffer) - feed <= LONGEST_LINE and _may_begin_delimiter(buffer, feed + 1):
            return max(start, line_end_before(buffer, feed + 1))
        return max(start, len(buffer) - buffer.endswith(b"\r"))


def _may_begin_delimiter(buffer: bytes, at: int) -> bool:
    return buffer.startswith(b"--", at) or b"--".startswith(buffer[at : at + 3])


def line_end_before(buffer: bytes, start: int) -> int:
    """Where the line end (CRLF, or LF alone) before the line at `start` begins."""
    return start - 2 if buffer.endswith(b"\r\n", 0, start) else start - 1
