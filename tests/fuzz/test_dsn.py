"""Any bytes are a report whose words are one printable line, or no report; and a report is read as it was written.

What we write ourselves is read back, by our reader and by the standard library's: whatever the mail it is about.
"""

import re
import time
from datetime import UTC, datetime
from email import message_from_bytes

from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay import compose
from relay.compose import Failure, Report, Undelivered
from rules import bounce
from rules.address import unproved
from rules.bounce import Action, Bounce, NotABounce
from tests.support.effort import examples

SHARDS = [b"Content-Type: multipart/report; boundary=b\n", b"Content-Type: message/delivery-status\n", b"\n", b"\r\n"]
SHARDS += [
    b"\n--b\n",
    b"\n--b--\n",
    b"--b\r",
    b"Action: failed\n",
    b"Action: expanded (to a list)\n",
    b"Status: 5.1.1\n",
]
SHARDS += [
    b"Status: 4.4.7 (x)\n",
    b"Diagnostic-Code: smtp; 550\n \x1b[31m\x00no\n",
    b"Content-Type: text/plain\n",
    b" \t\n",
]
SHARDS += [
    b"Final-Recipient: rfc822; \xe2\x80\xae<a@b>\n",
    b"Content-Type: message/rfc822\n",
    b"Content-Type: multipart/x\n",
]
SHARDS += [
    b"Content-Transfer-Encoding: base64\n",
    b"Content-Transfer-Encoding: x-uuencode\n",
    b"begin 644 a\n",
    b"QUJD\n",
]
SHARDS += [
    b"Content-Transfer-Encoding: quoted-printable\n",
    b"=?utf-8?q?",
    b"\xff\xfe",
    b"charset=idna\n",
    b'"\n',
    b";;",
]
SHARDS += [
    b"Content-Type: text/plain; charset=\xe9\n",
    b"Content-Type: message/delivery-status; charset=utf-16\n",
    b"=E9",
]
junk = st.lists(st.sampled_from(SHARDS) | st.binary(max_size=5), max_size=40).map(b"".join)


def assert_told(found: Bounce | NotABounce) -> None:
    if isinstance(found, NotABounce):
        return
    assert found.action in Action
    assert re.fullmatch(r"([245]\.\d{1,3}\.\d{1,3})?", found.status)
    for words in (found.text, found.final_recipient):
        assert len(words) <= bounce.MAX_TEXT
        assert words.isprintable() and words == words.strip()
        words.encode("utf-8")


@given(junk | st.binary(max_size=200))
@example(b"Content-Type: message/delivery-status\n\nStatus: 5.1.1\n\nx\n\n" + b"Content-Type: text/plain\n\n\xff")
@settings(max_examples=examples(500))
def test_any_bytes_are_a_report_or_none(raw: bytes) -> None:
    assert_told(bounce.read(raw))


@given(junk, st.integers(0, 1 << 16), junk)
@example(b"\0", 2084, b"")  # a control before a word left the words with a space in front
@settings(max_examples=examples(200))
def test_a_report_with_anything_in_it_is_a_report_or_none(inside: bytes, at: int, around: bytes) -> None:
    whole = report("failed", "5.1.1", "550 no such user", "dupont@factures-meg.fr")
    at %= len(whole)
    assert_told(bounce.read(whole[:at] + inside + whole[at:]))
    assert_told(bounce.read(around + whole))


def report(action: str, status: str, diagnostic: str, recipient: str, *, end: bytes = b"\r\n") -> bytes:
    fields = f"Final-Recipient: rfc822; {recipient}\nAction: {action}\nStatus: {status}\n"
    fields += f"Diagnostic-Code: smtp; {diagnostic}\n" if diagnostic else ""
    text = "Subject: x\nContent-Type: multipart/report; report-type=delivery-status; boundary=b\n\n--b\n\nIt did not work.\n"
    text += f"--b\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; mx\n\n{fields}\n--b--\n"
    return text.encode().replace(b"\n", end)


words = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x17E, exclude_categories=["Cc", "Zs", "Cf"]), min_size=1
)


@given(
    st.sampled_from(Action),
    st.sampled_from(["5.1.1", "4.4.7", "2.0.0", "5.999.123"]),
    st.lists(words, max_size=5).map(" ".join),
    st.from_regex(r"[a-z0-9]{1,20}@[a-z]{1,20}\.fr", fullmatch=True),
    st.sampled_from([b"\n", b"\r\n"]),
)
@settings(max_examples=examples(150))
def test_a_report_is_read_as_it_was_written(action: Action, status: str, text: str, recipient: str, end: bytes) -> None:
    found = bounce.read(report(action.value.upper(), status, text, recipient, end=end))
    assert found == Bounce(action, status, text[: bounce.MAX_TEXT] or "It did not work.", recipient)


# --- what we write ----------------------------------------------------------------------------------------------------

REPORT = Report("<r1@welyb.fr>", datetime(2026, 11, 24, tzinfo=UTC), "mx.welyb.fr", "welyb.fr", "Société n° 1")
addresses = st.from_regex(r"[A-Za-z0-9+._=-]{1,30}@[a-z0-9-]{1,20}\.fr", fullmatch=True)
addresses |= st.from_regex(r'"[ -~]{0,10}"@welyb\.fr', fullmatch=True)
failed = st.builds(Undelivered, addresses, st.sampled_from(["5.1.1", "4.4.7", "", "2.0.0", "5.1.1\r\nX: y"]))
blocks = st.lists(
    st.sampled_from([*SHARDS, b"--=_", b"Subject: x\r\n", b"\0", b"\r\n\r\n"]) | st.binary(max_size=5)
).map(b"".join)


