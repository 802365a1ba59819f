"""The clients that have fallen silent, each told of once.

Knows alone: when that is looked at: by the first run of a day, local time. What silence is, is rules.silence's to say.
"""

import asyncio
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from sqlite_utils import Database

from relay.config import Config
from relay.store import silence as store
from rules import silence

GRACE = timedelta(weeks=5)  # how long after the habit a silence is still noticed: the relay may have stood still


@dataclass(frozen=True, slots=True)
class Look:
    """What today's look found: (client, since when), once for each silence. `today` is None where it took place already."""

    found: tuple[tuple[str, silence.Silent], ...] = ()
    today: date | None = None


async def newly_silent(config: Config, db: Database, now: datetime) -> Look:
    today = now.astimezone(config.zone).date()
    if not store.is_to_be_looked(db, today):
        return Look()
    habit = silence.Habit(config.silence.weeks, config.silence.usual, config.silence.after)
    since = now - timedelta(weeks=habit.weeks) - habit.after - GRACE

    def look() -> Look:
        seen = [
            (slug, told, silence.look(store.days(db, slug, since), today, habit))
            for slug, told in store.missed(db).items()
        ]
        new = ((slug, found) for slug, told, found in seen if found is not None and found.since.isoformat() != told)
        return Look(tuple(new), today)

    return await asyncio.to_thread(look)


def told(db: Database, look: Look) -> None:
    """Inside the transaction in which the run ends: one that is killed before leaves its look to the next."""
    if look.today is not None:
        store.told(db, [(slug, each.since) for slug, each in look.found], look.today)
