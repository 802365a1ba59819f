"""Against a real server on loopback."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from relay import dns
from relay.dns import DnsTrouble, MxHost, MxHosts, NoDomain, NullMx, Resolver, endpoint
from tests.support.nameserver import NameServer

ZONE = """
meg.test.          300 IN MX    20 backup.meg.test.
meg.test.          300 IN MX    10 mx1.meg.test.
meg.test.          300 IN MX    10 mx2.meg.test.
mx1.meg.test.      300 IN A     192.0.2.1
mx1.meg.test.      300 IN AAAA  2001:db8::1
mx2.meg.test.      300 IN A     192.0.2.2
backup.meg.test.   300 IN A     192.0.2.3
implicit.test.     300 IN A     192.0.2.4
null.test.         300 IN MX    0 .
mixed.test.        300 IN MX    0 .
mixed.test.        300 IN MX    10 mx1.meg.test.
partial.test.      300 IN MX    10 nowhere.test.
partial.test.      300 IN MX    20 mx1.meg.test.
lost.test.         300 IN MX    10 nowhere.test.
lost.test.         300 IN MX    20 text.test.
text.test.         300 IN TXT   "no address here"
tohere.test.       300 IN MX    10 localhost.
numeric.test.      300 IN MX    10 192.0.2.9.
alias.test.        300 IN CNAME meg.test.
mxalias.test.      300 IN MX    10 other.test.
other.test.        300 IN CNAME mx2.meg.test.
half.test.         300 IN MX    10 broken.test.
half.test.         300 IN MX    20 mx2.meg.test.
allbroken.test.    300 IN MX    10 broken.test.
"""


@pytest.fixture
def server() -> Iterator[NameServer]:
    with NameServer(ZONE) as server:
        server.fail("broken.test", "servfail")
        yield server


def mx(server: NameServer, domain: str) -> Any:
    def reverse(records: list[Any]) -> None:
        records.sort(key=lambda record: record.exchange.to_text(), reverse=True)

    return asyncio.run(Resolver([server.address], shuffle=reverse).mx(domain))


BACKUP = MxHost(20, "backup.meg.test", ("192.0.2.3",))
ONE = MxHost(10, "mx1.meg.test", ("192.0.2.1", "2001:db8::1"))
TWO = MxHost(10, "mx2.meg.test", ("192.0.2.2",))


@pytest.mark.parametrize(
    ("domain", "answer"),
    [
        ("meg.test", MxHosts((TWO, ONE, BACKUP))),
        ("MEG.Test", MxHosts((TWO, ONE, BACKUP))),
        ("alias.test", MxHosts((TWO, ONE, BACKUP))),
        ("implicit.test", MxHosts((MxHost(0, "implicit.test", ("192.0.2.4",)),))),
        ("null.test", NullMx()),
        ("mixed.test", MxHosts((ONE,))),
        ("partial.test", MxHosts((MxHost(20, "mx1.meg.test", ONE.addresses),))),
        ("half.test", MxHosts((MxHost(20, "mx2.meg.test", TWO.addresses),))),
        ("mxalias.test", MxHosts((MxHost(10, "other.test", ("192.0.2.2",)),))),
        ("nowhere.test", NoDomain()),
    ],
)
def test_mx(server: NameServer, domain: str, answer: object) -> None:
    assert mx(server, domain) == answer


@pytest.mark.parametrize(
    "domain",
    [
        "lost.test",
        "numeric.test",
        "tohere.test",
        "text.test",
        "broken.test",
        "allbroken.test",
        "a..b",
        "x" * 64 + ".test",
        "é" * 80,
    ],
)
def test_trouble(server: NameServer, domain: str) -> None:
    assert isinstance(mx(server, domain), DnsTrouble)


def test_the_trouble_of_the_address_is_told(server: NameServer) -> None:
    assert "broken.test" in mx(server, "allbroken.test").text
    assert "SERVFAIL" in mx(server, "broken.test").text


def test_a_silent_server_is_given_up_in_time(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.fail(".", "silent")
    monkeypatch.setattr(dns, "LIFETIME", 0.5)
    began = time.monotonic()
    assert isinstance(mx(server, "meg.test"), DnsTrouble)
    assert time.monotonic() - began < 2


def test_a_server_answers_or_not(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "PROBE_LIFETIME", 0.3)

    async def answers() -> list[bool]:
        resolver, found = Resolver([server.address]), []
        for trouble in (None, "servfail", "refused", "silent", None):
            server.trouble.clear()
            if trouble:
                server.fail(".", trouble)
            found.append(await resolver.answers())
        return found

    assert asyncio.run(answers()) == [True, True, True, False, True]


def test_a_dead_server_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "LIFETIME", 0.3)
    with NameServer() as server:
        address = server.address
    assert isinstance(asyncio.run(Resolver([address]).mx("meg.test")), DnsTrouble)


def test_the_second_server_is_asked(server: NameServer) -> None:
    with NameServer() as refusing:
        refusing.fail(".", "refused")
        answer = asyncio.run(Resolver([refusing.address, server.address]).addresses("implicit.test"))
    assert answer == ("192.0.2.4",)


def test_a_machine_without_resolv_conf_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns, "RESOLV_CONF", "/nonexistent/resolv.conf")
    assert isinstance(asyncio.run(Resolver().mx("meg.test")), DnsTrouble)


def test_answers_are_cached_also_negative_ones(server: NameServer) -> None:
    async def twice() -> None:
        resolver = Resolver([server.address])
        assert isinstance(await resolver.mx("meg.test"), MxHosts)
        assert await resolver.mx("nowhere.test") == NoDomain()
        server.queries.clear()
        assert isinstance(await resolver.mx("meg.test"), MxHosts)
        assert await resolver.mx("nowhere.test") == NoDomain()
        assert server.queries == []

    asyncio.run(twice())


def test_equal_preferences_are_shuffled(server: NameServer) -> None:
    async def first_hosts() -> set[str]:
        resolver = Resolver([server.address])
        found = [await resolver.mx("meg.test") for _ in range(60)]
        assert all(isinstance(answer, MxHosts) and answer.hosts[-1] == BACKUP for answer in found)
        return {answer.hosts[0].host for answer in found if isinstance(answer, MxHosts)}

    assert asyncio.run(first_hosts()) == {"mx1.meg.test", "mx2.meg.test"}


def test_a_large_answer_comes_by_tcp_and_is_bounded() -> None:
    zone = "".join(
        f"big.test. 300 IN MX {n} mx{n}.big.test.\nmx{n}.big.test. 300 IN A 192.0.2.{n}\n" for n in range(200)
    )
    with NameServer(zone) as server:
        answer = mx(server, "big.test")
        assert [host.preference for host in answer.hosts] == list(range(dns.MAX_HOSTS))
        assert server.queries.count(("big.test.", "MX")) == 2  # UDP, truncated, then TCP


@pytest.mark.parametrize(
    ("domain", "secure", "hosts"),
    [
        (
            "meg.test",
            True,
            {"mx1.meg.test": "mx1.meg.test", "mx2.meg.test": "mx2.meg.test", "backup.meg.test": "backup.meg.test"},
        ),
        ("implicit.test", True, {"implicit.test": "implicit.test"}),
        ("mxalias.test", True, {"other.test": ""}),  # the alias is not signed, so nor are its addresses
        ("signedalias.test", True, {"hosted.test": "mx2.meg.test"}),
        ("partial.test", False, {"mx1.meg.test": "mx1.meg.test"}),
    ],
)
def test_what_a_validating_resolver_vouches_for(
    server: NameServer, domain: str, secure: bool, hosts: dict[str, str]
) -> None:
    server.publish(ZONE + "signedalias.test. 300 IN MX 10 hosted.test.\nhosted.test. 300 IN CNAME mx2.meg.test.\n")
    server.sign("meg.test", "implicit.test", "mxalias.test", "signedalias.test", "hosted.test")
    answer = mx(server, domain)
    assert answer.secure is secure
    assert {host.host: host.alias_of for host in answer.hosts} == hosts
    assert [host.secure for host in answer.hosts] == [bool(alias_of) for alias_of in hosts.values()]


def test_what_is_not_there_may_be_vouched_for_too(server: NameServer) -> None:
    server.sign("text.test", "nowhere.test")
    resolver = Resolver([server.address])
    absent = asyncio.run(resolver.records("text.test", "TLSA"))
    assert isinstance(absent, dns.Records) and absent.data == () and absent.secure
    assert asyncio.run(resolver.records("nowhere.test", "TLSA")) == NoDomain(secure=True)


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("192.0.2.7", ("192.0.2.7",)),
        ("2001:db8::7", ("2001:db8::7",)),
        ("localhost", ("127.0.0.1", "::1")),
        ("mx1.meg.test", ONE.addresses),
        ("nowhere.test", NoDomain()),
        ("text.test", DnsTrouble("text.test: no address")),
    ],
)
def test_addresses(server: NameServer, host: str, answer: object) -> None:
    assert asyncio.run(Resolver([server.address]).addresses(host)) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("mx.test:2526", ("mx.test", 2526)),
        ("mx.test", ("mx.test", 25)),
        ("10.0.0.1", ("10.0.0.1", 25)),
        ("10.0.0.1:53", ("10.0.0.1", 53)),
        ("::1", ("::1", 25)),
        ("[::1]", ("::1", 25)),
        ("[::1]:53", ("::1", 53)),
    ],
)
def test_endpoint(text: str, answer: tuple[str, int]) -> None:
    assert endpoint(text, 25) == answer


@pytest.mark.parametrize("text", ["", ":25", "a:", "a:b", "a:1:2", "[::1", "[::1]53", "[x]:1", "a:²", "a:65536"])
def test_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match="write"):
        endpoint(text, 25)


def test_records_of_any_type(server: NameServer) -> None:
    resolver = Resolver([server.address])

    def ask(name: str, kind: str) -> Any:
        return asyncio.run(resolver.records(name, kind))

    found = ask("text.test", "TXT")
    assert found.texts() == (b"no address here",) and found.name == "text.test" and not found.secure
    assert ask("text.test", "MX").data == ()
    assert ask("alias.test", "A").name == "meg.test"
    assert ask("nowhere.test", "TXT") == NoDomain()
    assert isinstance(ask("broken.test", "TXT"), DnsTrouble)


@pytest.mark.parametrize(
    ("servers", "local"),
    [
        (["127.0.0.1"], True),
        (["[::1]:53", "127.0.0.2"], True),
        (["127.0.0.53"], False),
        (["127.0.0.1", "10.0.0.1"], False),
    ],
)
def test_only_a_resolver_on_this_machine_is_believed(servers: list[str], local: bool) -> None:
    assert Resolver(servers)._local is local


def test_what_is_at_hand_is_true_for_its_ttl_and_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.dns.AT_HAND", 2)
    with NameServer('a.test. 60 TXT "a"\nb.test. 60 TXT "b"\nnone.test. 60 A 192.0.2.1\n') as server:
        resolver = Resolver([server.address])
        names = ("a.test", "b.test", "none.test")
        found = {name: asyncio.run(resolver.records(name, "TXT")) for name in names}
        for _ in range(2):
            assert {name: resolver.cached(name, "TXT") for name in names} == found
        assert resolver.cached("a.test", "A") is None
        assert len(resolver._at_hand) == 2
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 61)
        assert resolver.cached("a.test", "TXT") is None and resolver.cached("b.test", "TXT") is None
