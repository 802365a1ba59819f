"""Scripted collectors in a thread of their own, for a command that is run and waited for."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.farside import Far, in_a_thread


@dataclass
class Placed(Far):
    """A Far that listens at `place`."""

    place: str = ""


@contextmanager
def collectors(scripts: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Placed]]:
    """One for each script, by its name."""
    found = {name: Placed(script) for name, script in scripts.items()}
    with in_a_thread(found.values()) as ports:
        for far, port in zip(found.values(), ports, strict=True):
            far.place = f"127.0.0.1:{port}"
        yield found
