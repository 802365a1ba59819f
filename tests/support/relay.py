"""The product itself, as whoever runs it has it: the real command, in processes of its own.

Knows alone: how the command is found, and which settings a scenario starts from. Limits: no test switch of any kind is
passed on; everything goes through the settings file, the command line and the sockets.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.support.program import Program, free_port

Settings = Mapping[str, Any]

# Runs are the scenario's own (`runs now`): the clock's would come in between, four times an hour. What comes is
# not looked up: who wants that has a name server, and says so.
SCENARIO: Settings = {
    "relay": {"hostname": "mx.welyb.fr", "domain": "welyb.fr", "data": "var"},
    "authentication": {"verify": "none"},
    "run": {"every": "24 hours"},
    "ged": {"root": "ged"},
}


class CommandFailed(AssertionError):
    """The command's exit code was not 0; the message holds what it wrote."""


class Relay:
    """One installation under `folder`: settings, data, GED. `settings` are laid over SCENARIO, table by table.

    `under` is put before the serving command (strace, say); `env` is for it alone (faketime, say). `product` is what
    runs it, where that is not the installed command.
    """

    def __init__(
        self,
        folder: Path,
        settings: Settings | None = None,
        *,
        under: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        product: Sequence[str] = (),
    ) -> None:
        self._product = list(product or command())
        self.folder = folder / "relay"
        self.ged = self.folder / "ged"
        self.ged.mkdir(parents=True)
        self.config = self.folder / "relay.toml"
        self.port = free_port()
        listen: Settings = {"smtp": {"listen": [f"127.0.0.1:{self.port}"]}}
        self.settings = overlaid(overlaid(SCENARIO, listen), settings or {})
        self.configure({})
        self.program = Program([*under, *self._command(), "serve"], self.folder, name="serve", env=env)

    def configure(self, settings: Settings) -> None:
        """Lay `settings` over the present ones and write the file: in force at the next start, or SIGHUP."""
        self.settings = overlaid(self.settings, settings)
        self.config.write_text(toml(self.settings))

    def start(self) -> Self:
        self.program.start(self._ready, timeout=30)
        return self

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        return self.program.stop(timeout=30)

    def kill(self) -> None:
        """SIGKILL, to all it consists of."""
        self.program.kill()

    def cli(
        self, *arguments: str | Path, check: bool = True, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one verb to its end; `text` goes to its standard input."""
        done = subprocess.run(
            [*self._command(), *map(str, arguments)],
            cwd=self.folder,
            input=text or "",
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            timeout=100,
            check=False,
        )
        if check and done.returncode != 0:
            said = f"{done.stdout}{done.stderr}"
            raise CommandFailed(f"{' '.join(map(str, arguments))}: exit {done.returncode}\n{said}{self.program.told()}")
        return done

    def json(self, *arguments: str | Path) -> list[dict[str, Any]]:
        """The objects that a verb prints with --json, one a line."""
        return [json.loads(line) for line in self.cli(*arguments, "--json").stdout.splitlines()]

    def client(self, folder: str) -> Path:
        """A client's folder in the GED, made where it is not there."""
        path = self.ged / folder
        path.mkdir(exist_ok=True)
        return path

    def _command(self) -> list[str]:
        return [*self._product, "--config", str(self.config)]

    def _ready(self) -> bool:
        return any(line.startswith("ready") for line in self.program.written().splitlines())


def command() -> list[str]:
    """The installed command beside this interpreter, else what it would run from this source tree."""
    script = Path(sys.executable).parent / "welyb-relay"
    return [str(script)] if os.access(script, os.X_OK) else from_source(sys.executable)


def from_source(python: str) -> list[str]:
    """What the command does, run from this source tree by any `python` of our version, with the libraries we have."""
    path = [str(Path(__file__).resolve().parents[2]), *(entry for entry in sys.path if entry.endswith("-packages"))]
    return [python, "-c", f"import sys; sys.path[:0] = {path!r}; from relay.cli import main; main()"]


def overlaid(base: Settings, top: Settings) -> dict[str, Any]:
    """Both; where both have a table, its keys from both; else `top` wins."""
    merged = {**base, **top}
    for key in base.keys() & top.keys():
        if isinstance(base[key], Mapping) and isinstance(top[key], Mapping):
            merged[key] = overlaid(base[key], top[key])
    return merged


def toml(settings: Settings, *, table: str = "") -> str:
    """Settings as TOML: tables of strings, numbers, booleans and lists of them."""
    lines = [f"[{table}]"] if table else []
    for key, value in settings.items():
        if not isinstance(value, Mapping):
            # A JSON string, number, boolean or list of those is a TOML one too.
            lines.append(f"{_key(key)} = {json.dumps(value, ensure_ascii=False)}")
    for key, value in settings.items():
        if isinstance(value, Mapping):
            lines.append(toml(value, table=f"{table}.{_key(key)}" if table else _key(key)))
    return "\n".join([*lines, ""])


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
