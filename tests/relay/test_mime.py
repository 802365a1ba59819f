"""What the scanner says of real and of damaged mail: structure, names, offsets, defects and limits.

Long because it is one table of odd inputs after another.
"""

import tracemalloc
from base64 import b64encode
from dataclasses import replace
from hashlib import sha256

import pytest

from relay.encodings import Decoder, Encoding, encoding_of
from relay.mime import Limits, Message, Scanner, decoded
from rules.names import file_name, parameters, text

PDF = b"%PDF-1.7\r\n" + bytes(range(256)) * 300
PDF64 = b"\r\n".join(b64encode(PDF)[i : i + 76] for i in range(0, len(b64encode(PDF)), 76))


def mail(text: str, **content: bytes) -> bytes:
    """Lines to CRLF; `{pdf}` and the like are replaced by content as it is."""
    data = text.strip("\n").encode().replace(b"\n", b"\r\n")
    for name, value in content.items():
        data = data.replace(b"{%s}" % name.encode(), value)
    return data


def scan(data: bytes, limits: Limits | None = None) -> Message:
    scanner = Scanner(limits or Limits())
    scanner.feed(data)
    return scanner.close()


def content(data: bytes, message: Message, index: int = 0) -> bytes:
    return b"".join(decoded(lambda offset, length: data[offset : offset + length], message.parts[index].spans))


def outline(message: Message) -> list[tuple[str, str]]:
    return [(part.leaf.path, part.leaf.type) for part in message.parts]


INVOICE = mail(
    """
Return-Path: <jean@exemple.fr>
Received: from a.example by mx.welyb.fr; Mon, 2 Nov 2026 10:00:00 +0100
Received: from b.example by a.example; Mon, 2 Nov 2026 09:59:59 +0100
From: Jean <jean@exemple.fr>
Subject: =?utf-8?Q?Facture_n=C2=B0?=
 =?utf-8?Q?_12?=
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary="outer"

This is a multi-part message in MIME format.
--outer
Content-Type: multipart/related; boundary=outer-related

--outer-related
Content-Type: text/html; charset=utf-8

<p>Voici <img src="CID:logo%40exemple.fr"> <img src='cid:a&amp;b'></p>
--outer-related
Content-Type: image/png
Content-ID: <logo@exemple.fr>
Content-Disposition: inline

x
--outer-related--
--outer
Content-Type: Application/PDF; name="facture.pdf"
Content-Transfer-Encoding: base64
Content-Disposition: ATTACHMENT; filename="facture.pdf"

{pdf}
--outer
Content-Type: message/rfc822

Subject: dedans
Content-Type: multipart/mixed; boundary=inner

--inner

Bonjour
--inner
Content-Type: message/rfc822

Subject: plus loin

Bonsoir
--inner--
--outer--
""",
    pdf=PDF64,
)


def test_structure_numbers_and_surroundings() -> None:
    message = scan(INVOICE)
    assert outline(message) == [
        ("1.1", "text/html"),
        ("1.2", "image/png"),
        ("2", "application/pdf"),
        ("3.1", "text/plain"),
        ("3.2.1", "text/plain"),
    ]
    assert [part.leaf.depth for part in message.parts] == [0, 0, 0, 1, 2]
    assert [part.leaf.related for part in message.parts] == [True, True, False, False, False]
    assert [part.leaf.disposition for part in message.parts] == ["", "inline", "attachment", "", ""]
    assert message.parts[1].leaf.content_id == "logo@exemple.fr"
    assert message.cids == {"logo@exemple.fr", "a&b"}
    assert message.defects == () and message.problem is None


def test_a_document_is_hashed_measured_and_found_again() -> None:
    message = scan(INVOICE)
    part = message.parts[2]
    (span,) = part.spans
    assert INVOICE[span.offset : span.offset + span.length] == PDF64
    assert (part.size, part.sha256) == (len(PDF), sha256(PDF).hexdigest())
    assert part.head == PDF[: 64 * 1024] and part.tail == PDF[-(65_557 + 1024) :]
    assert content(INVOICE, message, 2) == PDF


