"""deploy/Containerfile without an engine: each instruction against what it names in the tree, the package, Debian.

Limits: no image is built; that what it installs works is shown by test_package.py, whose package it is.
"""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.deploy.page import PROJECT, understood

KNOWN = {"FROM", "RUN", "COPY", "WORKDIR", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "CMD"}

Instruction = tuple[str, str]


def stages() -> list[list[Instruction]]:
    """Of each FROM, what follows it."""
    text = re.sub(r"\\\n\s*", " ", (PROJECT / "deploy/Containerfile").read_text("utf-8"))
    found: list[list[Instruction]] = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            word, _, rest = line.partition(" ")
            if word == "FROM":
                found.append([])
            found[-1].append((word, rest))
    return found


BUILD, FINAL = stages()
RUNS = [rest for stage in (BUILD, FINAL) for word, rest in stage if word == "RUN"]


def value(word: str) -> str:
    """Of an instruction that the image has once."""
    (found,) = [rest for each, rest in FINAL if each == word]
    return found


def verb_of(words: list[str]) -> str | None:
    assert words[0] == "welyb-relay"
    return understood(words[1:]).name


def installed(line: str) -> list[str]:
    """The packages that a RUN asks apt-get for."""
    return [
        word
        for part in re.findall(r"apt-get install ([^&]*)", line)
        for word in part.split()
        if not word.startswith(("-", "/"))
    ]


def test_no_instruction_is_unknown_and_both_stages_stand_on_one_debian() -> None:
    assert {word for word, _ in BUILD + FINAL} <= KNOWN
    assert BUILD[0][1] == f"{FINAL[0][1]} AS build"
    assert re.fullmatch(r"debian:12(-slim)?", FINAL[0][1])


def test_every_run_is_a_shell_command() -> None:
    for line in RUNS:
        assert subprocess.run(["sh", "-n", "-c", line], check=False).returncode == 0, line


def test_what_is_copied_is_there() -> None:
    (source, target), *_ = [rest.split() for word, rest in BUILD if word == "COPY"]
    assert (PROJECT / source).is_dir() and ("WORKDIR", target) in BUILD
    (copied,) = [rest for word, rest in FINAL if word == "COPY"]
    made, there = shlex.split(copied.removeprefix("--from=build "))
    recipe = (PROJECT / "Makefile").read_text("utf-8").partition("\ndeb:")[2].partition("\n\n")[0]
    assert recipe.endswith(f"deploy/debian/build {Path(made).name}") and made == f"{target}/dist/"
    assert any(f"apt-get install -y --no-install-recommends {there}welyb-relay_*.deb" in line for line in RUNS)


def test_the_targets_exist() -> None:
    targets = set(re.findall(r"(?m)^([a-z]+):", (PROJECT / "Makefile").read_text("utf-8")))
    called = {target for line in RUNS for target in re.findall(r"^make (\S+)", line)}
    assert called and called <= targets


def test_the_packages_are_in_debian() -> None:
    names = [name for line in RUNS for name in installed(line)]
    assert {"make", "python3", "python3-venv", "libmagic1"} <= set(names)
    for name in names:
        done = subprocess.run(["apt-cache", "show", name], capture_output=True, text=True, check=False)
        if not done.stdout and not subprocess.run(["apt-cache", "pkgnames", "bash"], capture_output=True).stdout:
            pytest.skip("no package lists here")
        assert f"Package: {name}\n" in done.stdout, name


def test_it_installs_what_the_build_needs() -> None:
    """What `make` would provide by itself is named, since the image must not depend on it."""
    lines = [line.split() for line in (PROJECT / "deploy/debian-packages").read_text("utf-8").splitlines()]
    needed = {line[2] for line in lines if line and line[0] == "run"}
    assert needed - set(installed(RUNS[0])) <= {"tzdata"}  # the package depends on it


def test_it_serves_and_is_probed_by_commands_of_ours() -> None:
    assert verb_of(json.loads(value("CMD"))) == "serve"
    *options, words = re.split(r" (?=CMD )", value("HEALTHCHECK"))
    probe = json.loads(words.removeprefix("CMD "))
    assert verb_of(probe) == "check" and "--health" in probe
    assert all(re.fullmatch(r"(--(interval|timeout|start-period)=\d+[sm] ?)+", each) for each in options)


def test_it_ends_as_the_user_of_the_package() -> None:
    postinst = (PROJECT / "deploy/debian/postinst").read_text("utf-8")
    assert f"--shell /usr/sbin/nologin {value('USER')}\n" in postinst
    after = [word for word, _ in FINAL[[word for word, _ in FINAL].index("USER") :]]
    assert not {"RUN", "COPY"} & set(after)
    assert int(value("EXPOSE")) >= 1024  # it has no right to another
    assert value("STOPSIGNAL") == "SIGTERM"


def test_its_volumes_are_where_the_package_keeps_its_data() -> None:
    build = (PROJECT / "deploy/debian/build").read_text("utf-8")
    assert all(f'"{folder}"' in build for folder in json.loads(value("VOLUME")))
