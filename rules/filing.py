"""Client, document and date → the GED folder and the file name; which names in a tree are not documents.

Knows alone: how a folder name becomes a slug, what a fiscal year is called, and which names are safe everywhere: on
Linux, Windows, macOS, a NAS, in a mail header. A name made here is never one that a scan of the tree would ignore.
Limits: it knows nothing of what is in the tree; a name already taken is numbered by relay.ged. A slug is not cut: one
over 64 characters, or empty, does not match SLUG and cannot stand in an address, so `check` has to say so.
"""

import re
import unicodedata
from datetime import date, datetime, tzinfo

from rules.replies import to_ascii

# --- clients and folders --------------------------------------------------------------------------------------------

SLUG = re.compile(r"(?=.{1,64}\Z)[a-z0-9]+(?:-[a-z0-9]+)*")  # for fullmatch; domain.md §4: NAME is ≤ 64 characters

_SYSTEM_FOLDERS = frozenset(
    {"@eadir", "#recycle", "lost+found", "$recycle.bin", "system volume information", "__macosx"}
)


def slug(folder_name: str) -> str:
    """ "Maçon & Dupont" → "macon-dupont". May be empty, or too long for SLUG: such a client has no address."""
    return re.sub(r"[^a-z0-9]+", "-", to_ascii(folder_name).lower()).strip("-")


def is_system(folder_name: str) -> bool:
    """Dot folders and those of a NAS, Windows or macOS: neither clients nor places for documents."""
    return folder_name.startswith(".") or folder_name.lower() in _SYSTEM_FOLDERS


def folder(
    template: str, received: datetime, *, timezone: tzinfo, fiscal_year_end: tuple[int, int] | None = None
) -> tuple[str, ...]:
    """ "Ventes/{year}/{month}" → its segments, by the reception date in the zone.

    A fiscal year is called after the calendar year in which it ends; `fiscal_year_end` is (month, day).
    """
    day = received.astimezone(timezone).date()
    year = day.year if fiscal_year_end is None else _fiscal_year(day, fiscal_year_end)
    filled = template.replace("{year}", f"{year:04}").replace("{month}", f"{day.month:02}")
    return tuple(filled.split("/"))


def _fiscal_year(day: date, end: tuple[int, int]) -> int:
    # A year said to end on 28 February ends on the 29th when there is one.
    last = (2, 29) if end == (2, 28) else end
    return day.year if (day.month, day.day) <= last else day.year + 1


# --- names that are not documents -----------------------------------------------------------------------------------

# Files still arriving, lock files and the litter of desktops (domain.md §4); dot files with them. For match().
IGNORED = re.compile(r"\.|~\$|(?:thumbs\.db|desktop\.ini)\Z|.*\.(?:part|tmp|crdownload)\Z", re.IGNORECASE | re.DOTALL)


def is_ignored(name: str) -> bool:
    """Is a file of this name never a document?"""
    return IGNORED.match(name) is not None


# --- safe names -----------------------------------------------------------------------------------------------------

MAX_NAME = 240  # bytes of UTF-8: file systems take 255, and " (999)" must fit

_RESERVED = re.compile(r'[<>:"|?*]')
_SEPARATOR = re.compile(r"[/\\]")
# Windows takes the part before the first dot for a device, whatever follows.
_DEVICE = re.compile(r"(?:CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(?:COM|LPT)[0-9¹²³]) *(?:\.|\Z)", re.IGNORECASE)
# Letters after the last dot, few of them: "Facture 12.03.2024" and "M. Dupont" have no extension.
_EXTENSION = re.compile(r"\.(?=[0-9]*[A-Za-z])[A-Za-z0-9]{1,5}\Z")
# Shown as nothing, though Unicode calls them letters or marks: a name must not differ from another by these alone.
_INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
# Controls; bidi and zero-width; line and paragraph separators; halves of a surrogate pair.
_DROPPED_CATEGORIES = frozenset({"Cc", "Cf", "Zl", "Zp", "Cs"})

_EXTENSIONS = {
    "application/pdf": "pdf",
    "application/xml": "xml",
    "text/xml": "xml",
    "text/plain": "txt",
    "text/csv": "csv",
    "text/html": "html",
    "text/rtf": "rtf",
    "application/rtf": "rtf",
    "application/json": "json",
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/tiff": "tif",
    "image/gif": "gif",
    "image/bmp": "bmp",
    "image/webp": "webp",
    "image/heic": "heic",
    "image/heif": "heif",
    "image/avif": "avif",
    "image/svg+xml": "svg",
    "message/rfc822": "eml",
    "application/zip": "zip",
    "application/epub+zip": "epub",
    "application/msword": "doc",
    "application/vnd.ms-excel": "xls",
    "application/vnd.ms-powerpoint": "ppt",
    "application/vnd.ms-outlook": "msg",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "pptx",
    "application/vnd.oasis.opendocument.text": "odt",
    "application/vnd.oasis.opendocument.spreadsheet": "ods",
    "application/vnd.oasis.opendocument.presentation": "odp",
}


def safe_name(name: str | None, *, type: str, serial: int, date: date) -> str:
    """The name under which a document may be filed or sent anywhere; it keeps, or is given, an extension.

    `type` is the MIME type of the content; `serial` and `date` make up a name where the sender gave none.
    """
    extension = "." + _EXTENSIONS.get(type, "bin")
    base = _clean(name or "")
    if not base:
        base = f"document-{date:%Y-%m-%d}-{serial}"
    if base.startswith("~$") or _DEVICE.match(base):
        base = "_" + base
    if not _EXTENSION.search(base) or is_ignored(base):
        base += extension
    return _cut(base)


def numbered(name: str, number: int) -> str:
    """The `number`-th of that name: "x.pdf" → "x (2).pdf"; the first is the name itself."""
    if number < 2:
        return name
    stem, extension = _split(name)
    return f"{stem} ({number}){extension}"


def _clean(name: str) -> str:
    """The last component, NFC, of visible characters that no system reserves; no outer spaces, no outer dots."""
    if not name.isprintable() or not _INVISIBLE.isdisjoint(name):  # the others have nothing that is dropped
        spaced = re.sub(r"[\t\r\n\v\f]+", " ", name)
        name = "".join(c for c in spaced if not _is_dropped(c))
    # After the deletions: two characters that stood apart may compose now.
    plain = _RESERVED.sub("_", unicodedata.normalize("NFC", name))
    components = (_trim(part) for part in reversed(_SEPARATOR.split(plain)))
    return next(filter(None, components), "")


def _trim(text: str) -> str:
    """Windows loses trailing dots and spaces; a leading dot hides the file."""
    while (shorter := text.strip().strip(".")) != text:
        text = shorter
    return text


def _is_dropped(character: str) -> bool:
    noncharacter = ord(character) & 0xFFFE == 0xFFFE or 0xFDD0 <= ord(character) <= 0xFDEF
    return unicodedata.category(character) in _DROPPED_CATEGORIES or character in _INVISIBLE or noncharacter


def _split(name: str) -> tuple[str, str]:
    match = _EXTENSION.search(name)
    return (name[: match.start()], match.group()) if match else (name, "")


def _cut(name: str) -> str:
    stem, extension = _split(name)
    room = MAX_NAME - len(extension)  # an extension is ASCII
    kept = stem.encode()[:room].decode("utf-8", errors="ignore")
    return kept.rstrip(". ") + extension
