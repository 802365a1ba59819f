"""Mail data on its way into a transaction: after DATA until the dot, or one BDAT chunk.

Knows alone: that a mail which cannot be taken is still read to its end, so that the answer comes where it is expected.
"""

from relay.accept import Transaction
from relay.smtp.body import DotDecoder, Normaliser
from rules.replies import Reply


class Reception:
    """`refused` is the answer at the end, where the mail cannot be taken; `complete` once its last byte has come.

    `normaliser` turns bare CR or LF into CRLF, where that is wanted.
    """

    def __init__(self, transaction: Transaction | None, normaliser: Normaliser | None) -> None:
        self._transaction = transaction
        self._normaliser = normaliser
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
        self.refused = transaction.take(data)


class Data(Reception):
    """After DATA, until CRLF.CRLF."""

    def __init__(self, transaction: Transaction, normaliser: Normaliser | None) -> None:
        super().__init__(transaction, normaliser)
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

    def __init__(self, transaction: Transaction | None, normaliser: Normaliser | None, size: int) -> None:
        super().__init__(transaction, normaliser)
        self._left = size
        self.complete = not size

    def feed(self, data: bytes) -> bytes:
        mail, rest = data[: self._left], data[self._left :]
        self._left -= len(mail)
        self._pass(mail)
        self.complete = not self._left
        return rest
