"""Facts of one part of a mail, or of one deposited file → document, skip or refuse, with the reason.

Knows alone: what counts as a document (domain.md §4 "What counts as a document in a mail", "Size and type").
Limits: it sees facts, not bytes; who reads the bytes is relay.mime and relay.examine.
"""

from dataclasses import dataclass
from enum import Enum

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
    defects: tuple[str, ...] = ()  # "bad-base64", "truncated", "unknown-encoding"


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
    raise NotImplementedError


def judge(content: Content, rule: Rule, *, leaf: Leaf | None = None, cids: frozenset[str] = frozenset()) -> Verdict:
    """`leaf` is None for a deposited file; `cids` are the Content-IDs the mail's HTML refers to."""
    raise NotImplementedError
