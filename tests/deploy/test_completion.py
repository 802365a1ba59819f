"""Completion as a shell does it: the real bash, with what the package installs for it, asked what may follow."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.support.debian import program
from tests.support.relay import command

ASK = """\
source <(_WELYB_RELAY_COMPLETE=bash_source welyb-relay)
complete -p welyb-relay >&2
COMP_WORDS=(welyb-relay "$@")
COMP_CWORD=$#
"$(complete -p welyb-relay | sed 's/.*-F \\([^ ]*\\).*/\\1/')" welyb-relay "${!#}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.debian("bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["queue", "ho"], {"hold"}),
        (["que"], {"queue"}),
        (["connections", "re"], {"readdress", "remove"}),
        (["check", "--he"], {"--health", "--help"}),
        (["keys", "create", "k1", "--kind", "e"], {"ed25519"}),
        (["queue", "zz"], set()),
    ],
)
def test_bash(words: list[str], offered: set[str], tmp_path: Path) -> None:
    script = tmp_path / "welyb-relay"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(command())} "$@"\n')
    script.chmod(0o755)
    done = subprocess.run(
        [program("bash"), "--noprofile", "--norc", "-c", ASK, "bash", *words],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "-F _welyb_relay_completion welyb-relay" in done.stderr
    assert set(done.stdout.split()) == offered
