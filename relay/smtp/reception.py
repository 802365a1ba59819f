"""Mail data on its way into a transaction: after DATA until the dot, or one BDAT chunk.

Knows alone: that a mail which cannot be taken is still read to its end, so that the answer comes where it is expected.
"""

from dataclasses import dataclass

from relay import log
from relay.accept import Transaction
from relay.smtp.body import DotDecoder, Normaliser
from rules import replies
from rules.replies import Reply


@dataclass(frozen=True, slots=True)
class Limits:
    """`size` in bytes of the whole message; `normalise` turns bare CR or LF into CRLF."""

    size: int
    normalise: bool


class Reception:
    """`refused` is the answer at the end, where the mail cannot be taken; `complete` once its last byte has come."""

    def __init__(self, transaction: Transaction | None, limits: Limits) -> None:
        self._transaction = transaction
        self._limits = limits
        self._normaliser = Normaliser() if limits.normalise else None
        self.refused: Reply | None = None
        self.complete = False

    def feed(self, data: bytes) -> bytes:
        """Takes what is mail data and gives back what follows it."""
        raise NotImplementedError

    def end(self) -> None:
        if self._normaliser is not None:
            self._take(self._normaliser.close())

    def _pass(self, data: bytes) -> None:
        self._take(self._normaliser.feed(data) if self._normaliser is not None else data)

    def _take(self, data: bytes) -> None:
        transaction = self._transaction
        if not data or self.refused is not None or transaction is None:
            return
        if transaction.size + len(data) > self._limits.size:
            self.refused = replies.MESSAGE_TOO_BIG
            return
        try:
            transaction.feed(data)
        except OSError as error:
            log.trouble(transaction.id, error)
            self.refused = replies.DISK_LOW


class Data(Reception):
    """After DATA, until CRLF.CRLF."""

    def __init__(self, transaction: Transaction, limits: Limits) -> None:
        super().__init__(transaction, limits)
        self._decoder = DotDecoder()

    def feed(self, data: bytes) -> bytes:
        mail, rest = self._decoder.feed(data)
        self._pass(mail)
        if rest is None:
            return b""
        self.complete = True
        self.end()
        return rest


class Chunk(Reception):
    """`size` octets after BDAT (RFC 3030 §2)."""

    def __init__(self, transaction: Transaction | None, limits: Limits, size: int) -> None:
        super().__init__(transaction, limits)
        self._left = size
        self.complete = not size

    def feed(self, data: bytes) -> bytes:
        mail, rest = data[: self._left], data[self._left :]
        self._left -= len(mail)
        self._pass(mail)
        self.complete = not self._left
        return rest
