"""MTA-STS policies from a real web server, found in a real DNS, kept in a real store."""

import asyncio
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from sqlite_utils import Database

from relay import clock, mtasts
from relay.commit import Writer
from relay.dns import Resolver
from relay.mtasts import Policies, Unfetched, fetched
from relay.spool import Spool
from relay.store import database
from relay.store.database import open_for_writing, rows
from relay.trust import Trust
from rules.sts import Mode, StsPolicy
from tests.support.nameserver import NameServer
from tests.support.policyhost import PolicyHost, answer, policy

ENFORCE = StsPolicy(Mode.ENFORCE, 86400, ("mx.meg.test",))
GOOD = policy("enforce", "mx.meg.test")
TEXT = GOOD.partition(b"\r\n\r\n")[2]


def zone(id_: str = "1", address: str = "127.0.0.1") -> str:
    record = f'_mta-sts.meg.test. 300 IN TXT "v=STSv1; id={id_};"\n' if id_ else "other.meg.test. 300 IN A 192.0.2.1\n"
    return record + f"mta-sts.meg.test. 300 IN A {address}\n"


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def serving(ca: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names).configure_cert(context)
    return context


@pytest.fixture
def names() -> Iterator[NameServer]:
    with NameServer(zone()) as server:
        yield server


@pytest.fixture
def host(ca: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> Iterator[PolicyHost]:
    with PolicyHost(serving(ca, "mta-sts.meg.test"), GOOD) as host:
        monkeypatch.setattr(mtasts, "HTTPS_PORT", host.port)
        yield host


@pytest.fixture
def trust(ca: trustme.CA, tmp_path: Path) -> Trust:
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return Trust(str(tmp_path / "ca.pem"))


# --- one policy -------------------------------------------------------------------------------------------------------


def fetch(names: NameServer, trust: Trust) -> str | Unfetched:
    return asyncio.run(fetched("meg.test", Resolver([names.address]), trust))


def test_a_policy_is_fetched(names: NameServer, host: PolicyHost, trust: Trust) -> None:
    assert fetch(names, trust) == TEXT.decode()
    (request,) = host.requests
    assert request.startswith("GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: mta-sts.meg.test\r\n")


CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "says",
    [
        CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(TEXT), TEXT),
        b"HTTP/1.0 200 OK\r\ncontent-type: Text/Plain\r\ncontent-length: %d\r\n\r\n" % len(TEXT) + TEXT,
    ],
)
def test_as_web_servers_may_say_it(names: NameServer, host: PolicyHost, trust: Trust, says: bytes) -> None:
    host.says = says
    assert fetch(names, trust) == TEXT.decode()


ELSEWHERE = "Location: https://www.meg.test/mta-sts.txt\r\n"


@pytest.mark.parametrize(
    ("says", "why", "passing"),
    [
        (answer(TEXT, status="301 Moved", more=ELSEWHERE), "status 301", False),
        (answer(b"", status="404 Not Found"), "status 404", False),
        (answer(b"", status="429 Too Many Requests"), "status 429", True),
        (answer(b"", status="503 Service Unavailable"), "status 503", True),
        (answer(TEXT, kind="text/html"), "not text/plain", False),
        (answer(TEXT.replace(b"enforce", b"strict")), "not a policy", False),
        (answer(TEXT + b"x: " + b"y" * mtasts.MAX_POLICY), "too long", False),
        (answer(TEXT + b"x: " + b"y" * 4 * mtasts.MAX_POLICY), "too long", False),
        (GOOD[:-20], "not HTTP: IncompleteRead", True),
        (CHUNKED + b"%x\r\n%s\r\n" % (len(TEXT), TEXT), "not HTTP: IncompleteRead", True),
        (b"220 mx.meg.test ESMTP\r\n", "not HTTP: BadStatusLine", True),
        (b"", "not HTTP: RemoteDisconnected", True),
    ],
)
def test_what_is_no_policy(
    names: NameServer, host: PolicyHost, trust: Trust, says: bytes, why: str, passing: bool
) -> None:
    host.says = says
    assert fetch(names, trust) == Unfetched(why, passing)
    assert len(host.requests) == 1  # whatever it was, nobody is asked elsewhere


@pytest.mark.parametrize("cut", [False, True], ids=["closed", "cut"])
def test_a_policy_of_unknown_length_may_be_half_of_one(
    names: NameServer, host: PolicyHost, trust: Trust, cut: bool
) -> None:
    """What stands here is a policy, and not theirs: the line was cut in its last number."""
    host.cut = cut
    host.says = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + TEXT.rstrip()[:-3]
    assert fetch(names, trust) == Unfetched("no Content-Length", passing=False)


def test_who_is_not_mta_sts_of_the_domain_is_not_believed(
    names: NameServer, host: PolicyHost, trust: Trust, ca: trustme.CA, tmp_path: Path
) -> None:
    host.context = serving(ca, "meg.test", "www.meg.test")
    assert "Hostname mismatch" in str(fetch(names, trust))
    host.context = serving(trustme.CA(), "mta-sts.meg.test")
    assert isinstance(fetch(names, trust), Unfetched)
    assert "No such file" in str(fetch(names, Trust(str(tmp_path / "none.pem"))))
    assert host.requests == []


