"""deploy/postmaster.md as something that is done: its blocks in order, every command typed into a real shell.

Knows alone: how a block is read (```console: `$ ` and what it must answer, on the machine the prompt names; ```toml:
settings), what a word in capitals stands for, and how an answer is compared: `…` is anything, a line of it alone any lines,
and the widths of columns are nobody's business. Limits: no systemd and no package manager run here. Their lines are looked
up instead (UNITS, the package's name), and what the unit would do to the relay is done by hand. `NEW:` is this machine too.
"""

import os
import re
import shlex
import signal
import subprocess
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from relay import config
from relay.cli import cli
from tests.support.debian import SYSTEM_PATH, require
from tests.support.relay import Relay, command

PROJECT = Path(__file__).resolve().parents[2]
UNITS = {path.name for path in (PROJECT / "deploy/systemd").iterdir()}
PACKAGE = re.findall(r"(?m)^Package: (.+)$", (PROJECT / "deploy/debian/control").read_text())[0]

RUN = {"welyb-relay", "df", "du", "ls", "mv", "mkdir", "chown", "rsync"}
NOT_RUN = {"systemctl", "journalctl", "apt-get", "apt-mark", "dig"}
OPTIONS = {"-p", "warning", "-u", "--since", "-f", "--now"}  # of systemctl(1) and journalctl(1)
BLOCK = re.compile(r"(?ms)^ *```(\w*)\n(.*?)^ *```$")
PROMPT = re.compile(r"^ *(old|new|)\$ (.+)$")


@dataclass(frozen=True, slots=True)
class Command:
    machine: str  # "", or "old" and "new"
    line: str
    answer: str


@dataclass(frozen=True, slots=True)
class Block:
    kind: str
    text: str

    def commands(self) -> list[Command]:
        found: list[Command] = []
        lines = self.text.splitlines()
        at = 0
        while at < len(lines):
            prompt = PROMPT.match(lines[at])
            assert prompt, f"neither a command nor an answer to one: {lines[at]}"
            line, at = prompt[2], at + 1
            while line.endswith("\\"):
                line, at = f"{line[:-1].rstrip()} {lines[at].strip()}", at + 1
            began = at
            while at < len(lines) and not PROMPT.match(lines[at]):
                at += 1
            found.append(Command(prompt[1], line, "\n".join(lines[began:at])))
        return found


def chapters(text: str) -> dict[str, list[Block]]:
    """Title → its blocks."""
    _, *parts = re.split(r"(?m)^## (.+)$", text)
    titles, bodies = parts[::2], parts[1::2]
    return {title: [Block(*found) for found in BLOCK.findall(body)] for title, body in zip(titles, bodies, strict=True)}


@dataclass
class Chapter:
    """What is left of a chapter, and who stands behind its prompts and words."""

    folder: Path
    blocks: list[Block]
    machines: Mapping[str, Relay]
    words: dict[str, str] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """The next block, as settings that the relay would take."""
        block = self.blocks.pop(0)
        assert block.kind == "toml", f"settings were expected:\n{block.text}"
        config.parse(block.text, "postmaster.md")
        return tomllib.loads(block.text)

    def do(self, **words: str) -> str:
        """The next block, line by line; what it answered."""
        self.words |= words
        block = self.blocks.pop(0)
        assert block.kind == "console", f"commands were expected:\n{block.text}"
        return "\n".join(self._done(one) for one in block.commands())

    def _done(self, one: Command) -> str:
        relay = self.machines[one.machine]
        programs = called(one.line)
        assert programs <= RUN | NOT_RUN, f"nobody here knows how to run: {one.line}"
        if programs & NOT_RUN:
            looked_up(one.line)
            by_hand(relay, one.line)
            return ""
        said = self._typed(relay, self._filled(one.line))
        pattern = expected(self._filled(one.answer))
        assert pattern.fullmatch(level(said)), f"$ {one.line}\n--- told\n{one.answer}\n--- said\n{said}"
        return said

    def _filled(self, text: str) -> str:
        for word, value in sorted(self.words.items(), key=lambda pair: -len(pair[0])):
            text = re.sub(rf"(?<![A-Z]){word}(?![A-Z])", lambda _, value=value: value, text)  # type: ignore[misc]
        return text

    def _typed(self, relay: Relay, line: str) -> str:
        for word in called(line) - {"welyb-relay"}:
            require(word)
        new = self.machines.get("new", relay)
        for told, real in [*((f"NEW:{told}", real) for told, real in places(new)), *places(relay)]:
            line = line.replace(told, real)
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.folder,
            env={**os.environ, "PATH": f"{ours(self.folder)}:{SYSTEM_PATH}", "WELYB_RELAY_CONFIG": str(relay.config)}
            | {"LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=100,
        )
        said = done.stdout
        for told, real in reversed(places(relay)):
            said = said.replace(real, told)
        fault = re.search(r" False |(?m:^GAP )", level(said)) if re.search(r"\b(check|dns)\b", line) else None
        assert done.returncode == bool(fault), f"$ {line}\nexit {done.returncode}\n{said}"
        return said

    def end(self) -> None:
        assert self.blocks == [], "not done by any test"


