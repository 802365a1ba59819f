"""Does the author's domain vouch for this mail, and what does it ask for if not? (RFC 9989)

Knows alone: the record at `_dmarc`, the DNS tree walk, alignment, and which policy applies. The shell asks the DNS:
`names` says for what, `discover`, `unaligned` and `conclude` judge the answers, in that order. Limits: no reports
(rua, ruf), no public suffix list; pct, ri and rf are no part of DMARC any more and are passed over like unknown tags.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from rules.authentication import Authentication, Dmarc, Policy

# ---
# The record

_VERSION = re.compile(r"[vV][ \t]*=[ \t]*DMARC1[ \t]*(?:;|\Z)")  # §4.8: the one value whose case matters
_URI = re.compile(r"[a-z][a-z0-9+.-]*:[^\s,]+", re.IGNORECASE)
_POLICIES: Mapping[str, Policy] = {"none": "none", "quarantine": "quarantine", "reject": "reject"}
_ONE_LESS: Mapping[Policy, Policy] = {"reject": "quarantine", "quarantine": "none", "none": "none"}


@dataclass(frozen=True, slots=True)
class Record:
    """One DMARC Policy Record. `usable`: it says what to do; one that does not still counts in the tree walk."""

    p: Policy = "none"
    sp: Policy | None = None
    np: Policy | None = None
    usable: bool = True
    strict_dkim: bool = False
    strict_spf: bool = False
    testing: bool = False
    psd: Literal["y", "n", "u"] = "u"


def record(texts: Iterable[str]) -> Record | None:
    """The record among the TXT of one name. §4.10: others are discarded, and so are several of them."""
    found = [text for text in texts if _VERSION.match(text)]
    return _parsed(found[0]) if len(found) == 1 else None


def _parsed(text: str) -> Record:
    tags = _tags(text)
    p, sp, np = (_POLICIES.get(tags.get(name, "").lower()) for name in ("p", "sp", "np"))
    usable = True
    if p is None or (sp is None and "sp" in tags) or (np is None and "np" in tags):
        # §4.10.1: who wants reports is taken to have said p=none, and nobody else to have said anything.
        usable = any(_URI.fullmatch(uri.strip()) for uri in tags.get("rua", "").split(","))
        p, sp, np = "none", None, None
    return Record(
        p,
        sp,
        np,
        usable,
        strict_dkim=_says(tags, "adkim", "s"),
        strict_spf=_says(tags, "aspf", "s"),
        testing=_says(tags, "t", "y"),
        psd="y" if _says(tags, "psd", "y") else "n" if _says(tags, "psd", "n") else "u",
    )


def _tags(text: str) -> dict[str, str]:
    """Names in lower case. What is no tag is discarded (§4.8); of several of one name the first counts."""
    tags: dict[str, str] = {}
    for piece in text.split(";"):
        name, equals, value = piece.partition("=")
        if equals:
            tags.setdefault(name.strip().lower(), value.strip())
    return tags


def _says(tags: Mapping[str, str], name: str, value: str) -> bool:
    return tags.get(name, "").lower() == value


# ---
# The tree walk

MAX_LABELS = 7  # §4.10: of every name but the first, so that no domain costs more than eight questions


@dataclass(frozen=True, slots=True)
class Trouble:
    """The DNS did not say whether there is a record."""


Answers = Mapping[str, Record | Trouble | None]


def names(domain: str) -> tuple[str, ...]:
    """The domains below which `_dmarc` is asked for, in the order of the walk; `domain` itself is the first."""
    labels = domain.split(".")
    shorter = labels[1:][-MAX_LABELS:]
    return domain, *(".".join(shorter[at:]) for at in range(len(shorter)))


@dataclass(frozen=True, slots=True)
class _Walk:
    found: tuple[tuple[str, Record], ...]  # the longest name first
    whole: bool  # no trouble on the way


def _walk(domain: str, answers: Answers) -> _Walk:
    found: list[tuple[str, Record]] = []
    for name in names(domain):
        answer = answers.get(name)
        if isinstance(answer, Trouble):
            return _Walk(tuple(found), whole=False)
        if answer is not None:
            found.append((name, answer))
            if answer.psd != "u":
                break
    return _Walk(tuple(found), whole=True)


def organization(domain: str, answers: Answers) -> str | None:
    """The Organizational Domain of `domain` (§4.10.2); None where trouble hides it."""
    return _organization(domain, _walk(domain, answers))


def _organization(domain: str, walk: _Walk) -> str | None:
    if not walk.whole:
        return None
    for name, found in walk.found:
        if found.psd == "n":
            return name
        if found.psd == "y" and name != domain:
            return ".".join(domain.split(".")[-name.count(".") - 2 :])  # the domain one label below
    return walk.found[-1][0] if walk.found else domain


# ---
# What the author's domain asks for


@dataclass(frozen=True, slots=True)
class Asked:
    """`below`: the record is that of a domain above the author's. `organization` is None where trouble hides it."""

    author: str
    record: Record
    below: bool
    organization: str | None

    @property
    def depends_on_existence(self) -> bool:
        """Whether the author's domain exists in the DNS makes a difference (np=)."""
        return self.below and self.record.np is not None

    def policy(self, *, exists: bool | None) -> Policy:
        """`exists`: does the author's domain? None: the DNS does not say."""
        record = self.record
        applies = record.p
        if self.below and exists is False:
            applies = record.np or record.sp or record.p
        elif self.below:
            applies = record.sp or record.p
        return _ONE_LESS[applies] if record.testing else applies


