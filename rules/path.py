"""What the argument of MAIL FROM: or RCPT TO: says: a path and its parameters (RFC 5321 §4.1.2), from raw bytes.

Knows alone: the grammar of paths. Two liberties, both common and neither ambiguous: a bare address without angle
brackets, and spaces after the colon. Everything else that is not exactly a path is `Problem`, never a guess.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from rules import replies

MAX_PATH = 256  # RFC 5321 §4.5.3.1.3
MAX_LOCAL = 128  # §4.5.3.1.1: 64 or more; a name of 64 stands behind `meg+achats+`
MAX_DOMAIN = 255  # §4.5.3.1.2


class Problem(Enum):
    SYNTAX = "syntax"  # no path can be read
    MALFORMED = "malformed"  # a path, but no legal address in it
    NOT_ASCII = "not-ascii"  # well-formed UTF-8 (RFC 6531), which we do not announce


@dataclass(frozen=True, slots=True)
class Path:
    """`local` unquoted, as typed; `domain` as typed. Both are "" for the null path, `domain` for `<postmaster>`."""

    local: str
    domain: str
    parameters: Mapping[str, str]  # upper-case keyword → value as typed, "" without one

    @property
    def address(self) -> str:
        """`local@domain`, the local part quoted again where it must be; "" for the null path."""
        local = self.local if _DOT_STRING.fullmatch(self.local) or not self.local else _quote(self.local)
        return f"{local}@{self.domain}" if self.domain else local


REPLIES = {
    Problem.SYNTAX: replies.UNREADABLE,
    Problem.MALFORMED: replies.MALFORMED,
    Problem.NOT_ASCII: replies.NOT_ASCII,
}

_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_DOT_STRING = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_LOOSE_LOCAL = re.compile(r"[!#$%&'*+/=?^_`{|}~A-Za-z0-9.-]+")  # doubled, leading or trailing dots: seen on the wire
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_DOMAIN = re.compile(
    r"(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)(?:\.[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?)*"
)
_LITERAL = re.compile(r"\[[!-Z^-~]+\]")
_SOURCE_ROUTE = re.compile(r"(?:@[A-Za-z0-9.-]+,)*@[A-Za-z0-9.-]+:")
_CONTROL = re.compile(rb"[\0-\x1f\x7f]")
_PARAMETER = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~]+))?")


def parse(argument: bytes) -> Path | Problem:
    """`argument` is what follows "FROM:" or "TO:": `<a@b> SIZE=1`. The null path is accepted here; RCPT refuses it."""
    try:
        text = argument.decode("ascii")
    except UnicodeDecodeError:
        return Problem.MALFORMED if _CONTROL.search(argument) else _not_ascii(argument)
    if not text.isprintable():  # in ASCII: no control
        return Problem.MALFORMED
    inside, rest = _cut_path(text.strip(" "))
    if inside is None:
        return Problem.SYNTAX
    parameters: dict[str, str] = {}
    for word in rest.split():
        match = _PARAMETER.fullmatch(word)
        if not match or match[1].upper() in parameters:
            return Problem.SYNTAX
        parameters[match[1].upper()] = match[2] or ""
    return _address(inside, parameters)


def _not_ascii(argument: bytes) -> Problem:
    try:
        argument.decode("utf-8")
    except UnicodeDecodeError:
        return Problem.MALFORMED
    return Problem.NOT_ASCII


def _cut_path(text: str) -> tuple[str | None, str]:
    """(what stands between the brackets, what follows them); a quoted string may hold brackets."""
    if not text.startswith("<"):
        word, _, rest = text.partition(" ")
        return (word if word and not set(word) & set('<>"(),:;[]\\') else None), rest
    at = text.find(">") if '"' not in text else _closing_bracket(text)
    if at < 0 or text[at + 1 : at + 2] not in ("", " "):
        return None, ""
    return text[1:at], text[at + 1 :]


def _closing_bracket(text: str) -> int:
    at = 1
    while at < len(text) and text[at] != ">":
        quoted = _QUOTED.match(text, at) if text[at] == '"' else None
        at = quoted.end() if quoted else at + 1
    return at if at < len(text) else -1


def _address(inside: str, parameters: Mapping[str, str]) -> Path | Problem:
    if not inside:
        return Path("", "", parameters)
    route = _SOURCE_ROUTE.match(inside) if inside[0] == "@" else None
    if route:
        inside = inside[route.end() :]  # RFC 5321 appendix C: stripped, never followed
    quoted = _QUOTED.match(inside)
    if quoted:
        local, after = re.sub(r"\\(.)", r"\1", quoted[1]), inside[quoted.end() :]
    else:
        local, at, domain = inside.rpartition("@")
        local, after = (local, at + domain) if at else (inside, "")
        if not _LOOSE_LOCAL.fullmatch(local):
            return Problem.MALFORMED
    if after and after[0] != "@":
        return Problem.SYNTAX
    domain = after[1:]
    if after and not (_DOMAIN.fullmatch(domain) or _LITERAL.fullmatch(domain)):
        return Problem.MALFORMED
    if not local or len(local) > MAX_LOCAL or len(domain) > MAX_DOMAIN or len(inside) + 2 > MAX_PATH:
        return Problem.MALFORMED
    return Path(local, domain, parameters)


def _quote(local: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", local) + '"'
