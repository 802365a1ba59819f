"""A root of its own for every peer: the machine's file system below, what Debian's package adds above.

Knows alone: how a peer is installed as its package wants to be, and yet nothing of the machine changes. The layers are
kept under .venv/bench, so that only the first bench needs a package mirror. All mounts are made in a mount namespace of
the bench itself and vanish with it.
Limits: root, and a kernel with overlayfs.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.bench.traffic import BenchError

HOME = Path(__file__).resolve().parents[2] / ".venv" / "bench"
_PRIVATE = "WELYB_BENCH_PRIVATE"


def enter_private_mounts(module: str) -> None:
    """Starts this process over in a mount namespace of its own; without the rights for it, goes on as it is."""
    if os.environ.get(_PRIVATE) or os.geteuid() != 0 or shutil.which("unshare") is None:
        return
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0:
        os.environ[_PRIVATE] = "1"
        os.execvp("unshare", ["unshare", "--mount", sys.executable, "-m", module, *sys.argv[1:]])


def alone() -> int:
    """One bench at a time: two would share the roots, and measure each other. Held until this process ends."""
    HOME.mkdir(parents=True, exist_ok=True)
    held = os.open(HOME / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BenchError("another bench is running") from None
    return held


def may_mount() -> bool:
    return _PRIVATE in os.environ


def run(*command: str | Path, timeout: float = 600) -> str:
    """Runs to its end and gives its output. Raises BenchError with the end of what it wrote."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        timeout=timeout,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout[-2000:]}")
    return done.stdout


class Root:
    """`path` looks like this machine with `packages` installed."""

    def __init__(self, name: str, packages: Sequence[str]) -> None:
        self._home = HOME / name
        self._packages = packages
        self.path = self._home / "root"

    def prepare(self) -> None:
        """Mounts it, and installs what is not there yet."""
        upper, work = self._home / "upper", self._home / "work"
        for folder in (upper, work, self.path):
            folder.mkdir(parents=True, exist_ok=True)
        layers = f"lowerdir=/,upperdir={upper},workdir={work}"
        run("mount", "-t", "overlay", "overlay", "-o", layers, self.path)
        run("mount", "-t", "proc", "proc", self.path / "proc")
        run("mount", "--rbind", "/dev", self.path / "dev")
        done = self._home / "installed"
        if done.exists() and done.read_text() == " ".join(self._packages):
            return
        nothing_starts = self.path / "usr/sbin/policy-rc.d"
        nothing_starts.write_text("#!/bin/sh\nexit 101\n")
        nothing_starts.chmod(0o755)
        self.run("apt-get", "update", "-qq")
        quietly = ("env", "DEBIAN_FRONTEND=noninteractive")
        self.run(*quietly, "apt-get", "install", "-y", "-qq", "--no-install-recommends", *self._packages)
        done.write_text(" ".join(self._packages))

    def command(self, *words: str) -> list[str]:
        return ["chroot", str(self.path), *words]

    def run(self, *words: str) -> str:
        return run(*self.command(*words))

    def write(self, path: str, text: str) -> None:
        place = self.path / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)

    def bind(self, source: Path, target: str) -> None:
        """`source` appears at `target`: a queue then lies on the file system that is measured."""
        run("mount", "--bind", source, self.path / target.lstrip("/"))

    def unbind(self, target: str) -> None:
        run("umount", self.path / target.lstrip("/"))


def journaled(folder: Path, gigabytes: int) -> None:
    """Mounts an ext4 with a journal, the usual kind, at `folder`: in a file, on a machine whose own has none."""
    folder.mkdir(parents=True, exist_ok=True)
    image = folder.with_suffix(".img")
    # Written, not sparse: else the first use of every block would be measured too.
    run("dd", "if=/dev/zero", f"of={image}", "bs=4M", f"count={gigabytes * 256}", "conv=fsync", "status=none")
    run("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image)
    run("mount", "-o", "loop", image, folder)
    image.unlink()  # the mount holds it, and lets its blocks go when the bench ends
