"""What we are to the world: the records that `dns` prints in a real zone, and our signatures verified by other hands.

On addresses of this run's own under 127/8, since DNS and the web server of MTA-STS are looked for at their own ports.
"""

import json
import os
import re
import signal
import ssl
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support import documents as made
from tests.support import opendkim
from tests.support.clients import mail
from tests.support.collector import Received
from tests.support.desk import Desk
from tests.support.firm import Firm
from tests.support.nameserver import NameServer
from tests.support.opendkim import Verified
from tests.support.program import free_port
from tests.support.relay import Relay
from tests.support.zone import Zone, zone_text

HERE = f"127.53.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
REVERSE = ".".join(reversed(HERE.split("."))) + ".in-addr.arpa."

pytestmark = pytest.mark.debian("root")


# --- a zone and a web server as `dns` wants them ----------------------------------------------------------------------


class _Policy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        text = self.server.policy  # type: ignore[attr-defined]
        found = text and self.path == "/.well-known/mta-sts.txt"
        self.send_response(self.server.status if found else 404)  # type: ignore[attr-defined]
        self.send_header("Content-Type", self.server.kind)  # type: ignore[attr-defined]
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def web(authority: trustme.CA) -> Iterator[HTTPServer]:
    """https://mta-sts.welyb.fr: `policy` is the file it serves, "" where it has none."""
    server = HTTPServer((HERE, 443), _Policy)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("mta-sts.welyb.fr").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.policy, server.status, server.kind = "", 200, "text/plain"  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[Desk]:
    """Keys of both kinds, and a certificate; whoever asks trusts the authority of this run."""
    folder = tmp_path_factory.mktemp("dns")
    for name, pem in (("chain.pem", None), ("authority.pem", authority.cert_pem)):
        issued = authority.issue_cert("mx.welyb.fr")
        (pem or issued.cert_chain_pems[0]).write_to_path(str(folder / name))
        if pem is None:
            issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate = {"certificate": str(folder / "chain.pem"), "key": str(folder / "key.pem")}
    desk = Desk(Relay(folder, {"smtp": certificate, "dkim": {"selector": ["k1", "k1-ed"]}}))
    assert desk.here("keys", "create", "k1", "--kind", "both").exit_code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(folder / "authority.pem"))
        yield desk


