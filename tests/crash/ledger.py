"""What clients were told: every mail sent, its documents, and whether its 250 came; every document deposited.

Knows alone: how a mail of a test is made unmistakable: a Message-ID and documents that no other has. The clients are
real: smtplib for DATA, a raw dialogue for BDAT and for a mail that stops half-way.
"""

import contextlib
import hashlib
import itertools
import smtplib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.clients import HELLO, HOST, Dialogue, mail, stuffed
from tests.support.documents import pdf, pdf_of_size

SENDER = "compta@cabinet.example"
_serial = itertools.count(1)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def document(size: int = 0) -> bytes:
    """A PDF unlike any other, of about `size` bytes."""
    label = f"Facture no {next(_serial)}"
    return pdf_of_size(size).replace(b"Facture 0231", label.encode()) if size else pdf(label)


def moved_in(path: Path, content: bytes) -> None:
    """As a client's machine would do it."""
    partial = path.with_name(f".{path.name}.part")
    partial.write_bytes(content)
    partial.rename(path)


@dataclass(slots=True)
class Letter:
    """A mail, and what its sender knows of it: `answered` once a 250 came."""

    data: bytes
    message_id: str
    recipients: tuple[str, ...]
    documents: tuple[str, ...]  # SHA-256
    answered: bool = False
    attempts: int = 0


@dataclass
class Ledger:
    """Letters by Message-ID, documents of the GED by SHA-256; several clients may write in it at once."""

    letters: dict[str, Letter] = field(default_factory=dict)
    deposits: dict[str, Path] = field(default_factory=dict)
    baseline: set[str] = field(default_factory=set)  # there before its folder was connected: never sent
    _laid: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def letter(self, *recipients: str, sizes: Sequence[int] = (0,)) -> Letter:
        contents = [document(size) for size in sizes]
        enclosed = [(f"facture-{next(_serial)}.pdf", "application/pdf", content) for content in contents]
        data = mail(SENDER, recipients, *enclosed)
        message_id = next(line[12:] for line in data.decode("latin-1").split("\r\n") if line.startswith("Message-ID: "))
        new = Letter(data, message_id, recipients, tuple(map(digest, contents)))
        with self._lock:
            self.letters[message_id] = new
        return new

    def deposit(self, folder: Path, *, size: int = 0, lay: Callable[[Path, bytes], object] = moved_in) -> Path:
        """A document, whole from its first instant."""
        content = document(size)
        path = folder / f"depot-{next(_serial)}.pdf"
        with self._lock:
            self.deposits[digest(content)] = path
        lay(path, content)
        with self._lock:
            self._laid.add(digest(content))
        return path

    def laid(self) -> dict[str, Path]:
        """The deposits that stand in their place by now."""
        with self._lock:
            return {sha256: path for sha256, path in self.deposits.items() if sha256 in self._laid}

    def known(self) -> set[str]:
        """Every document there is any business with."""
        with self._lock:
            letters = list(self.letters.values())
            return {sha256 for letter in letters for sha256 in letter.documents} | set(self.deposits) | self.baseline


def by_data(port: int, letter: Letter) -> bool:
    with smtplib.SMTP(HOST, port, local_hostname=HELLO, timeout=60) as server:
        return not server.sendmail(SENDER, letter.recipients, letter.data, ["BODY=8BITMIME"])


def by_chunks(port: int, letter: Letter) -> bool:
    with Halfway(port, letter, chunks=True) as half:
        return half.finish()


def post(port: int, letter: Letter, how: Callable[[int, Letter], bool] = by_data) -> bool:
    """One attempt; True where the 250 came. A line that breaks is what these tests are about, not an error."""
    letter.attempts += 1
    answered = False
    with contextlib.suppress(OSError, smtplib.SMTPException):
        answered = how(port, letter)
    letter.answered |= answered
    return answered


class Halfway:
    """A mail that stops in the middle until `finish`, which tells whether its 250 came."""

    def __init__(self, port: int, letter: Letter, *, chunks: bool = False) -> None:
        self._letter, self._chunks = letter, chunks
        self._dialogue = Dialogue(port, timeout=60)
        self._dialogue.hello()
        codes = [reply.code for reply in self._dialogue.envelope(SENDER, *letter.recipients)]
        assert set(codes) == {250}, codes
        body = letter.data if chunks else stuffed(letter.data)
        first, self._rest = body[: len(body) * 2 // 3], body[len(body) * 2 // 3 :]
        if chunks:
            assert self._dialogue.chunk(first).code == 250
        else:
            assert self._dialogue.say("DATA").code == 354
            self._dialogue.send(first)

    def __enter__(self) -> "Halfway":
        return self

    def __exit__(self, *_: object) -> None:
        self._dialogue.close()

    def finish(self) -> bool:
        try:
            if self._chunks:
                answered = self._dialogue.last_chunk(self._rest).code == 250
            else:
                self._dialogue.send(self._rest)
                answered = self._dialogue.reply().code == 250
        except OSError:
            return False
        self._letter.answered |= answered
        return answered


def visible(root: Path) -> Iterator[Path]:
    """The documents a client sees below `root`: every file that is not hidden."""
    return (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
