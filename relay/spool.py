"""Message bytes on disk, durable before anyone is told so, and never changed afterwards.

Knows alone: where bytes lie. A small message is appended to a segment that many share, so that one sync makes a whole
batch durable; a large one has a file of its own, written while it arrives. A key says which: `s/SEGMENT/OFFSET/LENGTH`
or `f/DAY/NAME`. Limits: a segment's space comes back only when all its messages are past their retention; it may end in
zeros that no key speaks of.
"""

import fcntl
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

SMALL = 256 << 10  # bytes: up to here a message is kept in memory until the batch is written
SEGMENT_SIZE = 64 << 20
PIECE = 1 << 18
AHEAD = 1 << 20  # the most zeros that lie ready in a segment
BEHIND = 1 << 20  # the most of a large message that is not yet on its way to the disk
SHORT = 1 << 16  # a batch of so few bytes is worth the zeros
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_KEY = re.compile(r"s/([0-9a-z]+)/(\d+)/(\d+)|f/(\d{4}-\d{2}-\d{2})/([0-9a-z.-]+)")


class SpoolError(RuntimeError):
    """A key that leads nowhere: its bytes are missing or cut."""


class Incoming:
    """Bytes that arrive: in memory while small, then in a file of their own. Nothing is promised until `settle`."""

    def __init__(self, spool: "Spool", name: str, day: str) -> None:
        self._spool, self._name, self._day = spool, name, day
        self._pieces: list[bytes] = []
        self._fd = -1
        self._started = 0  # bytes that the kernel was told to write out
        self.size = 0

    def write(self, piece: bytes) -> None:
        self.size += len(piece)
        if self._fd < 0 and self.size > SMALL:
            self._fd = self._spool.create(self._day, self._name)
            _write_all(self._fd, b"".join(self._pieces))
            self._pieces.clear()
        if self._fd < 0:
            self._pieces.append(piece)
        else:
            _write_all(self._fd, piece)
            if self.size - self._started >= BEHIND:
                self._start()

    def _start(self) -> None:
        """The disk works while the rest comes, not only once it is waited for: Linux takes this advice by writing what is
        new. Nothing is promised by it."""
        os.posix_fadvise(self._fd, self._started, self.size - self._started, os.POSIX_FADV_DONTNEED)
        self._started = self.size

    @property
    def small(self) -> bytes | None:
        """The whole message while it is small, else None."""
        if self._fd < 0 and len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return (self._pieces[0] if self._pieces else b"") if self._fd < 0 else None

    def read(self, offset: int, length: int) -> bytes:
        small = self.small
        return small[offset : offset + length] if small is not None else os.pread(self._fd, length, offset)

    def settle(self) -> str:
        """Makes a large message durable (file, then folder) and gives its key. Blocks: not for the event loop."""
        os.fdatasync(self._fd)
        self._spool.sync_day(self._day)
        os.close(self._fd)
        self._fd = -1
        self._pieces = []
        return f"f/{self._day}/{self._name}"

    def discard(self) -> None:
        """Forgets what arrived; safe to call whatever was done before."""
        self._pieces = []
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._spool.remove(f"f/{self._day}/{self._name}")