def understood(words: list[str]) -> click.Command:
    """The verb of ours that `welyb-relay` is given here; its options and arguments are such that it would begin."""
    verb: click.Command = cli
    name, rest = "welyb-relay", list(words)
    context = click.Context(cli, info_name=name)
    while isinstance(verb, click.Group):
        found, below, rest = verb.resolve_command(context, rest)
        assert found and below, f"no such verb: {words}"
        verb, name = below, found
    verb.make_context(name, rest, parent=context)
    return verb


def called(line: str) -> set[str]:
    """The programs of a line: its first word, and that after each |, && and ;."""
    words = list(shlex.shlex(line, posix=True, punctuation_chars=True))
    return {word for before, word in zip(["|", *words], words, strict=False) if before in {"|", "&&", "||", ";"}}


def looked_up(line: str) -> None:
    """A line that is not run: every unit, option and package it names is there."""
    program, *words = line.split('"')[0].split() + (["…"] if '"' in line else [])
    for word in words:
        if program == "systemctl" and "." in word:
            assert word in UNITS, line
        elif (program == "apt-get" and word is not words[0]) or word.startswith("welyb-relay"):
            assert word.removeprefix("./").split("_")[0].removesuffix(".service") == PACKAGE, line
        elif word.startswith("-"):
            assert word in OPTIONS, line
    if program == "systemctl" and words[0] in {"stop", "disable"}:
        assert set(words) >= UNITS, f"stopped alone, the other starts it again: {line}"


def by_hand(relay: Relay, line: str) -> None:
    """What the unit does on that order."""
    words = line.split()
    if words[:2] == ["systemctl", "reload"]:
        reloaded = relay.program.err.read_text().count("reloaded")
        os.kill(relay.program.pid, signal.SIGHUP)
        end = time.monotonic() + 30
        while relay.program.err.read_text().count("reloaded") == reloaded:
            assert time.monotonic() < end, relay.program.told()
            time.sleep(0.02)
    elif words[0] == "systemctl" and words[1] in {"stop", "disable"}:
        relay.stop()
    elif words[0] == "systemctl" and words[1] in {"start", "enable", "restart"}:
        relay.stop()
        relay.start()


def places(relay: Relay) -> list[tuple[str, str]]:
    """As told → where it is here; first the folder that holds the others."""
    told = {"/etc/welyb-relay": relay.folder, "/var/lib/welyb-relay": relay.folder / "var", "/srv/ged": relay.ged}
    return [(path, str(here)) for path, here in told.items()]


def ours(folder: Path) -> Path:
    """A folder for PATH with the command in it, in the language of the page."""
    script = folder / "bin/welyb-relay"
    if not script.exists():
        script.parent.mkdir(parents=True)
        script.write_text(f'#!/bin/sh\nLC_ALL=en_GB.UTF-8 exec {shlex.join(command())} "$@"\n')
        script.chmod(0o755)
    return script.parent


def level(text: str) -> str:
    """Without what columns add: runs of spaces, and the length of rules."""
    lines = [re.sub(r"[ \t]+", " ", line).strip() for line in text.strip().splitlines()]
    return "".join("---\n" if re.fullmatch(r"[- ]+", line) else f"{line}\n" for line in lines)


def expected(answer: str) -> re.Pattern[str]:
    lines = level(answer).splitlines()
    return re.compile("".join(r"(?:.*\n)*" if line == "…" else f"{_line(line)}\n" for line in lines))


def _line(line: str) -> str:
    return ".*?".join(re.escape(part) for part in line.split("…"))
