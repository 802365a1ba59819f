"""The octets of a delivery as they leave: read from the spool, with our fields and our signatures on top.

Knows alone: where a body's octets come from when it leaves: from memory, where it was kept since it was hashed, or from its
file, where it needs no second look; and which trouble with them is final. The same octets at every attempt: nothing in
them comes from now.
Limits: it blocks: for a thread. A large body is never held: it is hashed as it is read, and leaves from its file.
"""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

from relay import clock, compose, sign
from relay.config import Config
from relay.deliver import Job, Stored
from relay.mime import Span, decoded
from relay.sign import Signer
from relay.spool import Body, Spool, SpoolError
from relay.store.delivery import Carried, Claimed, Result
from relay.wire import LineDots
from rules import authentication
from rules.lifecycle import Change
from rules.names import text
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

    def __init__(self, config: Config, spool: Spool, signers: tuple[Signer, ...]) -> None:
        self._config = config
        self._spool = spool
        self._signers = signers

    def job(self, taken: Claimed, most: int) -> Job:
        """The message as it leaves. A body of up to `most` octets is held until it has left. Raises SpoolError."""
        if taken.author:
            return self._of_ours(taken)
        with self._opened(taken) as body:
            start = body.read(0, MAX_HEADER + 4)
            block = header_block(start)
            prefix = self._prefix(taken, block)
            rest = _rest(body, start, at=len(block), dots=LineDots(prefix[-2:]), most=most)
        prefix = self._signed(taken, prefix, rest.hash)
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

    @contextmanager
    def _opened(self, taken: Claimed) -> Iterator[Body]:
        with self._spool.open(taken.spool) as body:
            if body.size != taken.size:  # a file that was cut would pass for a short mail
                raise SpoolError(f"{taken.spool}: {taken.size} bytes expected, {body.size} found")
            yield body

    def _signed(self, taken: Claimed, prefix: bytes, body_hash: bytes) -> bytes:
        created = int(clock.instant(taken.created_at).timestamp())
        return sign.signatures(self._signers, sign.fields(prefix), body_hash, created) + prefix

    # --- a mail's documents in a message of ours ------------------------------------------------------------------------

    def _of_ours(self, taken: Claimed) -> Job:
        """Composed anew for each attempt, from what is stored alone."""
        with self._opened(taken) as body:
            subject = _subject(header_block(body.read(0, MAX_HEADER + 4)))
        message = compose.bundle([_enclosed(document) for document in taken.carried], self._letter(taken), subject)
        hashed = sign.SimpleBodyHash()
        for chunk in self._written(taken, message):
            hashed.feed(chunk)
        prefix = self._signed(taken, message.header, hashed.digest())
        return Job(
            id=taken.id,
            sender=taken.sender,
            recipient=taken.target,
            size=len(prefix) - len(message.header) + message.size,
            eight_bit=False,
            prefix=prefix,
            chunks=lambda: self._written(taken, message),
        )

    def _letter(self, taken: Claimed) -> compose.Letter:
        return compose.Letter(
            sender=taken.author,
            sender_name=self._config.delivery.sender_name,
            recipient=taken.target,
            message_id=taken.outbound_message_id,
            date=clock.instant(taken.received_at).astimezone(self._config.zone),
            domain=self._config.relay.domain,
            text=self._config.delivery.text or compose.TEXT,
        )

    def _written(self, taken: Claimed, message: compose.Bundle) -> Iterator[bytes]:
        """The body. Raises SpoolError where a document is not what was accepted, before the message is whole."""
        with self._opened(taken) as body:
            for part, document in zip(message.parts, taken.carried, strict=True):
                yield part
                yield from compose.encode_base64(_proved(decoded(body.read, _spans(document)), document))
        yield message.closing

    # --- a mail as it came, and messages of ours that are kept ----------------------------------------------------------

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
            results=self._results(taken),
        )
        return compose.relayed(block, received)

    def _results(self, taken: Claimed) -> str:
        if taken.authentication is None:
            return ""
        known = authentication.of_facts(json.loads(taken.authentication))
        return authentication.results(known, self._config.relay.hostname, taken.original_sender)


def _subject(block: bytes) -> str:
    return next((text(value) for name, value in sign.fields(block) if name.lower() == b"subject"), "")


def _enclosed(document: Carried) -> compose.Enclosed:
    return compose.Enclosed(document.id, document.name, document.type, document.size, document.sha256)


def _spans(document: Carried) -> tuple[Span, ...]:
    return tuple(Span(*span) for span in json.loads(document.spans))


def _proved(chunks: Iterator[bytes], document: Carried) -> Iterator[bytes]:
    """The chunks, once through; they must be the document that was accepted."""
    digest = sha256()
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
    if digest.hexdigest() != document.sha256:
        raise SpoolError(f"{document.id}: not the bytes that were accepted")


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
