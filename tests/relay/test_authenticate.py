"""A mail, a DNS server on loopback, and what is known of who wrote it."""

import asyncio
import time
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from relay import authenticate, dns, lookups, sign
from relay.authenticate import Authenticator, Mail
from relay.dns import Resolver
from relay.lookups import Lookups
from relay.sign import Signer, SimpleBodyHash
from relay.spf import Client
from rules.authentication import Authentication, Dmarc, Signature, Spf
from tests.support.nameserver import NameServer

KEY = Ed25519PrivateKey.generate()
ZONE = f"""
fr.test.                TXT "v=spf1 ip4:192.0.2.1 -all"
_dmarc.fr.test.         TXT "v=DMARC1; p=reject"
s._domainkey.fr.test.   TXT "{sign.dns_record(KEY)}"
s._domainkey.x.test.    TXT "{sign.dns_record(KEY)}"
mail.fr.test.           TXT "v=spf1 ip4:192.0.2.1 -all"
quiet.test.             TXT "v=spf1 -all"
_dmarc.np.test.         TXT "v=DMARC1; p=none; np=reject"
there.np.test.          A   192.0.2.1
_dmarc.broken.test.     TXT "v=DMARC1; p=refuse"
_dmarc.dead.test.       TXT "v=DMARC1; p=reject"
"""
IN, OUT = "192.0.2.1", "198.51.100.1"
PASSED, FAILED = Spf("pass", "fr.test"), Spf("fail", "fr.test")


@pytest.fixture
def server() -> Iterator[NameServer]:
    with NameServer(ZONE) as server:
        for name in ("key.dead.test", "spf.dead.test", "_dmarc.lost.test", "unsure.np.test"):
            server.fail(name, "servfail")
        yield server


def message(author: str = "a@fr.test", body: bytes = b"hello\r\n", signers: tuple[str, ...] = ()) -> bytes:
    header = b"From: Jean <" + author.encode() + b">\r\nSubject: facture\r\n\r\n"
    if author == "":
        header = b"Subject: facture\r\n\r\n"
    hashed = SimpleBodyHash()
    hashed.feed(body)
    fields, digest = sign.fields(header), hashed.digest()
    signed = (Signer(domain, "s", KEY).sign(fields, digest, 1_795_500_000) for domain in signers)
    return b"".join(signed) + header + body


def mail(raw: bytes, *, peer: str = OUT, sender: str = "a@fr.test", helo: str = "mx.fr.test") -> Mail:
    def read(offset: int, length: int) -> bytes:
        return raw[offset : offset + length]

    return Mail(Client(peer, helo, sender), raw.index(b"\r\n\r\n") + 4, len(raw), read)


def ask(server: NameServer, mail: Mail) -> Authentication:
    async def asked() -> Authentication:
        authenticator = Authenticator(Resolver([server.address]))
        try:
            return await authenticator.authenticate(mail)
        finally:
            authenticator.close()

    return asyncio.run(asked())


def signed(*domains: str) -> tuple[Signature, ...]:
    return tuple(Signature("pass", domain, "s") for domain in domains)


