"""The bytes of a document → the facts that rules.attachment judges by: size, type, ZIP structure, encryption, entities.

Knows alone: libmagic, where it is known to be wrong (a PDF behind junk, XML without a declaration, office files), and
where it need not be asked, since its answer is known (PDF, JPEG, PNG) or would not count (XML).
One libmagic handle per thread: a handle must not be shared, and the module's own functions share one.
Limits: the type is judged on the first 64 KiB. `/Encrypt` is looked for in the first 64 and the last 66 KiB, which
misses a cross-reference stream longer than that. A password in an old .doc or .xls is not seen. Every other part of
a file is the business of whoever opens it: pixels are never decoded, scripts in a PDF are not looked for.
"""

import hashlib
import re
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO, cast

from relay import oledir, xmlread, zipdir, zipkind
from rules import media
from rules.attachment import Archive, Content

if TYPE_CHECKING:
    from magic import Magic

HEAD = 64 * 1024
TAIL = zipdir.TAIL
_CHUNK = 1 << 20


class ExamineError(Exception):
    """We could not look: libmagic or its database is missing or failed, or the bytes could not be read again."""


def examine(*, size: int, sha256: str, head: bytes, tail: bytes, reopen: Callable[[], BinaryIO]) -> Content:
    """The facts of a document of `size` bytes; `head` and `tail` are its first HEAD and last TAIL bytes, or all of it.

    `reopen` gives the whole of it, seekable, and is called only where head or tail are of a ZIP or an OLE file, and
    head is not the whole.
    """
    return _examine(_Sample(size, sha256, head, tail), lambda: closing(reopen() if size > len(head) else BytesIO(head)))


def examine_file(fileobj: BinaryIO) -> Content:
    """The facts of a seekable file that stands at its beginning. It is read once, and left open."""
    digest, size, head, tail = hashlib.sha256(), 0, b"", b""
    while chunk := fileobj.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
        head = head if len(head) == HEAD else (head + chunk)[:HEAD]
        tail = (tail + chunk)[-TAIL:]
    return _examine(_Sample(size, digest.hexdigest(), head, tail), lambda: nullcontext(fileobj))


def seekable(chunks: Iterable[bytes]) -> BinaryIO:
    """A document that comes in chunks, to look around in: what `reopen` gives. In memory while small."""
    file = tempfile.SpooledTemporaryFile(max_size=1 << 20)  # noqa: SIM115  # `examine` closes it
    for chunk in chunks:
        file.write(chunk)
    file.seek(0)
    return cast(BinaryIO, file)


@dataclass(frozen=True, slots=True)
class _Sample:
    size: int
    sha256: str
    head: bytes
    tail: bytes


def _examine(sample: _Sample, opened: Callable[[], AbstractContextManager[BinaryIO]]) -> Content:
    if sample.size == 0:
        return Content(0, sample.sha256, "application/x-empty")
    try:
        if zipkind.concerns(sample.head, sample.tail):
            with opened() as file:
                finding = zipkind.classify(file, head=sample.head, tail=sample.tail, size=sample.size)
            return _of_zip(sample, finding)
        if sample.head.startswith(oledir.SIGNATURE):
            with opened() as file:
                kind = oledir.media_type(file) or _libmagic(sample.head)
            return Content(sample.size, sample.sha256, kind, encrypted=kind == oledir.ENCRYPTED_PACKAGE)
    except OSError as error:
        raise ExamineError(f"reading the document again: {error}") from error
    return _plain(sample)


def _of_zip(sample: _Sample, finding: zipkind.Finding) -> Content:
    if finding.archive in (Archive.NONE, Archive.DISGUISED):
        return replace(_plain(sample), archive=finding.archive)
    kind = finding.type or "application/zip"
    return Content(sample.size, sample.sha256, kind, finding.archive, encrypted=finding.encrypted)


def _plain(sample: _Sample) -> Content:
    """Everything that is neither ZIP nor OLE."""
    root = xmlread.root(sample.head)
    if root is not None and root.name and not _speaks_of_pdf(sample.head):
        # Its root has the last word: what libmagic calls it is not asked, which takes it 0.25 ms.
        return Content(sample.size, sample.sha256, _of_root(root, ""), entities=root.entities)
    kind = _unmistakable(sample.head) or _libmagic(sample.head)
    if _is_pdf(sample, kind):
        return Content(sample.size, sample.sha256, "application/pdf", encrypted=_pdf_encrypted(sample))
    if kind == "application/pdf":
        kind = "text/plain" if _is_characters(sample.head) else "application/octet-stream"
    elif root is not None:
        return Content(sample.size, sample.sha256, _of_root(root, kind), entities=root.entities)
    return Content(sample.size, sample.sha256, "application/xml" if kind == "text/xml" else kind)


def _speaks_of_pdf(head: bytes) -> bool:
    """Without these characters, in whatever width, libmagic calls nothing a PDF."""
    return b"%PDF-" in head.replace(b"\0", b"")


# --- libmagic -------------------------------------------------------------------------------------------------------

