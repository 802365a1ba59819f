"""What the words of a header mean: text, parameters, and the file name its sender had in mind.

Knows alone: how RFC 2047, RFC 2231 and what mailers really write say one name (domain.md §4 "File names"). The order is
`filename*`, RFC 2047 in `filename`, raw `filename` (UTF-8, then cp1252), then the same for `name`.
Limits: it only decodes; a name is made safe for a file system elsewhere. At most 100 parameters of one header are
read, of a name 16 KiB, and it keeps 1,024 characters, its end among them, since a header may have 256 KiB of either.
"""

import encodings
import re
import unicodedata
from binascii import Error, a2b_base64, a2b_qp
from collections.abc import Sequence
from encodings.aliases import aliases
from functools import lru_cache
from itertools import islice
from urllib.parse import unquote_to_bytes

Parameters = Sequence[tuple[str, bytes]]  # in order, names in lower case, values without their quotes

MAX_PARAMETERS = 100
MAX_NAME = 1024
KEPT_END = 256
MAX_WRITTEN, WRITTEN_END = 16 * 1024, 4 * 1024

_FOLD = re.compile(rb"\r?\n[ \t]*")
# The first token after comments (RFC 5322 §3.2.2), unless it is the name of a parameter.
_TOKEN = re.compile(rb"(?:\s|\((?:[^()\\]|\\.)*\))*\"?([^\s;=\"()]++)(?!\s*+=)", re.DOTALL)
# A quote inside a quoted string does not end it when nothing that may follow a string follows: `"le "bon".pdf"`.
_PARAMETER = re.compile(
    rb'(?<![^;\s])([^\s;="()]++)\s*+=\s*+'
    rb'(?:"((?:[^"\\]|\\.|"(?!\s*+(?:;|\(|\Z|[\w*.-]++=)))*)"?|([^;]*+))',
    re.DOTALL,
)
# A value with one parameter, quoted, and neither quote nor escape in it: what most mailers write of a name.
_ONE_PARAMETER = re.compile(rb'[^;="()]++;\s*+([^\s;="()]++)="([^"\\\r\n]*+)"\s*+')
_ESCAPE = re.compile(rb'\\(["\\])')
_LAST_COMMENT = re.compile(rb"\s\([^()]*+\)\Z")
_SECTION = re.compile(r"\*(\d{1,3})(\*?)")
_ENCODED_WORD = re.compile(rb"=\?([^?\s*]++)(?:\*[^?]*+)?\?([BbQq])\?([^?]*+)\?=")
# Python has codecs that are no character sets (punycode, unicode_escape), and some of them are slow on hostile input.
_CHARSET = re.compile(
    r"(?i)(?:utf|us-|ascii|iso|latin|l\d|cp|windows|mac|koi8|big5|gb|euc|shift|sjis|ks|hz|tis)[\w-]*\Z"
)
# To ask Python for a set it has not is a search in the file system, and is remembered for ever.
_UNLISTED = (
    "cp720 cp737 cp856 cp874 cp875 cp1006 koi8_t koi8_u utf_8_sig mac_arabic mac_croatian mac_farsi mac_romanian"
)
_KNOWN = {*aliases, *aliases.values(), *_UNLISTED.split(" ")}


def unfolded(value: bytes) -> bytes:
    """One line (RFC 5322 §2.2.3); the fold and its white space become one space."""
    return (_FOLD.sub(b" ", value) if b"\n" in value else value).strip()


def token(value: bytes) -> str:
    """The leading word of a structured header, lower case: `attachment`, `base64`; "" where there is none."""
    found = _TOKEN.match(value)
    return found[1].decode("latin-1").lower() if found else ""


def parameters(value: bytes) -> Parameters:
    found: list[tuple[str, bytes]] = []
    if b"=" not in value:
        return found
    usual = _ONE_PARAMETER.fullmatch(value)
    if usual:
        return [(usual[1].decode("latin-1").lower(), usual[2])]
    for match in islice(_PARAMETER.finditer(unfolded(value)), MAX_PARAMETERS):
        name, quoted, bare = match.groups()
        found.append((name.decode("latin-1").lower(), _unquoted(quoted) if bare is None else _bare(bare)))
    return found


def _unquoted(value: bytes) -> bytes:
    # Only \" and \\ are escapes: `"C:\Factures\mai.pdf"` is what Windows mailers mean by it.
    return _ESCAPE.sub(rb"\1", value) if b"\\" in value else value


def _bare(value: bytes) -> bytes:
    """Everything up to the semicolon: an unquoted `Facture mars 2024.pdf` keeps its spaces and its extension."""
    value = value.strip()
    return _LAST_COMMENT.sub(b"", value).rstrip() if value.endswith(b")") else value


def raw_parameter(found: Parameters, key: str) -> bytes | None:
    """The bytes of a parameter, its RFC 2231 sections joined; None where it is missing."""
    joined = _extended(found, key)
    return joined[0] if joined else next((value for name, value in found if name == key), None)


