"""One invariant sentence per promise of the scanner: it agrees with the standard library on mail that is well formed,
its result depends on the bytes and not on the chunks, and what it says of a part is what `decoded` reads again."""

import re
from binascii import b2a_base64, b2a_qp, b2a_uu
from collections.abc import Iterator
from dataclasses import dataclass
from email import policy
from email.message import Message as EmailMessage
from email.parser import BytesParser
from hashlib import sha256

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from relay import encodings, entity
from relay.encodings import Decoder, Encoding
from relay.mime import Limits, Message, Scanner, decoded
from rules.names import parameters
from tests.support.effort import examples

ROOMY = Limits(depth=100, message_depth=100, quantum=1)
Leaves = list[tuple[str, bytes]]  # type, content

# --- mail that is well formed, and what is in it --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Built:
    """An entity as bytes, and its leaves."""

    data: bytes
    leaves: Leaves


def _safe_lines(data: bytes) -> bytes:
    return re.sub(rb"(?m)^-", b"=2D", data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))


def _uu(content: bytes) -> bytes:
    lines = [b2a_uu(content[i : i + 45]) for i in range(0, len(content), 45)]
    return b"begin 644 a\n" + b"".join(lines) + b"`\nend\n"


def _base64(content: bytes, width: int) -> bytes:
    line = b2a_base64(content, newline=False)
    return b"\r\n".join(line[i : i + width] for i in range(0, len(line), width))


contents = st.binary(max_size=200) | st.integers(200, 3000).map(lambda n: sha256(b"%d" % n).digest() * (n // 32))
text_lines = st.lists(
    st.sampled_from([b"", b"Bonjour,", b" - x", b"=41 =", b"caf\xc3\xa9", b".", b"From a"]), max_size=6
)
types = st.sampled_from(["application/pdf", "text/plain", "text/html", "image/png", "Application/XML", "x/y"])
encoded_by = st.sampled_from(["Base64", "base64", "quoted-printable", "x-uuencode", "8bit", "7bit", ""])


@st.composite
def leaf(draw: st.DrawFn) -> Built:
    kind, encoding = draw(types), draw(encoded_by)
    if encoding.lower() == "base64":
        content = draw(contents)
        body = _base64(content, draw(st.sampled_from([4, 60, 72, 75, 76]))) + draw(st.sampled_from([b"", b"\r\n"]))
    elif encoding == "quoted-printable":
        content = draw(contents)
        body = _safe_lines(b2a_qp(content, istext=False))
    elif encoding == "x-uuencode":
        content = draw(contents.filter(bool))
        body = _uu(content).replace(b"\n", b"\r\n")
    else:
        content = body = b"\r\n".join(draw(text_lines))
    head = f"Content-Type: {kind}; name=a\r\n"
    head += f"Content-Transfer-Encoding: {encoding}\r\n" if encoding else ""
    return Built(head.encode() + b"\r\n" + body, [(kind.lower(), content)])


boundaries = st.sampled_from(["b{}", "{}", "b {}", "=_x{}", "b'()+_,-./:=?{}", "----=_Part_{}_", "b-{}-", "{}{}{}"])


@st.composite
def multipart(draw: st.DrawFn, children: st.SearchStrategy[Built]) -> Built:
    parts = draw(st.lists(children, min_size=1, max_size=3))
    subtype = draw(st.sampled_from(["mixed", "related", "alternative", "report", "signed"]))
    taken = b"".join(part.data for part in parts)
    serial = draw(st.integers(0, 99))
    style = draw(boundaries)
    # Of each form there are prefixes of another, but no two are equal.
    while (boundary := style.replace("{}", str(serial)).encode()) and re.search(
        rb'boundary="' + re.escape(boundary) + rb'"', taken
    ):
        serial += 1
    white = draw(st.sampled_from([b"", b" ", b" \t"]))
    lines = [draw(st.sampled_from([b"", b"Preamble\r\n"]))]
    lines += [b"--" + boundary + white + b"\r\n" + part.data + b"\r\n" for part in parts]
    lines += [b"--" + boundary + b"--" + white, draw(st.sampled_from([b"", b"\r\n", b"\r\nEpilogue\r\n"]))]
    head = b'Content-Type: multipart/%s;\r\n boundary="%s"\r\n\r\n' % (subtype.encode(), boundary)
    leaves = [leaf for part in parts for leaf in part.leaves]
    return Built(head + b"".join(lines), leaves)


@st.composite
def attached(draw: st.DrawFn, children: st.SearchStrategy[Built], encodings: tuple[str, ...]) -> Built:
    inner = draw(children)
    message = b"Received: from a by b\r\nSubject: =?utf-8?q?=C3=A9?=\r\n" + inner.data
    encoding = draw(st.sampled_from(encodings))
    if encoding == "7bit":
        body = message
    elif encoding == "base64":
        body = _base64(message, 76)
    else:
        body = _safe_lines(b2a_qp(message, istext=False))
    head = f"Content-Type: message/rfc822\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n"
    return Built(head.encode() + body, inner.leaves)


def messages_of(*encodings: str) -> st.SearchStrategy[Built]:
    """Those attached to others in one of these encodings."""
    return st.recursive(leaf(), lambda inner: multipart(inner) | attached(inner, encodings), max_leaves=6)


messages = messages_of("7bit", "base64", "quoted-printable")


def scan(data: bytes, cuts: list[int], limits: Limits = ROOMY) -> Message:
    scanner, start = Scanner(limits), 0
    for cut in sorted(cut % (len(data) + 1) for cut in cuts):
        scanner.feed(data[start:cut])
        start = cut
    scanner.feed(data[start:])
    return scanner.close()


def read_again(data: bytes, message: Message) -> list[bytes]:
    return [b"".join(decoded(lambda o, n: data[o : o + n], part.spans, chunk=97)) for part in message.parts]


cuts = st.lists(st.integers(0, 1 << 20), max_size=12)


@given(messages, cuts)
@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.too_slow])
def test_well_formed_mail_has_the_leaves_it_was_built_of(built: Built, cuts: list[int]) -> None:
    message = scan(built.data, cuts)
    contents = read_again(built.data, message)
    assert [(p.leaf.type, c) for p, c in zip(message.parts, contents, strict=True)] == built.leaves
    assert message.problem is None
    assert message.defects == ()
    assert not message.bare_newline


