"""What a run costs: processor time and memory of all processes of a server, and what else kept the machine busy.

Knows alone: how a server's processes are found. With the rights for it (root) they are put in a control group, which
counts those that have ended too; else the family tree of what was started is added up, as far as it can be seen.
"""

import os
import signal
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TICKS = os.sysconf("SC_CLK_TCK")
SAMPLE_EVERY = 0.2  # seconds between two looks at memory
_ROOTS = (Path("/sys/fs/cgroup/cpuacct"), Path("/sys/fs/cgroup"))  # version 1, version 2


class Group:
    """The processes of one server. `prefix` goes before every command that starts some of them."""

    def __init__(self, name: str) -> None:
        self._folder = _new_group(name)
        self._started: set[int] = set()

    @property
    def prefix(self) -> list[str]:
        if self._folder is None:
            return []
        # 0 is whoever writes: the shell enters the group, and then becomes the command.
        return ["sh", "-c", 'echo 0 > "$0" && exec "$@"', str(self._folder / "cgroup.procs")]

    def adopt(self, pid: int) -> None:
        """A process that was started, for the family tree."""
        self._started.add(pid)

    def pids(self) -> set[int]:
        if self._folder is not None:
            return {int(pid) for pid in (self._folder / "cgroup.procs").read_text().split()}
        parents = {int(pid): int(fields[1]) for pid, fields in _processes()}
        family = self._started & parents.keys()
        while more := {pid for pid, parent in parents.items() if parent in family} - family:
            family |= more
        return family

    def cpu(self) -> float:
        """Seconds so far."""
        if self._folder is None:
            family = self.pids()
            # With those of children that have ended and were waited for.
            return sum(sum(map(int, f[11:15])) for pid, f in _processes() if int(pid) in family) / TICKS
        usage = self._folder / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text()) / 1e9
        return int((self._folder / "cpu.stat").read_text().split()[1]) / 1e6

    def memory(self) -> tuple[float, float, float]:
        """MB of RSS (pages shared by several are counted several times), of PSS (once), and of the largest PSS."""
        sizes = [size for pid in self.pids() if (size := _memory(pid))]
        return sum(rss for rss, _ in sizes), sum(pss for _, pss in sizes), max((pss for _, pss in sizes), default=0)

    def clear(self) -> None:
        """Kills by its id whatever of it still runs."""
        for _ in range(100):
            left = self.pids()
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            if not left:
                break
            time.sleep(0.02)
        self._started.clear()

    def remove(self) -> None:
        self.clear()
        if self._folder is not None:
            self._folder.rmdir()


def _new_group(name: str) -> Path | None:
    for root in _ROOTS:
        folder = root / f"welyb-bench-{os.getpid()}-{name}"
        if root.is_dir() and (root / "cgroup.procs").exists():
            try:
                folder.mkdir()
            except OSError:
                continue
            return folder
    return None


def _processes() -> list[tuple[str, list[str]]]:
    """(pid, the fields of its stat from the state on)."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            found.append((pid, Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()))
        except OSError:
            pass  # it has ended
    return found


def _memory(pid: int) -> tuple[float, float] | None:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return None
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines}
    return (sizes["Rss"], sizes["Pss"]) if "Rss" in sizes else None


def _machine_busy() -> float:
    user, nice, system, _idle, _wait, irq, softirq = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8]
    )
    return (user + nice + system + irq + softirq) / TICKS


class Meter:
    """Around one run. Afterwards `facts` has what it cost."""

    def __init__(self, group: Group) -> None:
        self.facts: dict[str, Any] = {}
        self._group = group
        self._over = threading.Event()
        self._peaks = (0.0, 0.0, 0.0)
        self._watch = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._begun = self._group.cpu(), _machine_busy(), sum(os.times()[:4]), time.monotonic()
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(SAMPLE_EVERY):
            sizes = self._group.memory()
            self._peaks = (max(self._peaks[0], sizes[0]), max(self._peaks[1], sizes[1]), max(self._peaks[2], sizes[2]))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._watch.join()
        cpu, busy, ours, clock = self._begun
        seconds = time.monotonic() - clock
        spent = self._group.cpu() - cpu
        bench = sum(os.times()[:4]) - ours  # with the generator, which was waited for
        self.facts = {
            "cpu_s": spent,
            "wall_s": seconds,
            "rss_mb": self._peaks[0],
            "pss_mb": self._peaks[1],
            "pss_largest_mb": self._peaks[2],
            "others": max(0.0, _machine_busy() - busy - spent - bench) / seconds,  # cores; the kernel's own work too
        }