def file_name(disposition: Parameters, content_type: Parameters) -> str | None:
    """The name as the sender meant it, in NFC; None where there is none."""
    for found, key in ((disposition, "filename"), (content_type, "name"), (disposition, "name")):
        if found and (name := _name(found, key)):
            return name
    return None


def _name(found: Parameters, key: str) -> str:
    found = [parameter for parameter in found if parameter[0].startswith(key)]
    if not found:
        return ""
    if len(found) == 1 and found[0][0] == key:
        return _shortened(text(_clipped(found[0][1])))
    joined = _extended(found, key)
    if joined:
        value, charset = joined
        value = _clipped(value)
        if name := _shortened(text(value) if charset is None else _decoded(value, charset)):
            return name
    return next((name for other, value in found if other == key and (name := _shortened(text(_clipped(value))))), "")


def _clipped(value: bytes) -> bytes:
    return value if len(value) <= MAX_WRITTEN else value[: MAX_WRITTEN - WRITTEN_END] + value[-WRITTEN_END:]


def _shortened(name: str) -> str:
    name = name.strip()
    if len(name) > MAX_NAME:
        name = name[: MAX_NAME - KEPT_END] + name[-KEPT_END:]
    return name if name.isascii() else unicodedata.normalize("NFC", name).strip()


def _extended(found: Parameters, key: str) -> tuple[bytes, str | None] | None:
    """`key*` or `key*0`, `key*1*` … (RFC 2231 §3, §4): the bytes, and the charset where one section is encoded."""
    if not any(name.startswith(key + "*") for name, _ in found):
        return None
    sections: dict[int, tuple[bytes, bool]] = {}
    for name, value in found:
        if name == key + "*":
            return _percent_decoded(value)
        section = _SECTION.fullmatch(name, len(key)) if name.startswith(key) else None
        if section:
            sections.setdefault(int(section[1]), (value, bool(section[2])))
    return _joined(sections) if 0 in sections else None


def _joined(sections: dict[int, tuple[bytes, bool]]) -> tuple[bytes, str | None]:
    # A character may be cut by the sections, so bytes are joined and decoded once.
    first, encoded = sections[0]
    content, charset = _percent_decoded(first) if encoded else (first, None)
    pieces = [content]
    for number in range(1, len(sections)):
        if number not in sections:
            break
        value, encoded = sections[number]
        pieces.append(unquote_to_bytes(value) if encoded else value)
        charset = charset or ("" if encoded else None)
    return b"".join(pieces), charset


def _percent_decoded(value: bytes) -> tuple[bytes, str | None]:
    """`utf-8'fr'Factur%C3%A9`; without its two apostrophes it is an ordinary value under the wrong name."""
    charset, *rest = value.split(b"'", 2)
    if len(rest) < 2:
        return unquote_to_bytes(value), ""
    return unquote_to_bytes(rest[1]), charset.decode("latin-1")


def text(value: bytes) -> str:
    """A header's words: unfolded, RFC 2047 decoded wherever it stands, raw bytes as UTF-8 or else cp1252."""
    value = unfolded(value)
    if b"=?" not in value:
        return _decoded(value)
    runs: list[tuple[str, bytes]] = []  # (charset, bytes)
    end, follows = 0, False
    for match in _ENCODED_WORD.finditer(value):
        between = value[end : match.start()]
        # White space between two encoded words is not text (RFC 2047 §6.2).
        if between.strip() or (between and not follows):
            runs.append(("", between))
        _append_word(runs, match[1].decode("latin-1").lower(), _word(match[2], match[3]))
        end, follows = match.end(), True
    runs.append(("", value[end:]))
    return "".join(_decoded(content, charset) for charset, content in runs)


def _append_word(runs: list[tuple[str, bytes]], charset: str, content: bytes) -> None:
    # Many mailers cut a character between two words, which RFC 2047 §5 forbids: same charset, one run.
    if runs and runs[-1][0] == charset:
        content = runs.pop()[1] + content
    runs.append((charset, content))


def _word(encoding: bytes, content: bytes) -> bytes:
    if encoding in b"Qq":
        return a2b_qp(content, header=True)
    for padded in (content + b"===", content + b"A==="):  # one character too few or too many is lost, not the name
        try:
            return a2b_base64(padded)
        except Error:
            continue
    return content


@lru_cache(256)
def _is_charset(label: str) -> bool:
    return bool(_CHARSET.match(label)) and encodings.normalize_encoding(label).lower() in _KNOWN


def _decoded(value: bytes, charset: str = "") -> str:
    if value.isascii() and not charset:
        return value.decode("ascii")
    for label in (charset, "utf-8", "cp1252"):
        if _is_charset(label):
            try:
                # utf-7 can give lone surrogates, which no store and no terminal takes.
                return value.decode(label).encode("utf-8", "replace").decode("utf-8")
            except (ValueError, LookupError):
                continue
    return value.decode("latin-1")
