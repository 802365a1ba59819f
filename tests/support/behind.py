"""The relay behind a mail server that shows it mail as a milter, and the collector far away: what both kinds have alike.

Knows alone: who writes to whom there. Limits: how a client of that mail server comes from elsewhere is each one's own.
"""

import smtplib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tests.support import documents as made
from tests.support.clients import mail
from tests.support.collector import Collector
from tests.support.program import LOOK_EVERY
from tests.support.relay import Relay

OTHERS = "dupont.example"  # whose mail is the mail server's affair
SENDER, THEIRS = "compta@cabinet.example", f"paul@{OTHERS}"
INVOICE = ("facture.pdf", "application/pdf", made.pdf())


@dataclass(frozen=True, slots=True)
class Behind:
    relay: Relay
    collector: Collector

    def session(self, peer: str = "") -> AbstractContextManager[smtplib.SMTP]:
        """A client of the mail server; at `peer`, where one is given."""
        raise NotImplementedError

    def send(self, *recipients: str, message: bytes = b"", peer: str = "") -> bytes:
        """A mail that is accepted for every recipient; what was sent."""
        message = message or mail(SENDER, recipients, INVOICE)
        with self.session(peer) as client:
            assert client.sendmail(SENDER, recipients, message) == {}
        return message

    def states(self, recipient: str) -> list[str]:
        return [row["state"] for row in self.relay.json("queue", "list") if row["recipient"] == recipient]

    def filed(self, client: str) -> list[Path]:
        return list((self.relay.ged / client / "Ventes").rglob("*.pdf"))


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(LOOK_EVERY)
