"""Behind a real proxy: the peer is the client's address, for trust and in the history, for every kind of door."""

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import documents as made
from tests.support.clients import Account, Dialogue, mail, swaks
from tests.support.haproxy import Haproxy
from tests.support.program import free_port
from tests.support.relay import Relay

pytestmark = pytest.mark.debian("haproxy")

SENDER, MEG = "compta@cabinet.example", "meg+macon@welyb.fr"
PDF = ("facture.pdf", "application/pdf", made.pdf())
FROM = "127.0.0.77"  # where the proxy's connections come from
PASSWORD = "un mot de passe assez long"
WAYS = {"v1": "send-proxy", "v2": "send-proxy-v2", "v2 with values": "send-proxy-v2-ssl-cn"}


@pytest.fixture
def relay(new_relay: Callable[..., Relay], certificate: tuple[Path, Path]) -> Relay:
    chain, key = map(str, certificate)
    smtp = {"proxy": [f"{FROM}/32"], "trusted_networks": ["127.0.0.3/32"], "certificate": chain, "key": key}
    return new_relay({"smtp": smtp | {"submission": [f"127.0.0.1:{free_port()} tls"]}}).start()


@pytest.fixture
def proxy(relay: Relay, tmp_path: Path) -> Iterator[Haproxy]:
    (submission,) = relay.settings["smtp"]["submission"]
    secured = int(submission.removesuffix(" tls").rpartition(":")[2])
    ways = [(relay.port, how) for how in WAYS.values()]
    ways += [
        (secured, "send-proxy-v2"),
        (relay.port, "send-proxy-v2 check check-send-proxy inter 50"),
        (relay.port, ""),
    ]
    proxy = Haproxy(tmp_path / "haproxy", ways, source=FROM).start()
    yield proxy
    proxy.stop()


@pytest.fixture
def ports(proxy: Haproxy) -> dict[str, int]:
    return dict(zip((*WAYS, "tls first", "checked", "silent"), proxy.ports, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_trust_is_in_the_client_and_not_in_the_proxy(relay: Relay, ports: dict[str, int], way: str) -> None:
    with Dialogue(ports[way], source="127.0.0.3") as ours, Dialogue(ports[way], source="127.0.0.4") as stranger:
        for dialogue, code in ((ours, 250), (stranger, 550)):
            dialogue.hello()
            assert [reply.code for reply in dialogue.envelope(SENDER, MEG)] == [250, code]
        reply = ours.data(mail(SENDER, MEG, PDF))
        assert reply.code == 250
    assert "peer=127.0.0.3 deliveries=1" in relay.program.err.read_text()


def test_a_user_through_the_proxy_tls_inside(relay: Relay, ports: dict[str, int], authority_file: Path) -> None:
    relay.cli("users", "add", "scanner", text=f"{PASSWORD}\n")
    account = Account("scanner", PASSWORD, authority_file, tls_first=True)
    sent = swaks(ports["tls first"], SENDER, [MEG], mail(SENDER, MEG, PDF), account=account)
    assert sent.accepted, sent
    (row,) = relay.json("queue", "list")
    (accepted,) = [told for told in relay.json("trace", row["message"]) if told["event"] == "accepted"]
    assert accepted["detail"]["user"] == "scanner"


def test_the_proxys_own_checks_are_answered(proxy: Haproxy, ports: dict[str, int]) -> None:
    """A health check that failed would take the relay out: then no mail would come through."""
    end = time.monotonic() + 30
    while not (checks := [status for status in proxy.health() if status not in ("", "INI")]):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert checks == ["L7OK"]
    with Dialogue(ports["checked"], source="127.0.0.3") as dialogue:
        assert dialogue.hello().code == 250


def test_a_proxy_that_does_not_say_whom_it_speaks_for_is_cut_off(relay: Relay, ports: dict[str, int]) -> None:
    with socket.create_connection(("127.0.0.1", ports["silent"]), 20) as connection:
        connection.sendall(b"EHLO x\r\n")
        with contextlib.suppress(ConnectionError):
            assert connection.recv(100) == b""
    with Dialogue(relay.port) as direct:  # no proxy: no header
        assert direct.hello().code == 250
