"""How the C library keeps the memory of our processes.

Knows alone: that malloc gives each thread an arena of its own, and that each of these keeps what its thread once needed.
Our threads come and go, ten at a time, and mostly wait: for a disk, or for the interpreter, which one has at a time.
Limits: glibc, as `MALLOC_ARENA_MAX` in the environment; with another C library nothing is done, and nothing lost.
"""

import ctypes

ARENAS = 2  # one for who has the interpreter, one for who works without it
_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h


def share_arenas() -> None:
    """For this process, before its first thread."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_ARENA_MAX, ARENAS)
