"""What leaves, read back by the standard parser and by stock dkimpy."""

import base64
import email
import email.policy
import hashlib
import itertools
import re
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import compose, sign
from relay.compose import Composed, Enclosed, Failure, Letter, Received, Report, Undelivered
from rules import bounce

NOON = datetime(2026, 11, 24, 14, 15, 2, tzinfo=timezone(timedelta(hours=1)))
RECEIVED = Received("mx.welyb.fr", "welyb.fr", "pc.cabinet.fr", "192.0.2.1", "ESMTPS", "Xy12", NOON, tls="TLSv1.3")
# Nothing that leaves for a client may hold one of these; what leaves for the collector holds its address in To only.
SECRET = re.compile(rb"meg(?!\+)|collect|factures|rca", re.I)

# ---
# relayed

ORIGINAL = b"From: a@b\r\nSubject: x\r\n folded\r\n\r\n"


def test_relayed_puts_ours_on_top_and_leaves_the_rest() -> None:
    out = compose.relayed(ORIGINAL, RECEIVED)
    assert out.endswith(ORIGINAL)
    assert out.removesuffix(ORIGINAL) == (
        b"Received: from pc.cabinet.fr ([192.0.2.1]) (TLSv1.3)\r\n\tby mx.welyb.fr with ESMTPS id Xy12;\r\n"
        b"\tTue, 24 Nov 2026 14:15:02 +0100\r\nX-Welyb-Relay: welyb.fr\r\n"
    )


def test_our_results_stand_on_top_and_forged_ones_below_go() -> None:
    forged = b"Authentication-Results: MX.welyb.fr; dmarc=pass\r\n"
    received = replace(RECEIVED, results="mx.welyb.fr;\r\n\tspf=none;\r\n\tdkim=none")
    out = compose.relayed(forged + ORIGINAL, received)
    ours = b"Authentication-Results: mx.welyb.fr;\r\n\tspf=none;\r\n\tdkim=none\r\n"
    assert out == ours + compose.relayed(ORIGINAL, RECEIVED)


@pytest.mark.parametrize(
    ("helo", "shown"),
    [
        ("[192.0.2.1]", b"from [192.0.2.1] ("),
        ("pc\r\nBcc: x@y", b"from unknown ("),
        ("", b"from unknown ("),
        ("é", b"from unknown ("),
        ("a" * 300, b"from unknown ("),
        ("x) by evil (", b"from unknown ("),
    ],
)
def test_a_hostile_helo(helo: str, shown: bytes) -> None:
    out = compose.relayed(ORIGINAL, replace(RECEIVED, helo=helo))
    assert shown in out
    assert [name for name, _ in sign.fields(out)] == [b"Received", b"X-Welyb-Relay", b"From", b"Subject"]


def test_an_ipv6_peer_in_clear() -> None:
    out = compose.relayed(ORIGINAL, replace(RECEIVED, peer="2001:db8::1", tls="", protocol="ESMTP"))
    assert out.startswith(
        b"Received: from pc.cabinet.fr ([IPv6:2001:db8::1])\r\n\tby mx.welyb.fr with ESMTP id Xy12;\r\n"
    )


