"""The mails of the soak, and the steady stream of them: what each kind is, when each was due, what it was answered.

Knows alone: how a mail of the soak is made unmistakable (a number in its Message-ID and inside its document), and how
`steady.c` is called. Limits: needs a C compiler (Debian: gcc, libc6-dev).
"""

import base64
import shutil
import signal
import statistics
import subprocess
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.crash.ledger import SENDER
from tests.support.clients import HELLO, mail, stuffed
from tests.support.documents import pdf_of_size, zip_of_size

CLIENTS = 20
MARK = b"SoakSerialNumber"  # 16 digits of base64, which the number takes the place of
LINE = 57  # bytes of a document in one line of base64
TOP = b"X-Soak: "  # the first header of each mail: what is above it when it arrives is the relay's
CONNECTIONS = 200  # at most, of the steady stream: a server that is slow must not slow the schedule
KILOBYTE, MEGABYTE = 1000, 1_000_000


class SoakError(RuntimeError):
    """The soak itself cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Kind:
    """`weight` is of 1000 mails; `document` are its bytes with the mark still in them."""

    name: str
    weight: int
    recipient: str  # with one %d for the number of the client
    code: int  # the answer it must get
    document: bytes
    data: bytes  # the mail, with its marks

    def recipient_of(self, number: int) -> str:
        return self.recipient % (number % CLIENTS)

    @property
    def files(self) -> bool:
        return self.recipient.startswith("ventes+")

    @property
    def small(self) -> bool:
        return len(self.data) < 100 * KILOBYTE


# name, weight, recipient, answer, bytes of the document
_KINDS = (
    ("meg 20 kB", 620, "meg+client-%d@welyb.fr", 250, 14_000),
    ("achats 20 kB", 160, "meg+achats+client-%d@welyb.fr", 250, 14_000),
    ("ventes 20 kB", 140, "ventes+client-%d@welyb.fr", 250, 14_000),
    ("meg 1 MB", 35, "meg+client-%d@welyb.fr", 250, 730 * KILOBYTE),
    ("ventes 1 MB", 10, "ventes+client-%d@welyb.fr", 250, 730 * KILOBYTE),
    ("meg 10 MB", 5, "meg+client-%d@welyb.fr", 250, 10 * MEGABYTE),
    ("ZIP", 30, "meg+client-%d@welyb.fr", 554, 14_000),
)


def kinds() -> tuple[Kind, ...]:
    return tuple(_kind(*each) for each in _KINDS)


def _kind(name: str, weight: int, recipient: str, code: int, size: int) -> Kind:
    document = marked(zip_of_size(size) if name == "ZIP" else pdf_of_size(size))
    plain = mail(SENDER, "collecte@welyb.fr", ("facture.pdf", "application/pdf", document))
    lines = [b"Message-ID: <" + MARK + f"@{HELLO}>".encode() if _is_id(line) else line for line in plain.split(b"\r\n")]
    return Kind(name, weight, recipient, code, document, TOP + name.encode() + b"\r\n" + b"\r\n".join(lines))


def _is_id(line: bytes) -> bool:
    return line.startswith(b"Message-ID: ")


def marked(document: bytes) -> bytes:
    """The same size; twelve bytes in the middle are those that the mark stands for in base64."""
    at = len(document) // 2 // LINE * LINE  # at the beginning of a line of base64, so that none divides it
    inside = base64.b64decode(MARK)
    return document[:at] + inside + document[at + len(inside) :]


def digits(number: int) -> bytes:
    return b"%016d" % number


def numbered(document: bytes, number: int) -> bytes:
    """The document that mail `number` carries."""
    return document.replace(base64.b64decode(MARK), base64.b64decode(digits(number)))


def number_in(document: bytes) -> int | None:
    """The other way round; None for a document that is not of the soak's mails."""
    at = len(document) // 2 // LINE * LINE
    found = base64.b64encode(document[at : at + 12])
    return int(found) if found.isdigit() else None


