"""A mail that arrives, and the relay dead at each step between its last byte and its 250."""

import pytest

from tests.crash.site import MEG, Site
from tests.crash.strace import Point

LARGE = (600_000,)


@pytest.mark.parametrize(
    ("call", "place", "nth", "stored"),
    [
        pytest.param("write", "segment", 1, 0, id="bytes-not-written"),
        pytest.param("fdatasync", "segment", 1, 0, id="bytes-written"),
        pytest.param("pwrite64", "wal", 1, 0, id="bytes-durable"),
        pytest.param("pwrite64", "wal", 6, 0, id="half-the-rows"),
        pytest.param("fsync", "wal", 1, 1, id="rows-written"),
    ],
)
def test_a_small_mail(site: Site, call: str, place: str, nth: int, stored: int) -> None:
    letter = site.ledger.letter(MEG)
    with site.dies_at(Point(call, getattr(site, place), nth)):
        assert not site.post(letter)
    site.back()
    assert site.stored(letter) == stored
    assert site.post(letter)
    assert site.stored(letter) == 1


def test_a_small_mail_whose_250_is_on_its_lips(site: Site) -> None:
    letter = site.ledger.letter(MEG)
    greeting_to_354 = 5
    with site.dies_at(Point("sendto", nth=greeting_to_354 + 1)):
        assert not site.post(letter)
    site.back()
    assert site.stored(letter) == 1
    assert site.post(letter)
    assert site.stored(letter) == 1


def test_a_small_mail_in_a_new_segment(site: Site) -> None:
    site.back()
    letter = site.ledger.letter(MEG)
    with site.dies_at(Point("fsync", site.segments)):
        assert not site.post(letter)
    site.back()
    assert site.stored(letter) == 0


@pytest.mark.parametrize(
    ("chunks", "call", "place", "stored"),
    [
        pytest.param(False, "write", "file", 0, id="half-written"),
        pytest.param(False, "fdatasync", "file", 0, id="written"),
        pytest.param(False, "fsync", "folder", 0, id="bytes-durable"),
        pytest.param(False, "pwrite64", "wal", 0, id="name-durable"),
        pytest.param(False, "fsync", "wal", 1, id="rows-written"),
        pytest.param(True, "write", "file", 0, id="bdat-half-written"),
        pytest.param(True, "fdatasync", "file", 0, id="bdat-written"),
        pytest.param(True, "fsync", "wal", 1, id="bdat-rows-written"),
    ],
)
def test_a_large_mail(site: Site, chunks: bool, call: str, place: str, stored: int) -> None:
    letter = site.ledger.letter(MEG, sizes=LARGE)
    with site.halfway(letter, chunks=chunks) as (half, file):
        places = {"file": file, "folder": file.parent, "wal": site.wal}
        with site.dies_at(Point(call, places[place])):
            assert not half.finish()
    assert file.exists()
    site.back()
    assert file.exists() == bool(stored)
    assert site.stored(letter) == stored
    assert site.post(letter)
    assert site.stored(letter) == 1


def test_a_large_mail_on_a_new_day(site: Site) -> None:
    site.back()
    letter = site.ledger.letter(MEG, sizes=LARGE)
    with site.dies_at(Point("fsync", site.data / "spool/files")):
        assert not site.post(letter)
    site.back()
    assert site.stored(letter) == 0