def discover(author: str, answers: Answers) -> Asked | Dmarc:
    """What is asked for in the name of `author`; a Dmarc where DMARC does not apply, or cannot be applied (§4.10.1)."""
    walk = _walk(author, answers)
    records = dict(walk.found)
    own, top = records.get(author), _organization(author, walk)
    if own is None and top is None:
        return Dmarc("temperror", author)
    if not records:
        return Dmarc("none", author)
    # The public suffix's, if any, is the last that was found.
    found = own or records.get(top or "") or walk.found[-1][1]
    return Asked(author, found, below=own is None, organization=top) if found.usable else Dmarc("permerror", author)


# ---
# Alignment

Organizations = Mapping[str, str | None]


def unaligned(asked: Asked, facts: Authentication) -> frozenset[str]:
    """The domains whose own organization `conclude` needs to know, each by a walk of its own.

    A domain that is not within the author's organization cannot align, whatever a walk says: it is not asked about, so
    that a stranger's broken DNS cannot turn a failure into a doubt.
    """
    doubtful = (identifier for identifier in _identifiers(asked, facts) if not identifier.strict)
    return frozenset(i.domain for i in doubtful if i.domain != asked.author and _may_align(i.domain, asked))


def conclude(asked: Asked, facts: Authentication, organizations: Organizations, *, exists: bool | None) -> Dmarc:
    """`organizations` answers `unaligned`; `exists`: does the author's domain exist? None: the DNS does not say."""
    policy = asked.policy(exists=exists)
    judged = [(each, _aligned(each, asked, organizations)) for each in _identifiers(asked, facts)]
    signed = _any((each, aligned) for each, aligned in judged if each.signature)
    passed = _any(judged)
    if passed:
        return Dmarc("pass", asked.author, policy, signed)
    # §5.3.6: with an answer missing that it depends on, a mail neither passes nor fails.
    in_doubt = passed is None or (asked.depends_on_existence and exists is None)
    return Dmarc("temperror" if in_doubt else "fail", asked.author, policy, signed)


def _any(judged: "Iterable[tuple[_Identifier, bool | None]]") -> bool | None:
    """Does one of them vouch for the author? None: one might, had the DNS answered."""
    possible = [each.passed and aligned for each, aligned in judged if aligned is not False]
    return True if True in possible else None if possible else False


@dataclass(frozen=True, slots=True)
class _Identifier:
    """A domain that vouches for the mail, or would if the DNS had not failed: `passed` or not."""

    domain: str
    passed: bool
    strict: bool
    signature: bool


def _identifiers(asked: Asked, facts: Authentication) -> Iterator[_Identifier]:
    if facts.spf.result in ("pass", "temperror"):
        yield _Identifier(
            facts.spf.domain.lower(), facts.spf.result == "pass", asked.record.strict_spf, signature=False
        )
    for signature in facts.dkim:
        if signature.result in ("pass", "temperror"):
            passed = signature.result == "pass"
            yield _Identifier(signature.domain.lower(), passed, asked.record.strict_dkim, signature=True)


def _aligned(identifier: _Identifier, asked: Asked, organizations: Organizations) -> bool | None:
    if identifier.domain == asked.author:
        return True
    if identifier.strict or not _may_align(identifier.domain, asked):
        return False
    own = organizations.get(identifier.domain)
    return None if own is None or asked.organization is None else own == asked.organization


def _may_align(domain: str, asked: Asked) -> bool:
    top = asked.organization
    return top is None or domain == top or domain.endswith(f".{top}")