@given(messages_of("7bit"), cuts)
@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.too_slow])
def test_well_formed_mail_has_the_leaves_the_standard_library_finds(built: Built, cuts: list[int]) -> None:
    parsed = BytesParser(policy=policy.compat32).parsebytes(built.data)
    found = [(p.get_content_type(), p.get_payload(decode=True)) for p in parsed.walk() if not p.is_multipart()]
    message = scan(built.data, cuts)
    assert [(p.leaf.type, c) for p, c in zip(message.parts, read_again(built.data, message), strict=True)] == found


# --- mail that is not -----------------------------------------------------------------------------------------------

SHARDS = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"--",
    b"\r\n--b1\r\n",
    b"\n--b1--\n",
    b"=",
    b"==",
    b":",
    b" ",
    b"\xff",
    b'"',
]
SHARDS += [b"\r\n--", b"begin 644 x\r\n", b"Content-Type: message/rfc822\r\n\r\n", b"junk\r\n", b"X: y\r\n", b"=\r"]
SHARDS += [b"\r\nContent-Type: multipart/mixed\r\n\r\n--q\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n"]
SHARDS += [
    b"--b1" + b" " * 5000 + b"\r\n",
    b"y" * 2500,
    b"A" * 76 + b"\r\n",
    b"a:" + b"b" * 3000,
    b"From x\r\n",
    b"%PDF",
]
edits = st.lists(
    st.tuples(st.integers(0, 1 << 20), st.integers(0, 60), st.sampled_from(SHARDS) | st.binary(max_size=4)),
    max_size=7,
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = draw(messages).data
    for at, removed, added in draw(edits):
        at %= len(data) + 1
        data = data[:at] + added + data[at + removed :]
    return data


TIGHT = Limits(header_block=2500, parts=3, depth=2, message_depth=1, quantum=1)


@given(damaged() | st.lists(st.sampled_from(SHARDS), max_size=30).map(b"".join), cuts, st.sampled_from([ROOMY, TIGHT]))
@example(b"--", [1], ROOMY)
@settings(max_examples=examples(600), suppress_health_check=[HealthCheck.too_slow])
def test_the_result_depends_on_the_bytes_and_not_on_the_chunks(data: bytes, cuts: list[int], limits: Limits) -> None:
    whole = scan(data, [], limits)
    assert scan(data, cuts, limits) == whole
    assert scan(data, list(range(0, min(len(data), 300))), limits) == whole


@given(damaged(), st.sampled_from([ROOMY, TIGHT]))
@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.too_slow])
def test_what_is_said_of_a_part_is_what_can_be_read_again(data: bytes, limits: Limits) -> None:
    message = scan(data, [], limits)
    assert message.size == len(data)
    assert len(message.parts) <= limits.parts
    for part, content in zip(message.parts, read_again(data, message), strict=True):
        assert (part.size, part.sha256) == (len(content), sha256(content).hexdigest())
        assert part.head == content[: 64 * 1024]
        assert part.tail == content[-len(part.tail) :] if part.tail else not content
        assert len(part.tail) == len(content) or len(part.tail) >= 65_557


