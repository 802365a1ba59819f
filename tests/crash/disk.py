"""A disk as a power cut leaves it: read from the log of tests/crash/powercut.c, laid out again as folders and files.

Knows alone: what is durable. The strictest disk there may be: bytes and lengths of a file since its last fsync or
fdatasync, names since the last fsync of the folder that holds them. What came later may be there as well, in any part:
such disks are drawn with dice, sector by sector. Limits: a rename counts in the folder of its new name; file modes and
times are not kept; one write is one step, but for the sectors of its bytes.
"""

import os
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from subprocess import run
from typing import Any

import pytest

from tests.support import debian

SOURCE = Path(__file__).with_name("powercut.c")
SECTOR = 512
_HEAD = struct.Struct("=IIQQQ")
_MEANINGLESS = "-shm"  # SQLite makes it anew whenever nobody has it open


def compiled(folder: Path) -> Path:
    """The library that records."""
    library = folder / "powercut.so"
    command = [debian.program("cc"), "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", str(library)]
    done = run([*command, str(SOURCE), "-ldl", "-lpthread"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library


@contextmanager
def recorded(library: Path, root: Path, log: Path) -> Iterator[dict[str, str]]:
    """Whatever is started within the block is recorded; what it gives is for programs with an environment of their own."""
    wanted = {"LD_PRELOAD": str(library), "POWERCUT_ROOT": str(root), "POWERCUT_LOG": str(log)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in wanted.items():
            patch.setenv(name, value)
        yield wanted


@dataclass(frozen=True, slots=True)
class Record:
    """`kind`: Create, Mkdir, Link, Unlink, Rename; Write, Truncate; F for a sync; Sent."""

    kind: str
    path: str
    data: bytes
    inode: int
    offset: int
    end: int = 0  # where it ends in the log


def records(log: Path) -> list[Record]:
    """All of them, but a last one that death cut short."""
    content, found, at = log.read_bytes(), [], 0
    while at + _HEAD.size <= len(content):
        path, data, inode, offset, kind = _HEAD.unpack_from(content, at)
        start = at + _HEAD.size
        at = start + path + data
        if at <= len(content):
            name = os.path.normpath(content[start : start + path].decode()) if path else ""
            found.append(Record(chr(kind), name, content[start + path : at], inode, offset, at))
    return found


# --- what is durable ----------------------------------------------------------------------------------------------------


@dataclass
class File:
    """Bytes: durable, and what was done to them since."""

    durable: bytearray = field(default_factory=bytearray)
    later: list[Record] = field(default_factory=list)

    def sync(self) -> None:
        for record in self.later:
            _change(self.durable, record)
        self.later.clear()

    def content(self, later: Iterable[Record]) -> bytes:
        content = bytearray(self.durable)
        for record in later:
            _change(content, record)
        return bytes(content)


def _change(content: bytearray, record: Record) -> None:
    length = record.offset + len(record.data)
    if len(content) < length:
        content.extend(bytes(length - len(content)))
    if record.kind == "T":
        del content[record.offset :]
    else:
        content[record.offset : length] = record.data


Name = tuple[str, "File | Folder | None"]  # None: it was taken away


@dataclass
class Folder:
    """Names: durable, and what became of them since; one step may be several names (a rename)."""

    durable: "dict[str, File | Folder]" = field(default_factory=dict)
    later: list[tuple[Name, ...]] = field(default_factory=list)

    def sync(self) -> None:
        self.durable = self.names(self.later)
        self.later.clear()

    def names(self, later: "Iterable[tuple[Name, ...]]") -> "dict[str, File | Folder]":
        names = dict(self.durable)
        for step in later:
            for name, node in step:
                if node is None:
                    names.pop(name, None)
                else:
                    names[name] = node
        return names


Choice = Callable[[File | Folder, list[Any]], list[Any]]


def strictly(node: File | Folder, later: list[Any]) -> list[Any]:
    """Nothing but what was synced."""
    return []


def entirely(node: File | Folder, later: list[Any]) -> list[Any]:
    """As if there had been no cut: what a killed process leaves."""
    return later


def only(kind: type[File] | type[Folder]) -> Choice:
    """All names and no bytes, or all bytes and no names."""
    return lambda node, later: later if isinstance(node, kind) else []


def partly(dice: Any) -> Choice:
    """Of each file and folder either the beginning of what came later, or any of it, sector by sector."""

    def choose(node: File | Folder, later: list[Any]) -> list[Any]:
        if dice.random() < 0.5:
            return later[: dice.randint(0, len(later))]
        pieces = [piece for step in later for piece in (_sectors(step) if isinstance(step, Record) else [step])]
        return [piece for piece in pieces if dice.random() < 0.5]

    return choose


def _sectors(record: Record) -> list[Record]:
    if record.kind != "W":
        return [record]
    first = SECTOR - record.offset % SECTOR
    cuts = [0, *range(first, len(record.data), SECTOR), len(record.data)]
    return [Record("W", record.path, record.data[a:b], record.inode, record.offset + a) for a, b in pairwise(cuts)]


class Disk:
    """The folders `parts` of `root` as they stood when looked at, and what the records since did to them."""

    def __init__(self, root: Path, parts: Sequence[str]) -> None:
        self.root, self._parts = root, parts
        self._inodes: dict[int, File] = {}
        self._top = Folder()
        self._places: dict[str, File | Folder] = {str(root): self._top}
        for part in parts:
            if (root / part).exists():
                self._top.durable[part] = self._looked_at(root / part)

    def _looked_at(self, folder: Path) -> Folder:
        found = Folder()
        self._places[str(folder)] = found
        for path in folder.iterdir():
            if path.is_dir():
                found.durable[path.name] = self._looked_at(path)
            else:
                file = File(bytearray(path.read_bytes()))
                self._places[str(path)] = self._inodes[path.stat().st_ino] = found.durable[path.name] = file
        return found

    def apply(self, record: Record) -> None:
        part = os.path.relpath(record.path, self.root).split("/")[0] if record.path else ""
        if part not in (*self._parts, ".") or record.path.endswith(_MEANINGLESS):
            return
        if record.kind in "WT":
            self._inodes[record.inode].later.append(record)
        elif record.kind == "F":
            self._synced(record).sync()
        else:
            self._rename(record) if record.kind == "R" else self._name(record)

    def _synced(self, record: Record) -> File | Folder:
        place = self._places.get(record.path)
        return place if isinstance(place, Folder) else self._inodes[record.inode]

    def _name(self, record: Record) -> None:
        node: File | Folder | None = None
        if record.kind == "M":
            node = Folder()
        elif record.kind == "C":
            node = self._inodes[record.inode] = File()
        elif record.kind == "L":
            node = self._inodes[record.inode]
        self._enter(record.path, node)

    def _rename(self, record: Record) -> None:
        old = record.data.decode()
        node = self._places[os.path.normpath(old)]
        assert os.path.dirname(old) == os.path.dirname(record.path), record
        self._enter(record.path, node, (os.path.basename(old), None))
        del self._places[old]

    def _enter(self, path: str, node: File | Folder | None, *more: Name) -> None:
        above = self._places[os.path.dirname(path)]
        assert isinstance(above, Folder), path
        above.later.append(((os.path.basename(path), node), *more))
        if node is None:
            self._places.pop(path, None)
        else:
            self._places[path] = node

    def lay_out(self, target: Path, choice: Choice = strictly) -> None:
        """The parts below `target` become what a cut now leaves. What is right already is left alone, inode and all."""
        names = self._top.names(choice(self._top, self._top.later))
        for part in self._parts:
            if part in names:
                _lay_out(names[part], target / part, choice, {})
            elif (target / part).exists():
                shutil.rmtree(target / part)

    def survive(self) -> None:
        """A kill, and no cut: all is there, though not durable yet. The real folders become that; more may be recorded."""
        self.lay_out(self.root, entirely)
        self._inodes = {os.stat(path).st_ino: node for path, node in self._files()}

    def _files(self) -> Iterator[tuple[str, File]]:
        folders: list[tuple[str, Folder]] = [(str(self.root), self._top)]
        while folders:
            path, folder = folders.pop()
            for name, node in folder.names(folder.later).items():
                if isinstance(node, Folder):
                    folders.append((f"{path}/{name}", node))
                else:
                    yield f"{path}/{name}", node

    def compare(self) -> list[str]:
        """What differs between all that was recorded and what is there: nothing, if every change was recorded."""
        names = self._top.names(self._top.later)
        return [line for part in self._parts for line in _differences(names[part], self.root / part)]


def _lay_out(folder: File | Folder, target: Path, choice: Choice, laid: dict[int, Path]) -> None:
    assert isinstance(folder, Folder), target
    target.mkdir(exist_ok=True)
    names = folder.names(choice(folder, folder.later))
    for path in [path for path in target.iterdir() if path.name not in names]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, node in names.items():
        path = target / name
        if isinstance(node, Folder):
            _lay_out(node, path, choice, laid)
        elif id(node) in laid:
            path.unlink(missing_ok=True)
            path.hardlink_to(laid[id(node)])
        else:
            laid[id(node)] = path
            content = node.content(choice(node, node.later))
            if not path.is_file() or path.read_bytes() != content:
                path.unlink(missing_ok=True)
                path.write_bytes(content)


def _differences(folder: File | Folder, real: Path) -> Iterator[str]:
    assert isinstance(folder, Folder), real
    names = folder.names(folder.later)
    there = {path.name for path in real.iterdir() if not path.name.endswith(_MEANINGLESS)}
    yield from (f"{real / name}: only recorded, or only there" for name in sorted(names.keys() ^ there))
    for name, node in names.items():
        if isinstance(node, Folder) and name in there:
            yield from _differences(node, real / name)
        elif isinstance(node, File) and name in there and node.content(node.later) != (real / name).read_bytes():
            yield f"{real / name}: not the bytes that were recorded"
