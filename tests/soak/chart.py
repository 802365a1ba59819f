"""Samples → one chart as SVG, drawn by hand: memory, descriptors, latency, queue and disk over time, faults as bands."""

import math
from collections.abc import Callable, Sequence
from html import escape

from tests.bench.chart import COLOURS
from tests.soak.faults import Happened
from tests.soak.samples import Sample

WIDTH, LEFT, RIGHT, HEIGHT, GAP, TOP = 900, 70, 150, 130, 34, 66
Series = tuple[str, str, Callable[[Sample], float]]
_LOGARITHMIC = "latency, ms, logarithmic"  # a lock of two seconds would flatten all the rest
_INK = (COLOURS["ours"], COLOURS["opensmtpd"], COLOURS["exim"], COLOURS["haraka"])
_PANELS: tuple[tuple[str, tuple[Series, ...]], ...] = (
    ("memory, MB", (("RSS", _INK[0], lambda s: s.rss), ("PSS", _INK[1], lambda s: s.pss))),
    ("descriptors", (("files", _INK[0], lambda s: s.files), ("sockets", _INK[1], lambda s: s.sockets))),
    (
        _LOGARITHMIC,
        (
            ("p50", _INK[2], lambda s: s.p50),
            ("p99, 20 kB", _INK[0], lambda s: s.p99_small),
            ("p99", _INK[1], lambda s: s.p99),
        ),
    ),
    ("queue, deliveries", (("not at their end", _INK[0], lambda s: s.queue),)),
    (
        "disk, MB",
        (
            ("spool", _INK[0], lambda s: s.spool),
            ("store", _INK[1], lambda s: s.database),
            ("WAL", _INK[2], lambda s: s.wal),
        ),
    ),
)
_SHADES = {
    "database locked": "#d9534f",
    "GED away": "#8a6d3b",
    "collector away": "#5b7fa6",
    "collector stopped": "#5b7fa6",
}


def svg(samples: Sequence[Sample], happened: Sequence[Happened], *, seconds: float, title: str) -> str:
    height = TOP + len(_PANELS) * (HEIGHT + GAP)
    scale = (WIDTH - LEFT - RIGHT) / seconds
    parts = [
        _text(10, 22, title, size=15),
        _text(
            LEFT,
            42,
            "red: database locked; blue: collector stopped or away; brown: GED away; grey: others. Time in minutes.",
            size=11,
        ),
    ]
    for number, (label, series) in enumerate(_PANELS):
        top = TOP + number * (HEIGHT + GAP)
        parts += [*_bands(happened, scale, top=top), *_panel(samples, series, label, scale=scale, top=top)]
        parts += _axis(seconds, scale, bottom=top + HEIGHT)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'font-family="sans-serif" role="img"><rect width="100%" height="100%" fill="#fff"/>'
        + "".join(parts)
        + "</svg>\n"
    )


def _panel(samples: Sequence[Sample], series: Sequence[Series], label: str, *, scale: float, top: float) -> list[str]:
    most = max((value(each) for each in samples for _, _, value in series), default=0.0) or 1.0
    parts = [
        _text(LEFT - 8, top + 10, f"{most:,.0f}", anchor="end", size=10),
        _text(LEFT - 8, top + HEIGHT, "1" if label == _LOGARITHMIC else "0", anchor="end", size=10),
    ]
    parts.append(_text(LEFT, top - 6, label, size=12))
    share = _logarithm if label == _LOGARITHMIC else _linear
    for number, (name, colour, value) in enumerate(series):
        points = " ".join(
            f"{LEFT + each.at * scale:.1f},{top + HEIGHT * (1 - share(value(each), most)):.1f}"
            for each in samples
            if each.at >= 0
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.3"/>')
        last = value(samples[-1]) if samples else 0.0
        at = WIDTH - RIGHT + 8, top + 14 + 16 * number
        parts.append(f'<rect x="{at[0]}" y="{at[1] - 8}" width="10" height="8" fill="{colour}"/>')
        parts.append(_text(at[0] + 15, at[1], f"{name} {last:,.0f}", size=11))
    return parts


def _linear(value: float, most: float) -> float:
    return value / most


def _logarithm(value: float, most: float) -> float:
    """From 1 ms at the bottom."""
    return math.log(max(value, 1.0)) / math.log(max(most, 2.0))


def _bands(happened: Sequence[Happened], scale: float, *, top: float) -> list[str]:
    return [
        f'<rect x="{LEFT + each.began * scale:.1f}" y="{top}" width="{max((each.ended - each.began) * scale, 1):.1f}" '
        f'height="{HEIGHT}" fill="{_SHADES.get(each.name, "#999")}" opacity="0.25"><title>{escape(each.name)}</title></rect>'
        for each in happened
    ]


def _axis(seconds: float, scale: float, *, bottom: float) -> list[str]:
    end = LEFT + seconds * scale
    marks = [(LEFT + sixth * seconds / 6 * scale, f"{sixth * seconds / 360:.1f}") for sixth in range(7)]
    return [
        f'<line x1="{LEFT}" y1="{bottom}" x2="{end:.1f}" y2="{bottom}" stroke="#555"/>',
        *(_text(at, bottom + 13, minutes, anchor="middle", size=9) for at, minutes in marks),
    ]


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'
