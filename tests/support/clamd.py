"""A real clamd with a signature base of ours: one line, for a text that means no harm and that no file of ours holds.

Limits: without the signatures of the world, so it is ready in a moment and finds nothing else.
"""

import secrets
from pathlib import Path
from typing import Self

from tests.support import debian
from tests.support.program import Program, free_port, listens

NAME = "Essai.Welyb"
FOUND = f"{NAME}.UNOFFICIAL"  # as clamd tells of a signature that is not ClamAV's own


class Clamd:
    """On a Unix socket and a TCP port; `evil` is what it finds."""

    def __init__(self, folder: Path, *, most: str = "100M") -> None:
        debian.require("clamav-daemon")
        self.evil = f"essai-{secrets.token_hex(16)}"
        port, base = free_port(), folder / "signatures"
        base.mkdir(parents=True)
        (base / "own.ndb").write_text(f"{NAME}:0:*:{self.evil.encode().hex()}\n")
        self.unix, self.tcp = f"unix:{folder / 'clamd.sock'}", f"tcp:127.0.0.1:{port}"
        settings = folder / "clamd.conf"
        settings.write_text(
            f"Foreground yes\nDatabaseDirectory {base}\nTemporaryDirectory {folder}\nStreamMaxLength {most}\n"
            f"LocalSocket {folder / 'clamd.sock'}\nTCPAddr 127.0.0.1\nTCPSocket {port}\n"
        )
        root = debian.root_of("clamav-daemon")
        self.program = Program(
            [root / debian.UNPACKED["clamav-daemon"], "-c", settings],
            folder,
            name="clamd",
            env={"LD_LIBRARY_PATH": debian.library_path("clamav-daemon")},
        )
        self._port = port

    def start(self) -> Self:
        self.program.start(lambda: listens("127.0.0.1", self._port), timeout=60)
        return self

    def stop(self) -> None:
        self.program.stop(timeout=30)
