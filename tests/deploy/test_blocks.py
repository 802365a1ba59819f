"""The code blocks of README.md and the command lines of deploy/reliability.md, as far as no other test has them.

Elsewhere: the settings, rules and verbs of the reference (test_documents.py), `make demo` (test_contract.py), postmaster.md
(test_postmaster.py). Here the list of README's blocks is complete, so that a new one is noticed.
"""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.deploy.page import PROJECT, understood
from tests.support import documents as made
from tests.support.desk import Desk
from tests.support.relay import Relay

README = (PROJECT / "README.md").read_text("utf-8")
RELIABILITY = (PROJECT / "deploy/reliability.md").read_text("utf-8")
TARGETS = set(re.findall(r"(?m)^([a-z]+):", (PROJECT / "Makefile").read_text("utf-8")))

# What a block begins with → where it is tried.
BLOCKS = {
    "make run": "test_the_make_targets_of_both_pages_exist",
    "make demo": "test_contract.py: test_the_demo_tells_the_whole_story",
    "releve.zip →": "test_contract.py: the demo, and test_intake.py",
    "$ welyb-relay runs now": "test_what_is_shown_of_the_story_has_its_columns",
    "$ welyb-relay trace": "test_what_is_shown_of_the_story_has_its_columns",
    "welyb-relay connections add": "test_the_first_hour",
    "#!/bin/sh -e": "test_the_scripts_are_scripts",
    "[Socket]": "test_units.py: test_the_drop_in_of_the_readme_moves_the_socket",
    "[rule.": "test_documents.py: test_the_example_of_a_rule_is_one",
}


def blocks() -> list[str]:
    """Lines further in than the text around them, after an empty one."""
    found = re.findall(r"(?m)(?<=\n\n)(?:(?: {4,}.*|)\n)+", README)
    return [re.sub(r"(?m)^ {4,7}", "", block).strip() for block in found if block.strip()]


def test_every_block_of_the_readme_is_tried_somewhere() -> None:
    unknown = [block for block in blocks() if not block.startswith(tuple(BLOCKS))]
    assert unknown == []
    assert all(any(block.startswith(start) for block in blocks()) for start in BLOCKS if start[0] != "#")


def test_the_scripts_are_scripts() -> None:
    for block in blocks():
        if block.startswith("#!"):
            assert subprocess.run(["sh", "-n"], input=block, text=True, check=False).returncode == 0, block


def test_the_first_hour(tmp_path: Path) -> None:
    """What is typed in « A first hour », typed."""
    told = README.partition("\n## A first hour\n")[2].partition("\n## ")[0]
    (block,) = [each for each in blocks() if each.startswith("welyb-relay connections add")]
    typed = [*re.findall(r"`(welyb-relay [^`]+)`", told.partition("\n**")[0]), block.replace("\\\n", " ")]
    typed.sort(key=lambda line: "connections" not in line)
    relay = Relay(tmp_path)
    (relay.client("macon-dupont") / "Achats").mkdir()
    (tmp_path / "facture.pdf").write_bytes(made.pdf())
    desk = Desk(relay)
    try:
        relay.start()
        for line in typed:
            words = [str(tmp_path / "facture.pdf") if word == "FILE" else word for word in shlex.split(line)[1:]]
            words = ["127.0.0.1" if word == "IP" else word for word in words]
            if words[0] in ("serve", "check") or "--verify" in words:  # about the machine: that they begin is enough
                understood(words)
                continue
            done = desk.here(*words)
            assert done.exit_code == 0, f"{line}\n{done.output}"
    finally:
        relay.stop()
    assert len(typed) > 6


@pytest.mark.parametrize(("verb", "more"), [("runs now", ()), ("trace", ("facture-edf.pdf",))])
def test_what_is_shown_of_the_story_has_its_columns(verb: str, more: tuple[str, ...], tmp_path: Path) -> None:
    (block,) = [each for each in blocks() if each.startswith(f"$ welyb-relay {verb}")]
    relay = Relay(tmp_path).start()
    try:
        desk = Desk(relay)
        desk.mail("macon-dupont", ("facture-edf.pdf", "application/pdf", made.pdf()))
        head = desk.here(*verb.split(), *more).stdout.splitlines()[0]
    finally:
        relay.stop()
    assert head.split() == block.splitlines()[1].split()


def told(page: str) -> list[str]:
    """Command lines in backticks."""
    return [" ".join(line.split()) for line in re.findall(r"`([^`]+)`", page)]


def test_the_make_targets_of_both_pages_exist() -> None:
    called = {target for page in (README, RELIABILITY) for target in re.findall(r"(?:`|    )make ([a-z]+)", page)}
    assert {"run", "test", "demo", "crash", "soak"} <= called <= TARGETS


def test_what_reliability_has_pytest_run_is_there() -> None:
    lines = [line for line in told(RELIABILITY) if re.search(r"(^| )pytest ", line)]
    assert len(lines) > 2
    for line in lines:
        words = shlex.split(line)
        for variable in [word.partition("=")[0] for word in words if re.match(r"[A-Z_]+=", word)]:
            sources = (PROJECT / "tests").rglob("*.py")
            assert any(f'"{variable}"' in path.read_text("utf-8") for path in sources), line
        paths = [word for word in words if "/" in word]
        assert paths and all((PROJECT / path).exists() for path in paths), line


def test_the_tests_it_names_exist() -> None:
    """Files, and functions in any of them."""
    sources = list((PROJECT / "tests").rglob("test_*.py"))
    functions = {name for path in sources for name in re.findall(r"def (test_\w+)\(", path.read_text("utf-8"))}
    for name in re.findall(r"`(test_\w+)`", RELIABILITY):
        assert name in functions, name
    for path in re.findall(r"`(?:[^`]*/)?(test_\w+\.py)[`,]", RELIABILITY):
        assert path in {source.name for source in sources}, path


def test_its_options_of_our_modules_and_verbs_of_ours_parse() -> None:
    soak = (PROJECT / "tests/soak/__main__.py").read_text("utf-8")
    for options in re.findall(r"\(`(--minutes [^`]*)`\)", RELIABILITY):
        assert all(f'"{word}"' in soak for word in options.split() if word.startswith("--"))
    bench = (PROJECT / "tests/bench/__main__.py").read_text("utf-8")
    for options in re.findall(r"`python -m tests\.bench ([^`]*)`", README):
        assert all(f'"{word}"' in bench for word in options.split() if word.startswith("--"))
    for line in told(RELIABILITY):
        if line.startswith("welyb-relay "):
            understood(shlex.split(line)[1:])
