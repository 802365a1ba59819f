"""Reports as the systems in use write them, and junk."""

import base64
import quopri

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules.bounce import Action, Bounce, NotABounce, read

POSTFIX = b"""\
From: MAILER-DAEMON@mx.meg.test (Mail Delivery System)
To: retours+abc@welyb.fr
Subject: Undelivered Mail Returned to Sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
 boundary="8E1F.1/mx.meg.test"

This is a MIME-encapsulated message.

--8E1F.1/mx.meg.test
Content-Description: Notification
Content-Type: text/plain; charset=us-ascii

This is the mail system at host mx.meg.test.
I'm sorry to have to inform you.

--8E1F.1/mx.meg.test
Content-Description: Delivery report
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.meg.test
X-Postfix-Queue-ID: 8E1F
Arrival-Date: Tue, 24 Nov 2026 14:15:02 +0100 (CET)

Final-Recipient: rfc822; dupont@factures-meg.fr
Original-Recipient: rfc822;dupont@factures-meg.fr
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 <dupont@factures-meg.fr>: Recipient address
    rejected: User unknown

--8E1F.1/mx.meg.test
Content-Type: message/rfc822

From: automate@welyb.fr
Subject: facture.pdf

body
--8E1F.1/mx.meg.test--
"""


def report(fields: bytes, *, head: bytes = b"", type_: bytes = b"message/delivery-status") -> bytes:
    return (
        b"Content-Type: multipart/report; boundary=b\n\n--b\nContent-Type: text/plain\n\nIt did not work.\n"
        b"--b\nContent-Type: " + type_ + b"\n" + head + b"\n" + fields + b"\n--b--\n"
    )


def crlf(text: bytes) -> bytes:
    return text.replace(b"\n", b"\r\n")


@pytest.mark.parametrize("raw", [POSTFIX, crlf(POSTFIX)])
def test_postfix(raw: bytes) -> None:
    assert read(raw) == Bounce(
        Action.FAILED,
        "5.1.1",
        "550 5.1.1 <dupont@factures-meg.fr>: Recipient address rejected: User unknown",
        "dupont@factures-meg.fr",
    )


@pytest.mark.parametrize("word", list(Action))
def test_every_action(word: Action) -> None:
    bounce = read(report(f"Reporting-MTA: dns; x\n\nAction: {word.upper()} (really)\nStatus: 2.0.0\n".encode()))
    assert isinstance(bounce, Bounce)
    assert bounce.action is word


GROUP = b"Reporting-MTA: dns; x\n\nFinal-Recipient: RFC822; <a@b.fr>\n"
ODD = [
    # name, raw, action, status, text
    ("no action, 5", report(GROUP + b"Status: 5.2.2\n"), "failed", "5.2.2", "It did not work."),
    ("no action, 4", report(GROUP + b"Status: 4.4.1 (no answer)\n"), "delayed", "4.4.1", "It did not work."),
    ("own word, 5", report(GROUP + b"Action: bounced\nStatus: 5.0.0\n"), "failed", "5.0.0", "It did not work."),
    ("no status", report(GROUP + b"Action: failed\n"), "failed", "", "It did not work."),
    ("no message group", report(b"Action: failed\nStatus: 5.1.1\n"), "failed", "5.1.1", "It did not work."),
    ("no type before ;", report(GROUP + b"Action: failed\nDiagnostic-Code: full\n"), "failed", "", "full"),
    (
        "utf-8",
        report(GROUP + "Action: failed\nDiagnostic-Code: smtp; 550 boîte pleine\n".encode()),
        "failed",
        "",
        "550 boîte pleine",
    ),
    (
        "cp1252",
        report(GROUP + "Action: failed\nDiagnostic-Code: smtp; 550 boîte pleine\n".encode("cp1252")),
        "failed",
        "",
        "550 boîte pleine",
    ),
    (
        "global report",
        report(GROUP + b"Action: failed\nStatus: 5.1.1\n", type_=b"message/global-delivery-status"),
        "failed",
        "5.1.1",
        "It did not work.",
    ),
    (
        "base64",
        report(
            base64.encodebytes(GROUP + b"Action: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 no\n"),
            head=b"Content-Transfer-Encoding: base64\n",
        ),
        "failed",
        "5.1.1",
        "550 no",
    ),
    (
        "quoted-printable",
        report(
            quopri.encodestring(GROUP + "Action: failed\nDiagnostic-Code: smtp; 550 é\n".encode()),
            head=b"Content-Transfer-Encoding: quoted-printable\n",
        ),
        "failed",
        "",
        "550 é",
    ),
    (
        "controls",
        report(GROUP + b"Action: failed\nDiagnostic-Code: smtp; 550 \x1b[31mred\n"),
        "failed",
        "",
        "550  [31mred",
    ),
    ("report alone", b"Content-Type: message/delivery-status\n\n" + GROUP + b"Action: failed\n", "failed", "", ""),
]


