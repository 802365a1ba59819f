"""The listener in this process, in a thread, so that its constants can be changed; all behind it is real.

Knows alone: how what takes mail is put together when no daemon does it. Limits: one process.
"""

import asyncio
import contextlib
import queue
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from relay import config as configuration
from relay.accept import Intake
from relay.config import Config
from relay.daemon import list_clients_of, means
from relay.directory import Directory
from relay.smtp.listener import Listener, addresses, bind
from relay.store.database import open_for_reading, rows


@dataclass(frozen=True, slots=True)
class Door:
    """The listener at work; `folder` holds its data; `ports` are those of listen, then of submission."""

    folder: Path
    ports: tuple[int, ...]
    intake: Intake
    stop: Callable[[], None]

    @property
    def port(self) -> int:
        return self.ports[0]

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        db = open_for_reading(self.folder / "var/relay.db")
        with contextlib.closing(db):
            return rows(db, sql, ())

    def messages(self) -> list[str]:
        """The Message-IDs of the mails accepted."""
        return [str(row[0]) for row in self.rows("SELECT message_id FROM message ORDER BY id")]

    def spooled_files(self) -> list[Path]:
        return [path for path in (self.folder / "var/spool/files").rglob("*") if path.is_file()]


Open = Callable[..., Door]
Serve = Callable[[Config, Intake], AbstractAsyncContextManager[Any]]  # what is at work meanwhile, and where


@dataclass(frozen=True, slots=True)
class Served:
    place: Any
    intake: Intake
    stop: Callable[[], None]


@contextlib.contextmanager
def served(folder: Path, serve: Serve) -> Iterator[Callable[[Sequence[str]], Served]]:
    """A function that puts an intake to work under the lines given, in a thread of its own, with `serve` before it."""
    (folder / "ged/Dupont").mkdir(parents=True)
    threads: list[tuple[threading.Thread, Served]] = []

    def start(lines: Sequence[str]) -> Served:
        settings = ["[relay]", 'data = "var"', "[ged]", 'root = "ged"', *lines]
        (folder / "relay.toml").write_text("\n".join(settings))
        told: queue.Queue[Served] = queue.Queue()
        thread = threading.Thread(target=lambda: asyncio.run(_serve(folder, serve, told.put)))
        thread.start()
        threads.append((thread, told.get(timeout=10)))
        return threads[-1][1]

    yield start
    for thread, at_work in threads:
        at_work.stop()
        thread.join(15)
        assert not thread.is_alive()


async def _serve(folder: Path, serve: Serve, tell: Callable[[Served], None]) -> None:
    config = configuration.load(folder / "relay.toml")
    ruleset = configuration.load_rules(config)
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    async with means(config, ruleset) as tools:
        list_clients_of(config)
        with contextlib.closing(open_for_reading(config.database)) as db:
            intake = Intake(
                config,
                ruleset,
                spool=tools.spool,
                writer=tools.writer,
                directory=Directory(db, tools.writer, config.ged.root),
                token_key=tools.token_key,
            )
            async with serve(config, intake) as place:
                tell(Served(place, intake, lambda: loop.call_soon_threadsafe(stop.set)))
                await stop.wait()
            await intake.settled()


@contextlib.contextmanager
def doors(folder: Path) -> Iterator[Open]:
    """A function that opens a door with the lines given below [smtp]."""
    with served(folder, _listening) as start:

        def open_(*smtp: str, listen: str = "127.0.0.1:0") -> Door:
            at_work = start(["[authentication]", 'verify = "none"', "[smtp]", f'listen = ["{listen}"]', *smtp])
            return Door(folder, at_work.place, at_work.intake, at_work.stop)

        yield open_


@contextlib.asynccontextmanager
async def _listening(config: Config, intake: Intake) -> AsyncIterator[tuple[int, ...]]:
    listener = Listener(intake)
    (share,) = bind(config)
    await listener.start(share)
    yield tuple(int(bound.rpartition(":")[2]) for bound in addresses(share))
    await listener.stop()


def issue(authority: trustme.CA, folder: Path) -> bytes:
    """A new certificate in place, chain.pem and key.pem, with authority.pem beside them; in DER."""
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(folder / "chain.pem"))
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
