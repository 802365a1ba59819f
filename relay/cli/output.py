"""How a listing is shown: a table for people, one JSON object a line for programs. Hostile bytes are escaped in both."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

import click

from relay.cli.language import current, t
from rules.replies import HISTORY, Reason, history

Record = Mapping[str, Any]
AT_ONCE = 200  # rows to a write
PAGE = 100  # rows of a table before it says how to go on
WIDEST = 48
WIDEST_LAST = 3 * WIDEST  # of the last column


def emit(rows: Iterable[Record], columns: Sequence[str], *, as_json: bool) -> int:
    """Writes the rows; how many. A table shows `columns` only."""
    return write_lines(map(encoded, rows)) if as_json else _table(rows, columns)


encoded = json.JSONEncoder(ensure_ascii=True, default=str).encode


def write_lines(lines: Iterable[str]) -> int:
    """One write for many: of a long listing, the calls would cost more than the text."""
    lines, count = iter(lines), 0
    while some := list(islice(lines, AT_ONCE)):
        sys.stdout.write("\n".join(some) + "\n")
        count += len(some)
    return count


def _table(rows: Iterable[Record], columns: Sequence[str]) -> int:
    from tabulate import tabulate

    *narrow, last = columns
    cells = [[*(cell(row.get(column)) for column in narrow), cell(row.get(last), WIDEST_LAST)] for row in rows]
    if cells:
        drawn = tabulate(cells, headers=list(columns), tablefmt="simple", disable_numparse=True)  # type: ignore[no-untyped-call]
        sys.stdout.write(f"{drawn}\n")
        sys.stdout.flush()  # before what is said on the other stream
    else:
        click.echo(t("(rien)", "(nothing)"), err=True)
    return len(cells)


def paged(rows: Iterable[Record], *, key: str, limit: int | None, as_json: bool) -> Iterator[Record]:
    """All rows for a program; for a person a page, and how to see the next."""
    if as_json or limit is not None:
        yield from rows
        return
    last: Record | None = None
    rows = iter(rows)
    for row in islice(rows, PAGE):
        last = row
        yield row
    if last is not None and next(rows, None) is not None:
        hint = t("Suite", "More")
        click.echo(f"{hint}: --after {printable(str(last[key]))} --limit {PAGE}", err=True)


def cell(value: object, widest: int = WIDEST) -> str:
    text = printable("" if value is None else str(value))
    return text if len(text) <= widest else text[: widest - 1] + "…"


def printable(text: str) -> str:
    """What a terminal may be shown: controls, bidi overrides and broken surrogates escaped."""
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def reason(stored: str | None, zone: ZoneInfo) -> tuple[str, str | None]:
    """A stored reason as (sentence, code); ("", None) where there is none."""
    if not stored:
        return "", None
    facts = json.loads(stored)
    code = str(facts.pop("code", ""))
    if code not in HISTORY:
        return code, code
    if "at" in facts:
        facts["at"] = datetime.fromisoformat(str(facts["at"])).astimezone(zone).strftime(t("%H h %M", "%H:%M"))
    return history(Reason(code, facts), current()), code


def fail(message: str, status: int) -> "click.ClickException":
    """An error for people, with its exit code."""
    return _Failure(printable(message), status)


class _Failure(click.ClickException):
    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_code = status  # type: ignore[misc]  # click reads it from the instance too
