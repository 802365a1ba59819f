"""The GED on local disk: listing a tree, reading a deposit, filing a document.

Knows alone: how to reach a file without following a symbolic link out of the tree (every component is opened from the
descriptor of the one above, with O_NOFOLLOW), how bytes are seen not to change while they are read, how a document
appears whole, once, under a name nobody had, and who may then read it.

Filing leaves a temporary dot-file beside the document until the caller has recorded it (`forget_temporary`); a hard
link joins the two, so whoever comes back after a crash sees that the document is already there.

Limits: the file system must have hard links (ext4, xfs, btrfs, zfs, NFS and most SMB shares do); without them nothing
is filed and the reason says so. A folder that a person renames between the crash and its repair is not found again: the
document is then filed a second time. Blocking calls: for a thread, not for the event loop. Over 400 lines because
the tree stays in one file until a second kind of tree arrives (design.md §2).
"""

import errno
import hashlib
import os
import re
import stat
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count

from rules.deposit import Identity, Seen
from rules.filing import IGNORED, is_system, numbered

# A file of a listing, bare for speed: name, device, inode, size, mtime_ns, ctime_ns (the order of Seen).
Entry = tuple[str, int, int, int, int, int]

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20
_SIGNED = (1 << 63) - 1  # some systems number inodes in 64 bits, SQLite counts in 63


