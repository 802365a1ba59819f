"""A firm at work: a relay that serves, its GED, a collector, and clients whose folders are connected.

Knows alone: how one relay is shared by many scenarios (each takes clients of its own, with collector addresses of
their own, so that none sees another's documents), and how a deposit that arrived is read.
Limits: the counts of a run are everybody's; a scenario about them has a firm to itself.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from tests.support.clients import CLIENTS, Sent
from tests.support.collector import Collector, Received
from tests.support.program import LOOK_EVERY, free_port
from tests.support.relay import Relay

COLLECTORS = ("factures-meg.fr", "achats.factures-meg.fr")
SENDERS = "cabinet.example"  # whose mail, reports of failure above all, comes to the collector too
AT_ONCE: Mapping[str, Any] = {"run": {"settle": "0 s"}}  # no wait for a file to settle


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True, slots=True)
class Arrived:
    """A document as it came out of a message at the collector."""

    name: str
    content: bytes
    received: Received
    message: EmailMessage

    @property
    def sha256(self) -> str:
        return digest(self.content)


def documents_of(received: Received) -> list[Arrived]:
    message = message_from_bytes(received.transmitted, policy=default)
    return [
        Arrived(name, part.get_payload(decode=True) or b"", received, message)
        for part in message.walk()
        if (name := file_name(part))
    ]


def file_name(part: EmailMessage) -> str:
    """As mail programs of this century show it; the email package prefers the ASCII spelling beside it."""
    extended = re.search(r"(?i)filename\*=utf-8''([^;\s]+)", dict(part.raw_items()).get("Content-Disposition", ""))
    return unquote(extended[1]) if extended else part.get_filename() or ""


class Firm:
    """`client()` gives a new client; `run()` does a run now and gives its counts."""

    def __init__(self, relay: Relay, collector: Collector) -> None:
        self.relay, self.collector = relay, collector
        self._clients = 0

    @classmethod
    def start(cls, folder: Path, settings: Mapping[str, Any] | None = None, **behaviour: Any) -> Self:
        """Both under `folder`, serving; `behaviour` is the collector's."""
        collector = Collector.start(folder, domains=(*COLLECTORS, SENDERS), **behaviour)
        relay = Relay(folder, AT_ONCE)
        routes = dict.fromkeys((*COLLECTORS, SENDERS), collector.destination)
        relay.configure({"delivery": {"routes": routes}})
        relay.configure(settings or {})
        try:
            relay.start()
        except BaseException:
            collector.stop()
            raise
        return cls(relay, collector)

    def stop(self) -> None:
        self.relay.stop()
        self.collector.stop()

    def client(self, name: str = "") -> "Client":
        """One nobody else has; `name` is the folder's where that matters."""
        self._clients += 1
        client = Client(self, name or f"societe-{self._clients}")
        client.path.mkdir()
        return client

    def run(self) -> dict[str, Any]:
        (counts,) = self.relay.json("runs", "now")
        return counts

    def wait_until(self, reached: Callable[[], bool], *, timeout: float = 10) -> None:
        """For what the daemon does by itself."""
        deadline = time.monotonic() + timeout
        while not reached():
            assert time.monotonic() < deadline, f"it did not come\n{self.relay.program.told()}"
            time.sleep(LOOK_EVERY)

    @contextmanager
    def set_to(self, settings: Mapping[str, Any]) -> Iterator[None]:
        """Other settings for the commands given meanwhile; the daemon keeps those it began with."""
        before = self.relay.settings
        self.relay.configure(settings)
        try:
            yield
        finally:
            self.relay.settings = before
            self.relay.configure({})

    def collector_away(self) -> AbstractContextManager[None]:
        """Nobody answers where the collector should be."""
        return self.set_to({"delivery": {"routes": dict.fromkeys(COLLECTORS, f"127.0.0.1:{free_port()}")}})

    def mail(self, recipients: str | Sequence[str], message: bytes, *, sender: str = f"compta@{SENDERS}") -> Sent:
        recipients = [recipients] if isinstance(recipients, str) else recipients
        return CLIENTS["python"](self.relay.port, sender, recipients, message)


class Client:
    """A client of the firm: its folder in the GED, its documents there, and what its collector got."""

    def __init__(self, firm: Firm, slug: str) -> None:
        self.firm, self.slug = firm, slug
        self.path = firm.relay.ged / slug
        self.collector_address = f"{slug}@achats.factures-meg.fr"

    def connect(self, folder: str = "Achats", *, application: str = "meg-achats", address: str = "") -> int:
        """Make `folder` and connect it; the connection's number."""
        (self.path / folder).mkdir(parents=True, exist_ok=True)
        (made,) = self.firm.relay.json(
            *("connections", "add", "--application", application, "--client", self.slug),
            *("--folder", folder, "--address", address or self.collector_address),
        )
        return int(made["id"])

    def put(self, path: str, content: bytes) -> Path:
        """A file of `content` at `path` below the client's folder, its folders made where missing."""
        place = self.path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
        return place

    def connection(self) -> dict[str, Any]:
        """As listed, where there is just one."""
        (found,) = self.firm.relay.json("connections", "list", "--client", self.slug)
        return found

    def documents(self) -> list[dict[str, Any]]:
        return self.firm.relay.json("documents", "list", "--client", self.slug)

    def statuses(self) -> dict[str, str]:
        """Name → status; of the newest where two bear one name."""
        return {row["name"]: row["status"] for row in reversed(self.documents())}

    def document(self, name: str) -> dict[str, Any]:
        """The newest of that name."""
        return next(row for row in self.documents() if row["name"] == name)

    def arrived(self, address: str = "") -> list[Arrived]:
        """What its collector got, in the order it came."""
        wanted = address or self.collector_address
        found = [message for message in self.firm.collector.messages() if message.envelope_recipient == wanted]
        return [document for message in found for document in documents_of(message)]

    def names(self) -> list[str]:
        """File names of what its collector got, sorted."""
        return sorted(document.name for document in self.arrived())