@pytest.mark.parametrize(
    ("mail", "facts"),
    [
        # By SPF, by DKIM, by neither.
        (mail(message(), peer=IN), Authentication(PASSED, (), Dmarc("pass", "fr.test", "reject"))),
        (
            mail(message(signers=("fr.test",))),
            Authentication(FAILED, signed("fr.test"), Dmarc("pass", "fr.test", "reject", signed=True)),
        ),
        (mail(message()), Authentication(FAILED, (), Dmarc("fail", "fr.test", "reject"))),
        # Someone else's signature and sender are worth nothing to fr.test.
        (
            mail(message(signers=("x.test",)), sender="a@quiet.test"),
            Authentication(Spf("fail", "quiet.test"), signed("x.test"), Dmarc("fail", "fr.test", "reject")),
        ),
        # A domain below the author's, and the null sender's HELO.
        (
            mail(message(), peer=IN, sender="b@mail.fr.test"),
            Authentication(Spf("pass", "mail.fr.test"), (), Dmarc("pass", "fr.test", "reject")),
        ),
        (
            mail(message(), peer=IN, sender="", helo="mail.fr.test"),
            Authentication(Spf("pass", "mail.fr.test"), (), Dmarc("pass", "fr.test", "reject")),
        ),
        (
            mail(message("a@sub.fr.test", signers=("fr.test", "x.test"))),
            Authentication(FAILED, signed("fr.test", "x.test"), Dmarc("pass", "sub.fr.test", "reject", signed=True)),
        ),
        # No policy; none that can be read; none since there is not one author.
        (mail(message("a@quiet.test")), Authentication(FAILED, (), Dmarc("none", "quiet.test"))),
        (mail(message("a@broken.test")), Authentication(FAILED, (), Dmarc("permerror", "broken.test"))),
        (mail(message("")), Authentication(FAILED, (), Dmarc("permerror"))),
        (mail(message("a@fr.test>, <b@x.test")), Authentication(FAILED, (), Dmarc("permerror", policy="reject"))),
        (mail(b"From: a@fr.test\r\n" + message()), Authentication(FAILED, (), Dmarc("permerror", policy="reject"))),
        # A domain that does not exist, where that matters; and where the DNS does not say.
        (mail(message("a@there.np.test")), Authentication(FAILED, (), Dmarc("fail", "there.np.test", "none"))),
        (mail(message("a@nothere.np.test")), Authentication(FAILED, (), Dmarc("fail", "nothere.np.test", "reject"))),
        (mail(message("a@unsure.np.test")), Authentication(FAILED, (), Dmarc("temperror", "unsure.np.test"))),
        # Trouble is a doubt only where an answer could have made it a pass.
        (mail(message("a@lost.test")), Authentication(FAILED, (), Dmarc("temperror", "lost.test"))),
        (
            mail(message("a@dead.test"), sender="a@spf.dead.test"),
            Authentication(Spf("temperror", "spf.dead.test"), (), Dmarc("temperror", "dead.test", "reject")),
        ),
        (
            mail(message(), sender="a@spf.dead.test"),
            Authentication(Spf("temperror", "spf.dead.test"), (), Dmarc("fail", "fr.test", "reject")),
        ),
    ],
)
def test_facts(server: NameServer, mail: Mail, facts: Authentication) -> None:
    assert ask(server, mail) == facts


def test_trouble_with_a_key(server: NameServer) -> None:
    server.fail("s._domainkey.fr.test", "servfail")
    known = ask(server, mail(message(signers=("fr.test", "x.test"))))
    assert known.dkim == (Signature("temperror", "fr.test", "s", "DNS"), *signed("x.test"))
    assert known.dmarc == Dmarc("temperror", "fr.test", "reject", signed=None)


def test_a_large_body_is_read_in_pieces(server: NameServer) -> None:
    raw = message(body=b"a line of text\r\n" * 300_000, signers=("fr.test",))
    lengths: list[int] = []

    def read(offset: int, length: int) -> bytes:
        lengths.append(length)
        return raw[offset : offset + length]

    one = mail(raw)
    large = Mail(one.client, one.header_end, one.size, read)
    assert ask(server, large).dkim == signed("fr.test")
    assert sum(lengths) == len(raw) and max(lengths) <= 1 << 18
    changed = Mail(one.client, one.header_end, one.size - 20, read)
    assert ask(server, changed).dkim == (Signature("fail", "fr.test", "s", "body"),)


def test_a_body_that_no_signature_speaks_of_is_not_read(server: NameServer) -> None:
    raw = message(signers=("fr.test",)).replace(b"facture", b"virement")

    def read(offset: int, length: int) -> bytes:
        assert offset + length <= one.header_end
        return raw[offset : offset + length]

    one = mail(raw)
    assert ask(server, Mail(one.client, one.header_end, one.size, read)).dkim[0].why == "signature"


def test_a_disk_that_fails_is_no_result(server: NameServer) -> None:
    raw = message(signers=("fr.test",))
    one = mail(raw)
    short = Mail(one.client, one.header_end, one.size + 10, one.read)
    with pytest.raises(OSError, match="shorter"):
        ask(server, short)


