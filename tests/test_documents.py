"""The documentation under test: what README.md and deploy/relay.toml name exists, and what exists is named there.

In the README's `## Reference`: settings as `[table] key`, rule keys in backticks below `### Rules`, commands as
`welyb-relay verb sub`. Until that section exists nothing is asked of it.
"""

import importlib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from relay import config
from relay.cli import cli
from relay.store.events import VOCABULARY
from relay.store.listing import STATUS
from rules import replies, ruleset
from rules.lifecycle import State

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SETTINGS = ROOT / "deploy/relay.toml"
PARTS = (
    *("relay", "smtp", "authentication", "throttle", "run", "delivery", "dkim", "ged", "silence", "antivirus"),
    *("metrics", "milter"),
)


def reference() -> str:
    found = re.search(r"(?ms)^## R[eé]f[eé]rence$(.*?)(?=^## |\Z)", README)
    if found is None:
        pytest.skip("README.md has no reference yet")
    return found[1]


def section(title: str) -> str:
    found = re.search(rf"(?ms)^### {title}$(.*?)(?=^### |\Z)", reference())
    assert found, f"no « {title} » in the reference"
    return found[1]


def first_cells(table: str) -> list[list[str]]:
    """The cells of every row of a Markdown table, without its head."""
    return [re.split(r"\s*\|\s*", line.strip()[1:-1].strip()) for line in table.splitlines() if line.startswith("| `")]


# --- settings ---------------------------------------------------------------------------------------------------------


def settings() -> dict[str, Any]:
    """`[table] key` → its default."""
    found = config.Config()
    return {
        f"[{part}] {f.name}": getattr(getattr(found, part), f.name) for part in PARTS for f in fields(part_of(part))
    }


def part_of(name: str) -> Any:
    return type(getattr(config.Config(), name))


def test_the_parts_are_all_there_are() -> None:
    assert {f.name for f in fields(config.Config) if is_dataclass(getattr(config.Config(), f.name))} == set(PARTS)


def test_the_shipped_settings_are_the_defaults() -> None:
    """Compared as written, before paths are resolved."""
    shipped = config.parse(SETTINGS.read_text("utf-8"), "(built-in defaults)")
    assert shipped == config.Config()


def test_the_shipped_settings_show_every_key() -> None:
    data = tomllib.loads(SETTINGS.read_text("utf-8"))
    shown = {f"[{table}] {key}" for table, keys in data.items() for key in keys}
    assert shown == set(settings())


def test_every_setting_is_in_the_reference_and_no_other() -> None:
    assert {row[0] for row in first_cells(section("Settings"))} == {f"`{name}`" for name in settings()}


@pytest.mark.parametrize("row", first_cells(section("Settings")) if "## Reference" in README else [])
def test_the_default_told_is_the_default(row: list[str]) -> None:
    """Read by the settings reader itself."""
    table, _, key = row[0].strip("`").partition(" ")
    told = row[1].strip("`")
    if told:
        parsed = config.parse(f"{table}\n{key} = {told}\n", "README.md")
        assert getattr(getattr(parsed, table[1:-1]), key) == settings()[row[0].strip("`")]


# --- rules ------------------------------------------------------------------------------------------------------------


def test_every_key_of_a_rule_is_in_the_reference_and_no_other() -> None:
    known = {f.name for f in fields(ruleset.Rule)} - {"name"}
    assert {row[0].strip("`") for row in first_cells(section("Rules"))} == known


def test_the_example_of_a_rule_is_one() -> None:
    blocks = re.findall(r"(?m)(?:^    .*\n)+", section("Rules"))
    (example,) = (block for block in blocks if "[rule." in block)
    assert ruleset.load(example.replace("\n    ", "\n").strip(), "README.md").rules


def test_the_kinds_that_are_refused_are_told() -> None:
    assert all(f"`{kind}`" in section("Rules") for kind in ruleset.KINDS)


# --- the command ------------------------------------------------------------------------------------------------------


def commands(group: click.Command = cli, path: str = "welyb-relay") -> Iterator[tuple[str, click.Command]]:
    if not isinstance(group, click.Group):
        yield path, group
        return
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, f"{path} {name} does not exist"
        yield from commands(command, f"{path} {name}")


COMMANDS = dict(commands())


