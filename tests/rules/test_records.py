"""What is to be published, word for word."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest

from rules import records
from rules.records import Certificate, DkimKey, Record, Site

SITE = Site("welyb.fr", "mx.welyb.fr")
FULL = Site(
    "Welyb.fr",
    "MX.welyb.fr",
    (DkimKey("k1", "v=DKIM1; k=rsa; p=" + "A" * 300), DkimKey("k1-ed", "v=DKIM1; k=ed25519; p=B")),
    (Certificate(b"certificate", b"key"), Certificate(b"issuer", b"issuer's")),
    ("192.0.2.7", "2001:db8::1"),
)


def test_every_record() -> None:
    head = "v=DKIM1; k=rsa; p="
    assert [(r.name, r.type, r.value) for r in records.records(FULL)] == [
        ("welyb.fr.", "MX", "10 mx.welyb.fr."),
        ("mx.welyb.fr.", "A", "192.0.2.7"),
        ("mx.welyb.fr.", "AAAA", "2001:db8::1"),
        ("welyb.fr.", "TXT", '"v=spf1 mx -all"'),
        ("mx.welyb.fr.", "TXT", '"v=spf1 a -all"'),
        ("k1._domainkey.welyb.fr.", "TXT", f'"{head}{"A" * (255 - len(head))}" "{"A" * (45 + len(head))}"'),
        ("k1-ed._domainkey.welyb.fr.", "TXT", '"v=DKIM1; k=ed25519; p=B"'),
        ("_dmarc.welyb.fr.", "TXT", '"v=DMARC1; p=reject; rua=mailto:postmaster@welyb.fr"'),
        ("_mta-sts.welyb.fr.", "TXT", f'"v=STSv1; id={records.policy_id(records.policy(FULL))};"'),
        ("_smtp._tls.welyb.fr.", "TXT", '"v=TLSRPTv1; rua=mailto:postmaster@welyb.fr"'),
        ("_25._tcp.mx.welyb.fr.", "TLSA", f"3 1 1 {hashlib.sha256(b'key').hexdigest()}"),
        ("7.2.0.192.in-addr.arpa.", "PTR", "mx.welyb.fr."),
        ("1." + "0." * 23 + "8.b.d.0.1.0.0.2.ip6.arpa.", "PTR", "mx.welyb.fr."),
    ]


def test_what_is_not_known_is_not_made_up() -> None:
    assert {r.type for r in records.records(SITE)} == {"MX", "TXT"}


def test_a_host_that_is_the_domain_has_one_spf_record() -> None:
    texts = [
        r.value for r in records.records(Site("welyb.fr", "welyb.fr")) if r.name == "welyb.fr." and r.type == "TXT"
    ]
    assert texts == ['"v=spf1 mx -all"']


def test_a_line_of_a_zone_file() -> None:
    assert str(Record("welyb.fr.", "MX", "10 mx.welyb.fr.")) == "welyb.fr.\t3600\tIN\tMX\t10 mx.welyb.fr."


def test_the_policy_and_its_id() -> None:
    """RFC 8461 §3.2: CRLF; another text is another id, another end of line is not."""
    text = records.policy(SITE)
    assert text == "version: STSv1\r\nmode: testing\r\nmx: mx.welyb.fr\r\nmax_age: 604800\r\n"
    assert records.policy_id(text) == records.policy_id(text.replace("\r\n", "\n"))
    assert records.policy_id(text) != records.policy_id(text.replace("testing", "enforce"))
    assert 1 <= len(records.policy_id(text)) <= 32 and records.policy_id(text).isalnum()
    assert SITE.policy_url == "https://mta-sts.welyb.fr/.well-known/mta-sts.txt"


@pytest.mark.parametrize(("text", "written"), [('a"b\\c', r'"a\"b\\c"'), ("a" * 256, f'"{"a" * 255}" "a"'), ("", "")])
def test_texts(text: str, written: str) -> None:
    assert records.quoted(text) == written


def test_how_long_an_old_key_stays_published() -> None:
    at = datetime(2026, 11, 24, 12, tzinfo=UTC)
    assert records.needed_until(at) == at + timedelta(days=7)
    assert records.needed_until(None) is None
