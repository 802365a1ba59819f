"""What the kernel says of a process and of files: who it is, what it may do, whose they are."""

import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.debian import program
from tests.support.relay import Relay, command, from_source


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status, field by field."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def workers(relay: Relay) -> list[int]:
    """The processes that take mail beside the daemon."""
    pid = relay.program.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def everything(folder: Path) -> list[Path]:
    """`folder` and all that is below it; links are not followed."""
    return [folder, *(Path(top) / name for top, folders, files in os.walk(folder) for name in (*folders, *files))]


def modes(folder: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for path in everything(folder):
        try:
            found[str(path.relative_to(folder))] = stat.S_IMODE(path.lstat().st_mode)
        except FileNotFoundError:
            pass  # SQLite's own, gone with its last user
    return found


def owners(*folders: Path) -> set[tuple[int, int]]:
    """(user, group) of everything in them."""
    found = set()
    for path in (path for folder in folders for path in everything(folder)):
        try:
            found.add((path.lstat().st_uid, path.lstat().st_gid))
        except FileNotFoundError:
            pass
    return found


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach: pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="welyb-relay-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_user(uid: int) -> list[str]:
    """What starts a program as that user, with no group but its own."""
    return [program("setpriv"), f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all"]


def reachable_by(uid: int) -> list[str]:
    """The product as that user can run it: an interpreter below /root, say, is out of its reach."""
    said = ""
    for product in (command(), from_source(f"/usr/bin/python3.{sys.version_info.minor}")):
        # Through env: what setpriv itself starts is still opened with root's rights.
        trial = [*as_user(uid), program("env"), *product, "--version"]
        done = subprocess.run(trial, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return product
        said += done.stderr[-200:]
    pytest.skip(f"a plain user cannot run what is installed here: {said}")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """For the commands given meanwhile."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def until(holds: Callable[[], object], *, timeout: float = 60) -> None:
    end = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
