"""What is published beside what should be: each record right, differently right, and wrong in each way."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import pytest

from rules import published, records
from rules.published import Absent, Answer, Finding, Question, Seen, Unknown, compare
from rules.records import Certificate, DkimKey, Site

SITE = Site(
    "welyb.fr",
    "mx.welyb.fr",
    (DkimKey("k1", "v=DKIM1; k=rsa; p=AAAA"), DkimKey("k1-ed", "v=DKIM1; k=ed25519; p=BBBB")),
    (Certificate(b"certificate", b"key"), Certificate(b"issuer", b"issuer's key")),
    mode="enforce",
)
POLICY = records.policy(SITE)
ADDRESS = "192.0.2.7"
REVERSE = ("7.2.0.192.in-addr.arpa.", "PTR")
GOOD: Mapping[Question, Answer] = {
    ("welyb.fr.", "MX"): ("10 mx.welyb.fr.",),
    ("mx.welyb.fr.", "A"): (ADDRESS,),
    ("mx.welyb.fr.", "AAAA"): (),
    ("welyb.fr.", "TXT"): ("google-site-verification=x", "v=spf1 mx -all"),
    ("mx.welyb.fr.", "TXT"): ("v=spf1 a -all",),
    ("k1._domainkey.welyb.fr.", "TXT"): ("v=DKIM1; k=rsa; p=AAAA",),
    ("k1-ed._domainkey.welyb.fr.", "TXT"): ("v=DKIM1; k=ed25519; p=BBBB",),
    ("_dmarc.welyb.fr.", "TXT"): ("v=DMARC1; p=reject; rua=mailto:postmaster@welyb.fr",),
    ("_mta-sts.welyb.fr.", "TXT"): (f"v=STSv1; id={records.policy_id(POLICY)};",),
    ("_smtp._tls.welyb.fr.", "TXT"): ("v=TLSRPTv1; rua=mailto:postmaster@welyb.fr",),
    ("_25._tcp.mx.welyb.fr.", "TLSA"): (f"3 1 1 {hashlib.sha256(b'key').hexdigest()}",),
    REVERSE: ("mx.welyb.fr.",),
}


def findings(
    changes: Mapping[Question, Answer], *, site: Site = SITE, policy: str | Absent | Unknown = POLICY
) -> dict[str, Finding]:
    """By "name type", with GOOD but for `changes`."""
    seen = Seen({**GOOD, **changes}, policy)
    return {f"{finding.name} {finding.type}": finding for finding in compare(site, seen)}


def test_where_all_is_well() -> None:
    every = findings({})
    assert {finding.verdict for finding in every.values()} == {"good"}
    assert {finding.line for finding in every.values()} == {""}
    assert len(every) == 12


def test_what_is_asked_is_what_is_compared() -> None:
    seen = Seen(GOOD)
    assert published.questions(SITE) | published.reverse_questions(SITE, seen) == GOOD.keys()
    assert published.forward_questions(SITE, seen) == set()
    other = Seen({**GOOD, REVERSE: ("box7.hoster.example.",)})
    assert published.forward_questions(SITE, other) == {("box7.hoster.example.", "A"), ("box7.hoster.example.", "AAAA")}


@pytest.mark.parametrize("question", GOOD)
def test_what_is_missing_is_a_gap_with_its_line_and_what_is_not_known_is_none(question: Question) -> None:
    name = " ".join(question)
    if question[1] == "AAAA":
        return
    silent = findings({question: Unknown("timeout")})
    assert all(finding.verdict in ("good", "unknown") for finding in silent.values())
    assert silent[name].found == ("timeout",)
    missing = findings({question: ()})[name]
    assert missing.verdict == ("advice" if question[1] == "TLSA" else "gap")
    assert missing.line.startswith(f"{question[0]}\t3600\tIN\t{question[1]}\t")
    assert all(other.verdict == "good" for key, other in findings({question: ()}).items() if key != name) or (
        question == ("mx.welyb.fr.", "A")  # then no address is left to ask for the name of
    )


SPF = [
    ("v=spf1 mx -all", "published", ""),
    ("V=SPF1 MX ~ALL", "published", ""),
    ("v=spf1 +mx:welyb.fr include:_spf.example.org -all", "published", ""),
    ("v=spf1 a:mx.welyb.fr -all", "published", ""),
    ("v=spf1 ip4:192.0.2.0/24 -all", "published", ""),
    ("v=spf1 mx redirect=_spf.example.org", "published", ""),
    ("v=spf1 ip4:198.51.100.0/24 ip6:x -all", "not-authorised", "v=spf1 mx ip4:198.51.100.0/24 ip6:x -all"),
    ("v=spf1 -all mx", "not-authorised", "v=spf1 mx -all"),
    ("v=spf1 -mx ~all", "not-authorised", "v=spf1 mx -mx ~all"),
    ("v=spf1", "open", "v=spf1 mx -all"),
    ("v=spf1 mx", "open", "v=spf1 mx -all"),
    ("v=spf1 mx ?all", "open", "v=spf1 mx -all"),
    ("v=spf1 mx +all", "open", "v=spf1 mx -all"),
    ("v=spf1 include:_spf.example.org -all", "not-followed", "v=spf1 mx include:_spf.example.org -all"),
    ("v=spf1 redirect=_spf.example.org", "not-followed", "v=spf1 mx redirect=_spf.example.org -all"),
    ("v=spf10 mx -all", "missing", "v=spf1 mx -all"),
]


@pytest.mark.parametrize(("text", "code", "mended"), SPF)
def test_spf(text: str, code: str, mended: str) -> None:
    finding = findings({("welyb.fr.", "TXT"): (text,)})["welyb.fr. TXT"]
    assert finding.code == code
    assert finding.line == (f'welyb.fr.\t3600\tIN\tTXT\t"{mended}"' if mended else "")


def test_two_spf_records_become_one() -> None:
    """RFC 7208 §4.5: with two, no mail passes."""
    finding = findings({("welyb.fr.", "TXT"): ("v=spf1 include:a.example ~all", "v=spf1 mx -all")})["welyb.fr. TXT"]
    assert (finding.code, finding.verdict) == ("several", "gap")
    assert finding.line.endswith('"v=spf1 mx include:a.example ~all"')


DKIM = [
    ("v=DKIM1; k=rsa; p=AA AA", "published"),
    ("p=AAAA", "published"),
    ("k=rsa;t=s;h=sha1:sha256;s=email;p=AAAA;", "published"),
    ("v=DKIM1; t=y; p=AAAA", "testing"),
    ("v=DKIM1; p=CCCC", "other-key"),
    ("v=DKIM1; k=ed25519; p=AAAA", "other-key"),
    ("v=DKIM1; p=", "revoked"),
    ("v=DKIM1; h=sha1; p=AAAA", "restricted"),
    ("v=DKIM1; s=tlsrpt; p=AAAA", "restricted"),
    ("v=DKIM2; p=AAAA", "malformed"),
    ("hello", "malformed"),
]
DMARC = [
    ("v=DMARC1;p=quarantine", "published"),
    ("v = DMARC1 ; p = reject", "published"),
    ("v=DMARC1; p=none", "lenient"),
    ("v=DMARC1; rua=mailto:x@y.example", "malformed"),
    ("v=DMARC10; p=reject", "missing"),
]
REPORTS = [
    ("v=TLSRPTv1; rua=https://reports.example/", "published"),
    ("v=TLSRPTv1;rua=mailto:tls@welyb.fr", "published"),
    ("v=TLSRPTv1; rua=tls@welyb.fr", "malformed"),
    ("v=TLSRPTv1", "malformed"),
]


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        *(("k1._domainkey.welyb.fr.", *case) for case in DKIM),
        *(("_dmarc.welyb.fr.", *case) for case in DMARC),
        *(("_smtp._tls.welyb.fr.", *case) for case in REPORTS),
    ],
)
def test_texts(name: str, text: str, code: str) -> None:
    assert findings({(name, "TXT"): (text,)})[f"{name} TXT"].code == code


@pytest.mark.parametrize("question", [q for q in GOOD if q[1] == "TXT" and q[0].startswith(("_", "k1"))])
def test_a_record_said_twice(question: Question) -> None:
    answer = GOOD[question]
    assert isinstance(answer, tuple)
    assert findings({question: answer * 2})[" ".join(question)].code == "several"


@pytest.mark.parametrize(
    ("hosts", "code"),
    [
        (("5 MX.Welyb.FR.", "50 backup.example."), "published"),
        (("10 mail.elsewhere.example.",), "elsewhere"),
        (("0 .",), "elsewhere"),
    ],
)
def test_mx(hosts: tuple[str, ...], code: str) -> None:
    assert findings({("welyb.fr.", "MX"): hosts})["welyb.fr. MX"].code == code


# --- MTA-STS ----------------------------------------------------------------------------------------------------------

STS = "_mta-sts.welyb.fr. TXT"
FILE = f"{SITE.policy_url} FILE"


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (POLICY.replace("\r\n", "\n") + "unknown: x\n", "published"),
        (POLICY.replace("mx.welyb.fr", "*.welyb.fr"), "published"),
        (POLICY.replace("enforce", "testing"), "not-enforced"),
        (POLICY.replace("enforce", "none"), "not-enforced"),
        (POLICY.replace("mx.welyb.fr", "*.mx.welyb.fr"), "hosts-left-out"),
        (POLICY.replace("STSv1", "STSv2"), "malformed"),
        (POLICY.replace("enforce", "strict"), "malformed"),
        (POLICY.replace("604800", "soon"), "malformed"),
        ("<html>", "malformed"),
        ("", "missing"),
        (Absent("status 404"), "missing"),
        (Unknown("timeout"), "unknown"),
    ],
)
def test_the_policy_file(policy: str | Absent | Unknown, code: str) -> None:
    finding = findings({}, policy=policy)[FILE]
    assert finding.code == code
    assert finding.line == ("" if code in ("published", "unknown") else POLICY)
    assert not isinstance(policy, Absent) or finding.found == (policy.why,)


def test_a_policy_covers_every_mx() -> None:
    """RFC 8461 §5: whoever enforces it sends to no other."""
    assert findings({("welyb.fr.", "MX"): ("10 mx.welyb.fr.", "20 backup.example.")})[FILE].code == "hosts-left-out"


def test_no_policy_is_enforced_where_no_tls_is_offered() -> None:
    assert findings({}, site=replace(SITE, chain=(), mode="testing"))[FILE].code == "no-tls"
    testing = POLICY.replace("enforce", "testing")
    assert findings({}, site=replace(SITE, chain=(), mode="testing"), policy=testing)[FILE].code == "published"


def test_a_policy_changed_under_its_old_id() -> None:
    testing = POLICY.replace("enforce", "testing")
    stale = findings({}, policy=testing)[STS]
    assert (stale.code, stale.verdict) == ("stale-id", "gap")
    assert stale.line.endswith(f'"v=STSv1; id={records.policy_id(testing)};"')
    theirs = {("_mta-sts.welyb.fr.", "TXT"): ("v=STSv1; id=20261124T120000;",)}
    assert findings(theirs, policy=testing)[STS].code == "published"
    assert findings({("_mta-sts.welyb.fr.", "TXT"): ("v=STSv1; id=2026-11-24;",)})[STS].code == "malformed"


# --- TLSA and addresses -----------------------------------------------------------------------------------------------

SHA512 = hashlib.sha512(b"certificate").hexdigest().upper()


@pytest.mark.parametrize(
    ("associations", "code"),
    [
        ((f"3 0 2 {SHA512[:64]} {SHA512[64:]}",), "published"),
        ((f"3 1 0 {b'key'.hex()}",), "published"),
        (
            (f"3 1 1 {'00' * 32}", f"2 1 1 {hashlib.sha256(b'issuer' + bytes([39]) + b's key').hexdigest()}"),
            "published",
        ),
        ((f"3 1 1 {'00' * 32}",), "other-certificate"),
        ((f"1 1 1 {hashlib.sha256(b'key').hexdigest()}",), "other-certificate"),
        ((f"2 1 1 {hashlib.sha256(b'key').hexdigest()}",), "other-certificate"),
        ((f"3 7 1 {'00' * 32}",), "other-certificate"),
        ((f"3 1 9 {'00' * 32}",), "other-certificate"),
    ],
)
def test_tlsa(associations: tuple[str, ...], code: str) -> None:
    assert findings({("_25._tcp.mx.welyb.fr.", "TLSA"): associations})["_25._tcp.mx.welyb.fr. TLSA"].code == code


@pytest.mark.parametrize(
    ("names", "back", "code"),
    [
        (("MX.welyb.fr.", "other.example."), (), "published"),
        (("box7.hoster.example.",), (ADDRESS,), "other-name"),
        (("box7.hoster.example.",), ("192.0.2.8",), "unconfirmed"),
        (("box7.hoster.example.",), (), "unconfirmed"),
        (("box7.hoster.example.",), Unknown("timeout"), "unknown"),
    ],
)
def test_the_name_behind_the_address(names: tuple[str, ...], back: Answer, code: str) -> None:
    assert findings({REVERSE: names, ("box7.hoster.example.", "A"): back})[" ".join(REVERSE)].code == code


def test_addresses_that_the_postmaster_says() -> None:
    site = replace(SITE, addresses=(ADDRESS, "2001:db8::1"))
    six = f"{'1.' + '0.' * 23}8.b.d.0.1.0.0.2.ip6.arpa."
    assert (six, "PTR") in published.reverse_questions(site, Seen(GOOD))
    every = findings({(six, "PTR"): ("mx.welyb.fr.",)}, site=site)
    assert every["mx.welyb.fr. A"].code == "published"
    assert (every["mx.welyb.fr. AAAA"].code, every["mx.welyb.fr. AAAA"].line) == (
        "missing",
        "mx.welyb.fr.\t3600\tIN\tAAAA\t2001:db8::1",
    )
    assert findings({("mx.welyb.fr.", "A"): ("192.0.2.9",)}, site=site)["mx.welyb.fr. A"].code == "elsewhere"


def test_a_host_that_is_the_domain() -> None:
    site = replace(SITE, hostname="welyb.fr", keys=(), chain=())
    seen = Seen({("welyb.fr.", "TXT"): ("v=spf1 a -all",), ("welyb.fr.", "MX"): ("0 welyb.fr.",)})
    assert [f.code for f in compare(site, seen) if f.type in ("MX", "TXT")][:2] == ["published", "published"]