_BEGINNINGS = re.compile(
    rb"(%PDF-\d\.\d)|(\xff\xd8\xff(?:\xe0\0\x10JFIF|\xe1..Exif)\0)|\x89PNG\r\n\x1a\n\0\0\0\rIHDR", re.DOTALL
)
_BY_BEGINNING = {1: "application/pdf", 2: "image/jpeg", None: "image/png"}
# What libmagic (5.44) puts before these: a tar by the checksum of its first header, and a few marks further on.
_TAR_CHECKSUM = re.compile(rb"\s*[0-7]+(?:[\s\0]|\Z)")
_MARKS = (
    *((56, b"USE LYNX TO DISSOLVE"), (79, b"Tue Jan 22 14:32:44 MET 1991")),
    *((252, b"Must have DOS version"), (369, b"MICROSOFT PIFEX")),
)
_COOKIE = b"MIT-MAGIC-COOKIE-1"  # from 10 to 18


def _unmistakable(head: bytes) -> str | None:
    """The type of what begins as nearly all documents do; None where libmagic has to be asked.

    It is libmagic's, at the price of two matches instead of its search through 3,800 entries. A PDF that it takes for
    a text (a first line with commas is CSV to it) would be a PDF to us whatever it says, short of an archive or a
    program: those exceptions are named above, read in its database, and a property test compares the answers.
    """
    found = _BEGINNINGS.match(head)
    if found is None or _TAR_CHECKSUM.match(head, 148, 156) or _COOKIE in head[:40]:
        return None
    return None if any(head.startswith(mark, at) for at, mark in _MARKS) else _BY_BEGINNING[found.lastindex]


_THREAD = threading.local()
_TEXT = bytes({7, 8, 9, 10, 12, 13, 27, *range(0x20, 0x7F), *range(0x80, 0x100)})  # as libmagic's encoding.c has it
_MEDIA_TYPE = re.compile(r"[a-z0-9.+-]+/[a-z0-9.+-]+")


def _libmagic(head: bytes) -> str:
    """What libmagic calls `head`, in lower case."""
    try:
        kind = _handle().from_buffer(_enough(head)).lower()
    except Exception as error:
        # Not only MagicException: a missing library is an ImportError, a broken one an OSError or an AttributeError.
        # Whatever it is, it is our trouble and not the sender's.
        raise ExamineError(f"libmagic: {error}") from error
    return kind if _MEDIA_TYPE.fullmatch(kind) else "application/octet-stream"


def _handle() -> "Magic":
    if not hasattr(_THREAD, "handle"):
        from magic import Magic  # here: it loads a C library, and half of the commands never look at a document

        _THREAD.handle = Magic(mime=True)
    handle: Magic = _THREAD.handle
    return handle


def is_only_text(head: bytes, tail: bytes) -> bool:
    """Characters from one end to the other and no PDF: the text of a message need not be examined to be set aside.

    No ZIP, picture, program or office file is like that; `examine` would say so at fifty times the price.
    """
    return b"%PDF-" not in head[: 1024 + 8] and _is_characters(head) and (tail == head or _is_characters(tail))


def _is_characters(data: bytes) -> bool:
    """Nothing but characters of a text in ASCII, UTF-8 or an 8-bit set."""
    return not data[:64].translate(None, _TEXT) and not data.translate(None, _TEXT)  # most that is binary begins so


def _enough(head: bytes) -> bytes:
    """As much of `head` as libmagic's answer depends on.

    Plain text is what it takes longest over (2 ms for 64 KiB), only to find that it is plain text. What it knows of
    text it knows from the first kilobyte, but for HTML (4 KiB, and a `<` in it) and JSON (parsed whole).
    """
    if head.lstrip()[:1] in (b"{", b"[") or not _is_characters(head):
        return head
    return head[:5120] if b"<" in head[:4096] else head[:1024]


# --- corrections ----------------------------------------------------------------------------------------------------

_PDF = re.compile(rb"%PDF-\d\.\d")
_BLANK = b"\xef\xbb\xbf \t\r\n\f\0"  # a byte order mark, and white space as PDF has it (ISO 32000-1 §7.2.2)
_PDF_REFERENCE = re.compile(rb"/Encrypt(?:\s+\d+\s+\d+\s+R|\s*<<)")  # in the trailer (ISO 32000-1 §7.6.1)
_HTML = re.compile("html|head|body|title|meta|script|style|div|p|br|b|h1|center|table|iframe", re.IGNORECASE)


def _is_pdf(sample: _Sample, kind: str) -> bool:
    """A PDF may have 1,024 bytes in front of its header (ISO 32000-1 annex H.3, note 13); readers take all of these.

    A first member of a tar or a stored gzip is a PDF as near the beginning: that is for libmagic to say. And a text
    that speaks of %PDF-1.7 is a PDF to libmagic, but has none of its bones.
    """
    if kind in media.ARCHIVES or kind in media.EXECUTABLES:
        return False
    match = _PDF.search(sample.head, 0, 1024 + 8)
    if match is None or not sample.head[: match.start()].strip(_BLANK):
        return kind == "application/pdf" or match is not None
    return any(bone in part for part in (sample.tail, sample.head) for bone in (b"%%EOF", b"startxref", b"endobj"))


def _pdf_encrypted(sample: _Sample) -> bool:
    parts = (sample.tail,) if sample.tail == sample.head else (sample.tail, sample.head)
    return any(b"/Encrypt" in part and _PDF_REFERENCE.search(part) for part in parts)


def _of_root(root: xmlread.Root, kind: str) -> str:
    """libmagic calls XML without a declaration plain text, and an invoice with HTML in a note HTML."""
    if root.xhtml or _HTML.fullmatch(root.name):
        return "text/html"
    if root.name == "svg" or (not root.name and kind == "image/svg+xml"):
        return "image/svg+xml"
    return "application/xml"
