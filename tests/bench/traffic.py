"""The load generator and the sink: two small C programs of this folder, compiled when they are first needed.

Knows alone: how they are called and what they print. Limits: needs a C compiler (Debian: gcc, libc6-dev).
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.program import Program, answers, free_port

HERE = Path(__file__).parent
TIMEOUT = 600


class BenchError(RuntimeError):
    """A measurement that cannot be believed; the message says why."""


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="welyb-bench-")  # gone when this process ends


@cache
def _program(name: str) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        raise BenchError("no C compiler. Remedy: apt-get install gcc libc6-dev")
    made = Path(_folder().name) / name
    command = [compiler, "-O2", "-Wall", "-pthread", "-o", str(made), str(HERE / f"{name}.c")]
    subprocess.run(command, check=True, timeout=TIMEOUT)
    return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One stretch of traffic: for `seconds`, or until `messages` are taken. Each mail is of `bytes`, or is `mail`, a file
    without a Message-ID."""

    bytes: int = 0
    mail: Path | None = None
    connections: int = 1
    messages: int = 0
    seconds: float = 0
    per_connection: int = 1  # 0: one connection for all of them
    pipelined: bool = False
    bdat: bool = False
    recipient: str = "user%d@dest.example"
    users: int = 10

    def send(self, port: int) -> dict[str, Any]:
        """What the generator has to say; a mail that was not taken is an error."""
        options = {"p": port, "c": self.connections, "b": self.bytes, "k": self.per_connection, "u": self.users}
        length = {"n": self.messages} if self.messages else {"s": self.seconds}
        words = [f"-{letter}{value}" for letter, value in {**options, **length, "t": self.recipient}.items()]
        words += [f"-m{self.mail}"] if self.mail else []
        words += ["-P"] * self.pipelined + ["-B"] * self.bdat
        done = subprocess.run([_program("load"), *words], capture_output=True, text=True, timeout=TIMEOUT, check=False)
        said: dict[str, Any] = json.loads(done.stdout or '{"errors": 1, "first_error": "no output"}')
        if said["errors"] > 0:
            raise BenchError(f"{said['errors']} mails were not taken: {said['first_error']}")
        return said


class Sink:
    """What the servers send to, on one port for the whole bench."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self._folder = folder

    @contextmanager
    def expecting(self, messages: int) -> Iterator[Program]:
        """Listens until `messages` have come, or the block ends."""
        program = Program([_program("sink"), str(self.port), str(messages)], self._folder, name="sink")
        program.start(lambda: answers("127.0.0.1", self.port))
        try:
            yield program
        finally:
            program.kill()


def received(program: Program, timeout: float) -> dict[str, Any]:
    """Waits for the last of the messages expected: how many, how large together, and when it came."""
    assert program.process is not None
    try:
        program.process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise BenchError("not every message came within the time") from None
    found: dict[str, Any] = json.loads(program.written())
    return found
