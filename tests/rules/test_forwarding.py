"""Mails by which a mailbox's service asks whether it may forward to one of our addresses."""

import pytest

from rules import forwarding
from rules.authentication import Authentication, DkimResult, Signature
from rules.forwarding import Forged, Unclear, Verification

GMAIL, OUTLOOK = forwarding.SERVICES
YES = "https://mail-settings.google.com/mail/vf-%5BABC123%5D-xYz_9"
NO = "https://mail-settings.google.com/mail/uf-%5BABC123%5D-xYz_9"


def signed(domain: str, result: DkimResult = "pass") -> Authentication:
    return Authentication(dkim=(Signature(result, domain, "s1"),))


@pytest.mark.parametrize(
    ("authors", "service"),
    [
        (["forwarding-noreply@google.com"], GMAIL),
        (["Forwarding-NoReply@Google.com"], GMAIL),
        (["account-security-noreply@accountprotection.microsoft.com"], OUTLOOK),
        (["x@y.example", "forwarding-noreply@google.com"], GMAIL),
        (["forwarding-noreply@google.com.example"], None),
        (["noreply@google.com"], None),
        ([], None),
    ],
)
def test_it_is_known_by_its_author(authors: list[str], service: forwarding.Service | None) -> None:
    assert forwarding.claimed(authors) == service


@pytest.mark.parametrize(
    ("service", "known", "answer"),
    [
        (GMAIL, signed("google.com"), None),
        (GMAIL, signed("Accounts.Google.com"), None),
        (OUTLOOK, signed("accountprotection.microsoft.com"), None),
        (GMAIL, signed("google.com", "fail"), Forged()),
        (GMAIL, signed("microsoft.com"), Forged()),
        (GMAIL, signed("notgoogle.com"), Forged()),
        (GMAIL, Authentication(), Forged()),
        (GMAIL, signed("google.com", "temperror"), Unclear()),
        (GMAIL, signed("evil.example", "temperror"), Forged()),
    ],
)
def test_its_service_must_have_signed_it(
    service: forwarding.Service, known: Authentication, answer: Unclear | Forged | None
) -> None:
    assert forwarding.proved(service, service.authors, known) == answer


def test_with_two_authors_a_signature_proves_neither() -> None:
    authors = ["forwarding-noreply@google.com", "agenda@google.com"]
    assert forwarding.proved(GMAIL, authors, signed("google.com")) == Forged()


@pytest.mark.parametrize(
    ("subject", "text", "code", "link"),
    [
        ("(#123456789) Gmail Forwarding Confirmation", f"Allow: {YES}\n\nDeny: {NO}\n", "123456789", YES),
        ("(#123456789) Confirmation", f'<a href="{YES}">ici</a> <a href="{NO}">non</a>', "123456789", YES),
        ("Confirmation", f"Code de confirmation : 987654321\n{YES}\n", "987654321", YES),
        ("Confirmation", f"Deny: {NO}\n", "", ""),
        ("(Gmail) 转发确认", f"确认码\uff1a123456789\n{YES}", "123456789", YES),
        ("x", "rien", "", ""),
        ("(#12345)", "appelez le 0612345678", "", ""),
        ("x", "https://mail-settings.google.com.evil.example/mail/vf-1", "", ""),
        ("x", "https://evil.example/mail-settings.google.com/mail/vf-1", "", ""),
    ],
)
def test_code_and_link_of_gmail(subject: str, text: str, code: str, link: str) -> None:
    assert forwarding.read(GMAIL, subject, text) == Verification("gmail", code, link)


@pytest.mark.parametrize(
    ("text", "code", "link"),
    [
        ("Security code: 483920\n", "483920", ""),
        ("Code de s\u00e9curit\u00e9 : 4839201\n2026", "4839201", ""),
        ("<p>code&nbsp;: <b>1234</b></p>", "1234", ""),
        (
            "Confirmez : https://account.live.com/Proofs/Verify?x=1&amp;y=2 .",
            "",
            "https://account.live.com/Proofs/Verify?x=1&y=2",
        ),
        ("le 24/11/2026", "", ""),
    ],
)
def test_code_and_link_of_outlook(text: str, code: str, link: str) -> None:
    assert forwarding.read(OUTLOOK, "Microsoft", text) == Verification("outlook", code, link)
