"""Death at a chosen system call, from outside: strace's inject, so that the product carries no test code.

Knows alone: how a process is made to die as it enters the n-th call of a kind on a path, and how it is seen that it died
there and nowhere else. Limits: `nth` counts in each thread apart, on that path; the call itself is not made; what the
process had given to the kernel stays, so that this is a killed process and not a power cut.
"""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support import debian
from tests.support.program import ProgramFailed

DIES_WITHIN = 20  # seconds


@dataclass(frozen=True, slots=True)
class Point:
    """The `nth` time that a thread makes `call` on `path` (a file, or a folder by its descriptor; any, without)."""

    call: str
    path: Path | None = None
    nth: int = 1

    def options(self, log: Path) -> list[str]:
        """strace's, for the process to die at this point."""
        inject = f"inject={self.call}:signal=SIGKILL:when={self.nth}"
        return [*_watching(self.call, log), "-e", inject, *(("-P", str(self.path)) if self.path else ())]

    def under(self, log: Path) -> list[str]:
        """What to put before a command. -D: the process is the command, and strace its grandchild."""
        return [*self.options(log), "-D", "--"]

    def check(self, log: Path) -> None:
        """Did it die here?"""
        calls = [line for line in log.read_text(errors="replace").splitlines() if f"{self.call}(" in line]
        if not calls or not re.search(r"= \?$|<unfinished", calls[-1]) or len(calls) < self.nth:
            told = "\n".join(calls[-20:]) or "(no such call)"
            raise ProgramFailed(f"it did not die at {self}, the calls were:\n{told}")


def _watching(calls: str, log: Path) -> list[str]:
    return [
        debian.program("strace"),
        "-f",
        "-y",
        "-s",
        "80",
        "-e",
        "signal=none",
        "-e",
        f"trace={calls}",
        "-o",
        str(log),
    ]


@contextmanager
def attached(pid: int, options: list[str]) -> Iterator[subprocess.Popen[str]]:
    """strace on a process that runs, from before the block until the process is dead or the block is over."""
    strace = subprocess.Popen([*options, "-p", str(pid)], stderr=subprocess.PIPE, text=True)
    assert strace.stderr is not None
    try:
        said = strace.stderr.readline()
        if "attached" not in said:
            raise ProgramFailed(f"strace: {said or 'no word'}")
        yield strace
    finally:
        strace.terminate()
        strace.stderr.close()
        strace.wait()


@contextmanager
def watched(pid: int, calls: str, log: Path) -> Iterator[None]:
    """Only looks: `log` lists the `calls` made during the block."""
    with attached(pid, _watching(calls, log)):
        yield