def test_the_top_header() -> None:
    message = scan(INVOICE)
    assert message.size == len(INVOICE)
    assert INVOICE[: message.header_end].endswith(b'"outer"\r\n\r\n')
    assert [name for name, _ in message.headers][:4] == ["return-path", "received", "received", "from"]
    assert message.headers[4][1] == b" =?utf-8?Q?Facture_n=C2=B0?=\r\n =?utf-8?Q?_12?="
    assert message.header("SUBJECT") == "Facture n° 12"
    assert message.header("Cc") is None
    assert message.received_count == 2


def test_the_hash_ignores_what_servers_put_on_top_and_nothing_else() -> None:
    first = scan(INVOICE).content_hash
    assert (
        scan(b"Received: from c by d\r\n\tid 1; x\r\nDelivered-To: meg+a@welyb.fr\r\n" + INVOICE).content_hash == first
    )
    others = [
        INVOICE.replace(b"From: Jean", b"From: Jeam"),
        INVOICE.replace(b"Bonsoir", b"Bonsoim"),
        INVOICE.replace(b"This is", b"That is"),
        INVOICE.replace(PDF64[:8], b"JVBERi0y", 1),
        INVOICE.replace(b"MIME-V", b"Received: late\r\nMIME-V"),
        INVOICE[:-2],
    ]
    assert len({first, *(scan(other).content_hash for other in others)}) == len(others) + 1


def test_the_hash_tells_encoded_messages_apart_by_their_trace_fields_too() -> None:
    head = b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    inner = [b64encode(b"Received: %s\r\nSubject: x\r\n\r\nBonjour" % by) for by in (b"a", b"b")]
    assert scan(head + inner[0]).content_hash != scan(head + inner[1]).content_hash


@pytest.mark.parametrize("encoding", ["base64", "quoted-printable"])
def test_an_encoded_message_is_opened_and_its_documents_lie_in_two_spans(encoding: Encoding) -> None:
    inner = b'Content-Type: application/pdf; name="a.pdf"\r\nContent-Transfer-Encoding: base64\r\n\r\n' + PDF64
    body = b64encode(inner) if encoding == "base64" else inner.replace(b"=", b"=3D")
    data = (
        b"Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\n"
        b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: %s\r\n\r\n%s\r\n--b--\r\n"
        % (encoding.encode(), body)
    )
    message = scan(data)
    part = message.parts[0]
    assert part.leaf.path == "1.1" and part.leaf.depth == 1 and part.leaf.report
    assert [span.encoding for span in part.spans] == [encoding, "base64"]
    assert content(data, message) == PDF and part.sha256 == sha256(PDF).hexdigest()


# --- names ----------------------------------------------------------------------------------------------------------

