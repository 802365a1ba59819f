"""The time, and how it is written: the only place of the product that reads the clock."""

import time
from datetime import UTC, datetime


def now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


def stamp(instant: datetime) -> str:
    """As stored: UTC, ISO 8601, milliseconds, so that texts sort as the instants do."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def instant(stamped: str) -> datetime:
    return datetime.fromisoformat(stamped)
