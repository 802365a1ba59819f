"""The structure of a message, found while it streams: chunks in; parts, names, offsets and defects out.

Knows alone: how headers, multiparts (RFC 2046 §5.1) and attached messages (§5.2.1) nest, also where they are damaged.
What a generous reader would find in a mail is found here: a delimiter after the closing one opens its multipart again,
a multipart in which no delimiter comes is a leaf, and where two readers would see two things a defect says so.
Limits: it reads the message after dot-unstuffing. A bare CR is no line end: refuse such a message (`bare_newline`), or
normalise it before it comes here. Text is searched for `cid:` as ASCII, in the first MiB of each HTML leaf.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from relay.body import Body, Ledger, Part, Span, decoded
from relay.delimiters import Delimiter, Delimiters, line_end_before
from relay.encodings import Decoder
from relay.entity import (
    Entity,
    Fields,
    Place,
    blank_end,
    block_end,
    described,
    fields,
    has_junk,
    is_field,
    is_undecided,
    plain_block,
    trace_end,
)
from rules.names import text

__all__ = ["Decoder", "Limits", "Message", "Part", "Scanner", "Span", "decoded"]

Problem = Literal["header-too-big", "too-many-parts", "too-deep", "fragment"]


@dataclass(frozen=True, slots=True)
class Limits:
    header_block: int = 256 * 1024
    headers: int = 4 << 20  # all header blocks together
    parts: int = 200  # leaves
    depth: int = 10  # multiparts around a leaf
    message_depth: int = 3  # attached messages around a leaf
    quantum: int = 64 * 1024  # fewer bytes wait for more, so that tiny chunks cost no more than large ones


@dataclass(frozen=True, slots=True)
class Message:
    size: int
    headers: Fields
    header_end: int  # where the body begins
    parts: tuple[Part, ...]  # leaves only, in order
    cids: frozenset[str]  # Content-IDs that HTML leaves refer to
    content_hash: str  # the same for the same mail below its leading trace fields
    eight_bit: bool
    bare_newline: bool  # a CR or LF that is not part of CRLF
    problem: Problem | None
    defects: tuple[str, ...]  # "ambiguous", "bad-header", "no-parts", "unterminated", and those of the leaves

    def header(self, name: str) -> str | None:
        """The first field of that name, unfolded and decoded."""
        name = name.lower()
        return next((text(value[:MAX_WORDS]) for other, value in self.headers if other == name), None)

    @property
    def received_count(self) -> int:
        return sum(name == "received" for name, _ in self.headers)


@dataclass(slots=True)
class _Multipart:
    place: Place
    head: Entity
    count: int = 0  # parts begun
    closed: bool = False

    @property
    def begun(self) -> bool:
        """A delimiter of it has come."""
        return self.count > 0 or self.closed


LF = 0x0A
MAX_CIDS = 1000  # from then on no further leaf is searched,
MAX_SEARCHED = 2 << 20  # nor after as many bytes of HTML
MAX_WORDS = 8192  # bytes of a field that are put into words
FEWEST_REGULAR = 1024  # bytes of base64 for which a proof of regularity pays
DEFAULT_LIMITS = Limits()


class Scanner:
    """Feed a message in any chunks, then close. The result depends on its bytes alone; nothing raises."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self._limits = limits
        self._waiting: list[bytes] = []
        self._waiting_size = 0
        self._buffer = b""
        self._base = 0  # where the buffer begins in the message
        self._position = 0  # in the buffer; what is before it is done with
        self._recorded = 0  # in the buffer; what is between here and the position is structure, not yet in the ledger
        self._final = False
        # A function and not a method of self: no cycle, so that the buffer is freed as soon as nobody has the scanner.
        self._step: Callable[[Scanner], bool] = Scanner._header
        self._place = Place()
        self._attached: tuple[Entity, Place] | None = None  # where the message being entered came from
        self._frames: list[_Multipart] = []
        self._delimiters = Delimiters(most=10 * limits.parts)
        self._body: Body | None = None  # None in an epilogue, and in a preamble as long as it is empty
        self._inner: Scanner | None = None  # reads the body's content: an encoded message
        self._ledger = Ledger()
        self._headers: Fields | None = None
        self._header_end = 0
        self._parts: list[Part] = []
        self._cids: set[str] = set()
        self._searched = 0  # bytes of HTML
        self._headers_size = 0
        self._defects: set[str] = set()
        self._problem: Problem | None = None

    def feed(self, chunk: bytes) -> None:
        self._waiting.append(chunk)
        self._waiting_size += len(chunk)
        if self._waiting_size >= self._limits.quantum:
            self._scan()

    def close(self) -> Message:
        self._final = True
        self._delimiters.end()
        self._scan()
        self._finish()
        return Message(
            size=self._base + len(self._buffer),
            headers=self._headers or (),
            header_end=self._header_end,
            parts=tuple(self._parts),
            cids=frozenset(self._cids),
            content_hash=self._ledger.content_hash(),
            eight_bit=self._ledger.eight_bit,
            bare_newline=self._ledger.bare_cr or self._ledger.bare_lf,
            problem=self._problem,
            defects=tuple(sorted(self._defects)),
        )

    def _scan(self) -> None:
        self._buffer = b"".join([self._buffer, *self._waiting])
        self._waiting, self._waiting_size = [], 0
        self._delimiters.begin(self._buffer, self._base)
        while self._step(self):
            pass
        self._record(self._position)
        # One byte before the position stays: the line feed that begins a delimiter at the position.
        done = max(self._position - 1, 0)
        self._buffer = self._buffer[done:]
        self._base += done
        self._position -= done
        self._recorded = self._position
        self._delimiters.begin(self._buffer, self._base)

    # --- the steps: each goes on from the position, and says whether another one can follow ---

    def _header(self) -> bool:
        buffer, start = self._buffer, self._position
        plain = plain_block(buffer, start)
        if plain and plain[0] - start <= self._limits.header_block:
            end, self._position = plain
            return self._enter(buffer[start:end])
        end = min(block_end(buffer + b"\n" if self._final else buffer, start), len(buffer))
        delimiter = self._delimiters.next(start, end)
        if delimiter:
            end = delimiter.start
        undecided = not (delimiter or self._final) and is_undecided(buffer, end)
        # The end of a field that has begun is not before the end of the buffer.
        reached = len(buffer) if undecided and is_field(buffer, end) else end
        if reached - start > self._limits.header_block:
            return self._give_up("header-too-big")
        if undecided:
            return False
        self._position = end if delimiter else blank_end(buffer, end)
        if has_junk(buffer[start:end]) or not (delimiter or self._position > end or end == len(buffer)):
            self._defects.add("bad-header")
        return self._enter(buffer[start:end])

    def _content(self) -> bool:
        start = self._position
        delimiter = self._delimiters.next(start, len(self._buffer))
        if delimiter is None:
            self._position = self._delimiters.content_end(start)
            self._take(start, self._position)
            return False
        end = max(start, line_end_before(self._buffer, delimiter.start))
        self._take(start, end)
        self._position = end
        self._pass(delimiter)
        self._position = delimiter.stop
        return True

    def _rest(self) -> bool:
        """After a problem the rest is only looked at as bytes."""
        self._position = self._delimiters.content_end(self._position)
        return False

    def _give_up(self, problem: Problem) -> bool:
        self._problem = self._problem or problem
        if self._headers is None:
            start = self._position
            self._headers = fields(self._buffer[start : start + self._limits.header_block])
            self._header_end = self._limits.header_block
        self._body = self._inner = None
        self._frames.clear()
        self._delimiters.cut(0)
        self._step = Scanner._rest
        return True

    # --- going in and out ---

    def _enter(self, block: bytes) -> bool:
        """The header block of an entity has been read; the position is at its body."""
        self._step = Scanner._content
        self._headers_size += len(block)
        if self._headers_size > self._limits.headers:
            return self._give_up("header-too-big")
        attached, self._attached = self._attached, None
        if self._headers is None:
            self._headers = fields(block)
            self._header_end = self._base + self._position
            if attached is None:
                trace = trace_end(block)
                self._ledger.skip(block[:trace])
                self._recorded += trace
        head = described(block, self._place.default_type)
        if attached and not block.strip():
            # No header at all: whatever was attached there is no message, so it is a document.
            declared, self._place = attached
            self._open(replace(declared, encoding="identity"), "not-a-message")
        elif head.is_multipart:
            self._open_multipart(head)
        elif not head.is_message:
            self._open(head)
        elif self._place.depth >= self._limits.message_depth:
            self._open(head, "nested")
        else:
            self._open_message(head)
        return True

    def _open(self, head: Entity, *defects: str) -> None:
        if head.is_fragment:
            self._problem = self._problem or "fragment"
        self._body = Body(self._place.leaf(head, *defects), head.encoding, self._base + self._position)

    def _open_preamble(self, multipart: _Multipart, start: int) -> Body:
        """Until a delimiter comes a multipart may be a leaf, as it is for readers who find none."""
        self._body = Body(self._place.leaf(multipart.head, "no-parts"), multipart.head.encoding, self._base + start)
        return self._body

    def _open_multipart(self, head: Entity) -> None:
        if len(self._frames) >= self._limits.depth:
            self._give_up("too-deep")
            return
        self._defects.update(head.defects)
        self._frames.append(_Multipart(self._place, head))
        self._delimiters.push(head.boundaries)

    def _open_message(self, head: Entity) -> None:
        self._defects.update(head.defects)
        if head.encoding == "identity":
            self._attached, self._place = (head, self._place), self._place.message()
            self._step = Scanner._header
            return
        limits = self._limits
        rest = replace(
            limits,
            headers=limits.headers - self._headers_size,
            parts=limits.parts - len(self._parts),
            depth=limits.depth - len(self._frames),
        )
        inner = Scanner(rest)
        inner._attached, inner._place = (head, self._place), self._place.message()
        self._body = Body(self._place.leaf(head), head.encoding, self._base + self._position, inner=inner)
        self._inner = inner

    def _pass(self, delimiter: Delimiter) -> None:
        """A delimiter has been reached; the position is at the line end before it."""
        frame = self._frames[delimiter.level]
        ended = self._frames[delimiter.level + 1 :]
        if not ended and frame.count == 0:
            self._body = None  # it was the preamble
        self._leave(ended)
        if ended:
            del self._frames[delimiter.level + 1 :]
            self._delimiters.cut(delimiter.level + 1)
        if not self._frames:
            return  # given up
        if delimiter.closing:
            frame.closed = True
            return
        if frame.closed:
            self._defects.add("ambiguous")  # most readers stopped at the closing delimiter
        frame.closed = False
        frame.count += 1
        self._place = frame.place.part(frame.count, frame.head.type)
        self._step = Scanner._header

    def _leave(self, ended: list[_Multipart]) -> None:
        """What is open ends at the position, and the multiparts `ended` with it, closed or not."""
        body, inner = self._body, self._inner
        if body is None:
            if not ended:
                return
            if not ended[-1].begun:
                body = self._open_preamble(ended[-1], self._position)
        self._body = self._inner = None
        unterminated = bool(ended) and any(not multipart.closed for multipart in ended)
        if unterminated:
            self._defects.add("unterminated")
        if body is None:
            return
        part = body.close(self._base + self._position - body.offset)
        if unterminated:
            part = _flawed(part, {"unterminated"})
        if len(self._cids) < MAX_CIDS and self._searched < MAX_SEARCHED:
            self._searched += body.html_size
            self._cids |= body.cids()
        if inner is None:
            self._ledger.body(part.spans[0].offset, part.spans[0].length, part.sha256)
            self._collect(part)
        else:
            self._collect_message(part, inner)

    def _collect(self, part: Part) -> None:
        if len(self._parts) >= self._limits.parts:
            self._give_up("too-many-parts")
            return
        self._parts.append(part)
        self._defects.update(part.leaf.defects)

    def _collect_message(self, outer: Part, inner: "Scanner") -> None:
        """The leaves of an encoded message lie in the decoded content of the part it came in."""
        message = inner.close()
        self._ledger.body(outer.spans[0].offset, outer.spans[0].length, message.content_hash)
        self._cids |= message.cids
        self._headers_size += inner._headers_size
        self._searched += inner._searched
        self._problem = self._problem or message.problem
        self._defects.update(message.defects)
        if inner._ledger.bare_cr:
            self._defects.add("ambiguous")  # some readers end lines there
        for part in message.parts:
            self._collect(_flawed(replace(part, spans=outer.spans + part.spans), set(outer.leaf.defects)))

    def _finish(self) -> None:
        self._leave(self._frames)
        if self._delimiters.lookalikes:
            self._defects.add("ambiguous")
        if self._delimiters.exhausted:
            self._problem = self._problem or "too-many-parts"

    # --- bytes ---

    def _record(self, end: int) -> None:
        """What is outside the bodies of leaves, up to `end`."""
        if end > self._recorded:
            self._ledger.structure(self._buffer[self._recorded : end])

    def _take(self, start: int, end: int) -> None:
        """Bytes of a body, or of what surrounds the parts of a multipart."""
        if start == end:
            return
        body = self._body
        multipart = self._frames[-1] if self._frames else None
        if multipart is not None and not multipart.begun:  # structure as well as, perhaps, the content of a leaf
            body = body or self._open_preamble(multipart, start)
        elif body is None:  # an epilogue
            return
        else:
            self._record(start)
            self._recorded = end
        if body.encoding == "base64" and end - start > FEWEST_REGULAR:
            start = self._take_regular(body, start, end)
        self._take_any(body, self._buffer[start:end])

    def _take_any(self, body: Body, data: bytes) -> None:
        self._ledger.examine(data)
        body.feed(data)

    def _take_regular(self, body: Body, start: int, end: int) -> int:
        """Base64 in lines of equal length needs no examination: `Decoder.regular` proves what it would find."""
        buffer, line = self._buffer, start
        if start and buffer[start - 1] != LF:
            start = buffer.find(b"\r\n", line, end)
            if start < 0:
                return line
            self._take_any(body, buffer[line:start])
            line = start + 2
        content, stop = body.decoder.regular(buffer, line, end)
        if not content:
            return start
        body.add(content)
        return stop


def _flawed(part: Part, defects: set[str]) -> Part:
    if not defects:
        return part
    return replace(part, leaf=replace(part.leaf, defects=tuple(sorted(defects.union(part.leaf.defects)))))
