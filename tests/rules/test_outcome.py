"""The policy, line by line: what each answer at each stage does to the delivery, and to how much else."""

import pytest

from rules.outcome import (
    Certainty,
    Fault,
    Outcome,
    Result,
    Scope,
    Stage,
    of_fault,
    of_reply,
    reason,
    status_of,
    too_big,
)
from rules.replies import HISTORY, history

REPLIES: list[tuple[Stage, int, str, str, str]] = [
    # stage, code, text, scope, result
    ("connect", 421, "4.3.2 shutting down", "session", "later"),
    ("connect", 450, "4.7.0 come back", "host", "later"),
    ("connect", 521, "does not accept mail", "host", "later"),
    ("connect", 554, "5.7.1 blocked", "host", "later"),
    ("ehlo", 421, "", "session", "later"),
    ("ehlo", 451, "", "host", "later"),
    ("ehlo", 550, "5.7.1 helo rejected", "host", "later"),
    ("starttls", 454, "TLS not available", "host", "later"),
    ("starttls", 554, "5.7.0 no", "host", "later"),
    ("mail", 421, "", "session", "later"),
    ("mail", 452, "4.3.1 storage", "message", "later"),
    ("mail", 550, "5.7.1 sender rejected", "host", "later"),
    ("mail", 552, "5.3.4 too big", "message", "later"),
    ("mail", 554, "5.3.4 too big", "message", "later"),
    ("rcpt", 421, "", "session", "later"),
    ("rcpt", 450, "4.2.1 greylisted", "recipient", "later"),
    ("rcpt", 550, "5.1.1 unknown", "recipient", "never"),
    ("rcpt", 552, "5.2.2 too many recipients", "recipient", "later"),
    ("rcpt", 553, "5.1.3 bad", "recipient", "never"),
    ("rcpt", 354, "odd", "session", "later"),
    ("data", 421, "", "session", "later"),
    ("data", 451, "", "message", "later"),
    ("data", 554, "5.7.1 no", "message", "never"),
    ("data", 250, "instead of 354", "session", "later"),
    ("dot", 250, "2.0.0 queued as X", "message", "done"),
    ("dot", 251, "ok", "message", "done"),
    ("dot", 421, "", "session", "later"),
    ("dot", 451, "4.3.0 later", "message", "later"),
    ("dot", 552, "5.2.2 mailbox full", "message", "never"),
    ("dot", 554, "5.6.0 content", "message", "never"),
    ("dot", 354, "odd", "session", "later"),
    ("dot", 699, "odd", "session", "later"),
]


@pytest.mark.parametrize(("stage", "code", "text", "scope", "result"), REPLIES)
def test_replies(stage: Stage, code: int, text: str, scope: str, result: str) -> None:
    outcome = of_reply(stage, code, [text])
    assert (outcome.scope, outcome.result) == (scope, result)
    assert outcome.certainty is Certainty.CERTAIN  # an answer was heard


FAULTS: list[tuple[Stage, Fault, str, str, str]] = [
    # stage, fault, scope, result, enhanced
    ("connect", Fault.TIMEOUT, "host", "later", "4.4.2"),
    ("connect", Fault.REFUSED, "host", "later", "4.4.1"),
    ("connect", Fault.LOST, "host", "later", "4.4.2"),
    ("connect", Fault.NXDOMAIN, "host", "later", "4.1.2"),
    ("connect", Fault.DNS, "host", "later", "4.4.3"),
    ("connect", Fault.NULL_MX, "host", "never", "5.1.10"),
    ("connect", Fault.PROTOCOL, "host", "later", "4.5.0"),
    ("ehlo", Fault.TIMEOUT, "host", "later", "4.4.2"),
    ("starttls", Fault.TLS, "host", "later", "4.7.5"),
    ("mail", Fault.TIMEOUT, "session", "later", "4.4.2"),
    ("mail", Fault.LOST, "session", "later", "4.4.2"),
    ("mail", Fault.TOO_BIG, "message", "never", "5.3.4"),
    ("mail", Fault.EIGHT_BIT, "message", "never", "5.6.3"),
    ("rcpt", Fault.LOST, "session", "later", "4.4.2"),
    ("data", Fault.LOST, "session", "later", "4.4.2"),
    ("dot", Fault.LOST, "session", "later", "4.4.2"),
    ("dot", Fault.TIMEOUT, "session", "later", "4.4.2"),
]


