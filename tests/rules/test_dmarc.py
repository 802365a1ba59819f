"""RFC 9989: its own examples, and what it leaves to be read between the lines."""

from collections.abc import Mapping
from typing import Any

import pytest

from rules import dmarc
from rules.authentication import Authentication, Dmarc, Signature, Spf
from rules.dmarc import Asked, Record, Trouble

# ---
# The record


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("v=DMARC1; p=none", Record()),
        ("v=DMARC1;p=reject;sp=quarantine;np=none", Record(p="reject", sp="quarantine", np="none")),
        ("v=DMARC1; p=reject; adkim=s; aspf=s", Record(p="reject", strict_dkim=True, strict_spf=True)),
        ("v=DMARC1; p=reject; adkim=r; aspf=x", Record(p="reject")),
        ("v=DMARC1; p=quarantine; t=y; psd=n", Record(p="quarantine", testing=True, psd="n")),
        ("v=DMARC1; p=none; psd=y", Record(psd="y")),
        ("v=DMARC1; p=none; psd=u; t=n", Record()),
        # Tags that are gone, and tags that nobody knows (§4.7, §C.5).
        ("v=DMARC1; p=reject; pct=0; ri=1; rf=afrf; unknown=1", Record(p="reject")),
        # p= need not be the second; blanks and case do not matter, but in the version.
        ("v=DMARC1; sp=none; p=reject", Record(p="reject", sp="none")),
        ("V = DMARC1 ;  P\t=  Reject ; ADKIM = S;", Record(p="reject", strict_dkim=True)),
        # Syntax errors are discarded (§4.8).
        ("v=DMARC1; p=reject; nonsense; =; ;;", Record(p="reject")),
        ("v=DMARC1; p=none; p=reject", Record()),
        # Without a valid p=, or with a wrong sp= or np=: as p=none for who wants reports, nothing otherwise (§4.10.1).
        ("v=DMARC1", Record(usable=False)),
        ("v=DMARC1; p=refuse", Record(usable=False)),
        ("v=DMARC1; p=reject; sp=x", Record(usable=False)),
        ("v=DMARC1; p=reject; np=", Record(usable=False)),
        ("v=DMARC1; p=reject; np=; psd=y", Record(usable=False, psd="y")),
        ("v=DMARC1; rua=mailto:d@fr.test", Record()),
        ("v=DMARC1; p=refuse; rua=nonsense, mailto:d@fr.test!10m", Record()),
        ("v=DMARC1; p=reject; sp=x; rua=mailto:d@fr.test", Record()),
        ("v=DMARC1; p=refuse; rua=nonsense", Record(usable=False)),
        # Not a DMARC record (§4.7: v= must be the first tag, its value exact).
        ("p=reject; v=DMARC1", None),
        ("v=DMARC10; p=reject", None),
        ("v=dmarc1; p=reject", None),
        ("v=DMARC1 p=reject", None),
        (" v=DMARC1; p=reject", None),
        ("v=spf1 -all", None),
        ("", None),
    ],
)
def test_record(text: str, record: Record | None) -> None:
    assert dmarc.record([text]) == record
    assert dmarc.record(["v=spf1 -all", text, "DMARC1"]) == record


def test_several_records_are_none() -> None:
    assert dmarc.record(["v=DMARC1; p=reject", "v=DMARC1; p=reject"]) is None
    assert dmarc.record([]) is None


# ---
# The tree walk


@pytest.mark.parametrize(
    ("domain", "names"),
    [
        # §4.10
        (
            "a.b.c.d.e.f.g.h.i.j.mail.example.com",
            "a.b.c.d.e.f.g.h.i.j.mail.example.com g.h.i.j.mail.example.com h.i.j.mail.example.com i.j.mail.example.com"
            " j.mail.example.com mail.example.com example.com com",
        ),
        # §B.4.2
        (
            "a.b.c.d.e.f.g.h.i.j.k.example.com",
            "a.b.c.d.e.f.g.h.i.j.k.example.com g.h.i.j.k.example.com h.i.j.k.example.com i.j.k.example.com"
            " j.k.example.com k.example.com example.com com",
        ),
        ("a.b.c.d.e.f.g.h", "a.b.c.d.e.f.g.h b.c.d.e.f.g.h c.d.e.f.g.h d.e.f.g.h e.f.g.h f.g.h g.h h"),
        ("a.b.c.d.e.f.g.h.i", "a.b.c.d.e.f.g.h.i c.d.e.f.g.h.i d.e.f.g.h.i e.f.g.h.i f.g.h.i g.h.i h.i i"),
        ("example.com", "example.com com"),
        ("com", "com"),
    ],
)
def test_names(domain: str, names: str) -> None:
    assert dmarc.names(domain) == tuple(names.split())