NAMES: list[tuple[str, bytes, bytes, str | None]] = [
    ("none", b"attachment", b"application/pdf", None),
    ("plain", b"attachment; filename=facture.pdf", b"", "facture.pdf"),
    ("quoted", b'attachment; filename="facture 12.pdf"', b"", "facture 12.pdf"),
    ("a semicolon in quotes", b'attachment; filename="a;b.pdf"; size=3', b"", "a;b.pdf"),
    ("spaces without quotes", b"attachment; filename=Facture mars 2024.pdf; size=3", b"", "Facture mars 2024.pdf"),
    ("brackets without quotes", b"attachment; filename=facture(2).pdf", b"", "facture(2).pdf"),
    ("a comment behind", b"attachment; filename=facture.pdf (copie)", b"", "facture.pdf"),
    ("a comment between", b'attachment (x); (y) filename="a.pdf" (z)', b"", "a.pdf"),
    ("escapes", rb'attachment; filename="le \"bon\" \\ici.pdf"', b"", 'le "bon" \\ici.pdf'),
    ("a Windows path", rb'attachment; filename="C:\mai\facture.pdf"', b"", r"C:\mai\facture.pdf"),
    ("quotes not escaped", b'attachment; filename="le "bon" devis.pdf"; size=3', b"", 'le "bon" devis.pdf'),
    ("a quote not closed", b'attachment; filename="facture.pdf', b"", "facture.pdf"),
    ("no semicolon", b'attachment filename="a.pdf" size="3"', b"", "a.pdf"),
    ("no disposition", b"filename=a.pdf", b"", "a.pdf"),
    ("folded", b'attachment;\r\n\tfilename="facture\r\n mars.pdf"', b"", "facture mars.pdf"),
    ("extended", b"attachment; filename*=utf-8'fr'factur%C3%A9.pdf", b"", "facturé.pdf"),
    ("extended latin", b"attachment; filename*=iso-8859-1''factur%E9.pdf", b"", "facturé.pdf"),
    ("extended in quotes", b"attachment; filename*=\"UTF-8''factur%C3%A9.pdf\"", b"", "facturé.pdf"),
    ("extended without charset", b"attachment; filename*=factur%C3%A9.pdf", b"", "facturé.pdf"),
    ("extended before plain", b"attachment; filename=facture.pdf; filename*=UTF-8''factur%C3%A9.pdf", b"", "facturé.pdf"),
    ("extended and empty", b"attachment; filename*=UTF-8''; filename=a.pdf", b"", "a.pdf"),
    ("sections", b'attachment; filename*0="fact"; filename*1="ure.pdf"', b"", "facture.pdf"),
    ("sections out of order", b"attachment; filename*1=ure.pdf; filename*0=fact", b"", "facture.pdf"),
    ("a section missing", b"attachment; filename*0=a.pdf; filename*2=x", b"", "a.pdf"),
    ("a character cut by sections", b"attachment; filename*0*=utf-8''%C3; filename*1*=%A9.pdf", b"", "é.pdf"),
    ("sections of both kinds", b'attachment; filename*0*=utf-8\'\'%C3%A9; filename*1="%20.pdf"', b"", "é%20.pdf"),
    ("sections before plain", b"attachment; filename=x; filename*0*=utf-8''a; filename*1=.pdf", b"", "a.pdf"),
    ("sections of encoded words", b'x; filename*0="=?utf-8?B?w6k"; filename*1="=?=.pdf"', b"", "é.pdf"),
    ("an encoded word", b'attachment; filename="=?utf-8?B?ZmFjdHVyw6kucGRm?="', b"", "facturé.pdf"),
    ("two, folded", b'x; filename="=?utf-8?Q?factur=C3=A9?=\r\n =?utf-8?Q?_mars.pdf?="', b"", "facturé mars.pdf"),
    ("a character cut by words", b'x; filename="=?utf-8?Q?factur=C3?= =?utf-8?Q?=A9.pdf?="', b"", "facturé.pdf"),
    ("with a language", b'x; filename="=?utf-8*fr?Q?=C3=A9.pdf?="', b"", "é.pdf"),
    ("not padded", b'x; filename="=?utf-8?B?w6kucGRm?=.pdf"', b"", "é.pdf.pdf"),
    ("raw UTF-8", "x; filename=facturé.pdf".encode(), b"", "facturé.pdf"),
    ("raw cp1252", b'x; filename="factur\xe9 10 \x80.pdf"', b"", "facturé 10 €.pdf"),
    ("an unknown charset", b"x; filename*=klingon''factur%C3%A9.pdf", b"", "facturé.pdf"),
    ("a codec that is no charset", b"x; filename*=unicode_escape''%5Cu0041.pdf", b"", "\\u0041.pdf"),
    ("a charset that is not true", b"x; filename*=utf-8''factur%E9.pdf", b"", "facturé.pdf"),
    ("decomposed", "x; filename=facture\u0301.pdf".encode(), b"", "factur\u00e9.pdf"),
    ("name alone", b"attachment", b'application/pdf; name="a.pdf"', "a.pdf"),
    ("filename before name", b"attachment; filename=a.pdf", b"application/pdf; name*=utf-8''b.pdf", "a.pdf"),
    ("filename empty", b'attachment; filename=""', b"application/pdf; name=b.pdf", "b.pdf"),
    ("name encoded", b"", b'application/pdf;\r\n name="=?ISO-8859-1?Q?factur=E9.pdf?="', "facturé.pdf"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("disposition", "content_type", "name"), [row[1:] for row in NAMES], ids=[row[0] for row in NAMES]
)
def test_the_name_the_sender_meant(disposition: bytes, content_type: bytes, name: str | None) -> None:
    assert file_name(parameters(disposition), parameters(content_type)) == name


def test_a_name_reaches_the_leaf() -> None:
    data = b"Content-Type: application/pdf\r\nContent-Disposition: inline; filename*=utf-8''%C3%A9.pdf\r\n\r\n%PDF"
    assert scan(data).parts[0].leaf.name == "é.pdf"


def test_names_are_bounded_and_keep_their_end() -> None:
    name = file_name(parameters(b"x; filename=" + b"a" * 5000 + b".pdf"), ())
    assert name is not None and len(name) == 1024 and name.endswith("a.pdf")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b" Facture", "Facture"),
        (b"=?utf-8?q?a?= b =?utf-8?q?c?=", "a b c"),
        (b"=?utf-8?q?a?=\r\n\t=?iso-8859-1?q?=E9?=", "aé"),
        (b"=?utf-7?q?+2AA-x?=", "?x"),
        (b"=?x", "=?x"),
    ],
)
def test_words_of_a_header(raw: bytes, words: str) -> None:
    assert text(raw) == words


