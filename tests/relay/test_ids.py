"""The tokens of return addresses: ours, unchanged, and not too old; all of it without asking the store."""

import re
from base64 import b32decode, b32encode
from datetime import UTC, datetime, timedelta

import pytest

from relay import ids
from relay.ids import TokenKey
from rules.address import BOUNCE_PREFIX, TOKEN

KEY = TokenKey(b"k" * 32)
WEEK = timedelta(days=7)
NOW = datetime(2026, 11, 24, 23, 59, 59, tzinfo=UTC)


def is_token(text: str, *, key: TokenKey = KEY, now: datetime = NOW) -> bool:
    return ids.is_token(key, text, now=now, give_up_after=WEEK)


def test_a_token_fits_an_address_and_is_its_own() -> None:
    made = {ids.token(KEY, NOW) for _ in range(1000)}
    assert len(made) == 1000
    for token in made:
        assert TOKEN.fullmatch(token) and len(BOUNCE_PREFIX + token) <= 64  # RFC 5321 §4.5.3.1.1
        assert is_token(token)


def test_no_bit_of_it_may_be_another() -> None:
    raw = b32decode(ids.token(KEY, NOW).upper())
    for bit in range(8 * len(raw)):
        other = bytearray(raw)
        other[bit // 8] ^= 1 << bit % 8
        assert not is_token(b32encode(bytes(other)).decode().lower()), bit


@pytest.mark.parametrize(
    ("after", "good"),
    [
        (timedelta(0), True),
        (WEEK + ids.LATE, True),
        (WEEK + ids.LATE + timedelta(seconds=1) - timedelta(microseconds=1), True),
        (WEEK + ids.LATE + timedelta(seconds=1), False),
        (timedelta(days=4000), False),
        (-timedelta(hours=30), True),  # the clock was put back
    ],
)
def test_its_life_ends_with_its_last_day(after: timedelta, good: bool) -> None:
    assert is_token(ids.token(KEY, NOW), now=NOW + after) is good


@pytest.mark.parametrize(
    ("hour", "after", "ageing"),
    [(0, timedelta(days=8), True), (0, timedelta(days=8, microseconds=-1), False), (23, WEEK, False)],
)
def test_it_is_made_anew_while_a_report_would_still_be_in_time(hour: int, after: timedelta, ageing: bool) -> None:
    made = datetime(2026, 11, 24, hour, tzinfo=UTC)
    token = ids.token(KEY, made)
    assert ids.is_ageing(token, now=made + after, give_up_after=WEEK) is ageing
    if not ageing:
        assert is_token(token, now=made + after + ids.LATE)


def test_a_former_key_verifies_and_makes_none() -> None:
    token = ids.token(KEY, NOW)
    changed = TokenKey(b"n" * 32, (KEY.current,))
    assert is_token(token, key=changed)
    assert is_token(ids.token(changed, NOW), key=TokenKey(b"n" * 32))
    assert not is_token(token, key=TokenKey(b"n" * 32))
    assert not is_token(token, key=TokenKey(b"n" * 32, (b"o" * 32,)))


def test_an_id_sorts_by_age() -> None:
    older, newer = ids.new(NOW), ids.new(NOW + timedelta(milliseconds=1))
    assert older < newer and re.fullmatch(r"[0-9a-z]{16}", older)