@dataclass(frozen=True, slots=True)
class GedAway:
    """The tree, or this place in it, cannot be used now: try again later. `code` is an errno."""

    reason: str
    code: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """The documents of one folder; `folder` is relative to the tree, "" for its top."""

    folder: str
    entries: list[Entry]

    def seen(self, entry: Entry) -> Seen:
        return Seen(_join(self.folder, entry[0]), *entry[1:])


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A file or folder that is there and cannot be read; nothing may be concluded about what is below it."""

    path: str  # bytes that are not UTF-8 are escaped
    reason: str


@dataclass(frozen=True, slots=True)
class Copied:
    """All the bytes went to the sink; `seen` was the same before and after."""

    sha256: str
    seen: Seen


@dataclass(frozen=True, slots=True)
class Changed:
    before: Seen
    after: Seen


@dataclass(frozen=True, slots=True)
class Vanished:
    path: str


@dataclass(frozen=True, slots=True)
class Filed:
    """The document stands at `path`, durably; `temporary` is its second name until `forget_temporary`."""

    path: str
    temporary: str


@dataclass(frozen=True, slots=True)
class Damaged:
    """The bytes given were not those expected: nothing was filed."""

    sha256: str


@dataclass(frozen=True, slots=True)
class Tree:
    """A GED root, or a folder in it. With `expected`, any other top (an unmounted disk, say) counts as away.

    Paths are relative to the tree, with "/". One that is empty where it must not be, or climbs, is a ValueError.
    """

    root: str | os.PathLike[str]
    folder: str = ""
    expected: Identity | None = None

    def within(self, folder: str, expected: Identity | None = None) -> "Tree":
        """The tree below `folder`, this one for ""; `expected` is that folder's own identity."""
        return replace(self, folder=_join(self.folder, folder), expected=expected)

    def identity(self) -> Identity | GedAway:
        """File system and inode of the top: unlike a device number, the same after a restart."""
        try:
            with self._open() as top:
                return _identity(top)
        except _Away as error:
            return error.ged

    def clients(self) -> tuple[str, ...] | GedAway:
        """The names of the first-level folders that are clients."""
        try:
            with self._open() as top, _reaching(), os.scandir(top) as entries:
                folders = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except _Away as error:
            return error.ged
        return tuple(sorted(name for name in folders if not is_system(name) and _is_utf8(name)))

    def instant_ns(self) -> int | GedAway:
        """An instant by the clock of the tree: what was done before the call is stamped earlier than it, what is done
        after the return is not. (Ctimes lag behind the system's clock by a tick, and a NAS has a clock of its own.)
        """
        try:
            with self._open() as top, _reaching():
                return _instant_ns(top)
        except _Away as error:
            return error.ged

    def scan(self, skip: frozenset[str] = frozenset()) -> Iterator[Listing | Unreadable | GedAway]:
        """Every document of the tree, folder by folder, but for the folders `skip`. GedAway: the top is not there.

        Symbolic links are not followed; what is no regular file, ignored names and system folders are left out.
        """
        try:
            with self._open() as top:
                yield from _walk(top, skip)
        except _Away as error:
            yield error.ged

    def look(self, path: str) -> Seen | None:
        """The regular file at `path` as it is now; None when there is none, or it cannot be reached."""
        folder, name = _parent(path)
        try:
            with self._open(folder) as top, _reaching():
                status = os.stat(name, dir_fd=top, follow_symlinks=False)
        except _Away:
            return None
        return _seen(path, status) if stat.S_ISREG(status.st_mode) else None

    def read_deposit(
        self, path: str, sink: Callable[[bytes], object]
    ) -> Copied | Changed | Vanished | Unreadable | GedAway:
        """The bytes of the file at `path`, given to `sink` while they are hashed, with a look before and after."""
        folder, name = _parent(path)
        try:
            with self._open() as top:
                return _read_deposit(top, folder, name, sink)
        except _Away as error:
            return error.ged

    def file_document(
        self, folders: Sequence[str], name: str, *, delivery: str, chunks: Iterable[bytes], sha256: str
    ) -> Filed | Damaged | GedAway:
        """The document, durable, under `name` or its next free number, in `folders`, which are made where missing.

        Asked again for the same delivery, it finds what it filed before. What `chunks` raises passes through.
        """
        if not re.fullmatch(r"[A-Za-z0-9-]+", delivery):
            raise ValueError(f"not the id of a delivery: {delivery!r}")
        temporary, name = _temporary(delivery), _component(name)
        try:
            with self._open() as top, _made(top, folders) as (fd, place):
                path = self._already_filed(fd, place, temporary)
                if path is None:
                    written = _write_temporary(fd, temporary, chunks, sha256)
                    if written is not None:
                        return written
                    path = _join(place, _give_name(fd, temporary, name))
                with _reaching():
                    os.fsync(fd)
        except _Away as error:
            return error.ged
        return Filed(path, _join(place, temporary))

    def forget_temporary(self, filed: Filed) -> GedAway | None:
        """For when `filed` is recorded; harmless twice. A temporary that stays is never taken for a document."""
        folder, name = _parent(filed.temporary)
        try:
            with self._open(folder) as fd, _reaching():
                _discard(fd, name)
        except _Away as error:
            return error.ged
        return None

    @contextmanager
    def _open(self, below: str = "") -> Iterator[int]:
        """The descriptor of the top, or of the folder `below` it. The root alone may be reached by links."""
        with _reaching():
            root = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with _closing(root), _closing(_descend(root, self.folder)) as top:
            if self.expected not in (None, _identity(top)):
                raise _Away(GedAway("not the folder it was: is its disk mounted?"))
            with _closing(_descend(top, below)) as fd:
                yield fd

    def _already_filed(self, fd: int, place: str, temporary: str) -> str | None:
        """Where the document of `temporary` stands: a second link to it, even if a person has moved that since.

        A link out of sight is somebody's backup, say, and proves nothing.
        """
        with _reaching():
            try:
                status = os.stat(temporary, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                return None
        if status.st_nlink < 2:
            return None
        client = "" if self.folder else place.partition("/")[0]  # no farther than the client's own folder
        for start in (place, client):
            for found in self.within(start).scan():
                if isinstance(found, GedAway):
                    raise _Away(found)
                if isinstance(found, Listing):
                    for entry in found.entries:
                        if entry[1:3] == (status.st_dev, status.st_ino & _SIGNED):
                            return _join(start, _join(found.folder, entry[0]))
        return None


# --- failures and descriptors ---------------------------------------------------------------------------------------


class _Away(Exception):
    """A system call on the tree failed."""

    def __init__(self, ged: GedAway) -> None:
        super().__init__(ged.reason)
        self.ged = ged


@contextmanager
def _reaching() -> Iterator[None]:
    """Around the calls whose failure is the tree's, as opposed to the spool's or the caller's."""
    try:
        yield
    except OSError as error:
        raise _Away(GedAway(_reason(error), error.errno or 0)) from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


@contextmanager
def _closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def _closed_on_failure(fd: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(fd)
        raise


def _descend(fd: int, path: str) -> int:
    """A new descriptor for the folder `path` below `fd`; no component may be a symbolic link."""
    with _reaching():
        return _open_folder(fd, path)


def _open_folder(fd: int, path: str) -> int:
    names = [_component(name) for name in path.split("/")] if path else []
    current = os.dup(fd)
    for name in names:
        with _closing(current):
            current = os.open(name, _FOLDER, dir_fd=current)
    return current


def _component(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"not the name of a file or folder: {name!r}")
    return name


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _parent(path: str) -> tuple[str, str]:
    folder, _, name = path.rpartition("/")
    return folder, _component(name)


def _is_utf8(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= c <= "\udfff" for c in name)


def _identity(fd: int) -> Identity:
    with _reaching():
        return os.fstatvfs(fd).f_fsid & _SIGNED, os.fstat(fd).st_ino & _SIGNED


def _seen(path: str, status: os.stat_result) -> Seen:
    return Seen(path, status.st_dev, status.st_ino & _SIGNED, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


# --- the clock of the tree ------------------------------------------------------------------------------------------


def _instant_ns(top: int) -> int:
    try:
        probe = _open_probe(top)
    except OSError:
        # A tree we may only read: the system's clock stands in, and a tick has to pass before ctimes reach it.
        now = time.time_ns()
        time.sleep(0.011)
        return now
    with _closing(probe):
        before = os.fstat(probe).st_ctime_ns
        for _ in range(3000):  # a coarse file system stamps whole seconds
            os.fchmod(probe, 0o600)
            if os.fstat(probe).st_ctime_ns > before:
                break
            time.sleep(0.001)
        return os.fstat(probe).st_ctime_ns


def _open_probe(top: int) -> int:
    """A file without a name; NFS has no such thing, so there a dot-file that loses its name at once."""
    try:
        return os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=top)
    except OSError:
        name = f".welyb-clock-{os.getpid()}.part"
        probe = os.open(name, _NEW_FILE, 0o600, dir_fd=top)
        os.unlink(name, dir_fd=top)
        return probe


# --- listing --------------------------------------------------------------------------------------------------------


def _walk(top: int, skip: frozenset[str]) -> Iterator[Listing | Unreadable]:
    """Depth first, each folder opened from the one above it; a stack of descriptors, for a tree may be deep."""
    stack = [(top, "", iter(["."]))]
    try:
        while stack:
            above, path, names = stack[-1]
            name = next(names, None)
            if name is None:
                stack.pop()
                if stack:
                    os.close(above)
                continue
            folder = path if name == "." else _join(path, name)
            if folder in skip and folder:
                continue
            try:
                fd = os.open(name, _FOLDER, dir_fd=above)
            except FileNotFoundError:
                continue
            except OSError as error:
                yield Unreadable(folder, _reason(error))
                continue
            below: list[str] = []
            stack.append((fd, folder, iter(below)))
            yield from _list(fd, folder, below)
    finally:
        for fd, _, _ in stack[1:]:
            os.close(fd)


def _list(fd: int, folder: str, below: list[str]) -> Iterator[Listing | Unreadable]:
    """The documents of one folder; its subfolders are added to `below`."""
    entries: list[Entry] = []
    ignored = IGNORED.match  # a call less for each of a million files
    try:
        with os.scandir(fd) as found:
            for entry in found:
                name = entry.name
                if not (name.isascii() or _is_utf8(name)):
                    yield Unreadable(_escaped(_join(folder, name)), "its name is not UTF-8")
                elif entry.is_file(follow_symlinks=False):
                    if ignored(name):
                        continue
                    try:
                        s = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    inode = s.st_ino & _SIGNED
                    entries.append((name, s.st_dev, inode, s.st_size, s.st_mtime_ns, s.st_ctime_ns))
                elif entry.is_dir(follow_symlinks=False) and not is_system(name):
                    below.append(name)
    except OSError as error:
        yield Unreadable(folder, _reason(error))
    else:
        yield Listing(folder, entries)


def _escaped(name: str) -> str:
    return os.fsencode(name).decode("utf-8", errors="backslashreplace")


# --- reading --------------------------------------------------------------------------------------------------------


def _read_deposit(
    top: int, folder: str, name: str, sink: Callable[[bytes], object]
) -> Copied | Changed | Vanished | Unreadable:
    path = _join(folder, name)
    try:
        with _closing(_open_folder(top, folder)) as above:
            if not stat.S_ISREG(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
                return Vanished(path)
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=above)
    except OSError as error:
        gone = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        return Vanished(path) if gone else Unreadable(path, _reason(error))
    with _closing(fd):
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # swapped between the two looks: a pipe would seem an empty file
            return Vanished(path)
        return _copy(fd, path, sink)


def _copy(fd: int, path: str, sink: Callable[[bytes], object]) -> Copied | Changed | Unreadable:
    digest = hashlib.sha256()
    size = 0
    with _reaching():
        before = _seen(path, os.fstat(fd))
    while True:
        try:
            chunk = os.read(fd, _CHUNK)
        except OSError as error:
            return Unreadable(path, _reason(error))
        if not chunk:
            break
        digest.update(chunk)
        sink(chunk)
        size += len(chunk)
    with _reaching():
        after = _seen(path, os.fstat(fd))
    return Copied(digest.hexdigest(), after) if before == after and size == after.size else Changed(before, after)


# --- filing ---------------------------------------------------------------------------------------------------------


@contextmanager
def _made(top: int, folders: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The descriptor and the true path of `folders` below `top`, made where missing."""
    fd, place = os.dup(top), ""
    for folder in folders:
        with _closing(fd), _reaching():
            above = fd
            fd, name = _find_or_make(above, _component(folder))
            with _closed_on_failure(fd):
                _keep_name(fd, above)
        place = _join(place, name)
    with _closing(fd):
        yield fd, place


def _find_or_make(fd: int, name: str) -> tuple[int, str]:
    """A folder of that name, or of one that differs by case or by the form of its accents, or a new one."""
    try:
        return os.open(name, _FOLDER, dir_fd=fd), name
    except FileNotFoundError:
        pass
    with os.scandir(fd) as entries:
        alike = [e.name for e in entries if _fold(e.name) == _fold(name) and e.is_dir(follow_symlinks=False)]
    found = min(alike, default=name)
    return (os.open(found, _FOLDER, dir_fd=fd) if alike else _make(fd, name)), found


def _make(fd: int, name: str) -> int:
    made = True
    try:
        os.mkdir(name, dir_fd=fd)
    except FileExistsError:
        made = False  # another filing was faster
    os.fsync(fd)
    new = os.open(name, _FOLDER, dir_fd=fd)
    with _closed_on_failure(new):
        if made:
            _share(new, fd)
    return new


_kept: set[tuple[int, int]] = set()  # device and inode of folders whose names this process has seen made durable


def _keep_name(fd: int, above: int) -> None:
    """A folder that is there already may be a dead process's, made and never synced: a document's name is not enough."""
    status = os.fstat(fd)
    if (status.st_dev, status.st_ino) not in _kept:
        os.fsync(above)
        _kept.add((status.st_dev, status.st_ino))


def _share(fd: int, above: int) -> None:
    """What we made gets the group and the permissions of the folder it stands in: who may work there may work with it.

    Our umask has no say: a service's tells nothing of a tree that a firm shares. Where the folder has a default ACL
    the system has done it already, and what a file system or our own rights do not allow stays as it was made.
    """
    new, folder = os.fstat(fd), os.fstat(above)
    if new.st_gid != folder.st_gid:
        with suppress(OSError):  # a group that we are not in
            os.fchown(fd, -1, folder.st_gid)
    least, most = (0o700, 0o777) if stat.S_ISDIR(new.st_mode) else (0o600, 0o666)
    mode = (stat.S_IMODE(new.st_mode) & ~0o777) | (folder.st_mode & most) | least
    if mode & stat.S_ISGID and not _may_keep_group(fd):
        return  # chmod(2) would take the bit away, and with it the group of all that is made below
    if mode != stat.S_IMODE(new.st_mode) and not _has_default_acl(above):
        with suppress(OSError):  # a share that has no modes
            os.fchmod(fd, mode)


def _may_keep_group(fd: int) -> bool:
    return os.geteuid() == 0 or os.fstat(fd).st_gid in {os.getegid(), *os.getgroups()}


def _has_default_acl(folder: int) -> bool:
    try:
        return bool(os.getxattr(folder, "system.posix_acl_default"))
    except OSError:
        return False


def _fold(name: str) -> str:
    """Two names with one fold are one name to Windows or macOS."""
    return (
        name.lower() if name.isascii() else unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
    )


def recorded(delivery: str, path: str) -> Filed:
    """What `file_document` gave for `delivery`, known again from the path that was recorded."""
    return Filed(path, _join(_parent(path)[0], _temporary(delivery)))


def _temporary(delivery: str) -> str:
    return f".welyb-{delivery}.part"


def _write_temporary(fd: int, temporary: str, chunks: Iterable[bytes], sha256: str) -> Damaged | None:
    """All of the bytes in a new file, durable; or nothing left of it.

    An old temporary is unlinked, never truncated: a second link to it may be somebody's document.
    """
    with _reaching():
        _discard(fd, temporary)
        out = os.open(temporary, _NEW_FILE, 0o666 if _has_default_acl(fd) else 0o600, dir_fd=fd)
    durable = False
    try:
        with _closing(out):
            found = _write(out, chunks)
            if found != sha256:
                return Damaged(found)
            with _reaching():
                _share(out, fd)
                os.fsync(out)
            durable = True
    finally:
        if not durable:
            with _reaching():
                _discard(fd, temporary)
    return None


def _write(out: int, chunks: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        rest = memoryview(chunk)
        with _reaching():
            while rest:
                rest = rest[os.write(out, rest) :]
    return digest.hexdigest()


def _give_name(fd: int, temporary: str, name: str) -> str:
    """The second link, under `name` or its first free number. `link` never replaces what is there."""
    with _reaching():
        taken = {_fold(other) for other in os.listdir(fd)}
        for number in count(1):
            final = numbered(name, number)
            if _fold(final) in taken:
                continue
            try:
                os.link(temporary, final, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
            except FileExistsError:
                if not _is_same(fd, temporary, final):
                    continue
            return final
    raise AssertionError("count() ends")


def _is_same(fd: int, one: str, other: str) -> bool:
    """NFS repeats a request whose answer it lost, and is then told that the name it has just given exists."""
    first = os.stat(one, dir_fd=fd, follow_symlinks=False)
    return os.path.samestat(first, os.stat(other, dir_fd=fd, follow_symlinks=False))


def _discard(fd: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        pass