FORGED = [
    b"Authentication-Results: mx.welyb.fr; dkim=pass\r\n",
    b"authentication-results:mx.WELYB.fr;\r\n spf=pass\r\n\tdmarc=pass\r\n",
    b"Authentication-Results: welyb.fr 1; none\r\n",
    b'Authentication-Results: "welyb.fr"; none\r\n',
    b'Authentication-Results: "wel\\yb.fr"; none\r\n',
    b"Authentication-Results: (a (nested) comment) welyb.fr (another); none\r\n",
    b"Authentication-Results:\r\n welyb.fr\r\n ; none\r\n",
    b"Authentication-Results : welyb.fr; none\r\n",
    b"Authentication-Results: welyb.fr.; none\r\n",
    b"Authentication-Results: welyb.fr\r\n",
    b"Authentication-Results: welyb.fr(me);none\r\n",
    b'Authentication-Results: ("\\)\\( \\) ") welyb.fr; none\r\n',
    b"Authentication-Results: mx . welyb.fr; none\r\n",
    b"Authentication-Results: mx(c).welyb.fr; none\r\n",
    b"Authentication-Results: mx.(c)\r\n\twelyb.fr 1; none\r\n",
    b"Authentication-Results: mx.welyb.fr/1; none\r\n",
    b"Authentication-Results: welyb.fr /1; none\r\n",
]
GENUINE = [
    b"Authentication-Results: mx.example.org; dkim=pass header.d=welyb.fr\r\n",
    b"Authentication-Results: notwelyb.fr; none\r\n",
    b"Authentication-Results: x . welyb.fr; none\r\n",
    b"Authentication-Results: x/welyb.fr; none\r\n",
    b"Authentication-Results: welyb.fr.example.org; none\r\n",
    b"Authentication-Results: ; welyb.fr\r\n",
    b"Authentication-Results: \xff\r\n",
    b"Authentication-Results: (welyb.fr\r\n",
    b"ARC-Authentication-Results: i=1; welyb.fr; none\r\n",
    b"X-Authentication-Results: welyb.fr; none\r\n",
    b"Subject: Authentication-Results: welyb.fr\r\n",
]


@pytest.mark.parametrize("field", FORGED)
def test_forged_results_are_dropped(field: bytes) -> None:
    block = b"A: 1\r\n" + field + b"B: 2\r\n\tfold\r\n" + field + GENUINE[0] + b"\r\n"
    assert compose.relayed(block, RECEIVED).endswith(b"welyb.fr\r\nA: 1\r\nB: 2\r\n\tfold\r\n" + GENUINE[0] + b"\r\n")


@pytest.mark.parametrize("field", GENUINE)
def test_results_of_others_are_kept(field: bytes) -> None:
    block = b"A: 1\r\n" + field + b"B: 2\r\n\r\n"
    assert compose.relayed(block, RECEIVED).endswith(block)


@given(st.lists(st.sampled_from([*FORGED, *GENUINE, b"To: x\r\n y\r\n", b"junk\r\n"])))
def test_only_forged_results_are_dropped(chosen: list[bytes]) -> None:
    out = compose.relayed(b"".join(chosen) + b"\r\n", RECEIVED)
    expected = b"".join(field for field in chosen if field not in FORGED) + b"\r\n"
    assert out.split(b"X-Welyb-Relay: welyb.fr\r\n", 1)[1] == expected


def test_hostile_results_take_no_time() -> None:
    nested = b"Authentication-Results: " + b"(" * 60_000 + b")" * 60_000 + b"; none\r\n"
    many = b"Authentication-Results: welyb.fr\r\n" * 4_000
    began = time.process_time()
    assert compose.relayed(nested + many + b"\r\n", RECEIVED).endswith(b"none\r\n\r\n")
    assert time.process_time() - began < 1


def test_a_mail_without_header_gets_an_empty_line() -> None:
    assert compose.relayed(b"", RECEIVED).endswith(b"X-Welyb-Relay: welyb.fr\r\n\r\n")
    assert compose.relayed(b"\r\n", RECEIVED).endswith(b"X-Welyb-Relay: welyb.fr\r\n\r\n")


def test_final_crlf() -> None:
    assert [compose.needs_final_crlf(tail) for tail in (b"", b"a", b"a\r", b"a\n", b"a\r\n")] == [True] * 4 + [False]


# ---
# deposit

PDF = bytes(range(256)) * 500
DOCUMENT = Enclosed("42", "Facture 2026.pdf", "application/pdf", len(PDF), hashlib.sha256(PDF).hexdigest())
LETTER = Letter("automate@welyb.fr", "Welyb", "Dupont@factures-meg.fr", "<d42@welyb.fr>", NOON, "welyb.fr")


