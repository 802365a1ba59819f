"""What was found → Markdown: the verdict, what there was, the parts of the soak side by side."""

from collections.abc import Callable, Sequence
from typing import Any

from tests.soak.traffic import median

Facts = dict[str, Any]
Column = tuple[str, Callable[[Sequence[Facts]], float]]


def _median(name: str) -> Callable[[Sequence[Facts]], float]:
    return lambda samples: median([each[name] for each in samples])


def _most(name: str) -> Callable[[Sequence[Facts]], float]:
    return lambda samples: max((each[name] for each in samples), default=0.0)


_COLUMNS: tuple[Column, ...] = (
    ("mails", lambda samples: sum(each["mails"] for each in samples)),
    ("RSS MB", _median("rss")),
    ("RSS MB, most", _most("rss")),
    ("PSS MB", _median("pss")),
    ("files", _median("files")),
    ("sockets", _median("sockets")),
    ("p50 ms", _median("p50")),
    ("p99 ms, 20 kB", _median("p99_small")),
    ("p99 ms", _median("p99")),
    ("longest ms", _most("worst")),
    ("queue, most", _most("queue")),
    ("WAL MB", _most("wal")),
    ("spool MB", _most("spool")),
    (
        "CPU cores",
        lambda samples: (samples[-1]["cpu"] - samples[0]["cpu"]) / max(samples[-1]["at"] - samples[0]["at"], 1),
    ),
    ("load", _median("load")),
)
PARTS = 6


def markdown(results: Facts) -> str:
    facts = results["facts"]
    head = (
        f"{facts['at']}, {facts['machine']}. {facts['rate']:.1f} mails/s for {facts['seconds'] / 60:g} minutes"
        + (f", capacity {facts['capacity']:.1f}/s" if "capacity" in facts else "")
        + f", a run every {facts['every']} s, {facts['processes']} process(es) taking mail."
    )
    lines = [head, "", *(f"- {'ok' if each['good'] else 'FAIL'}: {each['text']}" for each in results["verdict"])]
    lines += ["", *(f"- {text}" for text in results["findings"])] if results["findings"] else []
    lines += ["", "Faults: " + _listed(facts["faults"]), "", "Mails and deposits: " + _listed(facts["counts"])]
    lines += ["", "Warnings and errors in the log: " + (_listed(facts["log"]) or "none"), "", *_parts(results)]
    return "\n".join([*lines, ""])


def _listed(counts: dict[str, int]) -> str:
    return "; ".join(f"{name} {count:,}" for name, count in counts.items())


def _parts(results: Facts) -> list[str]:
    """Medians of the samples, a sixth of the time in each row."""
    seconds = results["facts"]["seconds"]
    lines = [f"| minutes | {' | '.join(name for name, _ in _COLUMNS)} |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for part in range(PARTS):
        low, high = seconds * part / PARTS, seconds * (part + 1) / PARTS
        samples = [each for each in results["samples"] if low <= each["at"] < high]
        if samples:
            cells = (f"{of(samples):,.2f}" if name == "CPU cores" else f"{of(samples):,.0f}" for name, of in _COLUMNS)
            lines.append(f"| {low / 60:.3g}–{high / 60:.3g} | {' | '.join(cells)} |")
    return lines
