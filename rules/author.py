"""In whose name is a mail written? The one domain of its From field (RFC 5322 §3.6.2), or none.

Knows alone: how addresses are found in a From field as people and programs write it. Limits: what a reader's program
shows instead of the address (a display name that looks like one) is not seen.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MAX_FIELD = 64 * 1024  # bytes of all From fields; nobody reads longer ones to their end
MAX_DOMAIN = 253
# IDNA 2003, which Python has, makes another name of these than IDNA 2008 does (RFC 5894 §7.2): whose, nobody can say.
DEVIATIONS = frozenset("ßẞς\u200c\u200d")
DOMAIN = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}")
# A quoted string, an escaped character, one that has a meaning, or a run of others: linear, whatever stands there. A
# quote that nothing closes hides nothing: readers show what is behind it.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|\\.|[()<>,:;]|[^"\\()<>,:;]++|["\\]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Several:
    """Two From fields, or two domains in one, or more than is read: whatever readers show of them, no author could be
    vouched for (RFC 9989 §4.4).
    """


def domain(froms: Sequence[bytes]) -> str | Several:
    """The author's domain in lower case, as A-labels, from the values of the From fields; "" where none can be read."""
    if len(froms) > 1 or _too_long(froms):
        return Several()
    found = {a_labels(address.rpartition("@")[2]) for address in addresses(froms)}
    return Several() if len(found) > 1 else next(iter(found), "")


def addresses(froms: Sequence[bytes]) -> list[str]:
    """The addresses in the values of the From fields, as written but for blanks; none where they are too long."""
    if _too_long(froms):
        return []
    texts = [field.decode("utf-8", "replace") for field in froms]
    return ["".join(found.split()) for text in texts for found in _addresses(text) if "@" in found]


def _too_long(froms: Sequence[bytes]) -> bool:
    return sum(map(len, froms)) > MAX_FIELD


def a_labels(name: str) -> str:
    """A domain name as the DNS has it (RFC 5890 §2.3.2.1), in lower case; "" if it is none."""
    name = "".join(name.split()).removesuffix(".")  # RFC 5322 §4.4: spaces around its dots
    if not DEVIATIONS.isdisjoint(name):
        return ""
    if not name.isascii() and len(name) <= MAX_DOMAIN:
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            return ""
    name = name.lower()
    return name if len(name) <= MAX_DOMAIN and DOMAIN.fullmatch(name) else ""


def _addresses(text: str) -> Iterator[str]:
    """What stands for an address in a list of mailboxes and groups: all in angle brackets, else all between commas."""
    words: list[str] = []
    bracketed = angle = False
    for token in _without_comments(text):
        if token == "<":
            words, angle, bracketed = [], True, True
        elif token == ">" and angle:
            yield "".join(words)
            words, angle = [], False
        elif token in (",", ";") and not angle:
            if not bracketed:
                yield "".join(words)
            words, bracketed = [], False
        elif token == ":" and not angle:
            words = []  # a group's name
        else:
            words.append(token)
    if angle or not bracketed:
        yield "".join(words)


def _without_comments(text: str) -> Iterator[str]:
    depth = 0
    for token in _TOKEN.findall(text):
        if token == "(":
            depth += 1
        elif token == ")":
            depth = max(0, depth - 1)
        elif not depth:
            yield token
