"""Who is missed, and from when on."""

from datetime import date, timedelta

import pytest

from rules.silence import Habit, Silent, look

LAST = date(2026, 3, 30)
HABIT = Habit(weeks=12, usual=8, after=timedelta(days=10))


def weekly(*weeks: int, count: int = 1) -> list[tuple[date, int]]:
    """Documents on the same day of the week as LAST, so many weeks before it."""
    return [(LAST - timedelta(weeks=week), count) for week in weeks]


@pytest.mark.parametrize(
    ("days", "later", "found"),
    [
        ([], 100, None),
        (weekly(*range(12)), 10, None),
        (weekly(*range(12)), 11, Silent(LAST, 12)),
        (weekly(*range(12), count=3), 400, Silent(LAST, 36)),
        (weekly(*range(8)), 11, Silent(LAST, 8)),
        (weekly(*range(7)), 11, None),
        (weekly(0, 1, 2, 3, 4, 5, 6, 12, 13, 14), 11, None),  # too long ago to count
        (weekly(0, 2, 4, 6, 8, 9, 10, 11), 11, Silent(LAST, 8)),
        ([(LAST - timedelta(days=day), 1) for day in range(40)], 11, None),  # busy, but for six weeks only
        ([(LAST, 100)], 11, None),
    ],
)
def test_look(days: list[tuple[date, int]], later: int, found: Silent | None) -> None:
    assert look(days, LAST + timedelta(days=later), HABIT) == found


def test_the_order_is_of_no_account() -> None:
    days = weekly(*range(12))
    assert look(days[::-1], LAST + timedelta(days=11), HABIT) == look(days, LAST + timedelta(days=11), HABIT) != None  # noqa: E711


def test_a_habit_that_nobody_has() -> None:
    assert look(weekly(*range(12)), LAST + timedelta(days=400), Habit(weeks=12, usual=13)) is None
