"""The peers of a scenario, each stopped when its test ends; what they wrote is shown where it failed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.collector import Collector
from tests.support.firm import Client, Firm
from tests.support.partner import DOMAINS, Partner
from tests.support.relay import Relay


@pytest.fixture(scope="module")
def firm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firm]:
    """A relay and its collector for the stories of a module; each story takes a client of its own."""
    firm = Firm.start(tmp_path_factory.mktemp("firm"))
    yield firm
    firm.stop()


@pytest.fixture
def client(firm: Firm) -> Client:
    return firm.client()


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[Collector]:
    """A collector on a free port of 127.0.0.1: for [delivery.routes]."""
    collector = Collector.start(tmp_path, domains=DOMAINS)
    yield collector
    collector.stop()


@pytest.fixture
def partner(tmp_path: Path) -> Iterator[Partner]:
    """A collector behind its MX records: for [delivery] dns."""
    partner = Partner.start(tmp_path)
    yield partner
    partner.stop()


@pytest.fixture
def new_relay(tmp_path: Path) -> Iterator[Callable[..., Relay]]:
    """Makes the relay, not yet started, with the settings given; arguments as for Relay."""
    made: list[Relay] = []

    def make(settings: dict[str, Any] | None = None, **more: Any) -> Relay:
        made.append(Relay(tmp_path, settings, **more))
        return made[-1]

    yield make
    for relay in made:
        relay.stop()


@pytest.fixture
def relay(new_relay: Callable[..., Relay], partner: Partner) -> Relay:
    """The relay, serving, with one client, and a partner to find by DNS."""
    relay = new_relay({"delivery": {"dns": [partner.zone.server]}})
    relay.client("macon-dupont")
    return relay.start()


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Who signs the certificates of this test run."""
    return trustme.CA()


@pytest.fixture
def certificate(authority: trustme.CA, tmp_path: Path) -> tuple[Path, Path]:
    """Chain and key for 127.0.0.1 and the names of the scenarios."""
    issued = authority.issue_cert("127.0.0.1", "mx.welyb.fr", *(f"mx.{domain}" for domain in DOMAINS))
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    for pem in issued.cert_chain_pems:
        pem.write_to_path(str(chain), append=True)
    issued.private_key_pem.write_to_path(str(key))
    return chain, key


@pytest.fixture
def authority_file(authority: trustme.CA, tmp_path: Path) -> Path:
    """The authority as clients want it, PEM."""
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return path
