"""The octets of a delivery as they leave: read from the spool, with our fields and our signature on top.

Knows alone: where a body's octets come from when it leaves: from memory, where it was kept since it was hashed, or from its
file, where it needs no second look; and which trouble with them is final. The same octets at every attempt: nothing in
them comes from now.
Limits: it blocks: for a thread. A large body is never held: it is hashed as it is read, and leaves from its file.
"""

import errno
from collections.abc import Iterator
from dataclasses import dataclass

from relay import clock, compose, sign
from relay.config import Config
from relay.deliver import Job, Stored
from relay.sign import Signer
from relay.spool import Body, Spool, SpoolError
from relay.store.delivery import Claimed, Result
from relay.wire import LineDots
from rules.lifecycle import Change
from rules.replies import Reason

MAX_HEADER = 256 * 1024
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@dataclass(frozen=True, slots=True)
class _Rest:
    """What stands below the header block, once looked at: `kept` is it, where it was to be kept."""

    start: int
    size: int
    hash: bytes
    dots: tuple[int, ...] | None  # where lines begin with one; None where they are many
    missing: bytes  # of the CRLF before the final dot
    kept: bytes | None


class Outgoing:
    """What leaves from one spool, under one set of settings."""

    def __init__(self, config: Config, spool: Spool, signer: Signer | None) -> None:
        self._config = config
        self._spool = spool
        self._signer = signer

    def job(self, taken: Claimed, most: int) -> Job:
        """The message as it leaves. A body of up to `most` octets is held until it has left. Raises SpoolError."""
        with self._spool.open(taken.spool) as body:
            if body.size != taken.size:  # a file that was cut would pass for a short mail
                raise SpoolError(f"{taken.spool}: {taken.size} bytes expected, {body.size} found")
            start = body.read(0, MAX_HEADER + 4)
            block = header_block(start)
            prefix = self._prefix(taken, block)
            rest = _rest(body, start, at=len(block), dots=LineDots(prefix[-2:]), most=most)
        if self._signer is not None:
            created = int(clock.instant(taken.created_at).timestamp())
            prefix = self._signer.sign(sign.fields(prefix), rest.hash, created) + prefix
        return Job(
            id=taken.id,
            sender=taken.sender,
            recipient=taken.target,
            size=len(prefix) + rest.size + len(rest.missing),
            eight_bit=bool(taken.eight_bit),
            prefix=prefix,
            chunks=lambda: self._chunks(taken.spool, rest),
            stored=self._stored(taken.spool, rest),
        )

    def _chunks(self, key: str, rest: _Rest) -> Iterator[bytes]:
        if rest.kept is not None:
            yield rest.kept
        else:
            with self._spool.open(key) as body:
                yield from body.pieces(rest.start)
        yield rest.missing

    def _stored(self, key: str, rest: _Rest) -> Stored | None:
        if rest.kept is not None or rest.dots is None:
            return None
        return Stored(lambda: self._spool.open(key), rest.start, rest.dots, rest.missing)

    def _prefix(self, taken: Claimed, block: bytes) -> bytes:
        if taken.message is None:
            # Of our own making. A deposit may have been readdressed since; a report or a warning has no `recipient`.
            return compose.addressed(block, taken.target) if taken.recipient else block
        received = compose.Received(
            hostname=self._config.relay.hostname,
            domain=self._config.relay.domain,
            helo=taken.helo,
            peer=taken.peer,
            protocol=taken.protocol,
            id=taken.message,
            at=clock.instant(taken.received_at).astimezone(self._config.zone),
            tls=taken.tls,
        )
        return compose.relayed(block, received)


def unreadable(error: SpoolError | OSError | EOFError) -> Result:
    """What becomes of a delivery whose bytes could not be read.

    Gone or cut is final, and a person must look. What the system refuses now (too many open files, say, or a disk that
    does not answer) it may grant later.
    """
    cause = error if isinstance(error, OSError) else error.__cause__
    if isinstance(cause, OSError) and cause.errno not in GONE:
        return Result(Change.DEFER, reply=f"spool: {cause.strerror}", warn=1)
    return Result(Change.FAIL, reply=str(error), reason=Reason("bytes-missing"))


def _rest(body: Body, start: bytes, *, at: int, dots: LineDots, most: int) -> _Rest:
    whole = start[at:] if len(start) == body.size else None
    hashed = sign.SimpleBodyHash()
    for piece in body.pieces(at) if whole is None else (whole,):
        hashed.feed(piece)
        dots.feed(piece)
    missing = b"\r\n" if compose.needs_final_crlf(dots.last) else b""
    kept = whole if whole is not None and len(whole) <= most else None
    return _Rest(at, body.size - at, hashed.digest(), dots.found, missing, kept)


def header_block(start: bytes) -> bytes:
    """Up to the empty line, inclusive; a message of headers only is all header."""
    if start.startswith(b"\r\n"):
        return b"\r\n"
    end = start.find(b"\r\n\r\n")
    return start[: end + 4] if end >= 0 else start