@given(addresses, st.lists(failed, min_size=1, max_size=4), blocks)
@settings(max_examples=examples(300))
def test_what_we_write_is_read_back(sender: str, undelivered: list[Undelivered], block: bytes) -> None:
    failure = Failure(sender, tuple(undelivered), datetime(2026, 11, 23, tzinfo=UTC), block)
    raw = compose.dsn(failure, REPORT)
    assert raw.isascii() and b"\0" not in raw
    assert max(map(len, raw.split(b"\r\n"))) <= 998 and not re.search(rb"\r(?!\n)|(?<!\r)\n", raw)
    found = bounce.read(raw)
    assert isinstance(found, Bounce) and found.action is Action.FAILED
    assert found.final_recipient == unproved(" ".join(undelivered[0].recipient.split()))
    message = message_from_bytes(raw)
    assert (message.get_content_type(), message.get_param("report-type")) == ("multipart/report", "delivery-status")
    assert [field for part in message.walk() for field in part.defects] == []
    text, status, original = message.get_payload()
    assert (text.get_content_type(), original.get_content_type()) == ("text/plain", "text/rfc822-headers")
    about, *groups = status.get_payload()
    assert about.keys() == ["Reporting-MTA", "Arrival-Date"]
    assert [group.keys() for group in groups] == [["Final-Recipient", "Action", "Status"]] * len(undelivered)
    assert [group["Final-Recipient"] for group in groups] == [f"rfc822; {each.recipient}" for each in undelivered]
    assert original.get_payload(decode=True).rstrip(b"\r\n") == block.rstrip(b"\r\n")
    assert message["To"] == f"<{sender}>" and len(message.get_all("To")) == 1


# --- bombs ------------------------------------------------------------------------------------------------------------

MEGABYTE = 1 << 20
HEAD = b"Content-Type: multipart/report; boundary=b\n\n--b\nContent-Type: message/delivery-status\n\nAction: failed\n\n--b\n"
BOMBS = {
    "short lines": HEAD + b"x\n" * (MEGABYTE // 2),
    "lone returns": HEAD + b"x\r" * (MEGABYTE // 2),
    "empty lines": HEAD + b"\n" * MEGABYTE,
    "groups": HEAD + b"Action: failed\n\n" * (MEGABYTE // 16),
    "nested": b"".join(b"Content-Type: multipart/mixed; boundary=%d\n\n--%d\n" % (n, n) for n in range(450))
    + b"x\n" * 300_000,
    "nested as far as is read": b"".join(
        b"Content-Type: multipart/mixed; boundary=%d\n\n--%d\n" % (n, n) for n in range(bounce.MAX_MULTIPARTS)
    )
    + b"--x\n" * 900
    + b"--\n" * 90
    + b"x\n" * (bounce.MAX_LINES - 2_000),
    "boundaries": HEAD + b"--b\n\n" * (MEGABYTE // 5),
    "messages": b"Content-Type: message/rfc822\n\n" * (MEGABYTE // 30),
    "statuses": b"Content-Type: message/delivery-status\n\n" * (MEGABYTE // 40),
    "parameters": b'Content-Type: multipart/report; a="' + b";" * MEGABYTE + b"\n\n--b\n",
    "folded parameters": b'Content-Type: multipart/report; a="' + b";\r\n " * (MEGABYTE // 4) + b"\n\n--b\n",
    "parameters by returns": b'Content-Type: multipart/report; a="' + b";\r " * (MEGABYTE // 3) + b"\n\n--b\n",
    "many parameters": HEAD + (b'Content-Type: multipart/x; a="' + b";" * 4000 + b"\n\n--b\n") * 250,
    "one line": HEAD + b"x" * MEGABYTE,
    "fields": HEAD[:-4] + b"a: b\n" * 29_000 + b"\n--b--\n",
    "encoded words": b"Content-Transfer-Encoding: " + b"=?utf-8?q?\xe9" * 90_000 + b"\n\nAction: failed\n",
    "base64": b"Content-Type: message/delivery-status\nContent-Transfer-Encoding: base64\n\n" + b"Q=" * (MEGABYTE // 2),
    "quoted": b"Content-Type: message/delivery-status\nContent-Transfer-Encoding: quoted-printable\n\n"
    + b"=\n" * 29_000,
    "uuencode": HEAD
    + b"Content-Type: text/plain\nContent-Transfer-Encoding: uuencode\n\nbegin 644 a\n"
    + b"`\n" * 29_000,
    "parentheses": HEAD[:-4] + b"Action: " + b"(" * MEGABYTE + b"\n\n--b--\n",
    "spaces": HEAD[:-4] + b"Diagnostic-Code: " + b" \t" * (MEGABYTE // 2) + b"\n\n--b--\n",
    "folds": HEAD[:-4] + b"Diagnostic-Code: x" + b"\n " * 29_000 + b"\n\n--b--\n",
}


def test_no_report_takes_longer_than_it_may() -> None:
    for name, raw in BOMBS.items():
        started = time.process_time()
        assert_told(bounce.read(raw))
        assert time.process_time() - started < 1, name
