"""The listener in this process, in a thread, so that its constants can be changed; all behind it is real.

Knows alone: how a listener is put together when no daemon does it. Limits: one process.
"""

import asyncio
import contextlib
import queue
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trustme

from relay import config as configuration
from relay.accept import Intake
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


@contextlib.contextmanager
def doors(folder: Path) -> Iterator[Open]:
    """A function that opens a door with the lines given below [smtp]."""
    (folder / "ged/Dupont").mkdir(parents=True)
    threads: list[tuple[threading.Thread, Door]] = []

    def open_(*smtp: str, listen: str = "127.0.0.1:0") -> Door:
        lines = ["[relay]", 'data = "var"', "[ged]", 'root = "ged"', "[authentication]", 'verify = "none"']
        lines += ["[smtp]", f'listen = ["{listen}"]', *smtp]
        (folder / "relay.toml").write_text("\n".join(lines))
        told: queue.Queue[Door] = queue.Queue()
        thread = threading.Thread(target=lambda: asyncio.run(_serve(folder, told.put)))
        thread.start()
        threads.append((thread, told.get(timeout=10)))
        return threads[-1][1]

    yield open_
    for thread, door in threads:
        door.stop()
        thread.join(15)
        assert not thread.is_alive()


async def _serve(folder: Path, tell: Callable[[Door], None]) -> None:
    config = configuration.load(folder / "relay.toml")
    ruleset = configuration.load_rules(config)
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    async with means(config, ruleset) as tools:
        list_clients_of(config)
        with contextlib.closing(open_for_reading(config.database)) as db:
            directory = Directory(db, tools.writer, config.ged.root)
            intake = Intake(
                config,
                ruleset,
                spool=tools.spool,
                writer=tools.writer,
                directory=directory,
                token_key=tools.token_key,
            )
            listener = Listener(intake)
            (share,) = bind(config)
            await listener.start(share)
            ports = tuple(int(bound.rpartition(":")[2]) for bound in addresses(share))
            tell(Door(folder, ports, intake, lambda: loop.call_soon_threadsafe(stop.set)))
            await stop.wait()
            await listener.stop()
            await intake.settled()


def issue(authority: trustme.CA, folder: Path) -> bytes:
    """A new certificate in place, chain.pem and key.pem, with authority.pem beside them; in DER."""
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(str(folder / "chain.pem"))
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
