"""Disks that fill, go and come: small tmpfs and bind mounts of this machine's own kernel.

Knows alone: how they are mounted, and taken away again whatever became of the test. Limits: Linux, root, and a machine
that lets root mount (a container may not): elsewhere the test is skipped, and fails where CI=true.
"""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support import debian

PIECE = 4096


class Disk:
    """A file system at `path`, which may be filled to the last block or the last inode, and emptied again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self, *, leave: int = 0) -> None:
        """Until `leave` bytes are free, a whole number of pages."""
        free = os.statvfs(self.path)
        with self._filler.open("ab") as filler:
            os.posix_fallocate(filler.fileno(), 0, self._size() + free.f_bavail * free.f_frsize - leave)

    def _size(self) -> int:
        return self._filler.stat().st_size if self._filler.exists() else 0

    def use_up_inodes(self, *, leave: int = 0) -> None:
        number = 0
        with suppress(OSError):
            while True:
                (self.path / f"filler-{number}").touch()
                number += 1
        for back in range(number - leave, number):
            (self.path / f"filler-{back}").unlink()

    def empty(self) -> None:
        """What filled it goes."""
        for filler in self.path.glob("filler*"):
            filler.unlink()

    def full(self) -> bool:
        try:
            with (self.path / "probe").open("wb") as probe:
                probe.write(b"x" * PIECE)
        except OSError as error:
            return error.errno == errno.ENOSPC
        finally:
            (self.path / "probe").unlink(missing_ok=True)
        return False


@contextmanager
def small(path: Path, size: int = 8 << 20, *, inodes: int = 0) -> Iterator[Disk]:
    """A tmpfs of `size` bytes over the folder `path`, which is made where missing."""
    path.mkdir(parents=True, exist_ok=True)
    options = f"size={size},mode=700" + (f",nr_inodes={inodes}" if inodes else "")
    with _mounted("-t", "tmpfs", "-o", options, "tmpfs", on=path):
        yield Disk(path)


@contextmanager
def bound(source: Path, path: Path, *options: str) -> Iterator[None]:
    """`source` seen at `path` too, "ro" or not."""
    with _mounted("--bind", "-o", ",".join(options or ("rw",)), str(source), on=path):
        yield


@contextmanager
def _mounted(*arguments: str, on: Path) -> Iterator[None]:
    debian.require("root")
    done = subprocess.run(["mount", *arguments, str(on)], capture_output=True, text=True, check=False)
    if done.returncode:
        why = f"no mount here: {done.stderr.strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(why, pytrace=False)
        pytest.skip(why)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(on)], check=True)