# --- encodings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "encoding"),
    [
        (b" base64", "base64"),
        (b" BASE64 ", "base64"),
        (b" base-64", "base64"),
        (b"\r\n base64\r\n (x)", "base64"),
        (b"(comment) base64 (comment)", "base64"),
        (b'"base64";', "base64"),
        (b"base64; charset=x", "base64"),
        (b"Quoted-Printable", "quoted-printable"),
        (b"quoted - printable", "quoted-printable"),
        (b"quotedprintable", "quoted-printable"),
        (b"8 bit", "identity"),
        (b"", "identity"),
        (b"BINARY", "identity"),
        (b"x-uue", "uuencode"),
        (b"uuencode", "uuencode"),
        (b"base65", None),
    ],
)
def test_an_encoding_is_read_generously(value: bytes, encoding: Encoding | None) -> None:
    assert encoding_of(value) == encoding


DECODED: list[tuple[Encoding, bytes, bytes, set[str]]] = [
    ("base64", b"QUJD\r\nREVG\r\n", b"ABCDEF", set()),
    ("base64", b" Q U\tJD", b"ABC", set()),
    ("base64", b"QUI=", b"AB", set()),
    ("base64", b"QUI==", b"AB", set()),
    ("base64", b"QQ==\r\nQUJD", b"AABC", {"bad-base64"}),
    ("base64", b"QUI=QUI=", b"ABAB", {"bad-base64"}),
    ("base64", b"QU!JD*", b"ABC", {"bad-base64"}),
    ("base64", b"QUJDQ=", b"ABC", {"bad-base64"}),
    ("base64", b"QUJDQQ", b"ABCA", {"bad-base64"}),  # only the padding is missing
    ("base64", b"QUJDQ", b"ABC", {"truncated"}),
    ("base64", b"QUJDQ", b"ABC", {"truncated"}),
    ("base64", b"", b"", set()),
    ("quoted-printable", b"caf=C3=a9=\r\n =3D", "café =".encode(), set()),
    ("quoted-printable", b"a=\nb=zz==c=", b"ab=zz=c", set()),
    ("uuencode", b"begin 644 a\r\n#86)C\r\n`\r\nend\r\n", b"abc", set()),
    ("uuencode", b"text\nbegin 644 a\n#86)C\n", b"abc", {"truncated"}),
    ("uuencode", b"begin 644 a\n#86)CXXXXX\n`\nend\n", b"abc", set()),
    ("uuencode", b"begin 644 a\n#\xff\xff\n`\nend\n", b"", {"bad-uuencode"}),
    ("uuencode", b"nothing\n", b"", {"bad-uuencode"}),
    ("uuencode", b"begin 644 a\n\r\r\n#86)C\nend", b"abc", set()),
    ("identity", b"=41\xff", b"=41\xff", set()),
]