Zone = Mapping[str, str | None]


def answers(zone: Zone, domain: str) -> dmarc.Answers:
    """What a walk from `domain` finds in a zone of records; None is trouble."""
    found: dict[str, Record | Trouble | None] = {}
    for name in dmarc.names(domain):
        text = zone.get(name, "")
        found[name] = Trouble() if text is None else dmarc.record([text])
    return found


P, PSD, OWN = "v=DMARC1; p=reject", "v=DMARC1; p=reject; psd=y", "v=DMARC1; p=reject; psd=n"


@pytest.mark.parametrize(
    ("domain", "zone", "organization"),
    [
        # §4.10.2, its three examples.
        ("a.mail.example.com", {"mail.example.com": P, "example.com": P}, "example.com"),
        ("a.mail.example.com", {"mail.example.com": OWN, "example.com": P}, "mail.example.com"),
        ("a.mail.example.com", {"com": PSD}, "example.com"),
        # Its rule 2, by example.
        ("mail.example.com", {"example.com": PSD}, "mail.example.com"),
        # §B.4.1
        ("example.com", {"example.com": P, "signing.example.com": P}, "example.com"),
        ("signing.example.com", {"example.com": P, "signing.example.com": P}, "example.com"),
        # §B.4.2
        ("a.b.c.d.e.f.g.h.i.j.k.example.com", {"example.com": P, "signing.example.com": P}, "example.com"),
        # §B.4.3
        ("giant.bank.example", {"bank.example": PSD, "giant.bank.example": P}, "giant.bank.example"),
        ("mail.giant.bank.example", {"bank.example": PSD, "giant.bank.example": P}, "giant.bank.example"),
        ("mail.mega.bank.example", {"bank.example": PSD, "giant.bank.example": P}, "mega.bank.example"),
        # No record at all; a public suffix by itself; a record above a psd= is not looked for.
        ("mail.example.com", {}, "mail.example.com"),
        ("bank.example", {"bank.example": PSD, "example": P}, "bank.example"),
        ("a.bank.example", {"bank.example": PSD, "example": OWN}, "a.bank.example"),
        ("mail.example.com", {"mail.example.com": OWN, "example.com": P}, "mail.example.com"),
        # An unusable record counts all the same; two at one place do not.
        ("mail.example.com", {"example.com": "v=DMARC1"}, "example.com"),
        # The public suffix is found where names were skipped.
        ("a.b.c.d.e.f.g.h.i", {"c.d.e.f.g.h.i": PSD}, "b.c.d.e.f.g.h.i"),
        # Trouble, where it matters.
        ("a.mail.example.com", {"mail.example.com": None, "example.com": P}, None),
        ("a.mail.example.com", {"example.com": P, "com": None}, None),
        ("a.mail.example.com", {"mail.example.com": OWN, "example.com": None}, "mail.example.com"),
    ],
)
def test_organization(domain: str, zone: Zone, organization: str | None) -> None:
    assert dmarc.organization(domain, answers(zone, domain)) == organization


# ---
# Which record applies, and what it asks for


@pytest.mark.parametrize(
    ("author", "zone", "policies"),  # where the author's domain exists, where it does not, where nobody knows
    [
        ("example.com", {"example.com": "v=DMARC1; p=reject; sp=none; np=none"}, ("reject", "reject", "reject")),
        ("a.example.com", {"example.com": P}, ("reject", "reject", "reject")),
        ("a.example.com", {"example.com": "v=DMARC1; p=none; sp=reject"}, ("reject", "reject", "reject")),
        ("a.example.com", {"example.com": "v=DMARC1; p=none; np=reject"}, ("none", "reject", "none")),
        (
            "a.example.com",
            {"example.com": "v=DMARC1; p=reject; sp=none; np=quarantine"},
            ("none", "quarantine", "none"),
        ),
        ("a.example.com", {"a.example.com": "v=DMARC1; p=none; sp=reject", "example.com": P}, ("none", "none", "none")),
        # Of the records between the author's domain and its organization none is asked (§4.10.1).
        ("a.b.example.com", {"b.example.com": "v=DMARC1; p=none", "example.com": P}, ("reject", "reject", "reject")),
        # A public suffix's is, where the organization has none.
        ("a.bank.example", {"bank.example": "v=DMARC1; p=none; np=reject; psd=y"}, ("none", "reject", "none")),
        ("a.b.bank.example", {"bank.example": PSD, "a.b.bank.example": "v=DMARC1; p=none"}, ("none", "none", "none")),
        ("a.b.bank.example", {"bank.example": PSD, "b.bank.example": "v=DMARC1; p=none"}, ("none", "none", "none")),
        # t=y: one less (§4.7); §B.2.5 is the RFC's own example.
        (
            "test.example.com",
            {"test.example.com": "v=DMARC1; p=quarantine; rua=mailto:dmarc-feedback@example.com; t=y"},
            ("none", "none", "none"),
        ),
        ("example.com", {"example.com": "v=DMARC1; p=reject; t=y"}, ("quarantine", "quarantine", "quarantine")),
        ("a.example.com", {"example.com": "v=DMARC1; p=reject; np=none; t=y"}, ("quarantine", "none", "quarantine")),
    ],
)
def test_policy(author: str, zone: Zone, policies: tuple[str, str, str]) -> None:
    asked = dmarc.discover(author, answers(zone, author))
    assert isinstance(asked, Asked)
    assert tuple(asked.policy(exists=exists) for exists in (True, False, None)) == policies
    if not asked.depends_on_existence:
        assert policies[0] == policies[1]


