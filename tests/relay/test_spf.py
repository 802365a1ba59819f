"""SPF asked of a real server on loopback: a table of ours, and the public suite of RFC 7208 where it is at hand.

SPF_SUITE=…/pyspf-2.0.14/test/rfc7208-tests.yml pytest tests/relay/test_spf.py    # from pyspf's source; needs PyYAML
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dns.name
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest

from relay import spf
from relay.dns import Resolver
from relay.lookups import Answer, Lookups, Questions
from relay.spf import Checker, Client
from rules.authentication import Spf
from tests.support.nameserver import NameServer

ZONE = """
fr.test.            TXT  "v=spf1 ip4:192.0.2.0/28 ip6:2001:db8:1::/48 a:mail.fr.test mx -all"
fr.test.            TXT  "another record"
fr.test.            MX   10 mx.fr.test.
mail.fr.test.       A    192.0.2.65
mail.fr.test.       AAAA 2001:db8:2::65
mx.fr.test.         A    192.0.2.66
mx.fr.test.         TXT  "v=spf1 a -all"
soft.test.          TXT  "v=spf1 ~all"
neutral.test.       TXT  "v=spf1 ?all"
open.test.          TXT  "v=spf1"
case.test.          TXT  "V=SPF1 IP4:192.0.2.1 -ALL"
none.test.          TXT  "v=spf10 -all"
none.test.          A    192.0.2.1
two.test.           TXT  "v=spf1 -all"
two.test.           TXT  "v=spf1 +all"
split.test.         TXT  "v=spf1 ip4:192." "0.2.1 -all"
typo.test.          TXT  "v=spf1 ipv4:192.0.2.1 -all"
badip.test.         TXT  "v=spf1 ip4:192.0.2.256 -all"
badcidr.test.       TXT  "v=spf1 ip4:192.0.2.0/33 -all"
eightbit.test.      TXT  "v=spf1 a:\\195\\169.test -all"
include.test.       TXT  "v=spf1 include:fr.test ~all"
includenone.test.   TXT  "v=spf1 include:none.test ~all"
includedead.test.   TXT  "v=spf1 include:dead.test ~all"
includebefore.test. TXT  "v=spf1 ip4:192.0.2.1 include:dead.test ~all"
loop.test.          TXT  "v=spf1 include:loop.test -all"
redirect.test.      TXT  "v=spf1 redirect=fr.test"
redirectnone.test.  TXT  "v=spf1 redirect=none.test"
exists.test.        TXT  "v=spf1 exists:%{ir}.%{l}.list.test -all"
1.2.0.192.jean.list.test. A 127.0.0.2
helo.test.          TXT  "v=spf1 exists:%{h}.list.test -all"
mx.fr.test.list.test. A   127.0.0.2
ptr.test.           TXT  "v=spf1 ptr:fr.test -all"
65.2.0.192.in-addr.arpa. PTR mx.dead.test.
65.2.0.192.in-addr.arpa. PTR mail.fr.test.
66.2.0.192.in-addr.arpa. PTR mail.fr.test.
alias.test.         CNAME fr.test.
void.test.          TXT  "v=spf1 a:no1.test a:no2.test a:no3.test ip4:192.0.2.1 -all"
macro.test.         TXT  "v=spf1 exists:%{zz}.test -all"
deadmx.test.        TXT  "v=spf1 mx -all"
deadmx.test.        MX   10 mx.dead.test.
explained.test.     TXT  "v=spf1 -all exp=why.dead.test"
empty.test.         TXT  "v=spf1 a:..x.test -all"
xn--9ca.test.       TXT  "v=spf1 ip4:192.0.2.1 -all"
"""
# RFC 7208 §4.6.4: ten terms that ask the DNS are allowed, eleven are not.
NINE = " ".join(f"a:{n}.x.test" for n in range(1, 10))
ZONE += f'tenth.test. TXT "v=spf1 {NINE} a:mail.fr.test -all"\n'
ZONE += f'eleventh.test. TXT "v=spf1 {NINE} a:10.x.test a:mail.fr.test -all"\n'
ZONE += "".join(f"{n}.x.test. A 203.0.113.{n}\n" for n in range(1, 11))

IN, OUT, MAIL, MX = "192.0.2.1", "198.51.100.1", "192.0.2.65", "192.0.2.66"
CASES: list[tuple[str, str, str, str, str]] = [  # peer, sender, helo, result, domain
    (IN, "jean@fr.test", "x.test", "pass", "fr.test"),
    (IN, "Jean@FR.Test", "x.test", "pass", "fr.test"),
    (OUT, "jean@fr.test", "x.test", "fail", "fr.test"),
    (MAIL, "jean@fr.test", "x.test", "pass", "fr.test"),
    (MX, "jean@fr.test", "x.test", "pass", "fr.test"),
    ("::ffff:192.0.2.1", "jean@fr.test", "x.test", "pass", "fr.test"),
    ("2001:db8:1::9", "jean@fr.test", "x.test", "pass", "fr.test"),
    ("2001:db8:2::65", "jean@fr.test", "x.test", "pass", "fr.test"),
    ("2001:db8:3::1", "jean@fr.test", "x.test", "fail", "fr.test"),
    ("fe80::1%eth0", "jean@fr.test", "x.test", "fail", "fr.test"),
    (OUT, "jean@soft.test", "x.test", "softfail", "soft.test"),
    (OUT, "jean@neutral.test", "x.test", "neutral", "neutral.test"),
    (OUT, "jean@open.test", "x.test", "neutral", "open.test"),
    (IN, "jean@case.test", "x.test", "pass", "case.test"),
    (IN, "jean@none.test", "x.test", "none", "none.test"),
    (IN, "jean@nowhere.test", "x.test", "none", "nowhere.test"),
    (IN, "jean@two.test", "x.test", "permerror", "two.test"),
    (IN, "jean@split.test", "x.test", "pass", "split.test"),
    (IN, "jean@typo.test", "x.test", "permerror", "typo.test"),
    (IN, "jean@badip.test", "x.test", "permerror", "badip.test"),
    (IN, "jean@badcidr.test", "x.test", "permerror", "badcidr.test"),
    (IN, "jean@eightbit.test", "x.test", "permerror", "eightbit.test"),
    (IN, "jean@empty.test", "x.test", "fail", "empty.test"),
    (IN, "jean@macro.test", "x.test", "permerror", "macro.test"),
    (IN, "jean@include.test", "x.test", "pass", "include.test"),
    (OUT, "jean@include.test", "x.test", "softfail", "include.test"),
    (IN, "jean@includenone.test", "x.test", "permerror", "includenone.test"),
    (OUT, "jean@loop.test", "x.test", "permerror", "loop.test"),
    (IN, "jean@redirect.test", "x.test", "pass", "redirect.test"),
    (IN, "jean@redirectnone.test", "x.test", "permerror", "redirectnone.test"),
    (IN, "jean@exists.test", "x.test", "pass", "exists.test"),
    (IN, "marie@exists.test", "x.test", "fail", "exists.test"),
    (IN, "jean@helo.test", "mx.fr.test", "pass", "helo.test"),
    (MAIL, "jean@ptr.test", "x.test", "pass", "ptr.test"),
    (MX, "jean@ptr.test", "x.test", "fail", "ptr.test"),
    (IN, "jean@alias.test", "x.test", "pass", "alias.test"),
    (MAIL, "jean@tenth.test", "x.test", "pass", "tenth.test"),
    (MAIL, "jean@eleventh.test", "x.test", "permerror", "eleventh.test"),
    (IN, "jean@void.test", "x.test", "permerror", "void.test"),
    (OUT, "jean@explained.test", "x.test", "fail", "explained.test"),
    (IN, '"a@b"@fr.test', "x.test", "pass", "fr.test"),
    (IN, "@fr.test", "x.test", "pass", "fr.test"),
    (IN, "jean@é.test", "x.test", "pass", "xn--9ca.test"),
    # The null sender: the name given at HELO (RFC 7208 §2.4).
    (MX, "", "mx.fr.test", "pass", "mx.fr.test"),
    (IN, "", "mx.fr.test", "fail", "mx.fr.test"),
    (IN, "", "[192.0.2.1]", "none", ""),
    (IN, "", "localhost", "none", "localhost"),
    (IN, "", "", "none", ""),
    # No domain, or none that could be one.
    (IN, "postmaster", "mx.fr.test", "none", ""),
    (IN, "jean@a..b", "x.test", "none", ""),
    (IN, "jean@" + "a" * 64 + ".test", "x.test", "none", ""),
    (IN, "jean@[192.0.2.1]", "x.test", "none", ""),
    # Who speaks is not known.
    ("", "jean@fr.test", "x.test", "permerror", "fr.test"),
    # The DNS fails, where it matters.
    (IN, "jean@dead.test", "x.test", "temperror", "dead.test"),
    (IN, "jean@includedead.test", "x.test", "temperror", "includedead.test"),
    (IN, "jean@includebefore.test", "x.test", "pass", "includebefore.test"),
    (IN, "jean@deadmx.test", "x.test", "temperror", "deadmx.test"),
]


@pytest.fixture(scope="module")
def server() -> Iterator[NameServer]:
    with NameServer(ZONE) as server:
        server.fail("dead.test", "servfail")
        yield server


async def check(server: NameServer, peer: str, sender: str, helo: str) -> Spf:
    return await Checker().check(Client(peer, helo, sender), questions(server))


def questions(server: NameServer) -> Questions:
    return Questions(Lookups(Resolver([server.address])), asyncio.get_running_loop().time() + 20)


@pytest.mark.parametrize(("peer", "sender", "helo", "result", "domain"), CASES)
def test_spf(server: NameServer, peer: str, sender: str, helo: str, result: Any, domain: str) -> None:
    assert asyncio.run(check(server, peer, sender, helo)) == Spf(result, domain)


def test_many_at_once_do_not_mix(server: NameServer) -> None:
    async def all_of_them() -> list[Spf]:
        checker, asking = Checker(), questions(server)
        checks = [checker.check(Client(case[0], case[2], case[1]), asking) for case in CASES * 3]
        return await asyncio.gather(*checks)

    assert asyncio.run(all_of_them()) == [Spf(result, domain) for *_, result, domain in CASES * 3]  # type: ignore[arg-type]


def test_what_asks_without_end_is_given_up() -> None:
    hosts = "".join(f"m{n}.x.test. A 10.0.0.1\n" for n in range(10))
    mx = "".join(f"{term}.x.test. MX 10 m{n}.x.test.\n" for term in range(9) for n in range(10))
    terms = " ".join(f"mx:{term}.x.test" for term in range(9))
    with NameServer(f'big.test. TXT "v=spf1 {terms} ip4:192.0.2.1 -all"\n' + mx + hosts) as server:
        assert asyncio.run(check(server, IN, "jean@big.test", "x.test")) == Spf("pass", "big.test")
        assert len(server.queries) < spf.MAX_QUESTIONS


BOMBS = {
    "a long label": "a:b." + "a" * 60_000 + "!",
    "long labels": " ".join("a:b." + "a" * 290 + "!" for _ in range(200)),
    "macros": "exists:" + "%{ir255}." * 6_000 + "x",
    "modifiers": "a=b " * 15_000,
    "addresses": "ip4:198.51.100.2 " * 3_500,
    "includes": "include:loop.test " * 3_500,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_no_record_takes_longer_than_it_may(bomb: str) -> None:
    record = f"v=spf1 {BOMBS[bomb]} -all"
    with NameServer(f"bomb.test. TXT {_strings(record)}\nloop.test. TXT {_strings(record)}") as server:
        began = time.process_time()
        assert asyncio.run(check(server, IN, "jean@bomb.test", "x.test")).result != "pass"
        assert time.process_time() - began < 2


def test_records_that_each_are_bearable_are_not_too_much_together() -> None:
    terms = "ip4:198.51.100.2 " * 235
    zone = "".join(f"{n}.test. TXT {_strings(f'v=spf1 {terms}include:{n + 1}.test -all')}\n" for n in range(1, 9))
    zone += f"9.test. TXT {_strings(f'v=spf1 {terms}mx -all')}\n"
    zone += "".join(f"9.test. MX 10 m{n}.test.\nm{n}.test. A 198.51.100.3\n" for n in range(10))
    with NameServer(zone) as server:
        began = time.process_time()
        assert asyncio.run(check(server, IN, "jean@1.test", "x.test")).result in ("fail", "temperror")
        assert time.process_time() - began < 3


def test_what_others_do_meanwhile_does_not_count(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spf, "MAX_CPU", 0.15)
    spf._query()  # imported before

    class Busy(Questions):
        async def ask(self, name: str, kind: str) -> Answer:
            until = time.thread_time() + 0.06
            while time.thread_time() < until:
                pass
            return await super().ask(name, kind)

    async def busy() -> Spf:
        asking = Busy(Lookups(Resolver([server.address])), asyncio.get_running_loop().time() + 20)
        return await Checker().check(Client(MAIL, "x.test", "jean@fr.test"), asking)

    assert asyncio.run(busy()) == Spf("pass", "fr.test")


# ---
# What was found is remembered


class Counted(Checker):
    """Counts how often pyspf is run to an end."""

    ran = 0

    def _run(self, *words: Any) -> Spf:
        found = super()._run(*words)
        self.ran += 1
        return found


@pytest.mark.parametrize(("peer", "sender", "helo", "result", "domain"), CASES)
def test_what_is_known_is_said_at_once_and_is_the_same(
    server: NameServer, peer: str, sender: str, helo: str, result: Any, domain: str
) -> None:
    async def twice() -> list[Spf | None]:
        checker, asking, client = Counted(), questions(server), Client(peer, helo, sender)
        found = [await checker.check(client, asking)]
        return [*found, Checker().at_once(client, asking.known), checker.at_once(client, asking.known)]

    assert asyncio.run(twice()) == [Spf(result, domain)] * 3


def test_pyspf_is_run_once_for_a_peer_and_a_domain(server: NameServer) -> None:
    async def several() -> Counted:
        checker, asking = Counted(), questions(server)
        assert checker.at_once(Client(IN, "x.test", "jean@include.test"), asking.known) is None
        assert checker.ran == 0
        for peer, result in ((IN, "pass"), (OUT, "softfail")):
            await checker.check(Client(peer, "x.test", "jean@include.test"), asking)
            for sender in ("jean@include.test", "marie@Include.test"):
                found = checker.at_once(Client(peer, "y.test", sender), asking.known)
                assert found == Spf(result, "include.test")  # type: ignore[arg-type]
        return checker

    assert asyncio.run(several()).ran == 2


def test_what_depends_on_more_than_peer_and_domain_is_not_remembered(server: NameServer) -> None:
    async def several() -> list[Spf]:
        checker, asking = Checker(), questions(server)
        clients = [Client(IN, "x.test", f"{name}@exists.test") for name in ("jean", "marie", "jean")]
        clients += [Client(IN, helo, "jean@helo.test") for helo in ("mx.fr.test", "x.test", "mx.fr.test")]
        found = [await checker.check(client, asking) for client in clients]
        assert not checker._kept
        return found

    assert [found.result for found in asyncio.run(several())] == ["pass", "fail", "pass"] * 2


def test_nothing_is_remembered_beyond_the_ttl(monkeypatch: pytest.MonkeyPatch) -> None:
    async def changed(server: NameServer) -> None:
        checker, asking, client = Counted(), questions(server), Client(IN, "x.test", "jean@a.test")
        assert await checker.check(client, asking) == Spf("pass", "a.test")
        server.publish('a.test. 300 TXT "v=spf1 include:b.test -all"\nb.test. 20 TXT "v=spf1 -all"')
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 15)
        assert checker.at_once(client, asking.known) == Spf("pass", "a.test") and checker.ran == 1
        monkeypatch.setattr(time, "time", lambda: now + 25)  # that of b.test is over, not that of a.test
        assert checker.at_once(client, asking.known) is None
        assert await checker.check(client, asking) == Spf("fail", "a.test")
        assert checker.at_once(client, asking.known) == Spf("fail", "a.test") and checker.ran == 2

    zone = 'a.test. 300 TXT "v=spf1 include:b.test -all"\nb.test. 20 TXT "v=spf1 ip4:192.0.2.1"'
    with NameServer(zone) as server:
        asyncio.run(changed(server))


def test_a_trouble_is_no_result_to_remember(server: NameServer) -> None:
    async def troubled() -> None:
        checker = Checker()
        for _ in range(2):
            found = await checker.check(Client(IN, "x.test", "jean@includedead.test"), questions(server))
            assert found == Spf("temperror", "includedead.test") and not checker._kept

    asyncio.run(troubled())


def test_the_oldest_result_is_forgotten_first(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spf, "MOST", 2)

    async def three() -> list[str]:
        checker, asking = Checker(), questions(server)
        for domain in ("soft.test", "open.test", "neutral.test"):
            await checker.check(Client(IN, "x.test", f"jean@{domain}"), asking)
        return [domain for _, domain in checker._kept]

    assert asyncio.run(three()) == ["open.test", "neutral.test"]


def test_as_many_questions_are_allowed_of_what_is_known(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def asked(most: int) -> tuple[Spf, Spf | None]:
        asking, client = questions(server), Client(OUT, "x.test", "jean@fr.test")
        await Checker().check(client, asking)
        monkeypatch.setattr(spf, "MAX_QUESTIONS", most)
        fresh = questions(server)
        return await Checker().check(client, fresh), Checker().at_once(client, asking.known)

    assert asyncio.run(asked(4)) == (Spf("fail", "fr.test"),) * 2  # TXT, A, MX, A
    assert asyncio.run(asked(3)) == (Spf("permerror", "fr.test"),) * 2


def _strings(text: str) -> str:
    return " ".join(f'"{text[at : at + 250]}"' for at in range(0, len(text), 250))


def test_the_first_import_of_pyspf_warns_of_nothing(tmp_path: Path) -> None:
    # Compiled anew, as where its byte code cannot be kept: its escapes are warnings, and later errors, to Python.
    code = "from relay.spf import _pyspf; _pyspf()"
    env = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    made = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:spf", "-c", code], env=env, capture_output=True
    )
    assert (made.returncode, made.stderr) == (0, b"")


# ---
# The public suite


class SuiteServer(NameServer):
    """Serves the `zonedata` of a scenario: TIMEOUT is trouble for every type that is not listed."""

    def load(self, zone: dict[str, list[Any]]) -> None:
        self._records, self.dead = {}, set()
        for owner, entries in zone.items():
            name = dns.name.from_text(owner)
            self.dead |= {name} if "TIMEOUT" in entries else set()
            listed = [(kind, value) for entry in entries if entry != "TIMEOUT" for kind, value in entry.items()]
            # The suite writes SPF (type 99, of RFC 4408) for what a TXT is to hold too, unless one is given.
            if not any(kind == "TXT" for kind, _ in listed):
                listed += [("TXT", value) for kind, value in listed if kind == "SPF"]
            for kind, value in listed:
                if value != "NONE":
                    self._add(name, kind, value)

    def _add(self, name: dns.name.Name, kind: str, value: Any) -> None:
        rdtype = dns.rdatatype.from_text(kind)
        rrset = self._records.setdefault((name, rdtype), dns.rrset.RRset(name, dns.rdataclass.IN, rdtype))
        if kind in ("TXT", "SPF"):
            strings = [value] if isinstance(value, str) else value or [""]
            text = " ".join('"' + "".join(f"\\{b:03d}" for b in string.encode("latin-1")) + '"' for string in strings)
        elif kind == "MX":
            text = f"{value[0]} {value[1].rstrip('.')}."
        else:
            text = value if kind in ("A", "AAAA") else f"{value.rstrip('.')}."
        rrset.update(dns.rrset.from_text(name, 300, "IN", kind, text))

    def _fill(self, response: Any, name: dns.name.Name, rdtype: Any) -> None:
        super()._fill(response, name, rdtype)
        if not response.answer and name in self.dead:
            response.set_rcode(dns.rcode.SERVFAIL)


SUITE = os.environ.get("SPF_SUITE", "")


@pytest.mark.skipif(not SUITE, reason="SPF_SUITE is not set")
def test_the_public_suite() -> None:
    yaml = pytest.importorskip("yaml")
    wrong, run = [], 0
    with SuiteServer() as server:
        for scenario in yaml.safe_load_all(Path(SUITE).read_bytes()):
            server.load(scenario["zonedata"])
            for name, case in scenario["tests"].items():
                run += 1
                got = asyncio.run(check(server, case["host"], case["mailfrom"], case["helo"])).result
                if got not in (case["result"] if isinstance(case["result"], list) else [case["result"]]):
                    wrong.append(f"{name}: {got}, expected {case['result']}")
    print(f"{run} cases, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)
