"""Mails made to cost: a few lines each that build up to 50 MB (12.5 in `make test`), beside innocent ones.

Knows alone: where a reader of mail may be made to work or to hold more than its input is worth. Long because it is a
catalogue: a bomb is a name and the bytes.
"""

import base64
import struct
import zlib
from collections.abc import Callable, Iterable

from tests.support import documents as d
from tests.support.effort import LONG

FULL = 50_000_000 if LONG else 12_500_000  # [smtp] max_message_size, or a quarter
BLOCK = 255 * 1024  # of a header block, just below relay.mime's limit
TOP = b"From: a@cabinet.example\r\nTo: b@welyb.fr\r\nSubject: Facture\r\nMessage-ID: <1@x>\r\nMIME-Version: 1.0\r\n"
MIXED = TOP + b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n'
BASE64 = b"Content-Transfer-Encoding: base64\r\n"

BOMBS: dict[str, Callable[[], bytes]] = {}


def _bomb(make: Callable[[], bytes]) -> Callable[[], bytes]:
    BOMBS[make.__name__.replace("_", " ")] = make
    return make


def filled(front: bytes, unit: bytes, *, size: int = FULL, back: bytes = b"") -> bytes:
    """`front`, then `unit` as often as it fits into `size`."""
    return front + unit * ((size - len(front) - len(back)) // len(unit)) + back


def leaf(headers: bytes, body: bytes = b"") -> bytes:
    return b"--b\r\n" + headers + b"\r\n" + body + b"\r\n"


def mixed(parts: Iterable[bytes]) -> bytes:
    return MIXED + b"".join(parts) + b"--b--\r\n"


def attached(content: bytes, name: bytes = b"facture.pdf") -> bytes:
    """A part as good mailers write it."""
    text = base64.b64encode(content)
    body = b"\r\n".join(text[at : at + 76] for at in range(0, len(text), 76))
    head = b"Content-Type: application/octet-stream\r\nContent-Disposition: attachment; filename=" + name + b"\r\n"
    return leaf(head + BASE64, body)


# --- the innocent ones ----------------------------------------------------------------------------------------------


def one_large_pdf() -> bytes:
    """All in one part, more than is accepted of a document: every byte of it is read all the same."""
    return mixed([attached(d.pdf_of_size(FULL * 37 // 50))])


def many_pdfs() -> bytes:
    """As many documents as a mail may have, of 190 kB."""
    pdf = attached(d.pdf_of_size(FULL // 263))
    return mixed([pdf] * 190)


def uuencoded() -> bytes:
    line = b"M" + b"86)C" * 15 + b"\r\n"
    front = TOP + b"Content-Type: application/pdf; name=a.pdf\r\nContent-Transfer-Encoding: x-uuencode\r\n\r\n"
    return filled(front + b"begin 644 a.pdf\r\n", line, back=b"`\r\nend\r\n")


INNOCENT: dict[str, Callable[[], bytes]] = {
    "one PDF": one_large_pdf,
    "190 PDFs": many_pdfs,
    "one PDF, uuencoded": uuencoded,
}


# --- structure ------------------------------------------------------------------------------------------------------


@_bomb
def two_thousand_nested_parts() -> bytes:
    opened = [b'Content-Type: multipart/mixed; boundary="n%d"\r\n\r\n--n%d\r\n' % (n, n) for n in range(2000)]
    return TOP + b"".join(opened) + b"\r\nx\r\n" + b"".join(b"--n%d--\r\n" % n for n in range(1999, -1, -1))


@_bomb
def nested_parts_by_the_megabyte() -> bytes:
    return filled(TOP, b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n")


@_bomb
def a_hundred_thousand_boundaries() -> bytes:
    return MIXED + b"--b\r\n\r\n" * 100_000 + b"--b--\r\n"


@_bomb
def empty_parts_by_the_megabyte() -> bytes:
    return filled(MIXED, b"--b\r\n")


@_bomb
def closing_delimiters_by_the_megabyte() -> bytes:
    return filled(MIXED, b"--b--\r\n")


@_bomb
def lines_like_a_boundary() -> bytes:
    return filled(MIXED, b"--bb\r\n")


@_bomb
def lines_of_two_dashes() -> bytes:
    return filled(MIXED + b"--b\r\n\r\n", b"--\r\n")


@_bomb
def dashes_without_a_line_end() -> bytes:
    return filled(MIXED + b"--b\r\n\r\n", b"-" * 50)


@_bomb
def no_boundary_declared() -> bytes:
    return filled(TOP + b"Content-Type: multipart/mixed\r\n\r\n", b"-\r\n--\r\n")


@_bomb
def ten_thousand_boundaries_declared() -> bytes:
    fields = b"".join(b"Content-Type: multipart/x; boundary=%d\r\n" % n for n in range(6000))
    return filled(TOP + fields + b"\r\n", b"- \r\n" * 20_000)


@_bomb
def ten_levels_of_boundaries_declared() -> bytes:
    def fields(level: int) -> bytes:
        return b"".join(b"Content-Type: multipart/x; boundary=%d.%d\r\n" % (level, n) for n in range(5500))

    opened = b"".join(fields(level) + b"\r\n--%d.0\r\n" % level for level in range(9))
    return filled(TOP + opened, b"\r\n-\r\n--8.0\r\n" + fields(9) + b"\r\n--8.0\r\n")


@_bomb
def a_preamble_that_never_ends() -> bytes:
    return filled(MIXED, b"bla bla bla\r\n")


@_bomb
def an_epilogue_that_never_ends() -> bytes:
    return filled(mixed([leaf(b"", b"x")]), b"bla bla bla\r\n")


@_bomb
def messages_within_messages() -> bytes:
    return filled(TOP, b"Content-Type: message/rfc822\r\n\r\n")


@_bomb
def encoded_messages_within_messages() -> bytes:
    inside = mixed([attached(d.pdf_of_size(FULL * 28 // 100))])
    for _ in range(3):
        text = base64.b64encode(inside)
        lines = b"\r\n".join(text[at : at + 76] for at in range(0, len(text), 76))
        inside = TOP + b"Content-Type: message/rfc822\r\n" + BASE64 + b"\r\n" + lines + b"\r\n"
    return inside


@_bomb
def line_ends() -> bytes:
    return filled(TOP + b"\r\n", b"\r\n")


@_bomb
def lone_carriage_returns() -> bytes:
    return filled(TOP + b"\r\n", b"\r")


@_bomb
def lone_line_feeds() -> bytes:
    return filled(MIXED, b"\n")


# --- headers --------------------------------------------------------------------------------------------------------


@_bomb
def a_header_of_one_line() -> bytes:
    return TOP + b"X: " + b"x" * (BLOCK - 500) + b"\r\n\r\nx\r\n"


@_bomb
def a_header_that_never_ends() -> bytes:
    return filled(TOP + b"X: ", b"x" * 1000)


@_bomb
def fields_that_never_end() -> bytes:
    return filled(TOP, b"a:\r\n")


@_bomb
def a_hundred_thousand_fields() -> bytes:
    return TOP + b"a:\n" * (BLOCK // 3 - 200) + b"\r\nx\r\n"


@_bomb
def lines_that_are_no_fields() -> bytes:
    return TOP + b"x\na:\n" * (BLOCK // 5 - 200) + b"\r\nx\r\n"


@_bomb
def parts_of_nothing_but_fields() -> bytes:
    return mixed([leaf(b"a:\n" * (BLOCK // 3), b"x")] * (FULL // 262_000))


@_bomb
def parts_of_nothing_but_junk() -> bytes:
    return mixed([leaf(b"x\na:\n" * (BLOCK // 5), b"x")] * (FULL // 262_000))


@_bomb
def parts_of_content_fields() -> bytes:
    return mixed([leaf(b"Content-Type: a/b\n" * (BLOCK // 18), b"x")] * (FULL // 262_000))


@_bomb
def parts_of_nothing_but_folds() -> bytes:
    return mixed([leaf(b"Content-Type: text/plain" + b"\n " * (BLOCK // 2 - 20) + b"\n", b"x")] * (FULL // 262_000))


@_bomb
def twenty_thousand_recipients() -> bytes:
    return TOP + b"To: " + b",\r\n ".join(b"a%d@x" % n for n in range(20_000)) + b"\r\n\r\nx\r\n"


@_bomb
def twenty_thousand_long_recipients() -> bytes:
    to = b",\r\n ".join(b'"Client %d" <client.%d@cabinet.example>' % (n, n) for n in range(20_000))
    return mixed([attached(d.pdf())]).replace(b"To: b@welyb.fr", b"To: " + to)


HOSTILE_VALUES = {
    "quotes left open": b'"' + b"x" * BLOCK,
    "quotes and escapes": b'"\\' * (BLOCK // 2),
    "quotes": b'" ' * (BLOCK // 2),
    "comments left open": b"(" * BLOCK,
    "comments": b"(x)" * (BLOCK // 3),
    "comments of escapes": b"(" + b"\\(" * (BLOCK // 2),
    "comments of spaces": b" (" * (BLOCK // 2) + b")",
    "spaces": b"a" + b" " * BLOCK + b"=",
    "semicolons": b"a/b" + b";" * BLOCK,
    "equals": b"a/b;" + b"=" * BLOCK,
    "parameters": b"a/b;" + b"a=b;" * (BLOCK // 4),
    "parameters left open": b'a/b;a="' + b'";a="' * (BLOCK // 5),
    "parameters of spaces": b"a/b;" + b"a " * (BLOCK // 2),
    "boundaries": b"multipart/mixed;" + b"boundary=a;" * (BLOCK // 11),
    "continuations": b'a/b; name*0="x"' + b"".join(b';\r\n name*%d="y"' % n for n in range(1, 12_000)),
    "continuations encoded": b"a/b" + b"".join(b";name*%d*=%%41" % n for n in range(13_000)),
    "percent signs": b"a/b;name*=utf-8''" + b"%41" * (BLOCK // 3 - 10),
    "encoded words": b"a/b;name=" + b"=?utf-8?q?=41?=" * (BLOCK // 15 - 2),
    "encoded words left open": b"a/b;name=" + b"=?utf-8?q?" * (BLOCK // 10 - 2),
    "encoded words of unknown sets": b'a/b;name="' + b"".join(b"=?cp%d?b?w6k=?=" % n for n in range(15_000)) + b'"',
    "encoded words of lookalike sets": b'a/b;name="' + b"".join(b"=?utf%dx?q?=e9?=" % n for n in range(13_000)) + b'"',
    "accents": b"a/b;name=" + b"\xcc\x81\xcc\xa3" * (BLOCK // 4 - 5),
}
FIELDS = (b"Content-Type", b"Content-Disposition", b"Content-Transfer-Encoding", b"Content-ID")


def _of_value(value: bytes) -> Callable[[], bytes]:
    """The same value in all fields that are read, for the whole mail and for its parts."""

    def make() -> bytes:
        block = b"Content-Disposition: " + value + b"\r\n"
        heads = [b"Subject: ", b"From: factures-meg.fr ", b"Message-ID: "]
        top = b"".join(head + value[: BLOCK // 3 - 100] + b"\r\n" for head in heads)
        parts = [leaf(name + block[len(FIELDS[1]) :], b"x") for name in FIELDS]
        return (
            top
            + b"MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
            + b"".join(parts * (FULL // 1_050_000))
        )

    return make


for _name, _value in HOSTILE_VALUES.items():
    BOMBS[f"header: {_name}"] = _of_value(_value)


# --- encodings ------------------------------------------------------------------------------------------------------


def _encoded(encoding: bytes, unit: bytes, *, begin: bytes = b"") -> Callable[[], bytes]:
    head = TOP + b"Content-Type: application/pdf; name=a.pdf\r\nContent-Transfer-Encoding: " + encoding + b"\r\n\r\n"
    return lambda: filled(head + begin, unit)


BOMBS |= {
    "base64: padding alone": _encoded(b"base64", b"=" * 76 + b"\r\n"),
    "base64: padding after each": _encoded(b"base64", b"QUI=" * 19 + b"\r\n"),
    "base64: short pieces": _encoded(b"base64", b"QQ=" * 25 + b"\r\n"),
    "base64: junk after each": _encoded(b"base64", b"Q-U-J-D-" * 9 + b"\r\n"),
    "base64: lines of one": _encoded(b"base64", b"Q\r\n"),
    "base64: odd lines": _encoded(b"base64", b"QUJDQUJDQU\r\nQUJD\r\n"),
    "base64: one line": _encoded(b"base64", b"QUJD" * 1000),
    "quoted: equals signs": _encoded(b"quoted-printable", b"=" * 76 + b"\r\n"),
    "quoted: soft breaks": _encoded(b"quoted-printable", b"=\r\n"),
    "quoted: doubled breaks": _encoded(b"quoted-printable", b"==\r\n"),
    "quoted: lone returns": _encoded(b"quoted-printable", b"====\r"),
    "quoted: spaces": _encoded(b"quoted-printable", b" " * 76 + b"\r\n"),
    "quoted: one line of spaces": _encoded(b"quoted-printable", b" \t" * 1000),
    "quoted: every byte": _encoded(b"quoted-printable", b"=41" * 25 + b"=\r\n"),
    "uuencode: short lines": _encoded(b"uuencode", b"#86)C\r\n", begin=b"begin 644 a\r\n"),
    "uuencode: empty lines": _encoded(b"uuencode", b"`\n", begin=b"begin 644 a\r\n"),
    "uuencode: blank lines": _encoded(b"uuencode", b"\n", begin=b"begin 644 a\r\n"),
    "uuencode: never begun": _encoded(b"uuencode", b"x\n"),
    "uuencode: begun again": _encoded(b"uuencode", b"end\nbegin 644 a\n", begin=b"begin 644 a\r\n"),
    "uuencode: bad lines": _encoded(b"uuencode", b"M\x7f\x7f\n", begin=b"begin 644 a\r\n"),
}


# --- HTML, XML, text ------------------------------------------------------------------------------------------------


def _leaves(kind: bytes, content: bytes) -> bytes:
    each = leaf(b"Content-Type: " + kind + b"\r\n", content)
    return mixed([each] * min(190, FULL // len(each)))


@_bomb
def html_full_of_cids() -> bytes:
    return _leaves(b"text/html", b"cid:a " * (1 << 20 >> 2))


@_bomb
def html_of_distinct_cids() -> bytes:
    return _leaves(b"text/html", b"".join(b"cid:%d " % n for n in range(100_000)))


@_bomb
def html_of_long_cids() -> bytes:
    return _leaves(b"text/html", (b"cid:" + b"&#1;" * 249 + b" ") * 1000)


@_bomb
def html_of_entities_all_alike() -> bytes:
    lines = [b"cid:" + b"&#%d;" % n + b"&#1;" * 248 + b" " for n in range(1, 9)]
    return _leaves(b"text/html", b"".join(lines) * 120)


for _label, _unit in {
    "brackets": b"[" * 64,
    "json": b'{"a":' * 13,
    "json strings": b'["\\u0041","',
    "commas": b"a,b,c\n",
    "markup": b"<a b='c'>",
    "html": b"<!-- ",
    "shell": b"#!/bin/sh\n",
    "pdf marks": b"%PDF-",
    "nothing": b"\0" * 64,
    "latin": b"\xe9t\xe9 ",
    "mail": b"From: a\nReceived: b\n",
    "tex": b"\\begin{a}",
    "troff": b'.\\"\n.TH\n',
    "m4": b"dnl \ndivert(\n",
    "C": b"#include <a>\nint main(){\n",
    "ends of archives": b"PK\5\6",
    "local headers": b"PK\3\4",
    "encryption": b"/Encrypt ",
}.items():
    BOMBS[f"documents: {_label}"] = lambda unit=_unit: _leaves(  # type: ignore[misc]  # a default binds the value
        b"application/octet-stream; name=a", b"x" * (unit == b"PK\5\6") + unit * (256_000 // len(unit))
    )


@_bomb
def xml_entities() -> bytes:
    return _leaves(b"application/xml; name=a.xml", d.entity_bomb() * 70)


@_bomb
def xml_attributes() -> bytes:
    attributes = b"".join(b" a%d='b'" % n for n in range(6000))
    return _leaves(b"application/xml; name=a.xml", b"<Invoice" + attributes + b"/>" + b" " * 200_000)


@_bomb
def xml_doctype() -> bytes:
    return _leaves(b"application/xml; name=a.xml", b"<!DOCTYPE a [" + b"<!ELEMENT b (c,d)>" * 14_000)


# --- ZIP ------------------------------------------------------------------------------------------------------------


def _archives(*archives: bytes) -> bytes:
    """As many of them as a mail holds, in turn."""
    parts = [attached(archive, b"a.docx") for archive in archives]
    size, taken = len(MIXED), []
    for n in range(190):
        size += len(parts[n % len(parts)])
        if size > FULL:
            break
        taken.append(parts[n % len(parts)])
    return mixed(taken)


def entries(count: int, *, packed: int = 0, size: int = 0, offset: int = 0, said: int | None = None) -> bytes:
    """A directory of `count` entries alone, all of one local header, and what its end says of it."""
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    one = struct.pack("<4s6H3I5H2I", b"PK\1\2", *(0,) * 6, 0, packed, size, 1, 0, 0, 0, 0, 0, offset) + b"a"
    said = count if said is None else said
    end = struct.pack("<4s4HIIH", b"PK\5\6", 0, 0, said & 0xFFFF, said & 0xFFFF, len(one) * count, len(local), 0)
    return local + one * count + end


@_bomb
def zip_of_65535_entries() -> bytes:
    return _archives(entries(65_535))


@_bomb
def zips_of_9999_entries() -> bytes:
    return _archives(entries(9_999))


@_bomb
def zip_of_four_gigabytes() -> bytes:
    return _archives(entries(1000, packed=0xFFFFFFFE, size=0xFFFFFFFE, offset=0xFFFFFFFE))


@_bomb
def zip64_that_lies() -> bytes:
    archive = bytearray(d.zip64(d.docx()))
    at = archive.rfind(b"PK\6\6")
    lies = []
    for count, length, offset in ((2**64 - 1,) * 3, (2**63, 46, 2**63), (0, 0, 0), (1, 2**40, 0)):
        lie = bytearray(archive)
        lie[at + 24 : at + 56] = struct.pack("<QQQQ", count, count, length, offset)[:32]
        lies.append(bytes(lie) + b"")
    return _archives(*lies)


@_bomb
def zip_of_many_ends() -> bytes:
    tail = b"".join(b"PK\5\6" + bytes(16) + struct.pack("<H", 22 * n) for n in range(2900, -1, -1))
    return _archives(b"PK\3\4" + tail)


def _office(extra: dict[str, bytes], *, types: bytes = b"", relations: bytes = b"") -> bytes:
    parts = dict(d.docx_parts())
    parts["[Content_Types].xml"] = parts["[Content_Types].xml"].replace(b"</Types>", types + b"</Types>")
    parts["_rels/.rels"] = parts["_rels/.rels"].replace(b"</Relationships>", relations + b"</Relationships>")
    return d.zip_of({**parts, **extra})


@_bomb
def office_of_ten_thousand_parts() -> bytes:
    return _archives(d.zip_of({**d.docx_parts(), **{f"w/{n}": b"" for n in range(9_900)}}, stored=True))


@_bomb
def office_of_ten_thousand_packed_parts() -> bytes:
    return _archives(d.zip_of({**d.docx_parts(), **{f"w/{n}": b"xxxxxxxx" for n in range(9_900)}}))


@_bomb
def office_of_types_and_relations() -> bytes:
    relation = b'<Relationship Type="/officeDocument" Target="x"/>'
    parts = dict(d.docx_parts())
    parts["_rels/.rels"] = b"<Relationships>" + relation * 5000 + b"</Relationships>"
    parts["[Content_Types].xml"] = b"<Types>" + b"<Default/>" * 25_000 + b"</Types>"
    return _archives(d.zip_of(parts))


@_bomb
def office_of_elements() -> bytes:
    return _archives(_office({}, types=b"<a/>" * 64_000, relations=b"<a/>" * 64_000))


@_bomb
def office_of_entities() -> bytes:
    parts = dict(d.docx_parts())
    parts["[Content_Types].xml"] = d.entity_bomb()
    return _archives(d.zip_of(parts))


@_bomb
def office_within_office() -> bytes:
    inside = d.docx()
    for _ in range(50):
        inside = _office({"word/embeddings/a.docx": inside})
    return _archives(inside)


@_bomb
def office_of_packed_workbooks() -> bytes:
    book = d.zip_of({**d.xlsx_parts(), "xl/media/a.emf": bytes(11 << 20)}, stored=True)
    return _archives(d.zip_of({**d.pptx_parts(), **{f"ppt/embeddings/{n}.xlsx": book for n in range(4)}}))


@_bomb
def office_whose_members_overlap() -> bytes:
    """One kernel of zeros that every member claims."""
    kernel = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = kernel.compress(bytes(20_000_000)) + kernel.flush()
    base = d.docx()
    end = base.rfind(b"PK\5\6")
    count, length, offset = struct.unpack("<HII", base[end + 10 : end + 20])
    one = (
        struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, 0, len(packed), 20_000_000, 1, 0, 0, 0, 0, 0, 0)
        + b"a"
    )
    directory = base[offset : offset + length] + one * 9_000
    total = count + 9_000
    return _archives(
        base[:offset] + directory + struct.pack("<4s4HIIH", b"PK\5\6", 0, 0, total, total, len(directory), offset, 0)
    )


@_bomb
def old_office_that_turns_in_circles() -> bytes:
    data = bytearray(d.old_xls())
    sector = struct.unpack_from("<I", data, 48)[0]
    fat = struct.unpack_from("<I", data, 76)[0]
    struct.pack_into("<I", data, ((fat + 1) << 9) + sector * 4, sector)
    return _archives(bytes(data).ljust(100_000, b"\0"))


@_bomb
def office_of_everything_at_its_limit() -> bytes:
    """As many parts as bytes allow, each listed as often as the parts allow."""
    parts = dict(d.docx_parts())
    parts["[Content_Types].xml"] = (
        b"<Types>" + b"<Override PartName='a' ContentType='b'/>".ljust(62) * 4_200 + b"</Types>"
    )
    members = {f"w/{n}": b"x" * 56 for n in range(1_200)}
    return _archives(d.zip_of({**parts, **members}, stored=True), d.zip_of({**parts, **members}))


def _from(value: bytes) -> Callable[[], bytes]:
    """In the field whose author is asked for, since it names an application."""
    return lambda: mixed([attached(d.pdf())]).replace(b"From: a@", b"From: factures-meg.fr " + value + b" a@")


if LONG:
    BOMBS |= {f"author: {name}": _from(value[:200_000]) for name, value in HOSTILE_VALUES.items()}
RECURSIVE = {"comments": _from(b"(a" * 1500 + b")" * 1500), "groups": _from(b"a:" * 3000)}