@pytest.mark.parametrize(
    ("author", "zone", "result"),
    [
        ("example.com", {}, "none"),
        ("example.com", {"example.com": "v=spf1 -all"}, "none"),
        ("a.example.com", {"b.example.com": P}, "none"),
        ("example.com", {"example.com": "v=DMARC1"}, "permerror"),
        ("a.example.com", {"example.com": "v=DMARC1; p=x"}, "permerror"),
        ("example.com", {"example.com": None}, "temperror"),
        ("a.example.com", {"example.com": P, "com": None}, "temperror"),
        ("a.example.com", {"example.com": None, "com": PSD}, "temperror"),
    ],
)
def test_where_dmarc_does_not_apply(author: str, zone: Zone, result: Any) -> None:
    assert dmarc.discover(author, answers(zone, author)) == Dmarc(result, author)


# ---
# Alignment


def evaluate(author: str, zone: Zone, facts: Authentication, *, exists: bool | None = True) -> Dmarc:
    """As the shell does it, with the zone at hand."""
    asked = dmarc.discover(author, answers(zone, author))
    if isinstance(asked, Dmarc):
        return asked
    organizations = {
        domain: dmarc.organization(domain, answers(zone, domain)) for domain in dmarc.unaligned(asked, facts)
    }
    return dmarc.conclude(asked, facts, organizations, exists=exists)


def spf(domain: str, result: Any = "pass") -> Authentication:
    return Authentication(spf=Spf(result, domain))


def dkim(*domains: str, result: Any = "pass") -> Authentication:
    return Authentication(dkim=tuple(Signature(result, domain, "s") for domain in domains))


EXAMPLE = {"example.com": P}
STRICT = {"example.com": "v=DMARC1; p=reject; adkim=s; aspf=s"}
BANK = {"bank.example": PSD, "giant.bank.example": P}


