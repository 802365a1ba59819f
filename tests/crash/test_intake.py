"""A mail that arrives, and the relay dead at each step between its last byte and its 250."""

import pytest

from tests.crash.ledger import Halfway
from tests.crash.site import MEG, VENTES, Site
from tests.crash.strace import Point

LARGE = (200_000,)


def resolved(site: Site, call: str, place: str, nth: int) -> Point:
    return Point(call, getattr(site, place), nth)


@pytest.mark.parametrize(
    ("call", "place", "nth", "stored"),
    [
        pytest.param("write", "segment", 1, 0, id="before-its-bytes"),
        pytest.param("fdatasync", "segment", 1, 0, id="bytes-written"),
        pytest.param("pwrite64", "wal", 1, 0, id="bytes-durable"),
        pytest.param("pwrite64", "wal", 6, 0, id="half-its-rows"),
        pytest.param("fsync", "wal", 1, 1, id="rows-written"),
        pytest.param("sendto", None, 7, 1, id="before-its-250"),
    ],
)
def test_small(site: Site, call: str, place: str | None, nth: int, stored: int) -> None:
    site.taken(MEG)
    letter = site.ledger.letter(MEG)
    with site.dies_at(Point(call, getattr(site, place) if place else None, nth)):
        assert not site.post(letter)
    site.back()
    assert site.stored(letter) == stored
    assert site.post(letter)
    assert site.stored(letter) == 1


def test_small_in_a_new_segment(site: Site) -> None:
    letter = site.ledger.letter(MEG)
    with site.dies_at(Point("fsync", site.segments)):
        assert not site.post(letter)
    site.back()
    assert site.stored(letter) == 0