@given(damaged())
@settings(max_examples=examples(200), suppress_health_check=[HealthCheck.too_slow])
def test_bytes_over_7f_and_lone_line_ends_are_seen_wherever_they_are(data: bytes) -> None:
    message = scan(data, [len(data) // 3, len(data) // 2])
    assert message.eight_bit == any(byte > 0x7F for byte in data)
    assert message.bare_newline == bool(re.search(rb"\r(?!\n)|(?<!\r)\n", data))


MESSAGES = ("message/rfc822", "message/global", "message/news")


def documents_found(message: EmailMessage, encoding: str = "") -> Iterator[bytes]:
    """What the standard library takes for a document. It does not open an encoded message, so neither is it asked to.

    It opens any message/… as a mail; RFC 2046 §5.2.4 has what nobody knows as an octet-stream, which is one document.
    Of uuencode with a blank line in it, it gives back the text undecoded; we read on.
    """
    if message.get_content_maintype() == "message" and message.get_content_type() not in MESSAGES:
        return
    for child in message.get_payload() if message.is_multipart() else ():
        if message.get_content_maintype() == "multipart" or encoding_said(message) == "identity":
            yield from documents_found(child)
    if not message.is_multipart() and message.get_content_maintype() in ("application", "image"):
        content = message.get_payload(decode=True) or b""
        if not (encoding_said(message) == "uuencode" and content.lstrip().startswith(b"begin ")):
            yield content


def encoding_said(message: EmailMessage) -> str | None:
    return encodings.encoding_of(str(message.get("content-transfer-encoding", "")).encode("latin-1", "replace"))


UNKNOWN_MESSAGE = (
    b"Content-Type: message/=rfc822\r\n\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"
    b"--b\r\nContent-Type: application/pdf\r\n\r\n.\r\n--b--"
)


BLANK_LINE = b"Content-Type: image/png\r\nContent-Transfer-Encoding: x-uuencode\r\n\r\n" + _uu(
    bytes(range(90))
).replace(b"\nM", b"\n\nM").replace(b"\n", b"\r\n")


@example(UNKNOWN_MESSAGE)
@example(BLANK_LINE)
@given(damaged())
@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.too_slow])
def test_no_document_that_the_standard_library_finds_is_missed_without_a_word(data: bytes) -> None:
    message = scan(data, [])
    if message.problem or message.defects or message.bare_newline:
        return
    ours = {content.strip() for content in read_again(data, message)}
    parsed = BytesParser(policy=policy.compat32).parsebytes(data)
    assert {found.strip() for found in documents_found(parsed)} <= ours | {b""}


noise = st.lists(
    st.sampled_from([*SHARDS, b"QUJD", b"QQ", b"=4", b"=41", b"M", b"#86)C\n", b"`\n", b"end\n"]), max_size=40
)


@given(noise.map(b"".join), cuts, st.sampled_from(["identity", "base64", "quoted-printable", "uuencode"]))
@settings(max_examples=examples(500))
def test_a_decoder_gives_the_same_content_and_defects_for_any_cut(data: bytes, cuts: list[int], name: Encoding) -> None:
    whole, pieces = Decoder(name), Decoder(name)
    expected = whole.feed(data) + whole.close()
    found, start = [], 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        found.append(pieces.feed(data[start:cut]))
        start = cut
    found.append(pieces.close())
    assert (b"".join(found), pieces.defects) == (expected, whole.defects)