def whole(composed: Composed, content: bytes = PDF) -> bytes:
    return b"".join((composed.header, composed.part, *compose.encode_base64([content]), composed.closing))


def parsed(raw: bytes) -> EmailMessage:
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert isinstance(message, EmailMessage)
    assert not message.defects
    return message


def test_deposit_reads_back() -> None:
    composed = compose.deposit(DOCUMENT, LETTER)
    raw = whole(composed)
    message = parsed(raw)
    assert len(raw) == composed.size
    assert {name: str(value) for name, value in message.items()} == {
        "From": "Welyb <automate@welyb.fr>",
        "To": "Dupont@factures-meg.fr",
        "Subject": "Facture 2026.pdf",
        "Date": "Tue, 24 Nov 2026 14:15:02 +0100",
        "Message-ID": "<d42@welyb.fr>",
        "X-Welyb-Relay": "welyb.fr",
        "X-Welyb-Document-Id": "42",
        "X-Welyb-Document-SHA256": DOCUMENT.sha256,
        "Auto-Submitted": "auto-generated",
        "MIME-Version": "1.0",
        "Content-Type": message["Content-Type"],
    }
    text, document = message.iter_parts()
    assert "« Facture 2026.pdf »" in text.get_content() and "Welyb" in text.get_content()
    assert document.get_content_type() == "application/pdf"
    assert document.get_filename() == "Facture 2026.pdf"
    assert document.get_content() == PDF


def test_a_retry_is_identical() -> None:
    assert compose.deposit(DOCUMENT, LETTER) == compose.deposit(DOCUMENT, LETTER)
    other = compose.deposit(replace(DOCUMENT, id="43"), LETTER)
    assert other.closing != compose.deposit(DOCUMENT, LETTER).closing


def test_a_bundle_reads_back() -> None:
    documents = [DOCUMENT, replace(DOCUMENT, id="43", name="Été.pdf")]
    made = compose.bundle(documents, LETTER, " Vos factures\r\nBcc: x@y.fr")
    encoded = b"".join(compose.encode_base64([PDF]))
    raw = made.header + b"".join(part + encoded for part in made.parts) + made.closing
    message = parsed(raw)
    assert len(raw) == made.size and made == compose.bundle(documents, LETTER, " Vos factures\r\nBcc: x@y.fr")
    assert message["Subject"] == "Vos facturesBcc: x@y.fr" and message["Bcc"] is None
    assert message["From"] == "Welyb <automate@welyb.fr>" and message["Auto-Submitted"] == "auto-generated"
    text, *parts = message.iter_parts()
    assert "« Facture 2026.pdf, Été.pdf »" in text.get_content()
    assert [part.get_content() for part in parts] == [PDF, PDF]
    assert [(part["X-Welyb-Document-Id"], part["X-Welyb-Document-SHA256"]) for part in parts] == [
        (number, DOCUMENT.sha256) for number in ("42", "43")
    ]


@given(st.text(max_size=600), st.text(min_size=1, max_size=300), st.text(max_size=40))
def test_no_subject_name_or_type_makes_a_field_or_a_part_of_a_bundle(subject: str, name: str, media_type: str) -> None:
    document = replace(DOCUMENT, name=name, type=media_type, size=1)
    made = compose.bundle([document, document], LETTER, subject)
    raw = made.header + b"".join(part + b"eA==\r\n" for part in made.parts) + made.closing
    assert len(raw) == made.size and raw.isascii() and all(len(line) <= 998 for line in raw.split(b"\r\n"))
    names = [field.lower() for field, _ in sign.fields(made.header)]
    wanted = b"from to subject date message-id x-welyb-relay auto-submitted mime-version content-type"
    assert names == wanted.split()
    message = email.message_from_bytes(raw)
    assert [part.get_payload(decode=True) for part in list(message.walk())[2:]] == [b"x", b"x"]