def test_nobody_there(names: NameServer, host: PolicyHost, trust: Trust, monkeypatch: pytest.MonkeyPatch) -> None:
    names.publish("x.meg.test. 300 IN A 127.0.0.1")
    assert fetch(names, trust) == Unfetched("no address", passing=False)
    names.fail("mta-sts.meg.test", "servfail")
    assert "SERVFAIL" in str(fetch(names, trust))
    names.trouble.clear()
    names.publish(zone(address="127.0.0.77"))
    assert isinstance(fetch(names, trust), Unfetched)
    names.publish(zone(address="127.0.0.77") + "mta-sts.meg.test. 300 IN A 127.0.0.1\n")
    assert fetch(names, trust) == TEXT.decode()  # at the other address


def test_a_web_server_that_says_nothing_is_left(
    names: NameServer, trust: Trust, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(mtasts, "HTTPS_PORT", silent.getsockname()[1])
        monkeypatch.setattr(mtasts, "LIMIT", 0.5)
        assert fetch(names, trust) == Unfetched("too slow")


# --- over time --------------------------------------------------------------------------------------------------------


@dataclass
class Story:
    """Runs, one after another, on one store."""

    db: Database
    spool: Spool
    names: NameServer
    trust: Trust

    def run(self, domain: str = "meg.test") -> StsPolicy | None:
        async def once() -> StsPolicy | None:
            writer = Writer(self.db, self.spool)
            try:
                return await Policies(self.db, writer, Resolver([self.names.address]), self.trust).of(domain)
            finally:
                await writer.close()

        return asyncio.run(once())


@pytest.fixture
def story(tmp_path: Path, names: NameServer, trust: Trust) -> Iterator[Story]:
    db = open_for_writing(tmp_path / "relay.db")
    yield Story(db, Spool(tmp_path / "spool", lambda: "segment"), names, trust)
    db.close()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets time pass."""
    real, gone = clock.now, [timedelta()]
    monkeypatch.setattr(clock, "now", lambda: real() + gone[0])

    def let(**more: int) -> None:
        gone[0] += timedelta(**more)

    return let


def test_a_domain_without_a_record_is_never_fetched(story: Story, host: PolicyHost) -> None:
    story.names.publish(zone(""))
    assert story.run() is None
    story.names.fail("_mta-sts.meg.test", "servfail")
    assert story.run() is None
    assert host.requests == []


def test_it_is_fetched_once_while_the_id_stays(story: Story, host: PolicyHost) -> None:
    assert [story.run(), story.run()] == [ENFORCE, ENFORCE]
    assert len(host.requests) == 1


def test_a_new_id_has_it_fetched_again(story: Story, host: PolicyHost) -> None:
    story.run()
    story.names.publish(zone("2"))
    host.says = policy("none", max_age=100)
    assert [story.run(), story.run()] == [StsPolicy(Mode.NONE, 100, ())] * 2
    assert len(host.requests) == 2


def dns_gone(story: Story, host: PolicyHost) -> None:
    story.names.publish(zone(""))


def dns_broken(story: Story, host: PolicyHost) -> None:
    story.names.fail("meg.test", "servfail")


def record_broken(story: Story, host: PolicyHost) -> None:
    story.names.publish(zone() + '_mta-sts.meg.test. 300 IN TXT "v=STSv1; id=2;"\n')


def server_broken(story: Story, host: PolicyHost) -> None:
    story.names.publish(zone("2"))
    host.says = answer(b"", status="500 Oops")


def server_taken(story: Story, host: PolicyHost) -> None:
    """Somebody else's web server now: it has no certificate."""
    story.names.publish(zone("2"))
    host.context = serving(trustme.CA(), "mta-sts.meg.test")
    host.says = policy("none")


@pytest.mark.parametrize("outage", [dns_gone, dns_broken, record_broken, server_broken, server_taken])
def test_a_policy_outlives_what_becomes_of_its_source(
    story: Story, host: PolicyHost, later: Any, outage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """RFC 8461 §5.1. Until it expires; then the domain is one without."""
    assert story.run() == ENFORCE
    outage(story, host)
    assert story.run() == ENFORCE
    later(hours=23)
    assert story.run() == ENFORCE
    later(hours=2)
    assert story.run() is None
    assert ("sts-unfetched host=mta-sts.meg.test why=" in caplog.text) == (outage in (server_broken, server_taken))


def test_one_that_does_not_change_is_renewed_before_it_runs_out(story: Story, host: PolicyHost, later: Any) -> None:
    host.says = policy("enforce", "mx.meg.test", max_age=2 * 86400)
    story.run()
    later(hours=25)
    story.run()
    assert len(host.requests) == 2
    dns_broken(story, host)
    later(hours=40)  # past the first, not the second
    assert story.run() is not None


def test_one_that_cannot_be_kept_holds_all_the_same(
    story: Story, host: PolicyHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT", 0.1)
    other = open_for_writing(tmp_path / "relay.db")
    other.conn.execute("BEGIN IMMEDIATE")
    assert story.run() == ENFORCE
    other.conn.execute("ROLLBACK")
    other.close()
    assert [story.run(), story.run()] == [ENFORCE, ENFORCE]
    assert len(host.requests) == 2  # fetched again, then kept


def test_what_has_expired_is_swept_out(story: Story, host: PolicyHost, later: Any) -> None:
    story.run()
    later(days=3)
    story.names.publish(zone().replace("meg.test", "dext.test"))
    host.says = GOOD
    assert story.run("dext.test") is None  # its certificate is meg.test's
    story.names.publish(zone("3"))
    story.run()
    assert rows(story.db, "SELECT domain, id FROM sts") == [("meg.test", "3")]
