"""Which TLS a host must give: one table of what is said of it."""

import pytest

from rules.dane import Tlsa
from rules.outcome import Fault
from rules.sts import Mode, StsPolicy
from rules.tls import Dane, Host, Opportunistic, Policy, Required, Trial, Unknown, Verified, Withheld, policy, word

HOST = Host("mx.meg.test", "meg.test", "mx.hosted.test")
GOOD, PKIX = Tlsa(3, 1, 1, b"x" * 32), Tlsa(1, 1, 1, b"x" * 32)
DANE = Dane((GOOD,), ("mx.hosted.test", "mx.meg.test", "meg.test"))
UNKNOWN = Unknown("SERVFAIL")
AWAY = Withheld(Fault.DNS, "SERVFAIL")
ALIEN = Withheld(Fault.TLS, "mx.meg.test is not in the MTA-STS policy of meg.test")


def said(mode: Mode, *mx: str) -> StsPolicy:
    return StsPolicy(mode, 86400, mx)


OURS, OTHER = said(Mode.ENFORCE, "*.meg.test"), said(Mode.ENFORCE, "mx.other.test")
TESTING, TESTING_OTHER = said(Mode.TESTING, "mx.meg.test"), said(Mode.TESTING, "mx.other.test")


@pytest.mark.parametrize(
    ("setting", "tlsa", "sts", "answer"),
    [
        ("", (), None, Opportunistic()),
        ("", (), said(Mode.NONE), Opportunistic()),
        ("", (), OURS, Verified()),
        ("", (), OTHER, ALIEN),
        ("", (), TESTING, Trial(Verified(), Opportunistic())),
        ("", (), TESTING_OTHER, Trial(ALIEN, Opportunistic())),
        ("", (GOOD,), None, DANE),
        ("", (PKIX, GOOD), OURS, DANE),
        ("", (GOOD,), OTHER, DANE),  # what DNSSEC says needs no second opinion
        ("", (PKIX,), None, Required()),
        ("", (PKIX,), said(Mode.NONE), Required()),
        ("", (PKIX,), OURS, Verified()),
        ("", (PKIX,), TESTING, Trial(Verified(), Required())),
        ("", UNKNOWN, None, AWAY),
        ("", UNKNOWN, OURS, AWAY),
        ("required", (), None, Required()),
        ("required", (), said(Mode.NONE), Required()),
        ("required", (), OURS, Verified()),
        ("required", (), OTHER, ALIEN),
        ("required", (), TESTING, Trial(Verified(), Required())),
        ("required", (GOOD,), None, DANE),
        ("required", UNKNOWN, None, AWAY),
        ("opportunistic", (), OTHER, Opportunistic()),
        ("opportunistic", (GOOD,), None, Opportunistic()),
        ("opportunistic", UNKNOWN, None, Opportunistic()),
    ],
)
def test_the_policy_of_a_host(
    setting: str, tlsa: tuple[Tlsa, ...] | Unknown, sts: StsPolicy | None, answer: Policy
) -> None:
    assert policy(setting, HOST, tlsa=tlsa, published=sts) == answer


def test_each_has_its_word() -> None:
    every = (Opportunistic(), Required(), Verified(), DANE, AWAY, Trial(ALIEN, Required()))
    assert [word(each) for each in every] == ["opportunistic", "required", "sts", "dane", "withheld", "sts-testing"]
