"""The clients that have fallen silent, each told of once.

Knows alone: when that is looked at: by the first run of a day, local time. What silence is, is rules.silence's to say.
"""

import asyncio
from datetime import datetime, timedelta

from sqlite_utils import Database

from relay.commit import Writer
from relay.config import Config
from relay.store import silence as store
from rules import silence

GRACE = timedelta(weeks=5)  # how long after the habit a silence is still noticed: the relay may have stood still


async def newly_silent(config: Config, db: Database, writer: Writer, now: datetime) -> list[tuple[str, silence.Silent]]:
    """(client, since when), once for each silence."""
    today = now.astimezone(config.zone).date()
    if not store.is_to_be_looked(db, today):
        return []
    habit = silence.Habit(config.silence.weeks, config.silence.usual, config.silence.after)
    since = now - timedelta(weeks=habit.weeks) - habit.after - GRACE

    def look() -> list[tuple[str, silence.Silent]]:
        seen = [
            (slug, told, silence.look(store.days(db, slug, since), today, habit))
            for slug, told in store.missed(db).items()
        ]
        return [(slug, found) for slug, told, found in seen if found is not None and found.since.isoformat() != told]

    found = await asyncio.to_thread(look)
    await writer.write(lambda db_, _: store.told(db_, [(slug, each.since) for slug, each in found], today))
    return found