def test_answers_are_asked_for_once(server: NameServer) -> None:
    async def twice() -> None:
        authenticator = Authenticator(Resolver([server.address]))
        raw = mail(message("a@sub.fr.test", signers=("fr.test", "x.test")), peer=IN, sender="a@spf.dead.test")
        first = await authenticator.authenticate(raw)
        asked = len(server.queries)
        assert len(set(server.queries)) == asked
        assert await authenticator.authenticate(raw) == first
        assert len(server.queries) == asked  # also of the trouble
        authenticator.close()

    asyncio.run(twice())


def test_trouble_is_asked_about_again_later(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "REMEMBER", 0.0)

    async def twice() -> None:
        authenticator = Authenticator(Resolver([server.address]))
        raw = mail(message("a@lost.test"))
        assert (await authenticator.authenticate(raw)).dmarc.result == "temperror"
        server.trouble.clear()
        assert (await authenticator.authenticate(raw)).dmarc.result == "none"
        authenticator.close()

    asyncio.run(twice())


def test_the_oldest_trouble_is_forgotten_first(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "MOST", 2)

    async def three() -> None:
        known = Lookups(Resolver([server.address]))
        for name in ("a.lost.test", "b.lost.test", "c.lost.test", "b.lost.test", "a.lost.test"):
            await known.ask(f"_dmarc.{name}", "TXT")

    server.fail("lost.test", "servfail")
    asyncio.run(three())
    assert [name for name, _ in server.queries if name.startswith("_dmarc.b")] == ["_dmarc.b.lost.test."]
    assert len([name for name, _ in server.queries if name.startswith("_dmarc.a")]) == 2


EVERYTHING = mail(message("a@sub.fr.test", signers=("fr.test", "x.test")))
NOTHING = Authentication(
    Spf("temperror", "fr.test"),
    tuple(Signature("temperror", domain, "s", "DNS") for domain in ("fr.test", "x.test")),
    Dmarc("temperror", "sub.fr.test"),
)


