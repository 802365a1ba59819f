"""relay/INTERNALS.md says what is so: the diagram is the table's, and every kill it speaks of is a test, and back."""

import importlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import relay
from rules.lifecycle import FINAL, INITIAL, TRANSITIONS, State

TEXT = (Path(relay.__file__).parent / "INTERNALS.md").read_text("utf-8")
HERE = Path(__file__)


def diagram() -> str:
    """The states and their changes, as the diagram shows them."""
    ways: dict[tuple[State, State], list[str]] = defaultdict(list)
    for change, (sources, target) in TRANSITIONS.items():
        for source in sources:
            ways[source, target].append(change)
    order = list(State)
    lines = [f"[*] --> {state}" for state in order if state in INITIAL]
    for source, target in sorted(ways, key=lambda way: (order.index(way[0]), order.index(way[1]))):
        lines.append(f"{source} --> {target}: {', '.join(ways[source, target])}")
    lines += [f"{state} --> [*]" for state in order if state in FINAL]
    return "\n".join(["stateDiagram-v2", *(f"    {line}" for line in lines)])


def kills() -> Iterator[str]:
    """The tests beside this one, with the names of their cases where they have names."""
    for path in HERE.parent.glob("test_*.py"):
        tests = vars(importlib.import_module(f"tests.crash.{path.stem}")) if path != HERE else {}
        for name, test in tests.items():
            if name.startswith("test_"):
                cases = [
                    case
                    for mark in getattr(test, "pytestmark", ())
                    if mark.name == "parametrize"
                    for case in mark.args[1]
                ]
                names = [f"{name}[{case.id}]" for case in cases if getattr(case, "id", None)]
                yield from names or [name]


def test_the_diagram_is_the_transition_table() -> None:
    drawn = re.search(r"```mermaid\n(.*?)\n```", TEXT, re.DOTALL)
    assert drawn and drawn[1] == diagram(), f"it should be:\n{diagram()}"


def test_every_kill_is_told_and_every_one_told_is_made() -> None:
    told, made = set(re.findall(r"`(test_[^`]*?)`", TEXT)), set(kills())
    told -= {"test_internals.py"}
    assert {kill for kill in made if kill not in told and kill.partition("[")[0] not in told} == set()
    assert told <= made | {kill.partition("[")[0] for kill in made}