def test_the_signature_of_a_deposit_verifies() -> None:
    import dkim

    composed = compose.deposit(DOCUMENT, LETTER)
    hashed = sign.SimpleBodyHash()
    for chunk in (composed.part, *compose.encode_base64([PDF]), composed.closing):
        hashed.feed(chunk)
    key = sign.Ed25519PrivateKey.generate()
    signature = sign.Signer("welyb.fr", "s", key).sign(sign.fields(composed.header), hashed.digest(), 1)
    assert dkim.verify(signature + whole(composed), dnsfunc=lambda *_, **__: sign.dns_record(key).encode())
    assert b"x-welyb-document-sha256" in signature


def filename(raw: bytes) -> str:
    """The name as a reader of RFC 2231 sees it: `filename*` first."""
    extended = re.search(rb"filename\*=UTF-8''(\S+)", raw)
    if extended:
        from urllib.parse import unquote

        return unquote(extended[1].decode())
    plain = re.search(rb'filename="([^"]*)"', raw)
    assert plain
    return plain[1].decode()


@pytest.mark.parametrize(
    ("name", "shown", "plain"),
    [
        ("Reçu n°3 – été.pdf", "Reçu n°3 – été.pdf", "Recu n_3 - ete.pdf"),
        ("請求書.pdf", "請求書.pdf", "___.pdf"),
        ('a"b\\c.pdf', 'a"b\\c.pdf', "a_b_c.pdf"),
        ("fact\u202efdp.exe", "factfdp.exe", "factfdp.exe"),
        (
            "x\r\nBcc: evil@example.org\r\n\r\nbody.pdf",
            "xBcc: evil@example.orgbody.pdf",
            "xBcc: evil@example.orgbody.pdf",
        ),
        ("a\x00\x1b\x7fb.pdf", "ab.pdf", "ab.pdf"),
        ("old\udcff.pdf", "old\ufffd.pdf", "old_.pdf"),
        ("=?utf-8?q?x?=.pdf", "=?utf-8?q?x?=.pdf", "=_utf-8_q_x_=.pdf"),
        ("{name}{sender_name}.pdf", "{name}{sender_name}.pdf", "{name}{sender_name}.pdf"),
        ("", "document", "document"),
    ],
)
def test_names(name: str, shown: str, plain: str) -> None:
    raw = whole(compose.deposit(replace(DOCUMENT, name=name), LETTER))
    message = parsed(raw)
    assert message["Subject"] == shown
    assert filename(raw) == shown
    assert f'filename="{plain}"'.encode() in raw
    assert set(message.keys()) == set(parsed(whole(compose.deposit(DOCUMENT, LETTER))).keys())


@given(st.text(max_size=300), st.text(max_size=60), st.text(max_size=40))
def test_no_name_or_type_makes_a_field_or_a_part(name: str, sender_name: str, media_type: str) -> None:
    """Whatever the texts, the message has the same fields and parts, short ASCII lines, and the document unharmed."""
    document = replace(DOCUMENT, name=name, type=media_type)
    raw = whole(compose.deposit(document, replace(LETTER, sender_name=sender_name)), b"content")
    header = raw[: raw.index(b"\r\n\r\n")]
    assert [field for field, _ in sign.fields(header)] == [
        field for field, _ in sign.fields(compose.deposit(DOCUMENT, LETTER).header)
    ]
    assert raw.isascii() and not re.search(rb"(?<!\r)\n|\r(?!\n)", raw)
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))
    _, attached = email.message_from_bytes(raw).get_payload()
    assert attached.get_payload(decode=True) == b"content"


@pytest.mark.parametrize("kind", ["message/rfc822", "multipart/mixed", "text/html; x=y", "junk", ""])
def test_a_type_that_cannot_be_said_is_octet_stream(kind: str) -> None:
    message = parsed(whole(compose.deposit(replace(DOCUMENT, type=kind), LETTER)))
    assert list(message.iter_parts())[1].get_content_type() == "application/octet-stream"