@pytest.mark.parametrize(("encoding", "raw", "expected", "defects"), DECODED)
def test_damaged_encodings_are_decoded_as_far_as_they_go(
    encoding: Encoding, raw: bytes, expected: bytes, defects: set[str]
) -> None:
    decoder = Decoder(encoding)
    assert decoder.feed(raw) + decoder.close() == expected
    assert decoder.defects == defects


def test_the_defects_of_an_encoding_are_those_of_the_leaf_and_of_the_message() -> None:
    message = scan(b"Content-Type: application/pdf\r\nContent-Transfer-Encoding: base64\r\n\r\nQUJDQ\r\n")
    assert message.parts[0].leaf.defects == message.defects == ("truncated",)


# --- structure that is not as it should be --------------------------------------------------------------------------

MIXED = "Content-Type: multipart/mixed; boundary=b\n\n"


@pytest.mark.parametrize(
    ("source", "found", "defects"),
    [
        (MIXED + "--b\n\none\n--b \t\n\ntwo\n--b-- \nepilogue", [b"one", b"two"], ()),
        (MIXED + "--b\n\none\n--bc\n\ntwo\n--b--", [b"one\r\n--bc\r\n\r\ntwo"], ("ambiguous",)),
        (MIXED + "--b\n\none\n--b\n\ntwo", [b"one", b"two"], ("unterminated",)),
        (MIXED + "--b\n\none\n--b", [b"one", b""], ("unterminated",)),
        (MIXED + "--b\n\none\n--b--\n--b\n\ntwo\n--b--", [b"one", b"two"], ("ambiguous",)),
        (MIXED + "no delimiter", [b"no delimiter"], ("no-parts", "unterminated")),
        (MIXED + "--b\nX-Only: header\n--b\nContent-Type: a/b\n\ntwo\n--b--", [b"", b"two"], ()),
        (MIXED + "--b--", [], ()),
        ('Content-Type: multipart/mixed; boundary=""\n\n--q\n\none\n--q--', [b"one"], ()),
        ("Content-Type: multipart/mixed\n\n--q\n\none\n--q--", [b"one"], ()),
        ("Content-Type: multipart/mixed boundary=b\n\n--b\n\none\n--b--", [b"one"], ()),
        ("Content-Type: multipart/mixed; boundary=b c\n\n--b c\n\none\n--b c--", [b"one"], ()),
        ("Content-Type: multipart/mixed; boundary=b charset=x\n\n--b\n\none\n--b--", [b"one"], ()),
        ("Content-Type: multipart/mixed; boundary*0=b; boundary*1=c\n\n--bc\n\none\n--bc--", [b"one"], ()),
        ("Content-Type: multipart/mixed; boundary=b; boundary=c\n\n--c\n\none\n--c--", [b"one"], ("ambiguous",)),
        ("Subject: x\nBonjour,\n\nJean", [b"Bonjour,\r\n\r\nJean"], ("bad-header",)),
        ("Bonjour", [b"Bonjour"], ("bad-header",)),
        ("Subject: x\njunk line\nContent-Type: text/plain\n\nbody", [b"body"], ("bad-header",)),
        ("From jean Mon Nov  2\nSubject: x\n\nbody", [b"body"], ()),
        ("Subject: x\n\n", [b""], ()),
        ("Subject: x", [b""], ()),
        ("", [b""], ()),
        ("Subject : x\nContent-Type : a/b\n\nbody", [b"body"], ()),
    ],
)
def test_what_a_generous_reader_would_find(source: str, found: list[bytes], defects: tuple[str, ...]) -> None:
    data = mail(source) if source.strip() == source else source.encode().replace(b"\n", b"\r\n")
    message = scan(data)
    assert [content(data, message, index) for index in range(len(message.parts))] == found
    assert message.defects == defects


