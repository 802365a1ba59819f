"""Who hears of a failure: a person we trust, once a day; never a machine, a list or a stranger."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from rules import notification
from rules.notification import AT_MOST_EVERY, Failed, Silent, Tell

NOW = datetime(2026, 11, 24, 15, 0, tzinfo=UTC)
PERSON = Failed("compta@cabinet.example", trusted=True, automatic="", domain="welyb.fr", told_at=None)


def test_a_person_we_trust_is_told() -> None:
    assert notification.decide(PERSON, NOW) == Tell()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"sender": ""}, "null-sender"),
        ({"trusted": False}, "untrusted"),
        ({"automatic": "auto-submitted"}, "auto-submitted"),
        ({"automatic": "list"}, "list"),
        ({"automatic": "bulk"}, "bulk"),
        ({"automatic": "report"}, "report"),
        ({"sender": "automate@welyb.fr"}, "own-domain"),
        ({"sender": "Postmaster@Welyb.FR"}, "own-domain"),
        ({"sender": "x@sous.welyb.fr"}, None),
        ({"sender": "MAILER-DAEMON@cabinet.example"}, "daemon"),
        ({"sender": "owner-clients@cabinet.example"}, "list"),
        ({"sender": "clients-request@cabinet.example"}, "list"),
        ({"sender": "clients-bounces@cabinet.example"}, "list"),
        ({"sender": "clients-owner@cabinet.example"}, "list"),
        ({"sender": "ownership@cabinet.example"}, None),
        ({"sender": '"owner-@"@cabinet.example'}, None),
        ({"told_at": NOW}, "told-today"),
        ({"told_at": NOW - AT_MOST_EVERY + timedelta(seconds=1)}, "told-today"),
        ({"told_at": NOW - AT_MOST_EVERY}, None),
        ({"told_at": NOW + timedelta(hours=1)}, "told-today"),  # the clock was put back
        # What is said first is what would be so on any day.
        ({"sender": "", "trusted": False, "automatic": "list"}, "null-sender"),
        ({"automatic": "list", "told_at": NOW}, "list"),
    ],
)
def test_who_is_not(change: dict[str, object], why: str | None) -> None:
    decision = notification.decide(replace(PERSON, **change), NOW)  # type: ignore[arg-type]
    assert decision == (Silent(why) if why else Tell())


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("auto-submitted", b" auto-generated", "auto-submitted"),
        ("auto-submitted", b"auto-replied; owner-email=x@y.fr", "auto-submitted"),
        ("auto-submitted", b"auto-notified", "auto-submitted"),
        ("auto-submitted", b"something-new", "auto-submitted"),
        ("auto-submitted", b"", "auto-submitted"),
        ("auto-submitted", b"n\xf6", "auto-submitted"),
        ("auto-submitted", b"no", ""),
        ("auto-submitted", b" NO (a person)\r\n ; x=y", ""),
        ("list-id", b"<clients.cabinet.example>", "list"),
        ("list-unsubscribe", b"<mailto:x@y.fr>", "list"),
        ("list-post", b"NO", "list"),
        ("listing", b"x", ""),
        ("precedence", b" Bulk ", "bulk"),
        ("precedence", b"list", "bulk"),
        ("precedence", b"junk", "bulk"),
        ("precedence", b"first-class", ""),
        ("content-type", b"Multipart/Report; report-type=disposition-notification", "report"),
        ("content-type", b"multipart/mixed; x=multipart/report", ""),
        ("subject", b"auto-submitted: auto-replied", ""),
        ("x-auto-submitted", b"yes", ""),
    ],
)
def test_what_a_header_says(name: str, value: bytes, word: str) -> None:
    assert notification.automatic([("from", b"a@b.fr"), (name, value), ("to", b"c@d.fr")]) == word


def test_nothing_said_is_a_person() -> None:
    assert notification.automatic([]) == ""


def test_one_of_two_is_enough() -> None:
    assert notification.automatic([("auto-submitted", b"no"), ("auto-submitted", b"auto-replied")]) == "auto-submitted"
