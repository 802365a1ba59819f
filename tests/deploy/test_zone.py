"""deploy/zone.example: a name server takes it, it says what `dns` says, and `dns --verify` finds no gap in it."""

import re
from pathlib import Path

import dns.message
import dns.query
import dns.rdatatype
import pytest

from tests.deploy import published
from tests.support.desk import Desk
from tests.support.nameserver import NameServer
from tests.support.relay import Relay
from tests.support.zone import Zone


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """The two keys that the example has."""
    desk = Desk(Relay(tmp_path, {"dkim": {"selector": ["k1", "k1-ed"]}}))
    assert desk.here("keys", "create", "k1", "--kind", "both").exit_code == 0
    return desk


@pytest.mark.debian("knot")
def test_a_name_server_takes_it(tmp_path: Path) -> None:
    zone = Zone.start(tmp_path, {"welyb.fr": published.text()})
    try:
        for (name, kind), values in published.example().items():
            answer = dns.query.tcp(dns.message.make_query(name, kind), zone.address, timeout=10, port=zone.port)
            (found,) = [rrset for rrset in answer.answer if rrset.rdtype == dns.rdatatype.from_text(kind)]
            assert {record.to_text() for record in found} == values
    finally:
        zone.stop()


def test_it_says_what_the_command_prints(desk: Desk) -> None:
    """Beside that only what every zone has, and where the policy's web server is."""
    addresses = [value for kind in ("A", "AAAA") for value in published.example()["mx.welyb.fr.", kind]]
    words = [word for address in addresses for word in ("--address", address)]
    rows = [row for row in desk.json("dns", *words) if row["type"] != "FILE"]
    found = published.example() | published.reverse()
    for row in rows:
        values = found.pop((row["name"], row["type"]))
        (value,) = values
        if "._domainkey." in row["name"]:
            value, row["value"] = (re.sub(r"p=.*", "p=", text) for text in (value, row["value"]))
        assert value == row["value"]
    beside = {("welyb.fr.", "SOA"), ("welyb.fr.", "NS"), ("ns1.welyb.fr.", "A"), ("mta-sts.welyb.fr.", "A")}
    assert set(found) == beside


def test_verify_finds_no_gap_in_it_but_what_is_left_out(desk: Desk) -> None:
    with NameServer(published.as_published(desk)) as server:
        desk.relay.configure({"delivery": {"dns": [server.address]}})
        done = desk.here("dns", "--verify")
        assert done.exit_code == 0, done.output
        server.publish(published.as_published(desk, "PTR"))
        done = desk.here("dns", "--verify")
        assert (done.exit_code, "PTR" in done.output) == (1, True)
