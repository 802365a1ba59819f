"""What watches the relay: alert rules and dashboard speak of figures that there are, and the rules do what they say."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from relay.cli import cli
from tests.support.debian import library_path, root_of

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
FIGURES = Path(__file__).parents[2] / "relay" / "metrics.py"
NAME = re.compile(r"\bwelyb_relay_\w+")


def promtool(*words: str) -> str:
    tool = root_of("prometheus") / "usr/bin/promtool"
    environment = {**os.environ, "LD_LIBRARY_PATH": library_path("prometheus")}
    done = subprocess.run([tool, *words], env=environment, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.debian("prometheus")
def test_the_rules_are_understood_and_fire_when_they_should() -> None:
    assert "SUCCESS: 9 rules found" in promtool("check", "rules", "alerts.yml")
    assert "SUCCESS" in promtool("test", "rules", "alerts.test.yml")


def test_they_speak_of_figures_that_there_are() -> None:
    known = set(NAME.findall(FIGURES.read_text()))
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    expressions = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    for text in (expressions, (FOLDER / "alerts.yml").read_text()):
        used = {re.sub(r"_(total|bucket)$", "", name) for name in NAME.findall(text)}
        assert used and used <= known


def test_what_they_say_to_type_exists() -> None:
    told = re.findall(r"(?m)\bwelyb-relay ((?:[a-z]+ ?)+)", (FOLDER / "alerts.yml").read_text())
    verbs = {words.split()[0] for words in told}
    assert {"check", "runs", "queue"} <= verbs <= set(cli.list_commands(None))  # type: ignore[arg-type]
