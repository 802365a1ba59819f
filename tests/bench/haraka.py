"""Haraka from npm as a peer: one process, its default."""

import json
import os
import shutil
from collections.abc import Sequence

from tests.bench.roots import HOME, run
from tests.bench.server import SIZE_LIMIT, Mode, Server
from tests.bench.traffic import BenchError

_PLUGIN = """\
// Everything from loopback is taken and sent to the sink.
exports.hook_connect = (next, connection) => { connection.relaying = true; next(); };
exports.hook_rcpt = (next) => next(OK);
exports.hook_get_mx = (next) => next(OK, { priority: 0, exchange: '127.0.0.1', port: SINK });
"""


class Haraka(Server):
    """Keeps what comes with outbound.ini's disabled=true: its queue files are written all the same."""

    name = "haraka"
    can = frozenset({"accept", "drain", "list"})

    @property
    def _package(self) -> str:
        return str(HOME / "haraka/node_modules/Haraka")

    def prepare(self) -> None:
        if shutil.which("npm") is None:
            raise BenchError("no npm")
        if not (HOME / "haraka/installed").exists():
            (HOME / "haraka").mkdir(parents=True, exist_ok=True)
            run("npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", HOME / "haraka", "Haraka")
            (HOME / "haraka/installed").touch()

    def version(self) -> str:
        with open(f"{self._package}/package.json") as file:
            return f"Haraka {json.load(file)['version']}, Node {run('node', '--version').strip()}"

    def configured(self, mode: Mode) -> Sequence[str]:
        run("node", f"{self._package}/bin/haraka", "-i", self.folder)
        config = self.folder / "config"
        limit = (f"{self._package}/config/connection.ini", config / "connection.ini")
        with open(limit[0]) as default:
            limit[1].write_text(_with(default.read(), "bytes", str(SIZE_LIMIT)))
        (config / "me").write_text("relay.example\n")
        (config / "plugins").write_text("bench\n")
        (config / "smtp.ini").write_text(f"listen=127.0.0.1:{self.port}\nnodes=0\n")
        self._set_disabled("true" if mode == "hold" else "false")
        (self.folder / "plugins").mkdir(exist_ok=True)
        (self.folder / "plugins/bench.js").write_text(_PLUGIN.replace("SINK", str(self.place.sink_port)))
        return ["node", f"{self._package}/bin/haraka", "-c", str(self.folder)]

    def _set_disabled(self, word: str) -> None:
        made, settings = self.folder / "config/new.ini", self.folder / "config/outbound.ini"
        made.write_text(f"disabled={word}\nenable_tls=false\nlocal_mx_ok=true\n")
        os.replace(made, settings)

    def flush(self) -> None:
        self._set_disabled("false")  # it watches the file

    def listing(self) -> Sequence[str]:
        return ["node", f"{self._package}/bin/haraka", "-c", str(self.folder), "--qlist"]


def _with(text: str, key: str, value: str) -> str:
    """The settings `text`, with one line changed."""
    return "\n".join(f"{key}={value}" if line.partition("=")[0].strip() == key else line for line in text.splitlines())
