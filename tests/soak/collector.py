"""The receiving server of the soak, a process of its own: takes mail, writes down what it took, and misbehaves on word.

    python -m tests.soak.collector PORT LOG

On its standard input: `refuse N` answers 451 to the next N RCPT, `defer N` to the next N dots, `vanish N` takes the next N
mails and hangs up instead of answering, `mend 0` ends all three; `away S` closes everything for S seconds. In LOG a line
for each mail taken: FATE, MESSAGE-ID, RECIPIENT, DIGEST, separated by tabs; FATE is `answered` or `vanished`.
Knows alone: DIGEST. Of a mail of the soak it is the SHA-256 of what the client wrote, with the mark where the number
was, so that all mails of a kind have one; of anything else, "documents:" and the SHA-256 of each document.
Limits: one process, one thread; enough for a thousand mails a second.
"""

import asyncio
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.crash.audit import hashes
from tests.soak.traffic import MARK, TOP, SoakError
from tests.support.program import LOOK_EVERY, answers, free_port, tail

END = b"\r\n.\r\n"
EHLO = b"250-mx.meg.test\r\n250-PIPELINING\r\n250-SIZE 30000000\r\n250 8BITMIME\r\n"
_ID = re.compile(rb"(?mi)^Message-ID: (\S+)")
_NUMBER = re.compile(rb"<(\d{16})@")


def digest(message: bytes) -> tuple[str, str]:
    """(Message-ID, digest) of a message as it came over the wire, without its dots."""
    head = message[: message.find(b"\r\n\r\n")]
    found = _ID.search(head)
    name = found[1].decode(errors="replace") if found else "?"
    at = message.find(b"\r\n" + TOP)
    number = _NUMBER.match(name.encode())
    if at < 0 or number is None:
        return name, "documents:" + ",".join(sorted(hashes(message)))
    return name, hashlib.sha256(message[at + 2 :].replace(number[1], MARK)).hexdigest()


class Taking:
    """What all its connections share."""

    def __init__(self, log: IO[str]) -> None:
        self.log = log
        self.due: Counter[str] = Counter()  # misdeeds still to be done
        self.open: set[Session] = set()

    def told(self, word: str) -> None:
        how, _, count = word.partition(" ")
        if how == "mend":
            self.due.clear()
        else:
            self.due[how] += int(count)

    def misbehaves(self, how: str) -> bool:
        if self.due[how] <= 0:
            return False
        self.due[how] -= 1
        return True

    def took(self, message: bytes, recipient: str, *, fate: str) -> None:
        name, digested = digest(message)
        self.log.write(f"{fate}\t{name}\t{recipient}\t{digested}\n")
        self.log.flush()


class Session(asyncio.Protocol):
    """One connection."""

    def __init__(self, taking: Taking) -> None:
        self._taking = taking
        self._input = bytearray()
        self._looked = 0  # how far the end of the mail was looked for
        self._in_data = False
        self._recipient = ""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._taking.open.add(self)
        self._say(b"220 mx.meg.test ESMTP\r\n")

    def connection_lost(self, error: Exception | None) -> None:
        self._taking.open.discard(self)

    def cut(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _say(self, text: bytes) -> None:
        if self._transport is not None:
            self._transport.write(text)

    def data_received(self, data: bytes) -> None:
        self._input += data
        while self._mail() if self._in_data else self._command():
            pass

    def _command(self) -> bool:
        line, found, _ = self._input.partition(b"\r\n")
        if not found:
            return False
        del self._input[: len(line) + 2]
        verb = bytes(line[:4]).upper()
        if verb == b"RCPT":
            self._say(self._rcpt(bytes(line)))
        elif verb == b"DATA":
            # The CRLF of the command may be that before the dot.
            self._in_data, self._looked, self._input = bool(self._recipient), 2, bytearray(b"\r\n") + self._input
            self._say(b"354 go ahead\r\n" if self._in_data else b"554 5.5.1 no recipient\r\n")
            if not self._in_data:
                del self._input[:2]
        elif verb == b"QUIT":
            self._say(b"221 2.0.0 bye\r\n")
            assert self._transport is not None
            self._transport.close()
        else:
            self._recipient = "" if verb in (b"MAIL", b"RSET") else self._recipient
            self._say(EHLO if verb == b"EHLO" else b"250 2.0.0 ok\r\n")
        return True

    def _rcpt(self, line: bytes) -> bytes:
        if self._taking.misbehaves("refuse"):
            return b"451 4.7.1 try again later\r\n"
        self._recipient = line.partition(b"<")[2].partition(b">")[0].decode()
        return b"250 2.1.5 ok\r\n"

    def _mail(self) -> bool:
        at = self._input.find(END, max(0, self._looked - len(END)))
        if at < 0:
            self._looked = len(self._input)
            return False
        message = bytes(self._input[2 : at + 2]).replace(b"\r\n..", b"\r\n.")
        del self._input[: at + len(END)]
        self._in_data = False
        if self._taking.misbehaves("defer"):
            self._say(b"451 4.3.0 try again later\r\n")
            return True
        vanishes = self._taking.misbehaves("vanish")
        self._taking.took(message, self._recipient, fate="vanished" if vanishes else "answered")
        if vanishes:
            self.cut()
            return False
        self._say(b"250 2.0.0 taken\r\n")
        return True


async def serve(port: int, log: IO[str]) -> None:
    loop, taking = asyncio.get_running_loop(), Taking(log)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    words: asyncio.Queue[str] = asyncio.Queue()
    loop.add_reader(0, lambda: _hear(words, stop))

    async def listening() -> None:
        while True:
            server = await loop.create_server(lambda: Session(taking), "127.0.0.1", port, backlog=512)
            while not (word := await words.get()).startswith("away"):
                taking.told(word)
            server.close()
            for session in list(taking.open):
                session.cut()
            await asyncio.sleep(float(word.split()[1]))

    work = asyncio.create_task(listening())
    done, _ = await asyncio.wait((work, asyncio.create_task(stop.wait())), return_when=asyncio.FIRST_COMPLETED)
    if work in done:
        work.result()


def _hear(words: asyncio.Queue[str], stop: asyncio.Event) -> None:
    """Without whoever started it, it ends."""
    heard = os.read(0, 4096)
    if not heard:
        stop.set()
    for word in heard.decode().splitlines():
        words.put_nowait(word)


def main() -> None:
    with Path(sys.argv[2]).open("a") as log:
        asyncio.run(serve(int(sys.argv[1]), log))


# --- from outside -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Taken:
    """One mail that the collector says it took."""

    fate: str
    message_id: str
    recipient: str
    digest: str


class FarEnd:
    """The collector as the soak sees it: started, told what to do, stopped. Without the soak it ends."""

    def __init__(self, folder: Path, name: str) -> None:
        self.port = free_port()
        self.log = folder / f"{name}.log"
        self._err = folder / f"{name}.err"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        tree = str(Path(__file__).resolve().parents[2])
        code = f"import sys; sys.path.insert(0, {tree!r}); from tests.soak.collector import main; main()"
        command = [sys.executable, "-c", code, str(self.port), str(self.log)]
        with self._err.open("ab") as err:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=err, start_new_session=True)
        deadline = time.monotonic() + 15
        while not answers("127.0.0.1", self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SoakError(f"the collector did not start: {tail(self._err)}")
            time.sleep(LOOK_EVERY)

    def tell(self, word: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())
        self._process.stdin.flush()

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.communicate()

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def taken(self) -> Iterator[Taken]:
        with self.log.open() as lines:
            for line in lines:
                yield Taken(*line.rstrip("\n").split("\t"))


if __name__ == "__main__":
    main()