@pytest.mark.parametrize(("stage", "fault", "scope", "result", "enhanced"), FAULTS)
def test_faults(stage: Stage, fault: Fault, scope: str, result: str, enhanced: str) -> None:
    outcome = of_fault(stage, fault)
    assert (outcome.scope, outcome.result, outcome.enhanced) == (scope, result, enhanced)
    # only silence after the dot leaves a doubt
    assert (outcome.certainty is Certainty.UNCERTAIN) == (stage == "dot")


def test_only_an_answer_to_recipient_or_content_is_final() -> None:
    stages: list[Stage] = ["connect", "ehlo", "starttls", "mail", "rcpt", "data", "dot"]
    final = {
        (stage, code)
        for stage in stages
        for code in range(200, 600)
        if of_reply(stage, code, []).result is Result.NEVER
    }
    assert {stage for stage, _ in final} == {"rcpt", "data", "dot"}
    assert all(code >= 500 for _, code in final)


def test_done_only_after_the_dot() -> None:
    for stage in ("connect", "ehlo", "starttls", "mail", "rcpt", "data"):
        assert of_reply(stage, 250, ["ok"]).result is Result.LATER


def test_the_enhanced_code_is_taken_off_every_line() -> None:
    outcome = of_reply("rcpt", 550, ["5.1.1 No such user", "5.1.1 here", "see https://example.org"])
    assert (outcome.enhanced, outcome.text) == ("5.1.1", "No such user / here / see https://example.org")
    assert outcome.reply == "550 5.1.1 No such user / here / see https://example.org"


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (of_reply("rcpt", 550, ["5.1.1 No such user"]).reply, "5.1.1"),
        (of_reply("dot", 554, ["5.7.1"]).reply, "5.7.1"),
        (of_reply("rcpt", 550, ["no 5.6.7.8 at 5.1.1 here"]).reply, ""),
        (of_fault("connect", Fault.NULL_MX).reply, of_fault("connect", Fault.NULL_MX).enhanced),
        (of_fault("connect", Fault.TIMEOUT, "5.1.1").reply, of_fault("connect", Fault.TIMEOUT).enhanced),
        ("s/abc/0/12: 12 bytes expected, 0 found", ""),
        ("", ""),
    ],
)
def test_the_enhanced_code_of_what_was_written_down(reply: str, status: str) -> None:
    assert status_of(reply) == status


@pytest.mark.parametrize("text", ["4.1.1 contradicts the code", "5.1 too short", "5.1.1x glued", "no status"])
def test_what_is_no_enhanced_code_stays_text(text: str) -> None:
    assert of_reply("rcpt", 550, [text]).enhanced == ""
    assert of_reply("rcpt", 550, [text]).text == text


def test_an_early_5xx_and_missing_tls_warn() -> None:
    assert of_reply("mail", 550, []).warns
    assert of_reply("connect", 554, []).warns
    assert of_fault("starttls", Fault.TLS).warns
    assert not of_reply("mail", 450, []).warns
    assert not of_reply("rcpt", 552, []).warns
    assert not of_reply("rcpt", 550, []).warns  # it is final, not waiting
    assert not of_fault("connect", Fault.TIMEOUT).warns


REASONS = [
    (too_big(13_684_228, 10_240_000), "far-size"),
    (of_fault("mail", Fault.EIGHT_BIT), "far-8bit"),
    (of_fault("connect", Fault.NULL_MX), "null-mx"),
    (of_reply("rcpt", 550, ["5.1.1 unknown"]), "failed"),
    (of_reply("rcpt", 450, ["4.2.0 greylisted"]), "deferred"),
    (of_fault("dot", Fault.LOST, "connection reset"), "deferred"),
]


@pytest.mark.parametrize(("outcome", "code"), REASONS)
def test_every_outcome_has_its_sentence(outcome: Outcome, code: str) -> None:
    why = reason(outcome, "14 h 30")
    assert why.code == code
    assert code in HISTORY
    assert "?" not in history(why).replace(" ?", "")


def test_too_big_tells_the_true_limit() -> None:
    outcome = too_big(13_684_228, 10_240_000)
    assert (outcome.scope, outcome.result, outcome.enhanced) == (Scope.MESSAGE, Result.NEVER, "5.3.4")
    assert "10\u202f240\u202f000" in history(reason(outcome))
    assert "10240000" in outcome.reply
