"""Bytes on disk, with real files: what a key gives back, and what a failed write leaves."""

import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from relay import spool as spooling
from relay.spool import AHEAD, SHORT, SMALL, Spool, SpoolError, write_new

DAY = "2026-11-24"


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    numbers = count(1)
    made = Spool(tmp_path / "spool", lambda: f"segment{next(numbers)}")
    yield made
    made.close()


def content(spool: Spool, key: str) -> bytes:
    with spool.open(key) as body:
        return b"".join(body.pieces())


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Writing further fails with EFBIG, as it does with ENOSPC on a full disk: part of it may be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_batch_shares_a_segment_and_each_key_gives_its_own_bytes(spool: Spool) -> None:
    bodies = [b"one", b"", b"\x00\xff" * 999, b"last"]
    keys = spool.append(bodies)
    assert [content(spool, key) for key in keys] == bodies
    assert {key.split("/")[1] for key in (*keys, *spool.append([b"later"]))} == {"segment1"}


def test_a_full_segment_is_followed_by_another(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooling, "SEGMENT_SIZE", 10)
    keys = [spool.append([letter * 6])[0] for letter in (b"a", b"b", b"c")]
    assert [key.split("/")[1] for key in keys] == ["segment1", "segment1", "segment2"]
    assert [content(spool, key) for key in keys] == [b"a" * 6, b"b" * 6, b"c" * 6]


def test_after_a_failed_write_nothing_is_added_behind_what_it_left(spool: Spool) -> None:
    (before,) = spool.append([b"before"])
    with files_no_larger_than(100), pytest.raises(OSError, match="File too large"):
        spool.append([b"x" * 1000])
    (after,) = spool.append([b"after"])
    assert content(spool, before) == b"before"
    assert content(spool, after) == b"after"
    assert after.split("/")[1] == "segment2"


def test_a_segment_with_zeros_ahead_is_as_good_as_one_without(spool: Spool, tmp_path: Path) -> None:
    sizes = [size for size in (3000, 1, SHORT, 20_000, SHORT + 1, 7, 3 * AHEAD, 10) for _ in range(9)]
    bodies = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    keys = [spool.append([body])[0] for body in bodies]
    assert [content(spool, key) for key in keys] == bodies
    (segment,) = (tmp_path / "spool/segments").iterdir()
    written, ahead = segment.read_bytes()[: sum(sizes)], segment.read_bytes()[sum(sizes) :]
    assert written == b"".join(bodies)
    assert len(ahead) <= AHEAD and not any(ahead)


def test_no_room_for_zeros_is_room_enough(spool: Spool) -> None:
    keys = spool.append([b"a" * 500])
    with files_no_larger_than(1000):
        keys += spool.append([b"b" * 500])
    assert [content(spool, key) for key in keys] == [b"a" * 500, b"b" * 500]