def test_a_mail_does_not_wait_longer_than_it_may(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.fail(".", "silent")
    monkeypatch.setattr(authenticate, "LONGEST", 0.3)
    began = time.monotonic()
    assert ask(server, EVERYTHING) == NOTHING
    assert time.monotonic() - began < 4


def test_a_dead_dns_is_waited_for_once(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.fail(".", "silent")
    monkeypatch.setattr(dns, "LIFETIME", 0.4)
    monkeypatch.setattr(dns, "PROBE_LIFETIME", 0.2)
    monkeypatch.setattr(lookups, "SLOW", 0.1)

    async def many() -> None:
        authenticator = Authenticator(Resolver([server.address]))
        assert await authenticator.authenticate(EVERYTHING) == NOTHING
        while authenticator._lookups._dead_until == 0:
            await asyncio.sleep(0.02)
        server.queries.clear()
        for n in range(20):  # of which nothing is known yet
            known = await authenticator.authenticate(mail(message(f"a@{n}.test"), sender=f"a@{n}.test"))
            assert known == Authentication(Spf("temperror", f"{n}.test"), (), Dmarc("temperror", f"{n}.test"))
        assert server.queries == []
        server.trouble.clear()
        authenticator._lookups._dead_until = 0
        assert (await authenticator.authenticate(mail(message("a@quiet.example")))).dmarc.result == "none"
        authenticator.close()

    asyncio.run(many())


def test_a_slow_zone_does_not_make_the_dns_dead(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.fail("slow.test", "silent")
    monkeypatch.setattr(dns, "LIFETIME", 0.4)
    monkeypatch.setattr(lookups, "SLOW", 0.1)

    async def both() -> None:
        authenticator = Authenticator(Resolver([server.address]))
        assert (await authenticator.authenticate(mail(message("a@slow.test")))).dmarc.result == "temperror"
        probe = authenticator._lookups._probe
        assert probe is not None
        await probe
        assert (await authenticator.authenticate(mail(message(), peer=IN))).dmarc.result == "pass"
        authenticator.close()

    asyncio.run(both())


def test_no_more_lookups_at_once_than_may(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "AT_ONCE", 2)
    mails = [mail(message(f"a@{n}.fr.test", signers=("fr.test",)), sender=f"a@{n}.fr.test") for n in range(40)]

    async def all_of_them() -> list[Authentication]:
        authenticator = Authenticator(Resolver([server.address]))
        try:
            return await asyncio.gather(*(authenticator.authenticate(one) for one in mails))
        finally:
            authenticator.close()

    assert {known.dmarc.result for known in asyncio.run(all_of_them())} == {"pass"}


def test_mail_of_a_zone_that_does_not_answer_keeps_no_other_waiting(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a flood of it would make unknown what another domain asks for, and let in what that would refuse."""
    server.fail("hole.test", "silent")
    signed = message()
    for n in range(10):
        signer = Signer("hole.test", f"s{n}", KEY)
        signed = signer.sign(sign.fields(message()), bytes(32), 1_795_500_000) + signed

    async def flooded() -> Authentication:
        authenticator = Authenticator(Resolver([server.address]))
        flood = [signed.replace(b"s=s", b"s=m%d-" % n) for n in range(40)]
        tasks = [asyncio.create_task(authenticator.authenticate(mail(one, sender="a@x.hole.test"))) for one in flood]
        while len(server.queries) < lookups.AT_ONCE_IN_ZONE:
            await asyncio.sleep(0.01)
        monkeypatch.setattr(authenticate, "LONGEST", 3.0)  # less than what a question takes that nobody answers
        known = await authenticator.authenticate(mail(message()))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        authenticator.close()
        return known

    assert asyncio.run(flooded()) == Authentication(FAILED, (), Dmarc("fail", "fr.test", "reject"))


def test_neither_spf_nor_dmarc_waits_for_the_keys_of_a_signature(
    server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever signs with a zone that does not answer could make a doubt of another domain's refusal."""
    server.fail("hole.test", "silent")
    server.publish(
        ZONE + 'chain.test. TXT "v=spf1 include:quiet.test -all"\n_dmarc.chain.test. TXT "v=DMARC1; p=reject"'
    )
    monkeypatch.setattr(authenticate, "LONGEST", 0.5)
    raw = message("a@chain.test", signers=("hole.test",))
    known = ask(server, mail(raw, sender="a@chain.test"))
    assert known.dkim == (Signature("temperror", "hole.test", "s", "DNS"),)
    assert known.spf == Spf("fail", "chain.test") and known.dmarc == Dmarc("fail", "chain.test", "reject")


def test_what_is_cached_needs_no_slot(server: NameServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.fail("hole.test", "silent")
    server.publish(ZONE + ". SOA a. b. 1 300 300 300 300\n")
    monkeypatch.setattr(lookups, "AT_ONCE", 1)

    async def asked() -> None:
        known = Lookups(Resolver([server.address]))
        names = [("fr.test", "TXT"), ("nothing.example", "TXT"), ("fr.test", "A")]
        before = [await known.ask(*name) for name in names]
        server.queries.clear()
        waiting = asyncio.create_task(known.ask("hole.test", "TXT"))
        while not server.queries:
            await asyncio.sleep(0.01)
        assert [await known.ask(*name) for name in names] == before
        assert not waiting.done()
        assert {name for name, _ in server.queries} == {"hole.test."}
        waiting.cancel()

    asyncio.run(asked())


def test_what_is_too_long_for_a_name_is_not_kept() -> None:
    lookups._is_name.cache_clear()
    assert not lookups.is_name("a." * 128)
    assert lookups._is_name.cache_info().currsize == 0


def test_what_is_no_name_is_asked_of_nobody(server: NameServer) -> None:
    long = "x" * 64
    raw = message(f"a@{long}.test").replace(b"From:", b"DKIM-Signature: v=1; d=..; s=" + long.encode() + b"\r\nFrom:")
    known = ask(server, mail(raw, sender=f"a@{long}.test", helo="..."))
    assert known.spf == Spf() and known.dkim[0].result == "permerror" and known.dmarc == Dmarc("permerror")
    assert server.queries == []
