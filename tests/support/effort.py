"""How hard the fuzzers try: a little in `make test`, always the same way; more and by chance with FUZZ_EXAMPLES=N.

Knows alone: that a short run finds what it found before (derandomized), and where a long one keeps what failed.
"""

import os
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

LONG = int(os.environ.get("FUZZ_EXAMPLES", "0"))
FAILED = Path(__file__).parents[1] / "fuzz/.examples"


def examples(short: int) -> int:
    """How many: `short` in `make test`, at least FUZZ_EXAMPLES in `make fuzz`."""
    return max(short, LONG)


def steps(short: int) -> int:
    """The same for programs of steps, each of which costs many times as much."""
    return max(short, LONG // 20)


def set_up() -> None:
    """Before any test module is imported: what `settings` begins with."""
    common = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile("short", derandomize=True, max_examples=100, **common)  # type: ignore[arg-type]
    kept = DirectoryBasedExampleDatabase(FAILED)
    settings.register_profile("long", max_examples=examples(100), database=kept, print_blob=True, **common)  # type: ignore[arg-type]
    settings.load_profile("long" if LONG else "short")