def test_an_outer_delimiter_ends_the_inner_multipart() -> None:
    data = mail("""
Content-Type: multipart/mixed; boundary=out

--out
Content-Type: multipart/alternative; boundary=outin

--outin

one
--outin

two
--out

three
--out--
""")
    message = scan(data)
    assert outline(message) == [("1.1", "text/plain"), ("1.2", "text/plain"), ("2", "text/plain")]
    assert [part.leaf.defects for part in message.parts] == [(), ("unterminated",), ()]
    assert content(data, message, 1) == b"two"


def test_the_parts_of_a_digest_are_messages() -> None:
    data = mail("""
Content-Type: multipart/digest; boundary=b

--b

Subject: one

first
--b
Content-Type: application/pdf

second
--b--
""")
    assert outline(scan(data)) == [("1.1", "text/plain"), ("2", "application/pdf")]


@pytest.mark.parametrize("encoding", ["7bit", "base64"])
def test_what_is_attached_as_a_message_and_is_none_is_a_document(encoding: str) -> None:
    body = PDF64 if encoding == "base64" else PDF
    head = f'Content-Type: message/rfc822; name="facture.pdf"\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n'
    data = head.encode() + body
    message = scan(data)
    (part,) = message.parts
    assert (part.leaf.path, part.leaf.type, part.leaf.name, part.leaf.depth) == (
        "1",
        "message/rfc822",
        "facture.pdf",
        0,
    )
    assert "not-a-message" in part.leaf.defects
    assert content(data, message) == PDF


@pytest.mark.parametrize(
    ("head", "declared", "defects"),
    [
        ("X: y", "text/plain", ()),
        ("Content-Type:", "text/plain", ()),
        ("Content-Type: text", "text/plain", ()),
        ("Content-Type: pdf", "application/octet-stream", ()),
        ("Content-Type: ; name=a.pdf", "application/octet-stream", ()),
        ("Content-Type: name=a.pdf", "application/octet-stream", ()),
        ("Content-Type: Image / PDF ; x=y", "image/pdf", ()),
        ("Content-Type: (a) application/pdf (b)", "application/pdf", ()),
        ("Content-Type: text/plain\nContent-Type: Text/plain", "text/plain", ()),
        ("Content-Type: text/plain\nContent-Type: application/pdf", "text/plain", ("ambiguous",)),
        ("Content-Transfer-Encoding: 7bit\nContent-Transfer-Encoding: base64", "text/plain", ("ambiguous",)),
        ("Content-Transfer-Encoding: base65", "text/plain", ("unknown-encoding",)),
    ],
)
def test_what_is_declared(head: str, declared: str, defects: tuple[str, ...]) -> None:
    (part,) = scan(mail(head) + b"\r\n\r\nbody").parts
    assert (part.leaf.type, part.leaf.defects) == (declared, defects)


def test_a_file_uuencoded_into_a_text_is_noticed() -> None:
    assert scan(mail("Subject: x\n\nBonjour\n\nbegin 644 a.zip\n#86)C\n`\nend")).defects == ("uuencoded",)
    assert scan(mail("Subject: x\n\nWe begin 644 things")).defects == ()


def test_lone_line_ends_are_seen_also_where_chunks_meet() -> None:
    for chunks, bare in [((b"a\r", b"\nb"), False), ((b"a\r", b"b"), True), ((b"a", b"\nb"), True), ((b"a\r",), True)]:
        scanner = Scanner(Limits(quantum=1))
        for chunk in (b"Subject: x\r\n\r\n", *chunks):
            scanner.feed(chunk)
        assert scanner.close().bare_newline is bare


# --- limits ---------------------------------------------------------------------------------------------------------


def nested(levels: int) -> bytes:
    opening = b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(levels))
    return opening + b"\r\nx\r\n" + b"".join(b"--b%d--\r\n" % n for n in reversed(range(levels)))


def attached(levels: int) -> bytes:
    return b"Content-Type: message/rfc822\r\n\r\n" * levels + b"Subject: x\r\n\r\nbody"


def listed(parts: int) -> bytes:
    return b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * parts + b"--b--\r\n"


