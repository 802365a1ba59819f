"""Has this client fallen silent? A forward that broke makes no noise: only what no longer comes can tell of it.

Knows alone: what "usually sends" means. Limits: it knows no holidays; a client who sends less than most weeks is never
missed.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, timedelta


@dataclass(frozen=True, slots=True)
class Habit:
    """Of the `weeks` up to a client's last document at least `usual` had one: then more than `after` without is silence."""

    weeks: int = 12
    usual: int = 8
    after: timedelta = timedelta(days=10)


@dataclass(frozen=True, slots=True)
class Silent:
    """Nothing since the day `since`; before, `documents` came in the habit's weeks."""

    since: date
    documents: int


def look(days: Collection[tuple[date, int]], today: date, habit: Habit) -> Silent | None:
    """`days` holds (day, how many documents came on it) of one client, each day once, in any order."""
    if not days:
        return None
    last = max(day for day, _ in days)
    if today - last <= habit.after:
        return None
    counted = [(day, count) for day, count in days if last - timedelta(weeks=habit.weeks) < day]
    weeks = {(last - day).days // 7 for day, _ in counted}
    return Silent(last, sum(count for _, count in counted)) if len(weeks) >= habit.usual else None
