"""A clock that is set while the relay runs (libfaketime with a file that says what time it is).

Limits: what the kernel stamps on files keeps the true time, as it would not on a machine whose own clock is set.
"""

from pathlib import Path

from tests.support import debian


class Clock:
    """`environment` is for the relay; `set` to an offset ("-3600", in seconds) or an instant ("@2026-03-29 01:00:00")."""

    def __init__(self, folder: Path, *, elapsed: bool = False) -> None:
        """`elapsed`: what is set passes for time spent, on the clock that timeouts go by too."""
        self._file = folder / "clock"
        self.set("+0")
        library = {"LD_PRELOAD": debian.faked_time("")["LD_PRELOAD"], "NO_FAKE_STAT": "1", "TZ": "UTC"}
        self.environment = {**library, "FAKETIME_TIMESTAMP_FILE": str(self._file), "FAKETIME_NO_CACHE": "1"}
        if not elapsed:
            self.environment["DONT_FAKE_MONOTONIC"] = "1"

    def set(self, to: str) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(to + "\n")
        new.rename(self._file)  # never half of it