def message_id(number: int) -> str:
    return f"<{number:016d}@{HELLO}>"


# --- what became of them ------------------------------------------------------------------------------------------------


class Account:
    """One entry for each mail, by its number: kind, when it was due (seconds of the soak), how long, the answer."""

    def __init__(self, kinds: Sequence[Kind]) -> None:
        self.kinds = kinds
        self.numbers, self.kind, self.code, self.tries = array("q"), array("B"), array("H"), array("B")
        self.due, self.took = array("d"), array("d")
        self._lock = threading.Lock()

    def add(self, words: Sequence[str], offset: float) -> None:
        """A line of the generator, whose clock began `offset` seconds after the soak's."""
        number, kind, due, took, code, tries = words
        with self._lock:
            self.numbers.append(int(number))
            self.kind.append(int(kind))
            self.due.append(float(due) + offset)
            self.took.append(float(took))
            self.code.append(int(code))
            self.tries.append(int(tries))

    def __len__(self) -> int:
        return len(self.numbers)

    def each(self) -> Iterator[tuple[int, Kind, int]]:
        """(number, kind, answer)"""
        for number, kind, code in zip(self.numbers, self.kind, self.code, strict=True):
            yield number, self.kinds[kind], code

    def times(self, first: int, wanted: Callable[[int, float], bool]) -> list[float]:
        """How long the mails from entry `first` on took, of those that `wanted(kind, due)`; answered ones only."""
        with self._lock:
            last = len(self.numbers)
        chosen = (at for at in range(first, last) if self.code[at] and wanted(self.kind[at], self.due[at]))
        return [self.took[at] for at in chosen]


def percentile(times: Sequence[float], share: float) -> float:
    """In milliseconds; 0 of nothing."""
    return 1000 * sorted(times)[int((len(times) - 1) * share)] if times else 0.0


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


# --- the generator ------------------------------------------------------------------------------------------------------


class Generator:
    """`steady.c`, compiled, and the mails laid out for it in `folder`."""

    def __init__(self, folder: Path, kinds: Sequence[Kind]) -> None:
        self._folder, self._kinds = folder, kinds
        folder.mkdir(parents=True)
        compiler = shutil.which("cc")
        if compiler is None:
            raise SoakError("no C compiler. Remedy: apt-get install gcc libc6-dev")
        source = Path(__file__).with_name("steady.c")
        command = [compiler, "-O2", "-Wall", "-pthread", "-o", str(folder / "steady"), str(source)]
        subprocess.run(command, check=True, timeout=120)
        for number, kind in enumerate(kinds):
            (folder / str(number)).write_bytes(stuffed(kind.data))

    def command(self, port: int, *, rate: float, seconds: float, first: int) -> list[str]:
        """`rate` 0: ten connections, as fast as they are served."""
        words = [port, rate, seconds, CONNECTIONS if rate else 10, first, SENDER]
        mails = [
            f"{kind.weight}:{CLIENTS}:{kind.recipient}:{self._folder / str(n)}" for n, kind in enumerate(self._kinds)
        ]
        return [str(self._folder / "steady"), *map(str, words), *mails]


class Stream:
    """A generator at work; what it says goes into the account as it says it."""

    def __init__(self, command: Sequence[str], account: Account, *, began: float) -> None:
        """`began` is the soak's zero, in seconds of time.monotonic()."""
        self._account, self._began = account, began
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        offset = 0.0
        with self._process.stdout as lines:
            for line in lines:
                words = line.split()
                if words[0] == "began":
                    offset = float(words[1]) - self._began
                else:
                    self._account.add(words, offset)

    def wait(self, timeout: float) -> None:
        """Until its time is over and each of its mails was answered, or given up."""
        code = self._process.wait(timeout)
        self._reader.join(timeout)
        if code != 0:
            raise SoakError(f"the generator ended with {code}")

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(10)
