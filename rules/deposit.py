"""What changed in a connected folder, and what does it mean: deposits, versions, moves, departures.

Knows alone: when a file is baseline, when it is the same file elsewhere, when its bytes may have changed, and when a
tree is too strange to conclude anything from. It works on the differences between the inventory and the tree only, so a
million unchanged files cost it nothing.

Two steps, because only the shell can read: `questions` names the paths whose SHA-256 is needed, `decide` is given what
was found. A needed hash that could not be had (the file was changing, or unreadable) makes the file Unsettled: it is
looked at again, and the row it might be is left alone.

A path tells a *place*, an inode tells a *file*. A file that moved stays what it was, even if another one now stands
where it stood: that one is a deposit. Only where no known file moved is new content in an old place a change of it.

Limits: bytes rewritten in place with size and mtime put back are not noticed. A baseline file that is both touched and
moved before its hash is known counts as a deposit, as does one renamed while the baseline is being taken (its ctime is
renewed, as by a move in). Hard links to one inode that move together are told apart by name. Over 400 lines, of which
a quarter names the decisions.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, assert_never

Role = Literal["baseline", "pending", "sent", "refused", "held", "empty", "departed"]
Doubt = Literal["unreadable", "identity", "empty", "half"]
Identity = tuple[int, int]  # of the root: file system, inode
_File = tuple[int, int, int, int]  # device, inode, size, mtime_ns


@dataclass(frozen=True, slots=True)
class Seen:
    """A file as the tree shows it; `path` is relative to the connected folder."""

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Known:
    """A row of the inventory: how the file was when last looked at, and what it is to us.

    baseline: there before activation, never sent. pending: its delivery waits. sent: sent, being sent, or a duplicate.
    refused: by our rules. held: by a rule or the postmaster. empty: had zero bytes at the last run.
    departed: a baseline file that left; its row is kept so that it may come back.
    """

    path: str
    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    role: Role
    sha256: str | None = None
    document: str | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between inventory and tree. Rows of role "empty" always stand in `changed`, changed or not."""

    gone: tuple[Known, ...] = ()  # rows whose path is no longer there
    changed: tuple[tuple[Known, Seen], ...] = ()  # same path, other inode, size, mtime or ctime
    new: tuple[Seen, ...] = ()  # paths without a row
    away: tuple[Known, ...] = ()  # every row of role "departed"
    unreadable: frozenset[str] = frozenset()  # files and folders that could not be read: nothing below them is gone


# --- decisions ------------------------------------------------------------------------------------------------------
# To be applied as a whole: first the old rows of Departed and Moved go, then the new ones come, for files can swap.


@dataclass(frozen=True, slots=True)
class Deposit:
    seen: Seen


@dataclass(frozen=True, slots=True)
class Version:
    """New bytes in the place of a baseline or a sent file: held as "modified"."""

    known: Known
    seen: Seen


@dataclass(frozen=True, slots=True)
class Replace:
    """New bytes before anything was sent: they go, or stay held, instead."""

    known: Known
    seen: Seen


@dataclass(frozen=True, slots=True)
class Rejudge:
    """A refused file has new bytes."""

    known: Known
    seen: Seen


@dataclass(frozen=True, slots=True)
class Moved:
    """The same file in another place of the tree; it stays what it was."""

    known: Known
    seen: Seen


@dataclass(frozen=True, slots=True)
class Departed:
    known: Known


@dataclass(frozen=True, slots=True)
class Returned:
    """A baseline file that had left, or was copied and then deleted: baseline still."""

    known: Known
    seen: Seen


@dataclass(frozen=True, slots=True)
class Touched:
    """Other metadata, same bytes: only the row is brought up to date."""

    known: Known
    seen: Seen


@dataclass(frozen=True, slots=True)
class Unsettled:
    """Too young, stamped in the future, or its hash could not be had: look again, change nothing."""

    seen: Seen


@dataclass(frozen=True, slots=True)
class EmptyWait:
    """Zero bytes for the first time: a row of role "empty", and another look at the next run."""

    seen: Seen


@dataclass(frozen=True, slots=True)
class Empty:
    """Zero bytes a second time: refused."""

    known: Known
    seen: Seen


Decision = Deposit | Version | Replace | Rejudge | Moved | Departed | Returned | Touched | Unsettled | EmptyWait | Empty


# --- the tree as a whole --------------------------------------------------------------------------------------------


def is_baseline(seen: Seen, activated_ns: int) -> bool:
    """While the baseline is taken: was this file there before activation? `cp -p` forges the mtime, not the ctime.

    Not for later: a folder moved in brings files with an old ctime. Once the baseline is complete, a path without a
    row is a deposit whatever its times, unless `decide` finds that it moved or returned.
    """
    return seen.ctime_ns < activated_ns