@pytest.mark.parametrize(
    "letter",
    [
        replace(LETTER, recipient="a@b\r\nBcc: c@d"),
        replace(LETTER, recipient="a@b>, <c@d"),
        replace(LETTER, sender="a b@c"),
        replace(LETTER, recipient="é@b"),
        replace(LETTER, message_id="<1>\r\nX: y"),
    ],
)
def test_an_unsound_address_or_id_is_our_mistake(letter: Letter) -> None:
    with pytest.raises(ValueError, match="not"):
        compose.deposit(DOCUMENT, letter)


def test_a_display_name_with_specials() -> None:
    for name in ("Cabinet Maçon & Fils", 'Dupont, "le bon" \\ Co', "a.b", "Welyb"):
        message = parsed(whole(compose.deposit(DOCUMENT, replace(LETTER, sender_name=name))))
        assert message["From"].addresses[0].display_name == name
        assert message["From"].addresses[0].addr_spec == "automate@welyb.fr"


def test_the_text_is_a_setting() -> None:
    letter = replace(LETTER, text="De {sender_name} :\n.\n{name} {inconnu}", sender_name="Mon Cabinet")
    document = replace(DOCUMENT, name="{sender_name}")  # not looked into for placeholders
    text, _ = parsed(whole(compose.deposit(document, letter))).iter_parts()
    assert text.get_content().splitlines() == ["De Mon Cabinet :", ".", "{sender_name} {inconnu}"]


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=5))
def test_encode_base64(content: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(content)]
    chunks = [content[start:end] for start, end in itertools.pairwise(edges)]
    encoded = b"".join(compose.encode_base64(chunks))
    assert encoded == base64.encodebytes(content).replace(b"\n", b"\r\n")
    assert len(encoded) == compose.encoded_size(len(content))


@pytest.mark.parametrize("size", [57 * 1024 - 1, 57 * 1024, 57 * 1024 + 1, 57 * 2048, 200_000])
@pytest.mark.parametrize("step", [65_536, 57 * 1024, 70_001, 1_000_000])
def test_encode_base64_in_blocks(size: int, step: int) -> None:
    content = hashlib.shake_128(b"x").digest(size)
    chunks = (content[at : at + step] for at in range(0, size, step))
    encoded = b"".join(compose.encode_base64(chunks))
    assert encoded == base64.encodebytes(content).replace(b"\n", b"\r\n")
    assert len(encoded) == compose.encoded_size(size)


# ---
# dsn

NOT_THERE = Undelivered("meg+macon-dupont@welyb.fr", "5.1.1")
FAILURE = Failure("compta@cabinet.fr", (NOT_THERE,), NOON, b"From: a@b\r\nSubject: f\r\n\r\n")
REPORT = Report("<r1@welyb.fr>", datetime(2026, 11, 24, 15, 0, tzinfo=UTC), "mx.welyb.fr", "welyb.fr", "Welyb")


def test_dsn_reads_back() -> None:
    raw = compose.dsn(FAILURE, REPORT)
    message = parsed(raw)
    assert message["To"] == "compta@cabinet.fr"
    assert message["From"] == "Welyb <postmaster@welyb.fr>"
    assert message["Auto-Submitted"] == "auto-replied"
    assert message.get_content_type() == "multipart/report"
    assert message["Content-Type"].params["report-type"] == "delivery-status"
    text, status, original = message.iter_parts()
    content = text.get_content()
    assert content.index("n'a pas pu être transmis") < content.index("could not be passed on")
    assert content.count("meg+macon-dupont@welyb.fr") == 2 and content.count("5.1.1") == 2
    assert status.get_content_type() == "message/delivery-status"
    assert original.get_content_type() == "text/rfc822-headers"
    assert original.get_payload().rstrip() == "From: a@b\r\nSubject: f"


