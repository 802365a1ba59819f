"""How sizes and limits are written in settings and rules, and what they say.

Knows alone: their units. Limits: durations are the settings' alone (`relay.config`).
"""

import re
from dataclasses import dataclass

_UNITS = {"s": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400}


def parse_size(text: str) -> int:
    """ "10 MB" → 10,000,000; "10 MiB" → 10,485,760; "20 kB", "512 B", "1 Mo". ValueError otherwise."""
    match = re.fullmatch(r"\s*([0-9]{1,12}(?:[.,][0-9]{1,6})?)\s*(?=[kKMGBboO])([kKMG]?)(i?)[BboO]?\s*", text)
    if not match:
        raise ValueError(f'« {text} » is not a size: write "10 MB", "10 MiB" or "20 kB"')
    number, unit, binary = match.groups()
    factor = 1
    for _ in range(" kMG".index(unit.replace("K", "k") or " ")):
        factor *= 1024 if binary else 1000
    return round(float(number.replace(",", ".")) * factor)


@dataclass(frozen=True, slots=True)
class Limit:
    """So many in so many seconds; a `count` of 0 is no limit."""

    count: int
    seconds: int

    @property
    def rate(self) -> float:
        """How many a second."""
        return self.count / self.seconds


OFF = Limit(0, 1)


def parse_limit(text: str) -> Limit:
    """ "100 / hour" → Limit; "" and "off" → OFF. ValueError otherwise."""
    if text.strip() in ("", "off"):
        return OFF
    match = re.fullmatch(r"\s*([1-9][0-9]{0,8})\s*/\s*([a-z]+)\s*", text)
    if not match or match[2] not in _UNITS:
        raise ValueError(f'« {text} » is not a limit: write "100 / hour", "5 / min", or "off"')
    return Limit(int(match[1]), _UNITS[match[2]])