def doubt(before: Identity, now: Identity | None, *, known: int, seen: int, departed: int) -> Doubt | None:
    """Why nothing may be concluded from this scan, or None. `now` is None where the root could not be read.

    `known` counts the rows of the inventory without those already departed, `departed` the Departed just decided: a
    file that only moved is not lost.
    """
    if now is None:
        return "unreadable"
    if now != before:
        return "identity"
    if known and not seen:
        return "empty"
    return "half" if departed * 2 > known else None


# --- the same file, the same bytes? ---------------------------------------------------------------------------------
# Each answers yes, no, or None: the hash of the file must be known first.


def _is_move(known: Known, seen: Seen, sha256: str | None) -> bool | None:
    """Given that the old place no longer holds `known`. Inodes are reused, hence the other tests (domain.md §4)."""
    if _file(known) != _file(seen):
        return False
    if known.sha256 is None or known.ctime_ns == seen.ctime_ns:
        return True  # an equal ctime: a folder above was renamed, the file itself was not even touched
    return None if sha256 is None else sha256 == known.sha256


def _has_same_bytes(known: Known, seen: Seen, sha256: str | None) -> bool | None:
    """Given that they stand in the same place."""
    if known.size != seen.size:
        return False
    if not seen.size or (known.inode == seen.inode and known.mtime_ns == seen.mtime_ns):
        return True
    if known.sha256 is None:  # touched, or put back from a backup; both new means another file
        return known.inode == seen.inode or known.mtime_ns == seen.mtime_ns
    return None if sha256 is None else sha256 == known.sha256


def _file(record: Known | Seen) -> _File:
    return record.device, record.inode, record.size, record.mtime_ns


def _name(record: Known | Seen) -> str:
    return record.path.rpartition("/")[2]


# --- deciding -------------------------------------------------------------------------------------------------------


def questions(difference: Difference, *, now_ns: int, settle_ns: int) -> frozenset[str]:
    """The paths whose SHA-256 `decide` needs. `now_ns` is by the clock of the tree, as its ctimes are."""
    lost, arrivals = _unplaced(difference)
    by_file = _grouped(lost)
    sizes = _hashed_sizes([*lost, *difference.away])
    facts = _Facts({}, now_ns - settle_ns)
    asked = set()
    for seen in arrivals:
        moved = {_is_move(known, seen, None) for known in by_file.get(_file(seen), ())}
        if True not in moved and (None in moved or (seen.size in sizes and facts.settled(seen))):
            asked.add(seen.path)
    for known, seen in difference.changed:
        if facts.settled(seen) and _has_same_bytes(known, seen, None) is None:
            asked.add(seen.path)
    return frozenset(asked)


def decide(difference: Difference, hashes: Mapping[str, str], *, now_ns: int, settle_ns: int) -> tuple[Decision, ...]:
    """What each difference means. `hashes` answers `questions`, asked with the same times.

    A Deposit may fall on a path that has a row: one of role "empty", or one whose file moved on.
    """
    facts = _Facts(hashes, now_ns - settle_ns)
    lost, arrivals = _unplaced(difference)
    moves = _moves(difference, hashes)
    not_lost, not_new = moves.unclear.union(moves.away), moves.unclear.union(moves.to)
    left = {known.path: known for known in lost if known.path not in not_lost}
    newcomers = [seen for seen in difference.new if seen.path not in not_new]
    decisions: list[Decision] = [Moved(known, seen) for seen in arrivals if (known := moves.to.get(seen.path))]
    decisions += [Unsettled(seen) for seen in arrivals if seen.path in moves.unclear]
    for known, seen in difference.changed:
        if seen.path in moves.unclear or seen.path in moves.to:
            continue  # decided above; if another file took its place, `known` has moved too, or departed
        if known.path in moves.away:
            newcomers.append(seen)
        else:
            left.pop(known.path, None)
            decisions.append(_change(known, seen, facts))
    back = _returns(newcomers, [*left.values(), *difference.away], facts)
    decisions += [_arrival(seen, back, facts) for seen in newcomers]
    returned = {known.path for known in back.values() if known and known.role != "departed"}
    return (*(Departed(known) for path, known in left.items() if path not in returned), *decisions)


@dataclass(frozen=True, slots=True)
class _Facts:
    hashes: Mapping[str, str]
    latest_ns: int  # a file with a later ctime may still be changing

    def settled(self, seen: Seen) -> bool:
        return seen.ctime_ns <= self.latest_ns


def _unplaced(difference: Difference) -> tuple[list[Known], list[Seen]]:
    """Known files no longer in their place, and files in a place where they were not."""
    displaced = [pair for pair in difference.changed if pair[0].inode != pair[1].inode]
    lost = [*difference.gone, *(known for known, _ in displaced)]
    arrivals = [*difference.new, *(seen for _, seen in displaced)]
    return lost, sorted(arrivals, key=lambda seen: seen.path)


