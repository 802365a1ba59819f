"""How much of the C library's memory threads keep to themselves."""

import subprocess
import sys
from pathlib import Path

from relay import memory

THREADS = """
import ctypes, sys, threading
from relay import memory
if sys.argv[1] == "shared":
    memory.share_arenas()
together = threading.Barrier(8)
def work():
    together.wait()
    kept = bytes(20_000)
    together.wait()
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""


def arenas(told: Path, how: str) -> int:
    subprocess.run([sys.executable, "-c", THREADS, how, str(told)], check=True, timeout=30)
    return told.read_text().count("<heap nr=")


def test_threads_share_what_memory_they_have(tmp_path: Path) -> None:
    assert arenas(tmp_path / "own", "own") > memory.ARENAS, "else the setting says nothing here"
    assert arenas(tmp_path / "shared", "shared") <= memory.ARENAS
