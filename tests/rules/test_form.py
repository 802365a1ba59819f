"""A mail that would fail DMARC further on for having come through us leaves as a message of ours."""

from dataclasses import replace
from importlib.resources import files

import pytest

from rules import ruleset
from rules.authentication import Authentication, Dmarc, DmarcResult, Policy, Spf
from rules.form import form

SHIPPED = ruleset.load((files("rules") / "welyb.toml").read_text("utf-8"), "rules/welyb.toml").named("meg")
assert SHIPPED is not None
MEG = SHIPPED


def known(result: DmarcResult, policy: Policy, *, signed: bool | None = False) -> Authentication:
    return Authentication(Spf("pass", "cabinet.example"), (), Dmarc(result, "cabinet.example", policy, signed))


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (known("pass", "reject", signed=True), "received"),
        (known("pass", "quarantine", signed=True), "received"),
        (known("pass", "reject"), "new"),  # by SPF, which does not outlive us
        (known("pass", "quarantine"), "new"),
        (known("pass", "reject", signed=None), "received"),
        (known("fail", "reject"), "new"),
        (known("fail", "quarantine"), "new"),
        (known("fail", "none"), "received"),
        (known("pass", "none"), "received"),
        (known("none", "none"), "received"),
        (known("temperror", "reject"), "received"),
        (known("permerror", "reject"), "received"),
        (None, "received"),
    ],
)
def test_auto(facts: Authentication | None, wanted: str) -> None:
    assert form(MEG, facts, 1) == wanted


@pytest.mark.parametrize("facts", [None, known("fail", "reject"), known("pass", "none", signed=True)])
def test_a_rule_may_have_it_one_way(facts: Authentication | None) -> None:
    assert form(replace(MEG, relay_as="new"), facts, 2) == "new"
    assert form(replace(MEG, relay_as="received"), facts, 2) == "received"


def test_without_a_document_there_is_nothing_to_carry() -> None:
    assert form(replace(MEG, relay_as="new"), known("fail", "reject"), 0) == "received"
