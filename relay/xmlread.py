"""XML read without trusting it: the root element of a document's beginning, and the elements of a small package part.

Knows alone: how expat is kept from harm. No DTD is fetched, no entity is ever expanded: the first entity declaration
ends the reading, so that there is nothing to multiply. Limits: entities declared by an external DTD are not known of,
and a root beyond the bytes given is not found.
"""

import re
from dataclasses import dataclass
from xml.parsers import expat

_BYTE_ORDER_MARK = "\ufeff"
_OPENING = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*(?=<)")
_UTF16 = ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"), (b"<\0", "utf-16-le"), (b"\0<", "utf-16-be"))
_XHTML = "http://www.w3.org/1999/xhtml"


@dataclass(frozen=True, slots=True)
class Root:
    """The first element: its name without prefix ("" where an entity declaration stopped the reading before it)."""

    name: str
    xhtml: bool = False  # it names the XHTML namespace
    entities: bool = False  # the DOCTYPE declares entities


class _EntityDeclared(Exception):
    pass


class _RootFound(Exception):
    def __init__(self, root: Root) -> None:
        self.root = root


def root(head: bytes) -> Root | None:
    """The root of the document that begins with `head`, in UTF-8, UTF-16 or what its declaration says; else None."""
    markup, encoding = _markup(head)
    if not markup:
        return None
    parser = _parser(encoding)
    parser.StartElementHandler = _found
    try:
        parser.Parse(markup, True)
    except _RootFound as found:
        return found.root
    except _EntityDeclared:
        return Root("", entities=True)
    except (expat.ExpatError, LookupError, ValueError):  # LookupError, ValueError: an encoding Python does not have
        pass
    return None


def elements(data: bytes, *, most: int) -> list[tuple[str, dict[str, str]]]:
    """Every element of a whole document in order, as (name without prefix, attributes).

    ValueError if it is no XML, or has more than `most` elements.
    """
    found: list[tuple[str, dict[str, str]]] = []

    def take(name: str, attributes: dict[str, str]) -> None:
        if len(found) == most:
            raise ValueError("too many elements")
        found.append((_local(name), attributes))

    parser = _parser(None)
    parser.StartElementHandler = take
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, _EntityDeclared, LookupError) as error:
        raise ValueError(str(error)) from None
    return found


def _parser(encoding: str | None) -> expat.XMLParserType:
    parser = expat.ParserCreate(encoding)
    parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
    parser.EntityDeclHandler = _refuse_entity
    return parser


def _refuse_entity(*_: object) -> None:
    raise _EntityDeclared("entities declared")


def _found(name: str, attributes: dict[str, str]) -> None:
    raise _RootFound(Root(_local(name), xhtml=_XHTML in attributes.values()))


def _local(name: str) -> str:
    return name.rpartition(":")[2]


def _markup(head: bytes) -> tuple[bytes, str | None]:
    """`head` from its first `<`, and the encoding that overrides what the document declares; (b"", None) if no markup.

    A mark or white space before the declaration is a fault (XML 1.0 §2.8) which every reader forgives.
    """
    for mark, encoding in _UTF16:
        if head.startswith(mark):
            text = head.decode(encoding, "ignore").lstrip(_BYTE_ORDER_MARK).lstrip()
            return (text.encode("utf-8", "ignore") if text.startswith("<") else b""), "utf-8"
    match = _OPENING.match(head)
    return (head[match.end() :] if match else b""), None