def test_our_own_reader_reads_it() -> None:
    read = bounce.read(compose.dsn(FAILURE, REPORT))
    assert isinstance(read, bounce.Bounce)
    assert (read.action, read.status, read.final_recipient) == ("failed", "5.1.1", "meg+macon-dupont@welyb.fr")


def test_a_client_reads_no_collector_in_it() -> None:
    raw = compose.dsn(FAILURE, REPORT).replace(b"meg+macon-dupont@welyb.fr", b"")
    raw = raw.replace(b"meg+macon-dupont=40welyb.fr", b"")
    assert not SECRET.search(raw)
    for absent in (b"Remote-MTA", b"Diagnostic-Code", b"Original-Recipient"):
        assert absent not in raw


@pytest.mark.parametrize("status", ["", "junk", "5.1.1\r\nRemote-MTA: dns; mx.factures-meg.fr", "2.0.0"])
def test_a_strange_status_is_neutral(status: str) -> None:
    raw = compose.dsn(replace(FAILURE, undelivered=(replace(NOT_THERE, status=status),)), REPORT)
    assert b"\r\nStatus: 5.0.0\r\n" in raw and b"Remote" not in raw


def test_the_fields_of_a_report_stand_as_they_must() -> None:
    """RFC 3464 §2.1: the message's fields, an empty line, a recipient's, an empty line, another's."""
    both = (NOT_THERE, Undelivered('"x y"@welyb.fr', "4.4.7"))
    raw = compose.dsn(replace(FAILURE, undelivered=both), REPORT)
    *_, status, _, _ = raw.split(b"\r\n--=_")
    assert status.split(b"\r\n", 1)[1].decode() == (
        "Content-Type: message/delivery-status\r\n\r\n"
        "Reporting-MTA: dns; mx.welyb.fr\r\nArrival-Date: Tue, 24 Nov 2026 14:15:02 +0100\r\n\r\n"
        "Final-Recipient: rfc822; meg+macon-dupont@welyb.fr\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n"
        'Final-Recipient: rfc822; "x y"@welyb.fr\r\nAction: failed\r\nStatus: 4.4.7\r\n'
    )
    text = parsed(raw).get_body().get_content()
    assert text.count('    "x y"@welyb.fr (4.4.7)') == 2
    assert "du 24/11/2026 à 13:15 " in text and "of 24/11/2026, 13:15," in text


@pytest.mark.parametrize(
    "block", [b"Subject: a\0b\r\n\r\n", b"X: a\rb\r\n\r\n", b"X: a\nb\r\n\r\n", b"X: " + b"x" * 999]
)
def test_what_no_line_may_hold_is_returned_encoded(block: bytes) -> None:
    raw = compose.dsn(replace(FAILURE, header=block), REPORT)
    assert b"\0" not in raw and not re.search(rb"\r(?!\n)|(?<!\r)\n", raw)
    *_, original = email.message_from_bytes(raw).get_payload()
    assert original.get_payload(decode=True) == block


def test_8_bit_headers_are_returned_whole_in_7_bits() -> None:
    block = "Subject: reçu\r\n\r\n".encode()
    raw = compose.dsn(replace(FAILURE, header=block), REPORT)
    assert raw.isascii()
    *_, original = email.message_from_bytes(raw).get_payload()
    assert original.get_payload(decode=True) == block


def test_headers_that_look_like_a_boundary_stay_inside() -> None:
    first = compose.dsn(FAILURE, REPORT)
    boundary = re.search(rb'boundary="([^"]+)"', first)
    assert boundary
    # It can be known beforehand only by who knows the id of the report, which is ours and later.
    assert boundary[1] not in compose.dsn(FAILURE, replace(REPORT, message_id="<r2@welyb.fr>"))


def test_relayed_names_no_collector() -> None:
    assert not SECRET.search(compose.relayed(ORIGINAL, RECEIVED))
    raw = compose.deposit(DOCUMENT, LETTER)
    assert not SECRET.search(raw.header.replace(b"Dupont@factures-meg.fr", b"") + raw.part + raw.closing)
