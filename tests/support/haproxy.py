"""A real proxy in front of the relay (HAProxy, from Debian), which tells it whom it speaks for.

Knows alone: how haproxy runs from an unpacked package. Limits: loopback; TCP as it is, no TLS of its own.
"""

import csv
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.support import debian
from tests.support.program import Program, free_port, listens

CONFIG = """\
global
    nbthread 1
    stats socket {folder}/admin
defaults
    mode tcp
    option smtpchk EHLO proxy.example
    timeout connect 10s
    timeout client 1m
    timeout server 1m
"""

DOOR = """\
listen {name}
    bind 127.0.0.1:{port}
    server relay 127.0.0.1:{to} source {source} {how}
"""


class Haproxy:
    """For each of `ways`, (the relay's port, what is added to the server line), a port of its own in `ports`."""

    def __init__(self, folder: Path, ways: Sequence[tuple[int, str]], *, source: str) -> None:
        debian.require("haproxy")
        self.ports = [free_port() for _ in ways]
        doors = [
            DOOR.format(name=f"door{number}", port=port, to=to, how=how, source=source)
            for number, (port, (to, how)) in enumerate(zip(self.ports, ways, strict=True))
        ]
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "haproxy.cfg").write_text(CONFIG.format(folder=folder) + "".join(doors))
        command = [debian.root_of("haproxy") / "usr/sbin/haproxy", "-db", "-f", folder / "haproxy.cfg"]
        env = {"LD_LIBRARY_PATH": debian.library_path("haproxy")}
        self.program = Program(command, folder, name="haproxy", env=env)

    def start(self) -> Self:
        self.program.start(lambda: all(listens("127.0.0.1", port) for port in self.ports))
        return self

    def health(self) -> list[str]:
        """What its last check of each server came to: "L7OK"; "INI" before the first, "" where there is none."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(str(self._folder / "admin"))
            admin.sendall(b"show stat\n")
            with admin.makefile(newline="\n") as told:
                rows = list(csv.DictReader(told))
        return [row["check_status"].removeprefix("* ") for row in rows if row["svname"] == "relay"]

    def stop(self) -> None:
        self.program.stop()
