"""TOML text → tables, or what is wrong with it and in which line.

Knows alone: what tomllib makes of texts that are no TOML, which is more than one kind of exception.
"""

import re
import tomllib
from typing import Any

_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)\Z")


class NotToml(ValueError):
    """`line` is where it is noticed, from 1."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(f"not TOML: {problem}. Remedy: mend that line.")
        self.line = line


def tables(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise NotToml(1, "nested too deeply") from None
    except ValueError as error:  # not only TOMLDecodeError: a number of 5,000 digits is Python's to refuse
        place = _PLACE.search(str(error))
        line = int(place[1]) if place and place[1] else text.count("\n") + 1 if place else 1
        raise NotToml(line, _PLACE.sub("", str(error))) from None


def shown(value: object) -> str:
    """A value for a message; "…" where it cannot be shown: nested too deeply, or a number of 5,000 digits."""
    try:
        return str(value)[:200]
    except (RecursionError, ValueError):
        return "…"
