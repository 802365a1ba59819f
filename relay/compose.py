"""What leaves: a mail as it came with our fields on top, a deposit as a new message, a report of failure.

Knows alone: which fields we write, and that no outward text names a partner or a collector (domain.md S4).
Everything is a function of its arguments, ids and dates among them, so that every retry is the same octets.
Limits: bodies are never held: a relayed one is not looked at, a document passes through `encode_base64` in chunks.
Texts and names are cleaned here; addresses, ids and media types must be sound already: ValueError otherwise.
Over 400 lines because all that leaves with our name on it is told in one place.
"""

import base64
import binascii
import hashlib
import re
import struct
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from ipaddress import ip_address
from urllib.parse import quote

import pybase64

from relay.sign import FIELD_VALUE
from rules.replies import to_ascii

LOOP_HEADER = "X-Welyb-Relay"  # a mail that bears it with our domain has been here before

# ---
# A mail as it came


@dataclass(frozen=True, slots=True)
class Received:
    """How a mail came to us. `hostname` and `domain` are ours."""

    hostname: str
    domain: str
    helo: str
    peer: str  # IP address
    protocol: str  # RFC 3848: "ESMTP", "ESMTPS", "ESMTPSA", …
    id: str
    at: datetime  # with zone
    tls: str = ""  # "TLSv1.3"
    results: str = ""  # value of our Authentication-Results, folded; "" = none


def relayed(block: bytes, received: Received) -> bytes:
    """The header block that leaves for the one that came: our trace and loop field, then the original octets.

    `block` reaches to its empty line, inclusive. The only thing dropped is an Authentication-Results bearing our name:
    a reader would take it for ours (RFC 8601 §5). An ARC-Authentication-Results stays, whoever it names: it is believed for
    its seal alone, and without it the whole chain would break (RFC 8617 §5.2).
    """
    results = _field("Authentication-Results", received.results) if received.results else b""
    ours = results + _trace(received) + _field(LOOP_HEADER, received.domain)
    return ours + (_without_forged(block, {received.hostname.lower(), received.domain.lower()}) or b"\r\n")


def needs_final_crlf(tail: bytes) -> bool:
    """Does a message that ends in `tail` lack the CRLF that must stand before the final dot?"""
    return not tail.endswith(b"\r\n")


def _trace(received: Received) -> bytes:
    # RFC 5321 §4.4. No "for": it would tell each reader a collector's address.
    helo = received.helo if re.fullmatch(r"[A-Za-z0-9._:\[\]-]{1,255}", received.helo) else "unknown"
    address = ip_address(received.peer)
    peer = f"[IPv6:{address}]" if address.version == 6 else f"[{address}]"
    secured = f" ({_token(received.tls)})" if received.tls else ""
    return _field(
        "Received",
        f"from {helo} ({peer}){secured}\r\n\tby {_token(received.hostname)} with {_token(received.protocol)}"
        f" id {_token(received.id)};\r\n\t{format_datetime(received.at)}",
    )