@given(st.binary(min_size=500, max_size=4000), st.integers(1, 30), st.integers(0, 3000), st.binary(max_size=2))
def test_regular_lines_are_claimed_only_where_the_slow_way_finds_the_same(
    content: bytes, quanta: int, at: int, added: bytes
) -> None:
    lines = _base64(content, quanta * 4)
    at %= len(lines) + 1
    for data in (lines, lines[:at] + added + lines[at + len(added) :], lines[:at] + added + lines[at:]):
        claimed, stop = Decoder("base64").regular(data, 0, len(data))
        slow = Decoder("base64")
        if claimed:
            assert claimed == slow.feed(data[:stop])
            assert not slow.defects and not re.search(rb"[^A-Za-z0-9+/\r\n]|\r(?!\n)|(?<!\r)\n", data[:stop])


ends = st.lists(st.sampled_from([b"QUJD", b"QQ==", b"QUI=", b"QR==", b"=", b"Q", b"-", b"QUJD" * 40]), max_size=12)


@given(ends.map(b"".join).filter(lambda text: b"=" in text))
@example(b"QUJDQQ==")
@example(b"QR==")
def test_the_usual_end_of_base64_is_read_as_the_generous_way_reads_it(text: bytes) -> None:
    usual, generous = encodings._Base64(), encodings._Base64()
    assert usual._end(text) == generous._generous(text)
    assert vars(usual) == vars(generous)


# --- the short ways through header blocks ----------------------------------------------------------------------------

LINES = [b"A: b\r\n", b"\t fold\r\n", b" \r\n", b"--b1\r\n", b"--b1: x\r\n", b"-x: y\r\n", b"junk\r\n", b"From x\r\n"]
LINES += [b"\r\n", b"\n", b"\r", b"a b: c\n", b"Content-Type : text/plain\n", b":\n", b"caf\xc3\xa9: x\r\n"]
LINES += [b"x" * 201 + b": y\r\n", b"x" * 200 + b": y\r\n", b"a" + b" " * 201 + b": z\r\n", b"http://x\r\n"]


@given(st.lists(st.sampled_from(LINES), max_size=8).map(b"".join), st.lists(st.sampled_from(LINES), max_size=2))
@example(b"A: b\r\n\r\n", [])
def test_a_plain_block_is_what_the_long_way_would_find(block: bytes, before: list[bytes]) -> None:
    start = len(b"".join(before))
    data = b"".join(before) + block
    found = entity.plain_block(data, start)
    if found is None:
        return
    end, stop = found
    assert end == entity.block_end(data, start) and stop == entity.blank_end(data, end) > end
    assert not entity.is_undecided(data, end) and not entity.has_junk(data[start:end])
    assert b"\n--" not in b"\n" + data[start:end]


WORDS = [
    b"Content-Type: ",
    b"Content-Disposition: ",
    b"text/plain",
    b"attachment",
    b"; charset=utf-8",
    b"\r\n",
    b"\r\n ",
]
WORDS += [b"Content-Transfer-Encoding: base64\r\n", b"; Name=a", b"; boundary=b"]


@given(st.lists(st.sampled_from(WORDS), max_size=8).map(b"".join), st.sampled_from(["text/plain", "message/rfc822"]))
def test_what_is_remembered_of_a_block_is_what_it_says(block: bytes, default_type: str) -> None:
    said = entity.entity(entity.content_fields(block), default_type)
    assert entity.described(block, default_type) == said == entity.described(block, default_type)


PIECES = [
    b"application/pdf",
    b";",
    b"; ",
    b";\r\n\t",
    b"name",
    b"=",
    b'"',
    b"\\",
    b"(c)",
    b" ",
    b"a.pdf",
    b"\xe9",
    b"\r",
    b"\x0b",
]


@given(st.lists(st.sampled_from(PIECES), max_size=10).map(b"".join) | st.binary(max_size=20))
@example(b' a/b;\r\n\tname="x y.pdf" ')
@example(b'";application/pdf="')  # its quotes are no pair: the second begins a value
def test_one_quoted_parameter_is_read_as_the_long_way_reads_it(value: bytes) -> None:
    # A semicolon behind it says nothing more, and is not what the short way knows.
    if re.fullmatch(rb'[^"]*="[^"]*"\s*', value) and b"\\" not in value:
        assert parameters(value) == parameters(value + b";")