def documented_commands() -> list[str]:
    return [row[0].strip("`") for row in first_cells(section("The command")) if row[0].startswith("`welyb-relay")]


def test_every_command_is_in_the_reference_and_no_other() -> None:
    told = {re.sub(r"( [A-Z]+…?)+$", "", row) for row in documented_commands()}
    assert told == set(COMMANDS)


def test_every_command_and_option_explains_itself() -> None:
    """The man pages are made of it."""
    silent = [path for path, command in COMMANDS.items() if not command.help]
    silent += [
        f"{path} {option.opts[0]}"
        for path, command in COMMANDS.items()
        for option in command.params
        if isinstance(option, click.Option) and not option.help
    ]
    assert not silent


def test_every_option_is_in_the_reference_and_no_other() -> None:
    real = {
        name
        for command in (cli, *COMMANDS.values())
        for parameter in command.params
        for name in parameter.opts
        if name.startswith("--")
    }
    told = set(re.findall(r"--[a-z][a-z-]*", reference()))
    assert told - real == set()
    assert real - told - {"--version", "--help"} == set()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does(name: str) -> None:
    command = COMMANDS[name]
    assert command.help or name.endswith((" list",)), f"{name} has no help"
    assert all(p.human_readable_name for p in command.params)


def test_every_state_and_every_status_is_told() -> None:
    words = set(re.findall(r"[a-z]+", section("The command")))
    assert set(State) <= words
    assert {*STATUS.values(), "modified", "baseline", "skipped"} <= words


def test_the_exit_codes_are_told() -> None:
    assert re.search(r"Exit codes: 0 done,\s+1 .*,\s+2 usage.*,\s+3 no store", section("The command"), re.DOTALL)


# --- the rest of what is told -----------------------------------------------------------------------------------------


def test_what_the_readme_calls_exists() -> None:
    """Every `welyb-relay …` in a block or in backticks begins with a real command."""
    called = re.findall(r"welyb-relay ((?:[a-z]+ ?)+)", README)
    verbs = {path.removeprefix("welyb-relay ") for path in COMMANDS}
    groups = {path.split()[0] for path in verbs}
    for words in called:
        head = words.split()
        assert head[0] in groups, f"welyb-relay {words}"
    assert called


def test_the_changes_that_are_told_are_those_of_this_release() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    newest, *_ = re.findall(r"(?m)^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"))
    assert newest in (project["version"], "Unreleased")


def test_the_make_targets_that_are_told_exist() -> None:
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text("utf-8")))
    assert set(re.findall(r"`make ([a-z]+)`", README)) | {"run", "test", "demo", "bench", "setup"} <= targets


def test_every_reply_is_two_languages_in_printable_ascii() -> None:
    fixed = [value for value in vars(replies).values() if isinstance(value, replies.Reply)]
    assert len(fixed) > 20
    for reply in fixed:
        assert re.fullmatch(r"[ -~]+ \([ -~]+\)", reply.text()), reply
        assert reply.enhanced[0] == str(reply.code)[0]


def test_reply_texts_of_the_domain_are_the_real_ones() -> None:
    """A text shown in the README in backticks with its code is one the relay says."""
    said = {
        f"{value.code} {value.enhanced} {value.text()}"
        for value in vars(replies).values()
        if isinstance(value, replies.Reply)
    }
    told = set(re.findall(r"`([245]\d\d \d\.\d\.\d [^`]+\([a-z -]+\))`", README))
    assert {text for text in told if ".zip" not in text and "…" not in text} <= said


def test_the_table_of_questions_names_what_exists() -> None:
    import rules

    for line in (rules.__doc__ or "").splitlines():
        for module, name in re.findall(r"`([a-z]+)\.([a-z_]+)`", line.rpartition("|")[0]):
            assert hasattr(importlib.import_module(f"rules.{module}"), name), line


def test_every_event_is_described_and_told_somewhere() -> None:
    """What `trace` can show is what the store can write: the names in the code are those of the vocabulary."""
    sources = [path.read_text("utf-8") for path in (ROOT / "relay").rglob("*.py")]
    written = {name for text in sources for name in re.findall(r"Event\(\s*\"([a-z-]+)\"", text)}
    assert written <= set(VOCABULARY)
    assert all(any(f'"{name}"' in text for text in sources) for name in VOCABULARY)
