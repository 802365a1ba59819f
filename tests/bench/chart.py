"""Figures → one chart as SVG, drawn by hand: for each case a bar per server, as a multiple of Postfix."""

from html import escape
from typing import Any

from tests.bench.tables import grouped, median, number, ratio

COLOURS = {
    "ours": "#0b6e4f",
    "postfix": "#9aa5b1",
    "postfix+opendkim": "#9aa5b1",
    "opensmtpd": "#c9a227",
    "exim": "#7b8fb7",
    "haraka": "#b98b82",
    "aiosmtpd": "#c7b8d6",
}
WIDTH, LEFT, RIGHT, BAR, GAP = 860, 250, 150, 13, 14
CHOSEN = ("accept", "drain", "through", "list", "memory")


def svg(results: dict[str, Any]) -> str:
    cells = [
        (what, case, bars)
        for (what, case), cell in grouped(results["runs"]).items()
        if what in CHOSEN
        and (bars := [(name, times, runs) for name, runs in cell.items() if (times := ratio(cell, name, what))])
        and len(bars) > 1
    ]
    widest = max((times for _, _, bars in cells for _, times, _ in bars), default=1.0)
    scale = (WIDTH - LEFT - RIGHT) / widest
    parts, y = [], 46
    for what, case, bars in cells:
        parts.append(_text(LEFT - 10, y + len(bars) * BAR / 2 + 4, f"{what}: {case}", anchor="end"))
        for name, times, runs in bars:
            length = max(times * scale, 1)
            colour = COLOURS.get(name, "#999")
            parts.append(f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR - 2}" fill="{colour}"/>')
            label = f"{name} {number(median(runs, 'value'))} {runs[0]['unit']} ({times:.1f}×)"
            parts.append(_text(LEFT + length + 5, y + BAR - 4, label, size=10))
            y += BAR
        y += GAP
    line = LEFT + scale
    parts.append(f'<line x1="{line:.1f}" y1="36" x2="{line:.1f}" y2="{y - GAP}" stroke="#555" stroke-dasharray="3 3"/>')
    title = _text(10, 22, "How many times as fast as Postfix (longer is better)", size=15)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y + 6}" '
        f'font-family="sans-serif" role="img"><rect width="100%" height="100%" fill="#fff"/>{title}'
        + "".join(parts)
        + "</svg>\n"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
