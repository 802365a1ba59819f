"""Scripted collectors in a thread of their own, for a command that is run and waited for."""

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.farside import Far


@dataclass
class Placed(Far):
    """A Far that listens at `place`."""

    place: str = ""


@contextmanager
def collectors(scripts: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Placed]]:
    """One for each script, by its name."""
    found = {name: Placed(script) for name, script in scripts.items()}
    loop = asyncio.new_event_loop()
    servers = []
    for far in found.values():
        server = loop.run_until_complete(asyncio.start_server(far.serve, "127.0.0.1", 0, limit=1 << 20))
        servers.append(server)
        far.place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield found
    finally:
        asyncio.run_coroutine_threadsafe(_end(servers), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end(servers: list[asyncio.Server]) -> None:
    for server in servers:
        server.close()
    under_way = asyncio.all_tasks() - {asyncio.current_task()}
    for task in under_way:
        task.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)
