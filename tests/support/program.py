"""A real program run beside a test: started, waited for, stopped by its own process id, its output kept.

Knows alone: how a child is told to end (SIGTERM to it, then SIGKILL to the process group that is its own), and what a
failing test is shown of it. Limits: a test run that is itself killed with SIGKILL leaves its children behind.
"""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LOOK_EVERY = 0.01  # seconds


class ProgramFailed(AssertionError):
    """It ended, or did not get ready, or did not end; the message holds the end of what it wrote."""


class Program:
    """One process in a session of its own. `out` and `err` are files in `folder`, appended to by every start."""

    def __init__(
        self, command: Sequence[str | Path], folder: Path, *, name: str, env: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.command, self.folder, self.name = [str(part) for part in command], folder, name
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        self.logs = [self.out, self.err]  # and whatever else it writes that explains a failure
        self.env = {**os.environ, **(env or {})}
        self.process: subprocess.Popen[bytes] | None = None
        self._began = 0

    def start(self, ready: Callable[[], bool], *, timeout: float = 15) -> None:
        """Run it and come back once `ready()` holds."""
        with self.out.open("ab") as out, self.err.open("ab") as err:
            self._began = out.tell()
            self.process = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        try:
            self._await(ready, time.monotonic() + timeout)
        except BaseException:
            self.kill()
            raise

    def _await(self, ready: Callable[[], bool], deadline: float) -> None:
        while not ready():
            if self.process is None or self.process.poll() is not None:
                raise ProgramFailed(f"{self.name} ended before it was ready\n{self.told()}")
            if time.monotonic() > deadline:
                raise ProgramFailed(f"{self.name} did not get ready\n{self.told()}")
            time.sleep(LOOK_EVERY)

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was never started"
        return self.process.pid

    def written(self) -> str:
        """What it has written on stdout since it was last started."""
        with self.out.open("rb") as out:
            out.seek(self._began)
            return out.read().decode(errors="backslashreplace")

    def told(self) -> str:
        """The end of its outputs, for whoever reads a failure."""
        return "\n".join(f"--- {path.name}\n{tail(path)}" for path in self.logs if path.exists())

    def stop(self, *, timeout: float = 15) -> int:
        """SIGTERM; its exit code (negative: the signal). Harmless when it is not running."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise ProgramFailed(f"{self.name} did not stop on SIGTERM\n{self.told()}") from None
        return self._gone()

    def kill(self) -> int:
        """SIGKILL, to its children too."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.kill()
        return self._gone()

    def _gone(self) -> int:
        """Its exit code, once neither it nor a straggler of its process group runs."""
        assert self.process is not None
        process, self.process = self.process, None
        code = process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return code


def tail(path: Path, *, lines: int = 40) -> str:
    return "\n".join(path.read_text(errors="backslashreplace").splitlines()[-lines:])


def links(pid: int) -> list[str]:
    """Its descriptors, as links in /proc; none once it is gone."""
    folder = f"/proc/{pid}/fd"
    try:
        return [f"{folder}/{name}" for name in os.listdir(folder)]
    except OSError:
        return []


def open_files(*pids: int) -> list[str]:
    """What the descriptors of the processes are, sorted."""
    found = []
    for link in (link for pid in pids for link in links(pid)):
        try:
            found.append(os.readlink(link))
        except OSError:
            pass  # closed meanwhile
    return sorted(found)


def free_port(address: str = "127.0.0.1") -> int:
    """A port nobody has on `address`, for TCP and for UDP."""
    while True:
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind((address, 0))
            port = int(tcp.getsockname()[1])
            try:
                udp.bind((address, port))
            except OSError:
                continue
            return port


def free_address(port: int) -> str:
    """A loopback address on which `port` can be had: how a test has a port 25 of its own. Needs root below 1024."""
    dice = random.SystemRandom()  # not the seeded one: two test runs on one machine must not draw alike
    for _ in range(20):
        address = f"127.{dice.randint(1, 254)}.{dice.randint(0, 255)}.25"
        with socket.socket() as tcp:
            try:
                tcp.bind((address, port))
            except OSError:
                continue
            return address
    raise ProgramFailed(f"port {port} is taken on the loopback addresses, or not permitted")


def listens(address: str, port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex((address, port)) == 0


def answers(address: str, port: int) -> bool:
    """Whether somebody greets there, as SMTP servers do."""
    try:
        with socket.create_connection((address, port), timeout=1) as connection:
            return connection.recv(4).startswith(b"220")
    except OSError:
        return False