class Spool:
    """One folder: `segments/` and `files/DAY/`. Several processes may use it; each appends to segments of its own."""

    def __init__(self, root: Path, new_name: Callable[[], str]) -> None:
        self._root = root
        self._new_name = new_name
        self._segment = ""
        self._segment_fd = -1
        self._segment_end = 0
        self._laid_out = 0  # where the zeros of the segment end
        self._days: set[str] = set()
        for folder in ("segments", "files"):
            (root / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
        _sync_names(root)

    @classmethod
    def existing(cls, root: Path) -> "Spool":
        """For reading only: makes nothing."""
        spool = cls.__new__(cls)
        spool._root = root
        return spool

    def incoming(self, name: str, day: str) -> Incoming:
        return Incoming(self, name, day)

    def create(self, day: str, name: str) -> int:
        folder = self._root / "files" / day
        if day not in self._days:
            folder.mkdir(exist_ok=True, mode=0o700)
            _sync_folder(folder.parent)
            self._days.add(day)
        try:
            return os.open(folder / name, _NEW_FILE, 0o600)
        except FileNotFoundError:  # a run in another process took the empty folder away
            self._days.discard(day)
            return self.create(day, name)

    def sync_day(self, day: str) -> None:
        _sync_folder(self._root / "files" / day)

    def place(self, bodies: Sequence[bytes]) -> list[str]:
        """Where the next `append` will put these small messages: their keys, in order. No I/O."""
        if self._segment_end > SEGMENT_SIZE or not self._segment:
            self._close_segment()
            self._segment, self._segment_end, self._laid_out = self._new_name(), 0, 0
        keys, offset = [], self._segment_end
        for body in bodies:
            keys.append(f"s/{self._segment}/{offset}/{len(body)}")
            offset += len(body)
        return keys

    def append(self, bodies: Sequence[bytes]) -> list[str]:
        """Writes small messages where `place` says and syncs once; their keys. Blocks; one thread at a time.

        OSError: none of it is there.
        """
        keys = self.place(bodies)
        try:
            if self._segment_fd < 0:
                self._segment_fd = self._open_segment()
            data = b"".join(bodies)
            _write_all(self._segment_fd, data)
            self._lay_out(len(data))
            os.fdatasync(self._segment_fd)
        except OSError:
            self._close_segment()  # what a failed write or sync left at its end is unknown: nothing follows it
            raise
        self._segment_end += sum(map(len, bodies))
        return keys

    def _lay_out(self, added: int) -> None:
        """Zeros behind what was `added`, for the batches to come, as much again as there is: a sync of bytes written over
        others leaves out the journal of the file system, which costs more than a short batch itself."""
        end = self._segment_end + added
        if added <= SHORT and end > self._laid_out and self._segment_end:
            with suppress(OSError):  # they are for speed alone
                self._laid_out = end + os.pwrite(self._segment_fd, bytes(min(end, AHEAD)), end)

    def _open_segment(self) -> int:
        path = self._root / "segments" / self._segment
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(
            fd, fcntl.LOCK_SH
        )  # as long as we may write to it, nobody removes it; let go by our end, whatever it is
        _sync_folder(path.parent)
        return fd

    def _close_segment(self) -> None:
        self._segment = ""
        if self._segment_fd >= 0:
            os.close(self._segment_fd)
            self._segment_fd = -1

    def close(self) -> None:
        self._close_segment()

    @contextmanager
    def open(self, key: str) -> Iterator["Body"]:
        """The bytes of `key`. Raises SpoolError if they are not there, whole."""
        place = self._place(key)
        try:
            fd = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise SpoolError(f"{key}: {error.strerror}") from error
        try:
            there = os.fstat(fd).st_size - place.offset
            length = there if place.length is None else place.length
            if there < length:
                raise SpoolError(f"{key}: {length} bytes expected, {max(there, 0)} found")
            yield Body(fd, place.offset, length)
        finally:
            os.close(fd)

    def _place(self, key: str) -> "_Place":
        match = _KEY.fullmatch(key)
        if not match:
            raise SpoolError(f"{key!r} is not a spool key")
        segment, offset, length, day, name = match.groups()
        if segment:
            return _Place(self._root / "segments" / segment, int(offset), int(length))
        return _Place(self._root / "files" / day / name, 0, None)

    def remove(self, key: str) -> None:
        """Removes a file of its own; a message in a segment stays until `remove_segment`."""
        place = self._place(key)
        if place.length is None:
            place.path.unlink(missing_ok=True)

    # --- care -------------------------------------------------------------------------------------------------------

    def files(self) -> Iterator[str]:
        """The keys of all files there are, referred to or not."""
        for day in sorted(os.listdir(self._root / "files")):
            for name in sorted(os.listdir(self._root / "files" / day)):
                yield f"f/{day}/{name}"

    def segments(self, *, older_than: float) -> list[str]:
        """The names of the segments last written to more than `older_than` seconds ago: nobody adds to them now."""
        folder = self._root / "segments"
        latest = time.time() - older_than
        names = (name for name in sorted(os.listdir(folder)) if name != self._segment)
        return [name for name in names if (folder / name).stat().st_mtime < latest]

    def remove_segment(self, name: str) -> None:
        """Unless a process may still append to it: a quiet month leaves its segment open, and old."""
        path = self._root / "segments" / name
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
        except BlockingIOError:
            pass
        finally:
            os.close(fd)

    def remove_empty_days(self) -> None:
        for day in os.listdir(self._root / "files"):
            if day not in self._days:
                try:
                    (self._root / "files" / day).rmdir()
                except OSError:
                    pass  # not empty: its messages are still kept

    def free(self) -> tuple[float, float]:
        """The shares of the file system's blocks and inodes that are free for us, 0 to 1."""
        stat = os.statvfs(self._root)
        return stat.f_bavail / max(stat.f_blocks, 1), stat.f_favail / stat.f_files if stat.f_files else 1.0


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    offset: int
    length: int | None  # None: the whole file


@dataclass(frozen=True, slots=True)
class Body:
    """Spooled bytes, open for reading; offsets count from the message's first byte."""

    fd: int
    start: int
    size: int

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.fd, max(0, min(length, self.size - offset)), self.start + offset)

    def pieces(self, offset: int = 0) -> Iterator[bytes]:
        """All bytes from `offset` on, in pieces. Raises SpoolError if the file ends early."""
        while offset < self.size:
            piece = self.read(offset, PIECE)
            if not piece:
                raise SpoolError("the file is shorter than it was")
            offset += len(piece)
            yield piece


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sync_names(root: Path) -> None:
    """The folders that lead to the spool, the data folder's name too, whoever made them: what lies below needs them all."""
    for folder in (root, root.parent, root.absolute().parent.parent):
        try:
            _sync_folder(folder)
        except PermissionError:
            pass  # a folder that is not ours to look into has not been changed by us


def write_new(spool: Spool, pieces: Iterable[bytes], *, name: str, day: str) -> Incoming:
    """Bytes of our own making (a deposit's message, a notice), gathered like those that arrive."""
    incoming = spool.incoming(name, day)
    try:
        for piece in pieces:
            incoming.write(piece)
    except BaseException:
        incoming.discard()
        raise
    return incoming
