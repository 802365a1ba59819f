"""The inside of the relay without its sockets: real store, spool, GED and rules, driven from a test step by step.

Knows alone: how intake and filing are put together when no daemon does it. What it is told is what the session would
tell: an envelope, then bytes.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from relay import care, clock
from relay import config as configuration
from relay.accept import Envelope, Intake
from relay.daemon import list_clients_of, means
from relay.directory import Directory
from relay.draft import Recipient
from relay.filing import Filing
from relay.flush import Means
from relay.store.database import open_for_reading, rows
from rules import path
from rules.peer import Peer
from rules.replies import Reply

SETTINGS = """
[ged]
root = "ged"
[smtp]
trusted_networks = ["127.0.0.0/8"]
[authentication]
verify = "none"
[relay]
data = "var"
"""
SENDER = "compta@cabinet.example"


class Inside:
    """`take` a mail, `file` what is due; `rows` asks the store."""

    def __init__(self, runner: asyncio.Runner, tools: Means, db: Database) -> None:
        self._run = runner.run
        self.tools, self._db = tools, db
        self.root = Path(tools.config.ged.root)
        self.data = tools.config.relay.data
        self.intake = Intake(
            tools.config,
            tools.ruleset,
            spool=tools.spool,
            writer=tools.writer,
            directory=Directory(db, tools.writer, self.root),
            token_key=tools.token_key,
        )
        self.filing = Filing(tools.config, tools.ruleset, spool=tools.spool, writer=tools.writer, db=db)

    def take(self, message: bytes, *recipients: str, sender: str = SENDER, peer: str | Peer = "127.0.0.1") -> Reply:
        """The reply to the first recipient refused, else to the end of the mail."""
        return self._run(self._take(message, recipients, sender, peer))

    async def _take(self, message: bytes, recipients: Sequence[str], sender: str, by: str | Peer) -> Reply:
        peer = self.intake.peer(by) if isinstance(by, str) else by
        accepted: list[Recipient] = []
        for text in recipients:
            argument = path.parse(f"<{text}>".encode())
            assert isinstance(argument, path.Path), argument
            asked = argument, peer, sender
            judged = self.intake.recipient(*asked) or await self.intake.recipient_again(*asked)
            if not isinstance(judged, Recipient):
                return judged
            accepted.append(judged)
        transaction = self.intake.begin(Envelope(peer, "cabinet.example", "ESMTP", "", sender), accepted)
        transaction.feed(message)
        return await transaction.finish()

    def adopt(self, file: Path) -> None:
        """New settings."""
        config = configuration.load(file)
        self._run(_called(lambda: self.intake.adopt(config, configuration.load_rules(config))))

    def file(self) -> int:
        """One pass of the filing worker; how many deliveries it tried."""
        return self._run(self.filing.file_due())

    def care(self, seconds: float) -> None:
        """What follows a run that leaves so many seconds for it."""
        tools, until = self.tools, clock.now() + timedelta(seconds=seconds)
        self._run(care.after_run(tools.config, self._db, spool=tools.spool, writer=tools.writer, until=until))

    def change(self, sql: str, *values: object) -> None:
        """What time would have changed."""
        self.do(lambda db: db.conn.execute(sql, values))

    def do(self, change: Callable[[Database], object]) -> None:
        """In a transaction of its own."""
        self._run(_done(self.tools, change))

    def rows(self, sql: str, *values: object) -> list[Any]:
        return rows(self._db, sql, values)

    def column(self, sql: str, *values: object) -> list[Any]:
        return [row[0] for row in self.rows(sql, *values)]

    def spooled(self) -> list[Path]:
        """Files of large mails."""
        return [path for path in (self.data / "spool/files").rglob("*") if path.is_file()]

    def filed(self) -> dict[str, bytes]:
        """Every file of the GED, dot-files too: path → content."""
        files = (path for path in sorted(self.root.rglob("*")) if path.is_file())
        return {str(path.relative_to(self.root)): path.read_bytes() for path in files}


async def _called(call: Callable[[], None]) -> None:
    call()


async def _done(tools: Means, change: Callable[[Database], object]) -> None:
    await tools.writer.write(lambda db, _: change(db))


@contextlib.contextmanager
def inside(
    folder: Path, settings: str = "", *, clients: Sequence[str] = ("Dupont",), names: str = "", rules: str = ""
) -> Iterator[Inside]:
    """`settings` are further lines of [relay]; `clients` are folders made in the GED.

    With `names`, a name server, everybody's mail is looked up there. `rules` are a rule file's text.
    """
    for client in clients:
        (folder / "ged" / client).mkdir(parents=True, exist_ok=True)
    text = SETTINGS
    if rules:
        (folder / "rules.toml").write_text(rules)
        text += 'rules = "rules.toml"\n'
    if names:
        text = f'[delivery]\ndns = ["{names}"]\n' + text.replace('verify = "none"', 'verify = "all"')
    (folder / "relay.toml").write_text(text + settings)
    config = configuration.load(folder / "relay.toml")
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        tools = runner.run(stack.enter_async_context(means(config, configuration.load_rules(config))))
        try:
            list_clients_of(config)
            with contextlib.closing(open_for_reading(config.database)) as db:
                yield Inside(runner, tools, db)
        finally:
            runner.run(stack.aclose())