def verified(desk: Desk, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    done = desk.here("dns", "--verify", "--json", *words)
    return done.exit_code, {f"{row['name']} {row['type']}": row for row in map(json.loads, done.stdout.splitlines())}


def printed(desk: Desk) -> tuple[str, str, str]:
    """(the zone of our domain, that of our address, the policy file), as `dns` prints them."""
    lines = desk.here("dns", "--address", HERE, "--sts", "enforce").stdout.splitlines()
    remarks = [line.removeprefix("; ") for line in lines if line.startswith("; ")]
    reverse = [line for line in remarks if "\tPTR\t" in line]
    policy = [line for line in remarks if re.match(r"(version|mode|mx|max_age): ", line)]
    assert len(reverse) == 1 and len(policy) == 4
    ours = zone_text(*lines, f"mta-sts A {HERE}")  # all of it, as it was printed
    return ours, zone_text(*reverse), "\n".join(policy)


@pytest.mark.debian("knot", "port 443")
def test_what_dns_prints_is_a_zone_and_verify_finds_no_gap_in_it(desk: Desk, web: HTTPServer, tmp_path: Path) -> None:
    ours, reverse, policy = printed(desk)
    web.policy = policy  # type: ignore[attr-defined]
    zone = Zone.start(tmp_path, {"welyb.fr": ours, "127.in-addr.arpa": reverse})
    try:
        desk.relay.configure({"delivery": {"dns": [zone.server]}})
        code, found = verified(desk)
        assert (code, {row["code"] for row in found.values()}) == (0, {"published"}), found
        assert [row["type"] for row in found.values()] == [
            *("MX", "A", "TXT", "TXT", "TXT", "TXT", "TXT", "TXT", "FILE", "TXT", "TLSA", "PTR")
        ]
        told = desk.here("check").stdout
        assert re.search(r"published +True +12 enregistrements DNS publiés", told), told
    finally:
        zone.stop()


POLICY_FILE = "https://mta-sts.welyb.fr/.well-known/mta-sts.txt FILE"
# The record that is damaged, what stands there instead (nothing, where None), and the finding.
DAMAGE = [
    ("welyb.fr. MX", "10 old.example.", "elsewhere"),
    ("mx.welyb.fr. A", None, "missing"),
    ("welyb.fr. TXT", '"v=spf1 ip4:192.0.2.1 ?all"', "open"),
    ("mx.welyb.fr. TXT", '"hello"', "missing"),
    ("k1._domainkey.welyb.fr. TXT", '"v=DKIM1; k=rsa; p=MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA"', "other-key"),
    ("k1-ed._domainkey.welyb.fr. TXT", '"v=DKIM1; k=ed25519; p="', "revoked"),
    ("_dmarc.welyb.fr. TXT", '"v=DMARC1; p=rejct"', "malformed"),
    ("_mta-sts.welyb.fr. TXT", None, "missing"),
    ("_smtp._tls.welyb.fr. TXT", '"v=TLSRPTv1"', "malformed"),
    ("_25._tcp.mx.welyb.fr. TLSA", f"3 1 1 {'00' * 32}", "other-certificate"),
    (f"{REVERSE} PTR", "box7.hoster.example.", "unconfirmed"),
]


@pytest.fixture(scope="module")
def server(desk: Desk) -> Iterator[NameServer]:
    with NameServer() as server:
        desk.relay.configure({"delivery": {"dns": [server.address]}})
        yield server


def publish(server: NameServer, desk: Desk, changes: Mapping[str, str | None]) -> dict[str, str | None]:
    """What `dns` says, but for `changes`; all of it."""
    rows = desk.json("dns", "--address", HERE, "--sts", "enforce")
    said: dict[str, str | None] = {f"{row['name']} {row['type']}": row["value"] for row in rows}
    zone = {**said, "mta-sts.welyb.fr. A": HERE, **changes}
    records = (f"{name} {value}" for name, value in zone.items() if value and not name.endswith(" FILE"))
    server.publish("\n".join(record.replace(". ", ". 5 IN ", 1) for record in records))
    return said


@pytest.mark.debian("port 443")
@pytest.mark.parametrize(("record", "instead", "code"), DAMAGE)
def test_each_record_damaged_is_found_with_the_line_to_paste(
    desk: Desk, server: NameServer, web: HTTPServer, record: str, instead: str | None, code: str
) -> None:
    desk.relay.configure({"delivery": {"dns": [server.address]}})
    said = publish(server, desk, {record: instead})
    web.policy = said[POLICY_FILE]  # type: ignore[attr-defined]
    status, found = verified(desk, "--address", HERE, "--sts", "enforce")
    assert (status, found[record]["code"]) == (1, code)
    name, kind = record.split()
    # Of SPF, what else stood there stays.
    mended = '"v=spf1 mx ip4:192.0.2.1 -all"' if record == "welyb.fr. TXT" else said[record]
    assert found[record]["remedy"] == f"{name}\t3600\tIN\t{kind}\t{mended}"
    others = {row["code"] for name, row in found.items() if name != record}
    assert others <= ({"published"} if record != "welyb.fr. MX" else {"published", "hosts-left-out"})
    told = desk.here("dns", "--verify", "--address", HERE).stdout
    assert re.search(rf"(?m)^MANQUE +{kind} +{re.escape(name)} : ", told), told
    checked = {row["subject"]: row for row in map(json.loads, desk.here("check", "--json").stdout.splitlines())}
    assert not checked[f"published {kind} {name}"]["ok"] and checked[f"published {kind} {name}"]["remedy"]


@pytest.mark.debian("port 443")
def test_the_policy_file_is_looked_at_and_what_does_not_answer_is_no_gap(
    desk: Desk, server: NameServer, web: HTTPServer
) -> None:
    desk.relay.configure({"delivery": {"dns": [server.address]}})
    said = publish(server, desk, {})
    policy = str(said[POLICY_FILE])
    for served, code in (
        (policy, "published"),
        (policy.replace("enforce", "testing"), "not-enforced"),
        ("", "missing"),
    ):
        web.policy = served  # type: ignore[attr-defined]
        assert verified(desk)[1][POLICY_FILE]["code"] == code
    web.policy, web.kind = policy, "text/html"  # type: ignore[attr-defined]
    wrong = verified(desk)[1][POLICY_FILE]
    assert (wrong["code"], wrong["found"]) == ("missing", ["not text/plain"])  # nobody takes it
    web.kind, web.status = "text/plain", 503  # type: ignore[attr-defined]
    code, found = verified(desk)
    assert (code, found[POLICY_FILE]["code"]) == (0, "unknown")
    web.status = 200  # type: ignore[attr-defined]
    publish(server, desk, {"mta-sts.welyb.fr. A": "127.0.0.253"})  # nobody is there
    code, found = verified(desk)
    assert (code, found[POLICY_FILE]["ok"], found[POLICY_FILE]["code"]) == (0, None, "unknown")
    server.fail("_dmarc.welyb.fr", "servfail")
    code, found = verified(desk)
    assert (code, found["_dmarc.welyb.fr. TXT"]["ok"]) == (0, None)
    server.trouble.clear()


def test_a_resolver_that_is_not_there_finds_no_gap_and_no_record_either(tmp_path: Path) -> None:
    desk = Desk(Relay(tmp_path, {"delivery": {"dns": [f"127.0.0.1:{free_port()}"]}}))
    done = desk.here("dns", "--verify", "--json")
    assert {json.loads(line)["code"] for line in done.stdout.splitlines()} == {"unknown"}
    assert done.exit_code == 1 and "[delivery] dns" in done.output


@pytest.mark.debian("port 443")
def test_its_web_server_is_verified_by_the_authorities_of_delivery_too(
    desk: Desk, server: NameServer, web: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    desk.relay.configure({"delivery": {"dns": [server.address], "authorities": ""}})
    web.policy = publish(server, desk, {})[POLICY_FILE]  # type: ignore[attr-defined]
    assert verified(desk)[1][POLICY_FILE]["code"] == "unknown"
    desk.relay.configure({"delivery": {"authorities": str(desk.relay.folder.parent / "authority.pem")}})
    assert verified(desk)[1][POLICY_FILE]["code"] == "published"


def test_enforce_without_a_certificate_is_not_printed(tmp_path: Path) -> None:
    done = Desk(Relay(tmp_path)).here("dns", "--sts", "enforce")
    assert (done.exit_code, done.stdout) == (2, "")
    assert Desk(Relay(tmp_path / "other")).here("dns", "--address", "example.org").exit_code == 2


# --- signatures, verified by OpenDKIM ---------------------------------------------------------------------------------

BOTH = [Verified("pass", "welyb.fr", "k1", "rsa-sha256"), Verified("pass", "welyb.fr", "k1-ed", "ed25519-sha256")]


class World:
    """A firm that signs, and the zone of its domain at a name server's own port: what is published is the test's."""

    def __init__(self, firm: Firm, zone: Zone, folder: Path) -> None:
        self.firm, self.zone, self.folder, self.desk = firm, zone, folder, Desk(firm.relay)

    def records(self, *selectors: str) -> str:
        """The zone with the keys of `selectors`."""
        rows = self.desk.json("keys", "list")
        return zone_text(*(f"{r['selector']}._domainkey TXT {r['record']}" for r in rows if r["selector"] in selectors))

    def signatures(self, received: Received) -> list[Verified]:
        return opendkim.verify(received.transmitted, self.folder, name_server=HERE)

    def sent(self, name: str) -> Received:
        """A mail for meg+`name` as it arrives; the daemon sends it by itself."""
        assert self.firm.mail(f"meg+{name}@welyb.fr", mail("compta@cabinet.example", "x@welyb.fr", PDF)).accepted
        return self.arrives(f"{name}@factures-meg.fr")

    def arrives(self, address: str) -> Received:
        def there() -> list[Received]:
            return [each for each in self.firm.collector.messages() if each.envelope_recipient == address]

        self.firm.wait_until(lambda: bool(there()), timeout=60)
        return there()[0]

    def reload(self) -> None:
        before = self.reloads()
        os.kill(self.firm.relay.program.pid, signal.SIGHUP)
        self.firm.wait_until(lambda: self.reloads() > before, timeout=30)

    def reloads(self) -> int:
        return self.firm.relay.program.err.read_text().count("reloaded")


PDF = ("facture.pdf", "application/pdf", made.pdf())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    zone = Zone.start(tmp_path, {"welyb.fr": zone_text("@ MX 10 mx")}, address=HERE, port=53)
    firm = None
    try:
        firm = Firm.start(tmp_path, {"run": {"every": "3 s"}, "delivery": {"dns": [zone.server]}})
        yield World(firm, zone, tmp_path)
    finally:
        zone.stop()
        if firm is not None:
            firm.stop()


def published(world: World) -> dict[str, str]:
    """Selector → what `dns --verify` says of its record."""
    rows = [json.loads(line) for line in world.desk.here("dns", "--verify", "--json").stdout.splitlines()]
    return {row["name"].partition(".")[0]: row["code"] for row in rows if "._domainkey." in row["name"]}


@pytest.mark.debian("knot", "postfix", "opendkim")
def test_keys_are_made_and_rotated_and_all_that_was_sent_verifies(world: World) -> None:
    """As a postmaster does it, while mail flows."""
    relay, desk, zone = world.firm.relay, world.desk, world.zone
    steps = desk.here("keys", "create", "k1", "--kind", "both").stdout
    assert '[dkim] selector = ["k1", "k1-ed"]' in steps
    assert published(world) == {"k1": "missing", "k1-ed": "missing"}
    zone.change({"welyb.fr": world.records("k1", "k1-ed")})
    assert published(world) == {"k1": "published", "k1-ed": "published"}
    relay.configure({"dkim": {"selector": ["k1", "k1-ed"]}})
    world.reload()

    # What is relayed and what was deposited, both signed twice.
    client = world.firm.client()
    client.connect()
    client.put("Achats/depot.pdf", made.pdf("depot"))
    first, deposit = world.sent("avant"), world.arrives(client.collector_address)
    assert world.signatures(first) == BOTH
    assert world.signatures(deposit) == BOTH

    # The next keys: made, and nothing changes before the settings say so.
    steps = desk.here("keys", "rotate", "k2").stdout
    assert '[dkim] selector = ["k2", "k2-ed"]' in steps and "k1._domainkey.welyb.fr" in steps
    assert published(world) == {"k1": "published", "k1-ed": "published", "k2": "missing", "k2-ed": "missing"}
    assert [each.selector for each in world.signatures(world.sent("pendant"))] == ["k1", "k1-ed"]
    zone.change({"welyb.fr": world.records("k1", "k1-ed", "k2", "k2-ed")})
    assert set(published(world).values()) == {"published"}
    relay.configure({"dkim": {"selector": ["k2", "k2-ed"]}})
    world.reload()
    after = world.signatures(world.sent("apres"))
    assert [(each.result, each.selector) for each in after] == [("pass", "k2"), ("pass", "k2-ed")]
    assert world.signatures(first) == BOTH  # wherever it was kept back meanwhile

    # The old ones stay for as long as that may be, and say so.
    rows = {row["selector"]: row for row in desk.json("keys", "list")}
    assert [rows[name]["active"] for name in ("k1", "k1-ed", "k2", "k2-ed")] == [False, False, True, True]
    assert rows["k1"]["last_signed_at"] < rows["k1"]["needed_until"]
    assert rows["k2"]["last_signed_at"] and rows["k2"]["needed_until"] is None
    assert rows["k1"]["needed_until"] in desk.here("keys", "remove", "k1").stderr
    assert desk.here("keys", "remove", "k2", "--force").exit_code == 1
    assert desk.here("keys", "remove", "k1", "--force", "--reason", "essai").exit_code == 0
    assert sorted(row["selector"] for row in desk.json("keys", "list")) == ["k1-ed", "k2", "k2-ed"]
    assert desk.here("keys", "create", "jamais").exit_code == 0
    assert desk.here("keys", "remove", "jamais").exit_code == 0  # nothing was ever signed with it


@pytest.mark.debian("knot", "postfix", "opendkim")
def test_a_signature_stands_where_the_others_key_is_not_published(world: World) -> None:
    relay = world.firm.relay
    assert world.desk.here("keys", "create", "k1", "--kind", "both").exit_code == 0
    relay.configure({"dkim": {"selector": ["k1", "k1-ed"]}})
    world.reload()
    received = world.sent("seul")
    for there in ("k1", "k1-ed"):
        world.zone.change({"welyb.fr": world.records(there)})
        assert [each.selector for each in world.signatures(received) if each.result == "pass"] == [there]
    tampered = received.transmitted.replace(b"Subject: ", b"Subject: x")
    assert tampered != received.transmitted
    world.zone.change({"welyb.fr": world.records("k1", "k1-ed")})
    assert {each.result for each in opendkim.verify(tampered, world.folder, name_server=HERE)} == {"fail"}
