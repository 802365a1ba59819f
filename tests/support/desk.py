"""The postmaster's desk: the command given often, and mails to give it something to do.

Limits: `here` runs the command in the test's own process, so that a table of a hundred calls costs seconds; how it starts,
its terminal and its raw bytes are for `Relay.cli`.
"""

import json
from typing import Any

from click.testing import CliRunner, Result

from relay.cli import cli
from tests.support import documents as made
from tests.support.clients import CLIENTS, Sent, mail
from tests.support.relay import Relay

SENDER = "compta@cabinet.example"


class Desk:
    """A relay that serves, and its command in this process."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay

    def send(self, to: str, message: bytes, *, sender: str = SENDER) -> Sent:
        return CLIENTS["python"](self.relay.port, sender, [to], message)

    def mail(self, name: str, *documents: tuple[str, str, bytes], sender: str = SENDER, **more: Any) -> str:
        """A mail for meg+`name`; the id of its delivery."""
        to = f"meg+{name}@welyb.fr"
        documents = documents or ((f"{name}.pdf", "application/pdf", made.pdf(name)),)
        sent = self.send(to, mail(sender, to, *documents, **more), sender=sender)
        assert sent.accepted, sent
        return sent.text.rsplit(maxsplit=1)[-1] + "-1"

    def raw(self, name: str, message: bytes) -> str:
        sent = self.send(f"meg+{name}@welyb.fr", message)
        assert sent.accepted, sent
        return sent.text.rsplit(maxsplit=1)[-1] + "-1"

    def states(self, *filters: str) -> dict[str, str]:
        return {row["id"]: row["state"] for row in self.json("queue", "list", *filters)}

    def state(self, delivery: str) -> str:
        return self.states("--id", delivery)[delivery]

    def order(self, *words: str) -> tuple[int, list[str]]:
        """`queue …`: the exit code, and the ids it says it changed."""
        done = self.here("queue", *words)
        return done.exit_code, [line.split()[1] for line in done.stdout.splitlines()]

    def here(self, *words: str, text: str | None = None) -> Result:
        """The command in this process, without a terminal: the same code, and a hundred calls cost a few seconds."""
        done = CliRunner().invoke(cli, ["--config", str(self.relay.config), *words], input=text)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    def json(self, *words: str) -> list[dict[str, Any]]:
        done = self.here(*words, "--json")
        assert done.exit_code == 0, done.output
        return [json.loads(line) for line in done.stdout.splitlines()]