@pytest.mark.parametrize(
    ("author", "zone", "facts", "result"),
    [
        # §B.1.1, §B.1.2: strict, relaxed and no alignment, by SPF and by DKIM.
        ("example.com", EXAMPLE, spf("example.com"), "pass"),
        ("example.com", STRICT, spf("example.com"), "pass"),
        ("example.com", EXAMPLE, spf("child.example.com"), "pass"),
        ("example.com", STRICT, spf("child.example.com"), "fail"),
        ("child.example.com", EXAMPLE, spf("example.net"), "fail"),
        ("example.com", EXAMPLE, dkim("example.com"), "pass"),
        ("child.example.com", EXAMPLE, dkim("example.com"), "pass"),
        ("child.example.com", STRICT, dkim("example.com"), "fail"),
        ("child.example.com", EXAMPLE, dkim("example.net"), "fail"),
        # §4.4, table 1
        ("news.example.com", EXAMPLE, dkim("foo.example.com"), "pass"),
        ("news.example.com", EXAMPLE, dkim("foo.example.net"), "fail"),
        # §B.4.1, §B.4.2
        ("example.com", {**EXAMPLE, "signing.example.com": P}, dkim("signing.example.com"), "pass"),
        ("a.b.c.d.e.f.g.h.i.j.k.example.com", {**EXAMPLE, "signing.example.com": P}, spf("example.com"), "pass"),
        ("a.b.c.d.e.f.g.h.i.j.k.example.com", EXAMPLE, dkim("signing.example.com"), "pass"),
        # §B.4.3
        ("giant.bank.example", BANK, spf("mail.giant.bank.example"), "pass"),
        ("giant.bank.example", BANK, dkim("mail.mega.bank.example"), "fail"),
        # One mode for each of the two.
        ("example.com", {"example.com": P + "; adkim=s"}, spf("a.example.com"), "pass"),
        ("example.com", {"example.com": P + "; adkim=s"}, dkim("a.example.com"), "fail"),
        # An organization of its own within the author's; names that only look alike.
        ("example.com", {**EXAMPLE, "b.example.com": OWN}, dkim("a.b.example.com"), "fail"),
        ("example.com", EXAMPLE, dkim("notexample.com"), "fail"),
        ("example.com", EXAMPLE, dkim("com"), "fail"),
        ("example.com", EXAMPLE, dkim("", "x"), "fail"),
        # Any of several will do, whatever its case; what did not verify will not.
        ("example.com", EXAMPLE, dkim("example.net", "Example.COM"), "pass"),
        ("example.com", EXAMPLE, dkim("example.com", result="fail"), "fail"),
        ("example.com", EXAMPLE, dkim("example.com", result="policy"), "fail"),
        ("example.com", EXAMPLE, spf("example.com", "softfail"), "fail"),
        ("example.com", EXAMPLE, spf("example.com", "permerror"), "fail"),
        ("example.com", EXAMPLE, Authentication(), "fail"),
        # Trouble is a doubt only where the answer could have been a pass (§5.3.6).
        ("example.com", EXAMPLE, dkim("example.com", result="temperror"), "temperror"),
        ("example.com", EXAMPLE, spf("a.example.com", "temperror"), "temperror"),
        ("example.com", STRICT, spf("a.example.com", "temperror"), "fail"),
        ("example.com", EXAMPLE, dkim("evil.net", result="temperror"), "fail"),
        ("example.com", {**EXAMPLE, "evil.com": None}, dkim("evil.com"), "fail"),
        ("example.com", {**EXAMPLE, "a.example.com": None}, dkim("a.example.com"), "temperror"),
        ("example.com", {**EXAMPLE, "a.example.com": None}, dkim("a.example.com", "example.com"), "pass"),
        ("a.example.com", {"a.example.com": P, "example.com": None}, dkim("a.example.com"), "pass"),
        ("a.example.com", {"a.example.com": P, "example.com": None}, dkim("example.com"), "temperror"),
        ("a.example.com", {"a.example.com": P, "example.com": None}, Authentication(), "fail"),
    ],
)
def test_alignment(author: str, zone: Zone, facts: Authentication, result: Any) -> None:
    verdict = evaluate(author, zone, facts)
    assert (verdict.result, verdict.domain, verdict.policy) == (result, author, "reject")


@pytest.mark.parametrize(
    ("facts", "result", "signed"),
    [
        (spf("example.com"), "pass", False),
        (dkim("example.com"), "pass", True),
        (dkim("mail.example.com"), "pass", True),
        (dkim("stranger.test"), "fail", False),
        (dkim("example.com", result="temperror"), "temperror", None),
        (Authentication(Spf("pass", "example.com"), dkim("example.com", result="temperror").dkim), "pass", None),
        (Authentication(Spf("pass", "example.com"), dkim("stranger.test", result="temperror").dkim), "pass", False),
        (Authentication(Spf("temperror", "example.com"), dkim("example.com").dkim), "pass", True),
        (Authentication(Spf("temperror", "example.com")), "temperror", False),
    ],
)
def test_whether_the_authors_signature_vouches_is_told_apart(facts: Authentication, result: str, signed: Any) -> None:
    zone = {"example.com": P}
    verdict = evaluate("example.com", zone, facts)
    assert (verdict.result, verdict.signed) == (result, signed)


def test_existence_matters_only_to_who_asked() -> None:
    zone = {"example.com": "v=DMARC1; p=none; np=reject"}
    assert evaluate("a.example.com", zone, spf("x.test"), exists=True) == Dmarc("fail", "a.example.com", "none")
    assert evaluate("a.example.com", zone, spf("x.test"), exists=False) == Dmarc("fail", "a.example.com", "reject")
    assert evaluate("a.example.com", zone, spf("x.test"), exists=None) == Dmarc("temperror", "a.example.com", "none")
    assert evaluate("a.example.com", zone, spf("example.com"), exists=None).result == "pass"


def test_strangers_cost_no_questions() -> None:
    asked = dmarc.discover("a.example.com", answers(EXAMPLE, "a.example.com"))
    assert isinstance(asked, Asked)
    facts = dkim("evil.net", "a.example.com", "b.example.com", "example.com", "evil.com")
    assert dmarc.unaligned(asked, facts) == {"b.example.com", "example.com"}
