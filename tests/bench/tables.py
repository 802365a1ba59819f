"""Figures → Markdown: medians, their spread, and the ratio to Postfix, or to ours without what a case is about."""

import statistics
from collections.abc import Iterable
from typing import Any

Facts = dict[str, Any]
BASE = {"through": "postfix+opendkim", "verify": "ours"}  # whom a ratio is to, where it is not Postfix


def grouped(runs: Iterable[Facts]) -> dict[tuple[str, str], dict[str, list[Facts]]]:
    """By (what, case), then by server, in the order they were measured."""
    cells: dict[tuple[str, str], dict[str, list[Facts]]] = {}
    for run in runs:
        cells.setdefault((run["what"], run["case"]), {}).setdefault(run["server"], []).append(run)
    return cells


def median(runs: Iterable[Facts], name: str) -> float:
    values = [run[name] for run in runs if run.get(name) is not None]
    return statistics.median(values) if values else 0.0


def ratio(cell: dict[str, list[Facts]], server: str, what: str) -> float | None:
    """How many times as good as BASE; round by round, for the rounds of one server stand beside the other's."""
    base = cell.get(BASE.get(what, "postfix"))
    if base is None:
        return None
    by_round = {run["round"]: run["value"] for run in base}
    pairs = [(run["value"], by_round[run["round"]]) for run in cell[server] if run["round"] in by_round]
    if not pairs:
        return None
    times = [ours / theirs for ours, theirs in pairs]
    more_is_better = cell[server][0]["unit"] == "/s"
    return statistics.median(times) if more_is_better else 1 / statistics.median(times)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def markdown(results: Facts) -> str:
    where = results["machine"]
    lines = [
        f"{where['at']}, {where['cores']} cores, Linux {where['kernel']}, {where['file_system']}, "
        f"{where['rounds']} rounds, medians [least, most]. Ours checks every document, the others check nothing.",
        "",
        *(f"- {name}: {version}" for name, version in where["versions"].items()),
    ]
    whats = list(dict.fromkeys(run["what"] for run in results["runs"]))
    for what in whats:
        lines += ["", f"### {what}", "", *_table(results["runs"], what)]
    return "\n".join([*lines, ""])


def _table(runs: list[Facts], what: str) -> list[str]:
    base = BASE.get(what, "Postfix")
    lines = [
        f"| case | server | measured | × {base} | CPU ms | p50 ms | p99 ms | PSS MB | largest process MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (kind, case), cell in grouped(runs).items():
        if kind != what:
            continue
        for server, found in cell.items():
            lines.append(_row(case, server, found, ratio(cell, server, what)))
    return lines


def _row(case: str, server: str, found: list[Facts], times: float | None) -> str:
    values = [run["value"] for run in found]
    spread = f" [{number(min(values))}, {number(max(values))}]" if len(values) > 1 else ""
    shown = [
        case,
        server,
        f"{number(statistics.median(values))} {found[0]['unit']}{spread}",
        f"{times:.2f}" if times else "",
        *(number(median(found, name)) if median(found, name) else "" for name in ("cpu_ms", "p50_ms", "p99_ms")),
        *(number(median(found, name)) if median(found, name) else "" for name in ("pss_mb", "pss_largest_mb")),
    ]
    return f"| {' | '.join(shown)} |"