def test_multiparts_are_entered_to_a_depth() -> None:
    assert scan(nested(10)).problem is None and len(scan(nested(10)).parts) == 1
    assert scan(nested(11)).problem == "too-deep"


def test_attached_messages_are_opened_to_a_depth_and_the_next_is_a_leaf() -> None:
    (part,) = scan(attached(3)).parts
    assert (part.leaf.depth, part.leaf.type, part.leaf.defects) == (3, "text/plain", ())
    data = attached(4)
    message = scan(data)
    (part,) = message.parts
    assert (part.leaf.depth, part.leaf.type, part.leaf.defects) == (3, "message/rfc822", ("nested",))
    assert content(data, message) == b"Subject: x\r\n\r\nbody"


def test_encoded_messages_count_with_the_others() -> None:
    data = b"Subject: x\r\n\r\nbody"
    for _ in range(4):
        data = b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n" + b64encode(data)
    message = scan(data)
    (part,) = message.parts
    assert (part.leaf.depth, part.leaf.type, part.leaf.defects) == (3, "message/rfc822", ("nested",))
    assert len(part.spans) == 4 and content(data, message) == b"Subject: x\r\n\r\nbody"


def test_leaves_are_counted() -> None:
    assert scan(listed(200)).problem is None
    message = scan(listed(201))
    assert message.problem == "too-many-parts" and len(message.parts) == 200


def test_leaves_of_encoded_messages_are_counted_with_the_others() -> None:
    head = b"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    data = b"Content-Type: multipart/mixed; boundary=q\r\n\r\n" + b"".join(
        b"--q\r\n" + head + b64encode(listed(100)) + b"\r\n" for _ in range(3)
    )
    message = scan(data + b"--q--\r\n")
    assert message.problem == "too-many-parts" and len(message.parts) == 200


def test_lines_that_look_like_delimiters_are_not_read_without_end() -> None:
    message = scan(listed(1) + b"--b--\r\n" * 5000)
    assert message.problem == "too-many-parts"
    assert scan(listed(1) + b"--bc\r\n" * 5000).problem == "too-many-parts"


@pytest.mark.parametrize("line", [PDF64[:78], b"a text, with - in it\r\n", b"--not a delimiter\r\n", b"=" * 64, b"\n"])
@pytest.mark.parametrize("encoding", ["base64", "7bit", "quoted-printable", "uuencode"])
def test_memory_does_not_grow_with_the_message(line: bytes, encoding: str) -> None:
    head = f"--b\r\nContent-Type: application/pdf\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n".encode()
    chunk = line * (64 * 1024 // len(line))
    scanner = Scanner()
    scanner.feed(b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + head)
    tracemalloc.start()
    for _ in range(100):
        scanner.feed(chunk)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 512 * 1024 and peak < 2 * 1024 * 1024
    assert scanner.close().size > 6_000_000


@pytest.mark.parametrize("ending", [b"", b"\r\n\r\nbody"])
def test_a_header_block_has_a_size(ending: bytes) -> None:
    limit = 256 * 1024
    assert scan(b"X: " + b"y" * (limit - 5) + b"\r\n" + ending[2:]).problem is None
    message = scan(b"Subject: z\r\nX: " + b"y" * limit + ending)
    assert message.problem == "header-too-big" and message.parts == ()
    assert message.header("subject") == "z"


@pytest.mark.parametrize("kind", ["message/partial; id=x; number=1", "message/external-body; access-type=url"])
def test_fragments_are_a_problem(kind: str) -> None:
    message = scan(mail(f"Content-Type: multipart/mixed; boundary=b\n\n--b\nContent-Type: {kind}\n\nx\n--b--"))
    assert message.problem == "fragment" and len(message.parts) == 1


def test_after_a_problem_bytes_are_still_looked_at() -> None:
    message = scan(listed(201) + b"\xff\n")
    assert message.eight_bit and message.bare_newline and message.size == len(listed(201)) + 2
    assert message.content_hash != scan(listed(201) + b"\xfe\n").content_hash


def test_limits_may_be_others() -> None:
    assert scan(listed(3), replace(Limits(), parts=2)).problem == "too-many-parts"