@pytest.mark.parametrize(("raw", "action", "status", "text"), [row[1:] for row in ODD], ids=[row[0] for row in ODD])
def test_odd_reports(raw: bytes, action: str, status: str, text: str) -> None:
    bounce = read(raw)
    assert isinstance(bounce, Bounce)
    assert (bounce.action, bounce.status, bounce.text) == (action, status, text)


def test_the_worst_of_several_recipients_counts() -> None:
    fields = (
        b"Reporting-MTA: dns; x\n\nFinal-Recipient: rfc822; a@b.fr\nAction: relayed\nStatus: 2.0.0\n\n"
        b"Final-Recipient: rfc822; c@d.fr\nAction: failed\nStatus: 5.1.1\nDiagnostic-Code: smtp; 550 c\n\n"
        b"Final-Recipient: rfc822; e@f.fr\nAction: delayed\nStatus: 4.1.1\n"
    )
    bounce = read(report(fields))
    assert bounce == Bounce(Action.FAILED, "5.1.1", "550 c", "c@d.fr")


NOT_BOUNCES = {
    "ordinary": b"Subject: hello\n\nAction: failed\nStatus: 5.1.1\n",
    "out of office": b"Auto-Submitted: auto-replied\nSubject: absent\n\nAction: failed",
    "read receipt": report(b"Disposition: automatic-action; displayed\n", type_=b"message/disposition-notification"),
    "a report forwarded inside a mail": b"Content-Type: multipart/mixed; boundary=o\n\n--o\n"
    b"Content-Type: message/rfc822\n\n" + POSTFIX + b"\n--o--\n",
    "no recipient group": report(b"Reporting-MTA: dns; x\n"),
    "own word and no status": report(GROUP + b"Action: bounced\n"),
    "empty": b"",
    "nested beyond reason": b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(900)
    ),
    "groups beyond reason": report(b"Action: failed\n\n" * 50_000),
    "parts beyond reason": report(b"Action: failed\n" + b"\n--x" * 2000),
}


@pytest.mark.parametrize("raw", NOT_BOUNCES.values(), ids=NOT_BOUNCES.keys())
def test_not_bounces(raw: bytes) -> None:
    assert read(raw) == NotABounce()


@given(st.binary(max_size=300), st.integers(0, len(POSTFIX)), st.integers(0, 60))
def test_junk_gives_one_of_two_answers(junk: bytes, at: int, cut: int) -> None:
    """Whatever is done to a report, the answer is a Bounce with printable one-line texts, or NotABounce."""
    answer = read(POSTFIX[:at] + junk + POSTFIX[at + cut :])
    if isinstance(answer, Bounce):
        assert answer.text.isprintable()
        assert answer.final_recipient.isprintable()


@given(st.binary(max_size=400))
def test_junk_as_report(junk: bytes) -> None:
    for encoding in (b"", b"Content-Transfer-Encoding: base64\n", b"Content-Transfer-Encoding: quoted-printable\n"):
        assert isinstance(read(report(junk, head=encoding)), Bounce | NotABounce)
