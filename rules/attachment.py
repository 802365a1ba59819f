"""Facts of one part of a mail, or of one deposited file → document, skip or refuse, with the reason.

Knows alone: what counts as a document (domain.md §4 "What counts as a document in a mail", "Size and type").
Limits: it sees facts, not bytes; who reads the bytes is relay.mime and relay.examine.
"""

from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from rules import media
from rules.replies import Reason
from rules.ruleset import Rule


@dataclass(frozen=True, slots=True)
class Leaf:
    """What the structure of the mail says of one leaf. `depth` counts the message/rfc822 above it."""

    path: str  # part number as in IMAP (RFC 3501 §6.4.5): "1", "2.1"
    type: str  # as declared, lower case, no parameters; "text/plain" where absent (RFC 2045 §5.2)
    disposition: str  # "attachment", "inline", another token, or ""
    name: str | None  # as written by the sender, decoded, NFC; not yet safe for a file system
    content_id: str  # without the angle brackets, or ""
    related: bool  # below a multipart/related
    report: bool  # below a multipart/report
    depth: int
    defects: tuple[str, ...] = ()  # "bad-base64", "truncated", "unknown-encoding", "nested"


class Archive(Enum):
    """What the structure of the bytes says about ZIP, never a label (domain.md §4)."""

    NONE = "none"
    ZIP = "zip"  # an exact end of central directory, and not a document format
    OFFICE = "office"  # OOXML, ODF or EPUB, harmless inside
    HOSTILE = "hostile"  # office container with an executable or a nested archive
    DISGUISED = "disguised"  # an exact directory behind another magic
    DAMAGED = "damaged"  # a local header at 0 without a directory


@dataclass(frozen=True, slots=True)
class Content:
    """What the bytes say. `type` is libmagic's, corrected where it is known to be wrong."""

    size: int  # decoded bytes
    sha256: str  # hexadecimal
    type: str
    archive: Archive = Archive.NONE
    encrypted: bool = False  # a PDF or an office file under encryption
    entities: bool = False  # XML whose DOCTYPE declares entities


@dataclass(frozen=True, slots=True)
class Document:
    """Taken. `flags` are shown in the history: "encrypted", "recovered"."""

    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Skip:
    """Not a document, and no reason to refuse the mail. `reason` is None for the text of the message itself."""

    reason: Reason | None


@dataclass(frozen=True, slots=True)
class Refuse:
    reason: Reason


Verdict = Document | Skip | Refuse


def is_text_of_message(leaf: Leaf) -> bool:
    """text/plain and text/html without a file name and not `attachment`, wherever they stand."""
    return leaf.type in media.BODIES and not leaf.name and leaf.disposition != "attachment"


def judge(content: Content, rule: Rule, *, leaf: Leaf | None = None, cids: frozenset[str] = frozenset()) -> Verdict:
    """`leaf` is None for a deposited file; `cids` are the Content-IDs the mail's HTML refers to."""
    if leaf is not None:
        aside = _by_label(content, leaf) or _layout(content, leaf, limit=rule.small_image, cids=cids)
        if aside is not None:
            return aside
    reason = _kind_refused(content, rule) or _type_refused(content, rule)
    if reason is None and leaf is not None and "truncated" in leaf.defects:
        reason = Reason("truncated")
    if reason is None and content.size > rule.max_document_size:
        reason = Reason("too-big", {"size": content.size, "limit": rule.max_document_size})
    return Refuse(reason) if reason else Document(_flags(content, leaf))


def _by_label(content: Content, leaf: Leaf) -> Skip | Refuse | None:
    """What the mail says a leaf is. A label excuses nothing: bytes that are clearly something else are judged so."""
    forbidden = content.archive not in (Archive.NONE, Archive.OFFICE) or content.type in media.FORBIDDEN
    unmistakable = forbidden or content.archive is Archive.OFFICE or content.type in media.UNMISTAKABLE
    if is_text_of_message(leaf) and not unmistakable:
        return Skip(None)
    if leaf.report and not forbidden:
        return Skip(Reason("skip-report"))  # whatever a report carries was sent before, to somebody else
    labelled = None if unmistakable else _by_type(content.type, leaf)
    if labelled is None and "nested" in leaf.defects:
        return Refuse(Reason("nested"))
    return labelled


def _by_type(actual: str, leaf: Leaf) -> Skip | Refuse | None:
    name = (leaf.name or "").lower()
    types = {leaf.type, actual}
    if leaf.type in media.REPORTS:
        return Skip(Reason("skip-report"))
    if types & media.SIGNATURES or name == "smime.p7s":
        return Skip(Reason("skip-signature"))
    if types & media.CALENDARS or name.endswith(".ics"):
        return Skip(Reason("skip-calendar"))
    if types & media.VCARDS or name.endswith(".vcf"):
        return Skip(Reason("skip-vcard"))
    if types & media.TNEF or name == "winmail.dat":
        return Refuse(Reason("tnef"))
    if types & media.OPAQUE or name == "smime.p7m":
        return Refuse(Reason("opaque"))
    return None


def _layout(content: Content, leaf: Leaf, *, limit: int, cids: frozenset[str]) -> Skip | None:
    """A small image that the mail's HTML shows. By its bytes: a PDF with a cid is an invoice."""
    shown = leaf.content_id and (leaf.related or leaf.content_id in cids)
    image = content.type.startswith("image/") and content.archive is Archive.NONE
    return Skip(Reason("skip-image", {"size": content.size})) if shown and image and content.size <= limit else None


def _kind_refused(content: Content, rule: Rule) -> Reason | None:
    """The kinds that a rule refuses by name; the ZIP first, since it may hide behind another type."""
    if "zip" in rule.refuse and (reason := _zip(content)):
        return reason
    if "archive" in rule.refuse and content.type in media.ARCHIVES:
        return Reason("archive", {"type": media.ARCHIVES[content.type]})
    if "executable" in rule.refuse and content.type in media.EXECUTABLES:
        return Reason("executable")
    if "html" in rule.refuse and content.type == "text/html":
        return Reason("html", {"type": content.type})
    if "empty" in rule.refuse and content.size == 0:
        return Reason("empty")
    return None


def _zip(content: Content) -> Reason | None:
    match content.archive:
        case Archive.NONE | Archive.OFFICE:
            return None
        case Archive.ZIP:
            return Reason("zip")
        case Archive.HOSTILE:
            return Reason("office-hostile")
        case Archive.DISGUISED:
            return Reason("zip-disguised", {"type": media.SHORT.get(content.type, content.type)})
        case Archive.DAMAGED:
            return Reason("zip-damaged")
        case _:
            assert_never(content.archive)


def _type_refused(content: Content, rule: Rule) -> Reason | None:
    if content.entities:
        return Reason("entities")
    # RFC 7303 §9.2: text/xml is another name of application/xml.
    names = {content.type, "text/xml"} if content.type == "application/xml" else {content.type}
    if rule.accept and not names & rule.accept:
        return Reason("type", {"type": content.type})
    return None


def _flags(content: Content, leaf: Leaf | None) -> tuple[str, ...]:
    recovered = leaf is not None and bool(leaf.defects)
    return tuple(flag for flag, on in (("encrypted", content.encrypted), ("recovered", recovered)) if on)
