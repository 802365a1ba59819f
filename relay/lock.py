"""One process at a time: a lock on a file of the data folder, let go by its holder's death, whatever it dies of.

Knows alone: how it is taken. Limits: flock(2), so one machine.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STEP = 0.02


@contextmanager
def held(path: Path, refusal: Exception, *, within: float = 0) -> Iterator[int]:
    """Its descriptor, for the life of the block. Raises `refusal` where another still holds it after `within` seconds."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + within
    try:
        while not _taken(fd):
            if time.monotonic() >= deadline:
                raise refusal
            time.sleep(STEP)
        yield fd
    finally:
        os.close(fd)


def _taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