_RESULTS = re.compile(rb"(?mi)^authentication-results[ \t]*:(" + FIELD_VALUE + rb")")
# A generous reader allows blanks around the dots, and a version after a slash.
_WORD = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|((?:[^\s;/."]+|\s*\.\s*)*))')


def _without_forged(block: bytes, names: set[str]) -> bytes:
    return _RESULTS.sub(lambda match: b"" if _authserv_id(match[1]) in names else match[0], block)


def _authserv_id(value: bytes) -> str:
    """The first word of an Authentication-Results, comments, blanks and quotes aside, as a generous reader would read it."""
    word = _WORD.match(_without_comments(value.decode("latin-1")))
    quoted, plain = word.groups() if word else (None, "")
    name = re.sub(r"\\(.)", r"\1", quoted).strip() if quoted is not None else "".join(plain.split())
    return name.rstrip(".").lower()


_LEXEME = re.compile(r'"(?:[^"\\]|\\.)*"|\\.|[();]|[^"\\();]+|.', re.DOTALL)


def _without_comments(text: str) -> str:
    """What stands before the first semicolon, a blank for each comment."""
    kept: list[str] = []
    depth = 0
    for lexeme in map(re.Match.group, _LEXEME.finditer(text)):
        if lexeme == "(":
            depth += 1
        elif lexeme == ")" and depth:
            depth -= 1
            kept.append(" ")
        elif lexeme == ";" and not depth:
            break
        elif not depth:
            kept.append(lexeme)
    return "".join(kept)


# ---
# A document in a message of ours: a deposit, or those of a mail


@dataclass(frozen=True, slots=True)
class Enclosed:
    """The document: its name as people know it, its media type, its decoded size in octets."""

    id: str
    name: str
    type: str
    size: int
    sha256: str


MAX_NAME = 255  # octets: what a file system allows, and what fits a line of 998 (RFC 5322 §2.1.1) percent-encoded
TEXT = "Bonjour,\n\nVeuillez trouver ci-joint le document « {name} ».\n\n{sender_name}\n"


@dataclass(frozen=True, slots=True)
class Letter:
    """`text` may hold {name} and {sender_name}."""

    sender: str
    sender_name: str
    recipient: str
    message_id: str  # with its angle brackets
    date: datetime
    domain: str
    text: str = TEXT


@dataclass(frozen=True, slots=True)
class Composed:
    """The message is `header`, `part`, the document by `encode_base64`, `closing`. `part` begins the body."""

    header: bytes
    part: bytes
    closing: bytes
    size: int


def deposit(document: Enclosed, letter: Letter) -> Composed:
    """The new message that carries one deposited document."""
    boundary = _boundary("deposit", document.id)
    name = _name(document)
    header = b"".join(
        (
            *_heading(letter, name),
            *_identity(document),
            _field("Auto-Submitted", "auto-generated"),  # RFC 3834 §5
            *_mime("multipart/mixed", boundary),
        )
    )
    text = _text_part(boundary, _text(letter, name))
    part = text + _open_part(boundary, *_attachment(document.type, name))
    closing = _close(boundary)
    return Composed(header, part, closing, len(header) + len(part) + encoded_size(document.size) + len(closing))


MAX_SUBJECT = 500


@dataclass(frozen=True, slots=True)
class Bundle:
    """The message is `header`, then each of `parts` with its document by `encode_base64`, then `closing`."""

    header: bytes
    parts: tuple[bytes, ...]
    closing: bytes
    size: int


def bundle(documents: Sequence[Enclosed], letter: Letter, subject: str) -> Bundle:
    """The new message that carries the documents of a mail, at least one, under the subject of that mail."""
    boundary = _boundary("bundle", letter.message_id)
    names = [_name(document) for document in documents]
    header = b"".join(
        (
            *_heading(letter, _clean(subject)[:MAX_SUBJECT] or names[0]),
            _field("Auto-Submitted", "auto-generated"),
            *_mime("multipart/mixed", boundary),
        )
    )
    parts = [
        b"\r\n" + _open_part(boundary, *_identity(document), *_attachment(document.type, name))
        for document, name in zip(documents, names, strict=True)
    ]
    parts[0] = _text_part(boundary, _text(letter, ", ".join(names))) + parts[0].removeprefix(b"\r\n")
    closing = _close(boundary)
    encoded = sum(encoded_size(document.size) for document in documents)
    return Bundle(header, tuple(parts), closing, len(header) + sum(map(len, parts)) + encoded + len(closing))


def _heading(letter: Letter, subject: str) -> Iterator[bytes]:
    yield _field("From", f"{_phrase(_clean(letter.sender_name))} <{_address(letter.sender)}>".lstrip())
    yield _field("To", f"<{_address(letter.recipient)}>")
    yield _field("Subject", _words(subject))
    yield _field("Date", format_datetime(letter.date))
    yield _field("Message-ID", _token(letter.message_id))
    yield _field(LOOP_HEADER, _token(letter.domain))


def _identity(document: Enclosed) -> Iterator[bytes]:
    yield _field("X-Welyb-Document-Id", _token(document.id))
    yield _field("X-Welyb-Document-SHA256", _token(document.sha256))


def _name(document: Enclosed) -> str:
    return _clean(document.name).encode()[:MAX_NAME].decode(errors="ignore") or "document"


def _text(letter: Letter, name: str) -> str:
    facts = {"{name}": name, "{sender_name}": _clean(letter.sender_name)}
    return re.sub("|".join(facts), lambda match: facts[match[0]], letter.text)


def addressed(block: bytes, recipient: str) -> bytes:
    """The header block of a deposit, to `recipient`: its connection may have been given another address meanwhile."""
    to = _field("To", f"<{_address(recipient)}>")
    return re.sub(rb"(?m)^To: <[^>]*>\r\n", lambda _: to, block, count=1)


def _attachment(media_type: str, name: str) -> Iterator[bytes]:
    sound = re.fullmatch(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]+", media_type, re.I)
    composite = media_type.lower().startswith(("multipart/", "message/"))  # RFC 2045 §6.4: may not be base64
    kind = media_type if sound and not composite else "application/octet-stream"
    plain = re.sub(r'["\\?]', "_", to_ascii(name))
    yield _field("Content-Type", f'{kind};\r\n name="{plain}"')
    extended = "" if plain == name else f";\r\n filename*=UTF-8''{quote(name, safe='')}"  # RFC 2231 §4
    yield _field("Content-Disposition", f'attachment;\r\n filename="{plain}"{extended}')
    yield _field("Content-Transfer-Encoding", "base64") + b"\r\n"


LINE = 57  # octets that make one line of 76 characters (RFC 2045 §6.8)
BLOCK = 1024  # lines at a time
# Cut by struct and joined: half the time of pybase64's own line ends, then mended from LF to CRLF.
_LINES = struct.Struct("76s" * BLOCK)


def encode_base64(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks of a document as lines of base64, each with its CRLF. The edges of the chunks leave no mark."""
    rest = b""
    for chunk in chunks:
        data = memoryview(rest + chunk if rest else chunk)
        whole = len(data) - len(data) % (LINE * BLOCK)
        for at in range(0, whole, LINE * BLOCK):
            encoded = pybase64.b64encode(data[at : at + LINE * BLOCK])
            yield b"\r\n".join(_LINES.unpack(encoded)) + b"\r\n"
        rest = bytes(data[whole:])
    if rest:
        yield _base64_lines(rest)


def _base64_lines(data: bytes) -> bytes:
    return pybase64.encodebytes(data).replace(b"\n", b"\r\n")


def encoded_size(size: int) -> int:
    """How many octets `encode_base64` makes of `size`."""
    characters = (size + 2) // 3 * 4
    return characters + 2 * ((characters + 75) // 76)


# ---
# A report of failure (RFC 3464)


@dataclass(frozen=True, slots=True)
class Undelivered:
    """`recipient` is the address the sender typed, never the collector's."""

    recipient: str
    status: str  # "5.1.1"; what the far side said beside it stays with us


@dataclass(frozen=True, slots=True)
class Failure:
    """A relayed mail that finally failed, for one recipient or more."""

    sender: str  # envelope sender of the mail: who is told
    undelivered: tuple[Undelivered, ...]
    received_at: datetime
    header: bytes  # header block of the mail, as it came


@dataclass(frozen=True, slots=True)
class Report:
    """The report's own identity. It leaves with the null sender (RFC 5321 §6.1)."""

    message_id: str
    date: datetime
    hostname: str
    domain: str
    sender_name: str


# Neither text says what stands behind the address: clients do not know (S4).
REPORT_TEXT = """\
Bonjour,

Votre message du {day} à {time} n'a pas pu être transmis à :

{recipients}

Il ne sera pas réessayé. Vérifiez l'adresse et les documents joints, puis renvoyez votre message ; si le
problème persiste, contactez votre cabinet.

---

Hello,

Your message of {day}, {time}, could not be passed on to:

{recipients}

It will not be tried again. Check the address and the documents attached, then send your message again; if
the problem persists, contact your accounting firm.

{sender_name}
"""


def dsn(failure: Failure, report: Report) -> bytes:
    """The whole report as a message: a text for people, one for machines, and the header of the mail that failed."""
    boundary = _boundary("dsn", report.message_id)
    failed = [(_address(each.recipient), _status(each.status)) for each in failure.undelivered]
    sender_name = _clean(report.sender_name)
    shown = "\n".join(f"    {recipient} ({status})" for recipient, status in failed)
    at = failure.received_at.astimezone(report.date.tzinfo)
    text = REPORT_TEXT.format(recipients=shown, day=f"{at:%d/%m/%Y}", time=f"{at:%H:%M}", sender_name=sender_name)
    header = (
        _field("From", f"{_phrase(sender_name)} <postmaster@{_token(report.domain)}>".lstrip()),
        _field("To", f"<{_address(failure.sender)}>"),
        _field("Subject", _words("Message non transmis (undelivered mail)")),
        _field("Date", format_datetime(report.date)),
        _field("Message-ID", _token(report.message_id)),
        _field(LOOP_HEADER, _token(report.domain)),
        _field("Auto-Submitted", "auto-replied"),
        *_mime("multipart/report; report-type=delivery-status", boundary),
    )
    # No Remote-MTA and no Diagnostic-Code: they would name the collector's server.
    machine = (
        _field("Content-Type", "message/delivery-status") + b"\r\n",
        _field("Reporting-MTA", f"dns; {_token(report.hostname)}"),
        _field("Arrival-Date", format_datetime(failure.received_at)),
        *(_failed(recipient, status) for recipient, status in failed),
        b"\r\n",
    )
    original = _open_part(boundary, *_returned(failure.header))
    return b"".join(
        (*header, _text_part(boundary, text), b"--", boundary, b"\r\n", *machine, original, _close(boundary))
    )


def _failed(recipient: str, status: str) -> bytes:
    """The fields of one recipient, an empty line before them (RFC 3464 §2.3)."""
    fields = _field("Final-Recipient", f"rfc822; {recipient}"), _field("Action", "failed"), _field("Status", status)
    return b"\r\n" + b"".join(fields)


def _status(text: str) -> str:
    return text if re.fullmatch(r"[45]\.\d{1,3}\.\d{1,3}", text) else "5.0.0"


def _returned(block: bytes) -> Iterator[bytes]:
    """The header of the mail as a part (RFC 6522 §4). Encoded where a 7-bit host could not take it."""
    yield _field("Content-Type", "text/rfc822-headers")
    lines = block.split(b"\r\n")
    plain = block.isascii() and not any(len(line) > 998 or re.search(rb"[\0\r\n]", line) for line in lines)
    if not plain:
        yield _field("Content-Transfer-Encoding", "base64")
    yield b"\r\n" + (block if plain else _base64_lines(block))


# ---
# Building blocks


def _field(name: str, value: str) -> bytes:
    return f"{name}: {value}\r\n".encode("ascii")


def _mime(media_type: str, boundary: bytes) -> tuple[bytes, bytes]:
    """The last fields of a header block, and its empty line."""
    kind = f'{media_type};\r\n boundary="{boundary.decode()}"'
    return _field("MIME-Version", "1.0"), _field("Content-Type", kind) + b"\r\n"


def _boundary(kind: str, key: str) -> bytes:
    """ "=_" occurs in no base64 and no quoted-printable text (RFC 2045 §6.7)."""
    return b"=_" + hashlib.sha256(f"{kind} {key}".encode()).hexdigest()[:32].encode()


def _text_part(boundary: bytes, text: str) -> bytes:
    encoded = binascii.b2a_qp(text.encode(), istext=True).replace(b"\n", b"\r\n")
    return _open_part(
        boundary,
        _field("Content-Type", "text/plain; charset=utf-8"),
        _field("Content-Transfer-Encoding", "quoted-printable"),
        b"\r\n" + encoded + b"\r\n",
    )


def _open_part(boundary: bytes, *content: bytes) -> bytes:
    return b"--" + boundary + b"\r\n" + b"".join(content)


def _close(boundary: bytes) -> bytes:
    return b"\r\n--" + boundary + b"--\r\n"


def _clean(text: str) -> str:
    """A text without controls, line breaks and marks that reverse or hide (Unicode Cc, Cf, Cs, Zl, Zp)."""
    sound = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(
        c for c in sound if c == " " or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
    ).strip()


def _words(text: str) -> str:
    """An unstructured value: as it is if printable ASCII, else as encoded words (RFC 2047)."""
    if text.isascii() and "=?" not in text and len(text) <= 900:
        return text
    words, word = [], b""
    for character in text:
        octets = character.encode()
        if len(word) + len(octets) > 42:  # an encoded word has 75 characters at most, and whole characters
            words.append(word)
            word = b""
        word += octets
    return "\r\n ".join(f"=?utf-8?b?{base64.b64encode(word).decode()}?=" for word in (*words, word))


def _phrase(name: str) -> str:
    """A display name (RFC 5322 §3.2.5)."""
    encoded = _words(name)
    if encoded != name or re.fullmatch(r"[A-Za-z0-9 '_-]*", name):
        return encoded
    return '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'


def _token(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError(f"not fit for a header: {text!r}")
    return text


def _address(text: str) -> str:
    if not re.fullmatch(r'([^\x00-\x20<>"\x7f-\U0010ffff]+|"[^\x00-\x1f\x7f-\U0010ffff]*")@[A-Za-z0-9.:\[\]-]+', text):
        raise ValueError(f"not an address: {text!r}")
    return text
