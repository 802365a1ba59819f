"""What the bench asks of a mail server: to start with an empty queue, keep what comes, send it on word, list it, stop."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from tests.bench.meter import Group
from tests.bench.roots import Root, run
from tests.support.program import Program, answers, free_port

Mode = Literal["hold", "relay"]
SIZE_LIMIT = 52_428_800


@dataclass(frozen=True, slots=True)
class Place:
    """`spool` is a folder on the file system that is measured; `sink_port` is where everything is sent."""

    spool: Path
    sink_port: int


class Server:
    """`can` names the measurements it takes part in."""

    name: ClassVar[str]
    can: ClassVar[frozenset[str]]
    recipient: ClassVar[str] = "user%d@dest.example"

    def __init__(self, place: Place) -> None:
        self.place = place
        self.port = free_port()
        self.group = Group(self.name)
        self.program: Program | None = None
        self.folder = place.spool / self.name
        self.last_run: dict[str, Any] = {}  # what it says itself of the last time it was flushed

    def prepare(self) -> None:
        """Once: whatever has to be installed."""

    def version(self) -> str:
        raise NotImplementedError

    def start(self, mode: Mode) -> None:
        """With an empty queue; `hold` keeps what comes, `relay` sends it on at once."""
        shutil.rmtree(self.folder, ignore_errors=True)  # of a bench that was cut off
        self.folder.mkdir(parents=True)
        self.run_server(self.configured(mode))

    def configured(self, mode: Mode) -> Sequence[str]:
        """Lays out the queue and the settings; the command that serves, in the foreground."""
        raise NotImplementedError

    def run_server(self, command: Sequence[str]) -> None:
        self.program = Program([*self.group.prefix, *command], self.folder, name="server")
        self.program.start(lambda: answers("127.0.0.1", self.port), timeout=30)
        self.group.adopt(self.program.pid)

    def stop(self) -> None:
        """Also after a failure half-way; the queue is gone afterwards."""
        if self.program is not None:
            self.program.process and self.program.process.terminate()
            end = time.monotonic() + 10
            while self.group.pids() and time.monotonic() < end:
                self.program.process and self.program.process.poll()
                time.sleep(0.02)
            self.group.clear()
            self.program.kill()
            self.program = None
        self.cleared()
        shutil.rmtree(self.folder, ignore_errors=True)

    def cleared(self) -> None:
        """Undoes what `configured` did outside the folder."""

    def flush(self) -> None:
        """Begins to send what is kept."""
        raise NotImplementedError

    def listing(self) -> Sequence[str]:
        """The command that lists the queue."""
        raise NotImplementedError


class Packaged(Server):
    """A server from Debian in a root of its own. `queue` is where its package has it."""

    packages: ClassVar[tuple[str, ...]]
    queue: ClassVar[str]

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.root = Root(self.name, self.packages)
        self._bound = False

    def prepare(self) -> None:
        self.root.prepare()

    def lay_queue(self) -> None:
        """An empty queue as the package made it, on the file system that is measured."""
        run("cp", "-a", self.root.path / self.queue.lstrip("/"), self.folder / "queue")
        self.root.bind(self.folder / "queue", self.queue)
        self._bound = True

    def cleared(self) -> None:
        if self._bound:
            self.root.unbind(self.queue)
            self._bound = False