@dataclass(frozen=True, slots=True)
class _Moves:
    to: dict[str, Known] = field(default_factory=dict)  # new path → the file that moved there
    away: set[str] = field(default_factory=set)  # old paths of those
    unclear: set[str] = field(default_factory=set)  # old and new paths of which nothing may be concluded


def _moves(difference: Difference, hashes: Mapping[str, str]) -> _Moves:
    """Who moved where. A move need not settle: nothing is read but for the hash, and that read looks for itself."""
    lost, arrivals = _unplaced(difference)
    by_file = _grouped(lost)
    moves = _Moves(unclear={known.path for known in difference.gone if is_below(known.path, difference.unreadable)})
    for seen in arrivals:
        free = [known for known in by_file.get(_file(seen), ()) if known.path not in moves.away]
        for known in sorted(free, key=lambda known: _name(known) != _name(seen)):
            answer = None if known.path in moves.unclear else _is_move(known, seen, hashes.get(seen.path))
            if answer:
                moves.to[seen.path] = known
                moves.away.add(known.path)
            if answer is None:
                moves.unclear.update((known.path, seen.path))
            if answer is not False:
                break
    # A file cannot be recorded in a place of which nothing is concluded; then nor is anything of its old place.
    while blocked := moves.unclear & moves.to.keys():
        moves.unclear.update(moves.to.pop(path).path for path in blocked)
    return moves


def _grouped(lost: Iterable[Known]) -> dict[_File, list[Known]]:
    groups: defaultdict[_File, list[Known]] = defaultdict(list)
    for known in lost:
        groups[_file(known)].append(known)
    return groups


def is_below(path: str, places: frozenset[str]) -> bool:
    """Is `path` one of `places`, or in one of them? The connected folder itself is ""."""
    while path and path not in places:
        path = path.rpartition("/")[0]
    return path in places


def _change(known: Known, seen: Seen, facts: _Facts) -> Decision:
    if known.role == "empty" and seen.size == 0:
        return Empty(known, seen)
    same = _has_same_bytes(known, seen, facts.hashes.get(seen.path))
    if same:
        return Touched(known, seen)
    if same is None or not facts.settled(seen):
        return Unsettled(seen)
    match known.role:
        case "baseline" | "sent" | "departed":
            return Version(known, seen)
        case "pending" | "held":
            return Replace(known, seen)
        case "refused":
            return Rejudge(known, seen)
        case "empty":
            return Deposit(seen)
        case _:
            assert_never(known.role)


def _arrival(seen: Seen, back: Mapping[str, Known | None], facts: _Facts) -> Decision:
    if seen.path in back:
        known = back[seen.path]
        return Unsettled(seen) if known is None else Returned(known, seen)
    if not facts.settled(seen):
        return Unsettled(seen)
    return Deposit(seen) if seen.size else EmptyWait(seen)


# --- baseline files that come back ----------------------------------------------------------------------------------

_Trace = tuple[object, ...]  # by what a file can be known again
_BASELINE: frozenset[Role] = frozenset({"baseline", "departed"})


def _returns(newcomers: Iterable[Seen], lost: Iterable[Known], facts: _Facts) -> dict[str, Known | None]:
    """Path → the baseline file that came back there; None where the hash that would tell is missing."""
    candidates = [known for known in lost if known.role in _BASELINE]
    by_trace: defaultdict[_Trace, list[Known]] = defaultdict(list)
    for known in candidates:
        for trace in _bytes(known, known.sha256) or _looks(known):
            by_trace[trace].append(known)
    sizes = _hashed_sizes(candidates)
    back: dict[str, Known | None] = {}
    for seen in newcomers:
        sha256 = facts.hashes.get(seen.path)
        if not seen.size or not facts.settled(seen):
            continue
        if sha256 is None and seen.size in sizes:
            back[seen.path] = None
        elif found := _take(by_trace, [*_bytes(seen, sha256), *_looks(seen)]):
            back[seen.path] = found
    return back


def _take(by_trace: Mapping[_Trace, list[Known]], traces: Iterable[_Trace]) -> Known | None:
    """The first file known by one of `traces`, which then stands for no other."""
    for trace in traces:
        if found := by_trace.get(trace):
            known = found[-1]
            for other in _bytes(known, known.sha256) or _looks(known):
                by_trace[other].remove(known)
            return known
    return None


def _bytes(record: Known | Seen, sha256: str | None) -> list[_Trace]:
    return [("bytes", record.size, sha256)] if sha256 else []


def _looks(record: Known | Seen) -> list[_Trace]:
    """For a baseline file that left before its bytes were known."""
    return [("name", _name(record), record.size, record.mtime_ns), ("file", *_file(record))]


def _hashed_sizes(lost: Iterable[Known]) -> set[int]:
    """Sizes of the baseline files that only their hash can tell; an empty file is no file's return."""
    return {known.size for known in lost if known.size and known.sha256 and known.role in _BASELINE}
