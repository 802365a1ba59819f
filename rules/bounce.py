"""A mail that came to a return address → the report it carries (RFC 3464), or that it carries none.

Knows alone: how to read a delivery status notification, and which of several recipients' fates counts.
Limits: only machine-readable reports. The free-text bounces of qmail and of old systems are not read: they are
attached to the history for a person to read, as is anything else. A report inside a forwarded mail is not a report
to us. The whole mail is parsed in memory: give it no more than a megabyte.
"""

import base64
import binascii
import quopri
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from enum import StrEnum
from typing import TypeAlias

from rules.address import unproved


class Action(StrEnum):
    """RFC 3464 §2.3.3."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"
    EXPANDED = "expanded"


@dataclass(frozen=True, slots=True)
class Bounce:
    action: Action
    status: str  # "5.1.1", or "" where absent
    text: str  # the diagnostic, else the beginning of what the report says to people; one line
    final_recipient: str  # "" where absent


@dataclass(frozen=True, slots=True)
class NotABounce:
    pass


# The standard parser is recursive, asks every open multipart about every line, and reads the parameters of a field in
# the square of their length. What goes beyond these is no report: only an attacker sends it.
MAX_LINES = 100_000
MAX_BOUNDARIES = 1_000
MAX_MULTIPARTS = 20
MAX_EMPTY_LINES = 10_000
MAX_FIELD = 4_096
MAX_TEXT = 1_000
_CONTENT_FIELD = re.compile(rb"\ncontent-[a-z-]{1,40}[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)", re.IGNORECASE)
_STATUS_TYPES = ("message/delivery-status", "message/global-delivery-status")  # RFC 6533 §4
_INFERRED = {"2": Action.DELIVERED, "4": Action.DELAYED, "5": Action.FAILED}
# One mail may report on several recipients, where the collector's address forwards: the worst is shown.
_WORST_FIRST = tuple(Action)

_Fields = dict[str, str]
# What `policy.compat32` makes: header values and payloads are plain text, odd bytes as surrogates.
_Part: TypeAlias = "Message[str, str]"  # quoted: the class takes no parameters when it runs


def read(raw: bytes) -> Bounce | NotABounce:
    """The report in a mail. Never raises: what cannot be read is not a bounce."""
    raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")  # where the parser sees lines
    if _is_laborious(raw):
        return NotABounce()
    try:
        return _read(list(_leaves(message_from_bytes(raw))))
    except (RecursionError, ValueError, LookupError, AttributeError, TypeError):  # of the parser, on junk
        return NotABounce()


def _is_laborious(raw: bytes) -> bool:
    if raw.count(b"\n") > MAX_LINES or raw.count(b"\n--") > MAX_BOUNDARIES or raw.count(b"\n\n") > MAX_EMPTY_LINES:
        return True
    if raw.lower().count(b"multipart/") > MAX_MULTIPARTS:
        return True
    return any(len(field[1]) > MAX_FIELD for field in _CONTENT_FIELD.finditer(b"\n" + raw))


def _read(parts: list[_Part]) -> Bounce | NotABounce:
    reports = [report for part in parts if part.get_content_type() in _STATUS_TYPES for report in _recipients(part)]
    found = [bounce for fields in reports if (bounce := _bounce(fields)) is not None]
    if not found:
        return NotABounce()
    worst = min(found, key=lambda bounce: _WORST_FIRST.index(bounce.action))
    if worst.text:
        return worst
    return Bounce(worst.action, worst.status, _human(parts), worst.final_recipient)


def _leaves(message: _Part) -> Iterator[_Part]:
    """The parts of the mail itself: nothing below a mail inside it."""
    if message.get_content_maintype() != "multipart":
        yield message
        return
    children = message.get_payload()
    for child in children if isinstance(children, list) else ():
        if isinstance(child, Message):
            yield from _leaves(child)


def _recipients(part: _Part) -> list[_Fields]:
    """The per-recipient groups of a report (RFC 3464 §2.1); the first group is about the message."""
    groups = [_fields(group) for group in _groups(part)]
    return [fields for fields in groups if "action" in fields or "status" in fields]


def _groups(part: _Part) -> list[str]:
    payload = part.get_payload()
    blocks = payload if isinstance(payload, list) else [payload]
    text = "\n".join(_source(block) if isinstance(block, Message) else str(block) for block in blocks)
    text = _decoded(text, str(part.get("content-transfer-encoding", "")).strip().lower())
    return re.split(r"\n[ \t]*\n", text.replace("\r\n", "\n"))


def _source(block: _Part) -> str:
    """A group as it was written: the parser has taken it for the headers of a mail."""
    body = block.get_payload()
    header = "".join(f"{name}:{value}\n" for name, value in block.raw_items())
    return header + "\n" + (body if isinstance(body, str) else "")


def _decoded(text: str, encoding: str) -> str:
    """Undoes a transfer encoding, which RFC 3464 forbids here and some gateways apply all the same."""
    data = text.encode("utf-8", "surrogateescape")
    if encoding == "base64":
        try:
            data = base64.b64decode(data)
        except binascii.Error:
            data = b""
    elif encoding == "quoted-printable":
        data = quopri.decodestring(data)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def _fields(group: str) -> _Fields:
    fields: _Fields = {}
    for line in re.sub(r"\n[ \t]+", " ", group).split("\n"):
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


def _bounce(fields: _Fields) -> Bounce | None:
    status = re.match(r"[245]\.\d{1,3}\.\d{1,3}(?!\S)", fields.get("status", ""))
    word = re.sub(r"\(.*", "", fields.get("action", "")).strip().lower()
    if word in tuple(Action):
        action = Action(word)
    elif status:  # some leave the action out, or write one of their own
        action = _INFERRED[status[0][0]]
    else:
        return None
    text = _one_line(_typed(fields.get("diagnostic-code", "")))
    return Bounce(action, status[0] if status else "", text, _address(fields))


def _address(fields: _Fields) -> str:
    return _one_line(_typed(fields.get("final-recipient") or fields.get("original-recipient", "")))


def _typed(value: str) -> str:
    """ "smtp; 550 no such user" → "550 no such user"."""
    return re.sub(r"^[\w-]+\s*;\s*", "", value)


def _human(parts: list[_Part]) -> str:
    for part in parts:
        payload = part.get_payload(decode=True) if part.get_content_type() == "text/plain" else None
        if isinstance(payload, bytes) and payload.strip():
            return _one_line(payload[: 4 * MAX_TEXT].decode("utf-8", "replace"))
    return ""


def _one_line(text: str) -> str:
    shown = "".join(c if c.isprintable() else " " for c in " ".join(text.split())).strip()
    return unproved(shown)[:MAX_TEXT].strip()