@pytest.mark.parametrize("size", [0, 1, SMALL, SMALL + 1, 3 * SMALL])
def test_a_message_is_kept_in_memory_until_it_is_large(spool: Spool, tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    incoming = write_new(spool, (data[at : at + 1000] for at in range(0, size, 1000)), name="m1", day=DAY)
    assert incoming.size == size
    assert incoming.read(3, 5) == data[3:8]
    if size <= SMALL:
        assert incoming.small == data
        assert not list((tmp_path / "spool/files").iterdir())
    else:
        assert incoming.small is None
        key = incoming.settle()
        assert key == f"f/{DAY}/m1"
        assert content(spool, key) == data


def test_a_discarded_message_leaves_no_file(spool: Spool) -> None:
    incoming = spool.incoming("m1", DAY)
    incoming.write(b"x" * (SMALL + 1))
    assert list(spool.files()) == [f"f/{DAY}/m1"]
    incoming.discard()
    incoming.discard()
    assert list(spool.files()) == []


def test_a_source_that_fails_leaves_no_file(spool: Spool) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"x" * (SMALL + 1)
        raise RuntimeError("the disk of the GED went away")

    with pytest.raises(RuntimeError):
        write_new(spool, pieces(), name="m1", day=DAY)
    assert list(spool.files()) == []


def test_a_name_is_never_used_twice(spool: Spool) -> None:
    write_new(spool, [b"x" * (SMALL + 1)], name="m1", day=DAY).settle()
    with pytest.raises(FileExistsError):
        spool.incoming("m1", DAY).write(b"y" * (SMALL + 1))
    assert content(spool, f"f/{DAY}/m1") == b"x" * (SMALL + 1)


@pytest.mark.parametrize(
    "key",
    [
        *("", "f/2026-11-24/none", "s/none/0/1", "f/../m1", "f/2026-11-24/../../m1", "s/../0/1", "s/segment1/-1/1"),
        *("s/segment1/0/5", "s/segment1/4/1", "s/segment1/99/0", "x/y", "f/2026-11-24/m1\n"),
    ],
)
def test_a_key_that_leads_nowhere_is_told(spool: Spool, key: str) -> None:
    spool.append([b"four"])
    with pytest.raises(SpoolError), spool.open(key):
        pass


def test_a_file_cut_while_it_is_read_is_told(spool: Spool, tmp_path: Path) -> None:
    (key,) = spool.append([b"x" * (2 * spooling.PIECE)])
    with spool.open(key) as body, pytest.raises(SpoolError, match="shorter"):
        pieces = body.pieces()
        next(pieces)
        os.truncate(tmp_path / "spool/segments/segment1", spooling.PIECE)
        next(pieces)


def test_a_symlink_is_not_followed(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    day = tmp_path / "spool/files" / DAY
    day.mkdir()
    (day / "m1").symlink_to(tmp_path / "secret")
    with pytest.raises(SpoolError), spool.open(f"f/{DAY}/m1"):
        pass


def test_reading_from_an_offset_never_reaches_the_neighbour(spool: Spool) -> None:
    first, second = spool.append([b"first", b"second"])
    with spool.open(first) as body:
        assert (body.read(2, 100), b"".join(body.pieces(3)), body.size) == (b"rst", b"st", 5)
    with spool.open(second) as body:
        assert body.read(0, 3) == b"sec"


def test_reading_only_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(SpoolError), Spool.existing(tmp_path / "spool").open(f"f/{DAY}/m1"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_nobody_else_may_read(spool: Spool, tmp_path: Path) -> None:
    spool.append([b"x"])
    write_new(spool, [b"x" * (SMALL + 1)], name="m1", day=DAY).settle()
    made = (path for path in (tmp_path / "spool").rglob("*"))
    assert {path.stat().st_mode & 0o077 for path in made} == {0}


def test_care_removes_files_segments_and_empty_days(spool: Spool, tmp_path: Path) -> None:
    key = write_new(spool, [b"x" * (SMALL + 1)], name="m1", day=DAY).settle()
    spool.append([b"old"])
    spool.close()
    later = Spool(tmp_path / "spool", lambda: "new")  # the next process
    later.append([b"new"])
    long_ago = time.time() - 1000
    os.utime(tmp_path / "spool/segments/segment1", (long_ago, long_ago))
    assert later.segments(older_than=500) == ["segment1"]
    later.remove_segment("segment1")
    later.remove_empty_days()
    assert list(later.files()) == [key]
    later.remove(key)
    later.remove(key)
    later.remove("s/new/0/3")
    later.remove_empty_days()
    assert sorted(path.name for path in (tmp_path / "spool").rglob("*")) == ["files", "new", "segments"]
    later.close()


def test_a_segment_that_may_still_be_written_to_is_not_removed(spool: Spool, tmp_path: Path) -> None:
    """The daemon of a quiet month has one open that is old and referred to by nobody."""
    spool.append([b"long gone"])
    other = Spool(tmp_path / "spool", lambda: "of-a-run")
    other.remove_segment("segment1")
    (key,) = spool.append([b"an invoice"])
    assert content(other, key) == b"an invoice"
    spool.close()
    other.remove_segment("segment1")
    with pytest.raises(SpoolError):
        content(other, key)


def test_the_share_that_is_free(spool: Spool) -> None:
    assert all(0 <= share <= 1 for share in spool.free())
