"""System calls that fail or dawdle, from outside: strace's inject, so that the product carries no test code.

Limits: `when` counts in each thread apart, over the calls on `path` alone.
"""

import itertools
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.crash.strace import attached
from tests.support import debian
from tests.support.relay import Relay

_logs = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Failing:
    """What strace did during the block."""

    log: Path

    def calls(self) -> int:
        """How many calls were tampered with so far."""
        return len(re.findall(r"\(INJECTED\)|\(DELAYED\)", self.log.read_text(errors="replace")))


@contextmanager
def failing(relay: Relay, calls: str, path: Path, how: str = "error=EIO:when=1") -> Iterator[Failing]:
    """In every process of the relay, `calls` on `path` go as `how` says, from before the block to its end."""
    log = relay.folder / f"strace-{next(_logs)}.err"
    log.touch()
    with ExitStack() as stack:
        for pid in processes(relay):
            options = [debian.program("strace"), "-f", "-y", "-A", "-e", "signal=none", "-e", f"trace={calls}"]
            options += ["-e", f"inject={calls}:{how}", "-P", str(path), "-o", str(log)]
            stack.enter_context(attached(pid, options))
        yield Failing(log)


def processes(relay: Relay) -> list[int]:
    """The daemon, then its workers."""
    pid = relay.program.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


@contextmanager
def running(relay: Relay, *verb: str, calls: str, path: Path, how: str) -> Iterator[Failing]:
    """A command of the relay's, from its start to its end."""
    log = relay.folder / f"strace-{next(_logs)}.err"
    options = [debian.program("strace"), "-f", "-y", "-e", "signal=none", "-e", f"trace={calls}"]
    options += ["-e", f"inject={calls}:{how}", "-P", str(path), "-o", str(log), "--"]
    subprocess.run(
        [*options, *relay.program.command[:-1], *verb], cwd=relay.folder, capture_output=True, timeout=100, check=True
    )
    yield Failing(log)
