"""aiosmtpd as its manual has it, plus a file and an fsync per mail: what our own door would be without the work in it.

Run with PORT and FOLDER it is the server itself.
"""

import asyncio
import itertools
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import SMTP

from tests.bench.server import SIZE_LIMIT, Mode, Server


class Plain(Server):
    """It keeps what comes, and sends nothing."""

    name = "aiosmtpd"
    can = frozenset({"accept"})

    def version(self) -> str:
        return f"aiosmtpd {version('aiosmtpd')}, Python {sys.version.split()[0]}"

    def configured(self, mode: Mode) -> Sequence[str]:
        tree = Path(__file__).resolve().parents[2]
        code = f"import sys; sys.path.insert(0, {str(tree)!r}); from tests.bench.plain import main; main()"
        return [sys.executable, "-c", code, str(self.port), str(self.folder)]


class Handler:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._names = itertools.count()

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        fd = os.open(f"{self._folder}/{next(self._names)}.eml", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "wb", buffering=0) as file:
            file.write(envelope.content)
            os.fsync(fd)
        return "250 OK"


async def _serve(port: int, folder: str) -> None:
    handler, loop = Handler(folder), asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(handler, data_size_limit=SIZE_LIMIT, hostname="relay.example", loop=loop),
        "127.0.0.1",
        port,
        backlog=512,
    )
    await server.serve_forever()


def main() -> None:
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2]))
