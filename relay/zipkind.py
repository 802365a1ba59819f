"""What a file that begins or ends like a ZIP is: a document of an office suite, or an archive, and of which kind.

Knows alone: the shape of OOXML (ECMA-376-2), ODF (part 2) and EPUB packages, and what has no business inside one.
Names and labels decide nothing: a package is what its own parts prove, in whatever order they stand.
Limits: a package inside a package is looked into once, not twice; OLE objects inside are not opened; macros are
office content and pass.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from typing import BinaryIO

from relay import xmlread, zipdir
from relay.zipdir import Directory, Entry, Malformed, TooMuch, Window
from rules.attachment import Archive

_PART = 256 << 10  # the longest package part that is read
_EMBEDDED = 12 << 20  # the longest package inside a package
_HUGE, _RATIO = 100_000_000, 200  # unpacked, this much and this many times the file is absurd
_MARKS = (zipdir.LOCAL, zipdir.END, *zipdir.SPANNED)

_FORBIDDEN = re.compile(
    r"exe|dll|com|scr|pif|cpl|sys|ms[ip]|bat|cmd|psm?1|vb[se]|jse?|ws[fh]|hta|lnk|reg|class|sh"  # programs
    r"|zip|7z|rar|tar|gz|tgz|bz2|xz|zst|cab|iso|arj|ace|lzh|jar|apk"  # archives
)
_FORBIDDEN_HEADS = (
    *(b"\x7fELF", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe"),
    *(b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"MSCF\0\0\0\0"),
)
_SHORT_HEADS = (b"MZ", b"#!", b"\x1f\x8b", b"BZh")  # one in 65,536 of what is enciphered begins so, too
_OBFUSCATED = frozenset({"odttf", "fntdata"})  # embedded fonts, enciphered
_COMPRESSED_PICTURES = frozenset({"emz", "wmz", "svgz"})  # gzip by definition: Office writes them


@dataclass(frozen=True, slots=True)
class Finding:
    """`type` is the media type of an OFFICE or HOSTILE package, in lower case; "" otherwise."""

    archive: Archive
    type: str = ""
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class _Package:
    type: str
    sealed: frozenset[str] = frozenset()  # members encrypted inside (ODF): their bytes say nothing


def concerns(head: bytes, tail: bytes) -> bool:
    """Is there anything to classify? Where not, it is no ZIP, and the document need not be opened again."""
    return head.startswith(_MARKS) or zipdir.is_flooded(tail) or next(zipdir.exact_ends(tail), None) is not None


def classify(file: BinaryIO, *, head: bytes, tail: bytes, size: int) -> Finding:
    """`head` and `tail` are of `file`, `size` bytes long; `tail` has at least its last 66 KiB (zipdir.TAIL), or all."""
    return _classify(Window(file, size, zipdir.budget(size)), head=head, tail=tail)


def _classify(window: Window, *, head: bytes, tail: bytes) -> Finding:
    marked = head.startswith(_MARKS)
    try:
        directory = zipdir.directory(window, tail)
    except TooMuch:
        return Finding(Archive.ZIP if marked else Archive.DISGUISED)
    if directory is None:
        return Finding(Archive.DAMAGED if marked else Archive.NONE)
    if not marked:
        return Finding(Archive.DISGUISED)
    package = _package(window, directory) if head.startswith(zipdir.LOCAL) and directory.plain else None
    if package is None:
        return Finding(Archive.ZIP)
    return Finding(_judge(window, directory, package=package), package.type, bool(package.sealed))


# --- which package --------------------------------------------------------------------------------------------------

_MAIN = re.compile(
    r"(application/vnd\.(?:openxmlformats-officedocument\.(?:wordprocessing|spreadsheet|presentation)ml"
    r"|ms-(?:word|excel|powerpoint|visio))\.[a-z.]+?)\.main(?:\+xml)?"
)
_ROOT_RELATIONS = ("/officeDocument", "/relationships/document")  # ECMA-376-1 §15.2 in both editions; Visio
_MIMETYPE = re.compile(r"application/(?:vnd\.oasis\.opendocument\.[a-z-]+|vnd\.sun\.xml\.[a-z.]+|epub\+zip)")


def _package(window: Window, directory: Directory) -> _Package | None:
    members = {entry.path: entry for entry in directory.entries}
    try:
        return _ooxml(window, members) or _opendocument(window, members)
    except (Malformed, TooMuch, ValueError):
        return None


def _path(name: str) -> str:
    return Entry(name, 0, 0, 0, 0, 0).path


def _ooxml(window: Window, members: dict[str, Entry]) -> _Package | None:
    if "[content_types].xml" not in members or "_rels/.rels" not in members:
        return None
    type_of = _content_types(_elements(window, members, "[content_types].xml"))
    relations = _elements(window, members, "_rels/.rels")
    for name, attributes in relations:
        if name == "Relationship" and attributes.get("Type", "").endswith(_ROOT_RELATIONS):
            target = _path(attributes.get("Target", "").removeprefix("./"))
            main = _MAIN.fullmatch(type_of(target).lower())
            if main and target in members:
                return _Package(re.sub(r"macroenabled(template)?$", "macroenabled.12", main[1]))
    return None


def _elements(window: Window, members: dict[str, Entry], part: str) -> list[tuple[str, dict[str, str]]]:
    """What a part about parts says, which is a few lines about each: 60 and more characters, five elements if sealed."""
    data = zipdir.whole(window, members[part], limit=_PART)
    return xmlread.elements(data, most=200 + min(5 * len(members), len(data) // 60))


def _content_types(types: Iterable[tuple[str, dict[str, str]]]) -> Callable[[str], str]:
    """The type of a part: an Override names it, or a Default names its extension (ECMA-376-2 §7.2.3)."""
    overrides: dict[str, str] = {}
    defaults: dict[str, str] = {}
    for name, attributes in types:
        if name == "Override":
            overrides.setdefault(_path(attributes.get("PartName", "")), attributes.get("ContentType", ""))
        elif name == "Default":
            defaults[attributes.get("Extension", "").lower()] = attributes.get("ContentType", "")
    return lambda part: overrides.get(part, defaults.get(_extension(part), ""))


def _opendocument(window: Window, members: dict[str, Entry]) -> _Package | None:
    if "mimetype" not in members:
        return None
    kind = zipdir.whole(window, members["mimetype"], limit=256).decode("ascii").strip().lower()
    if not _MIMETYPE.fullmatch(kind):
        return None
    manifest = "meta-inf/container.xml" if kind == "application/epub+zip" else "meta-inf/manifest.xml"
    if manifest not in members:
        return None
    listed = _elements(window, members, manifest)
    return _epub(listed, members) if kind == "application/epub+zip" else _odf(kind, listed, members)


def _epub(container: Iterable[tuple[str, dict[str, str]]], members: dict[str, Entry]) -> _Package | None:
    books = [attributes.get("full-path", "") for name, attributes in container if name == "rootfile"]
    return _Package("application/epub+zip") if any(_path(book) in members for book in books) else None


def _odf(kind: str, manifest: Iterable[tuple[str, dict[str, str]]], members: dict[str, Entry]) -> _Package | None:
    path, types, sealed = "", {}, set()
    for name, attributes in manifest:
        values = {key.rpartition(":")[2]: value for key, value in attributes.items()}
        if name == "file-entry":
            path = _path(values.get("full-path", "")) if values.get("full-path") != "/" else "/"
            types[path] = values.get("media-type", "").lower()
        elif name == "encryption-data":
            sealed.add(path)
    # "encrypted-package": the whole document sealed as one member (LibreOffice 24.2).
    if types.get("/") != kind or not {"content.xml", "encrypted-package"} & members.keys():
        return None
    return _Package(kind, frozenset(sealed))


# --- is it harmless -------------------------------------------------------------------------------------------------


def _judge(window: Window, directory: Directory, *, package: _Package) -> Archive:
    files = [entry for entry in directory.entries if not (entry.name.endswith("/") and entry.size == 0)]
    if _deceives(window, files, start=directory.start) or any(entry.encrypted for entry in files):
        return Archive.HOSTILE
    try:
        harmless = all(_harmless(window, entry, sealed=package.sealed) for entry in files)
    except Malformed:
        return Archive.DAMAGED
    except TooMuch:
        return Archive.HOSTILE
    return Archive.OFFICE if harmless else Archive.HOSTILE


def _deceives(window: Window, files: list[Entry], *, start: int) -> bool:
    """A name twice, members that overlap, or absurdly much inside: what one reader sees, another does not."""
    if len({entry.path for entry in files}) < len(files):
        return True
    total = sum(entry.size for entry in files)
    if total > _HUGE and total > window.size * _RATIO:
        return True
    spans = sorted((entry.offset, entry.offset + 30 + len(entry.name) + entry.packed) for entry in files)
    spans.append((start, start))
    return any(end > following for (_, end), (following, _) in pairwise(spans))


def _harmless(window: Window, entry: Entry, *, sealed: frozenset[str]) -> bool:
    path = entry.path
    extension = _extension(path)
    if _FORBIDDEN.fullmatch(extension) or "\0" in path:
        return False
    if path in sealed:
        return True
    head = zipdir.beginning(window, entry, length=8)
    if head.startswith(zipdir.LOCAL):
        return window.depth == 0 and _harmless_package(window, entry)
    if head.startswith(_SHORT_HEADS):
        return extension in _OBFUSCATED or (head.startswith(b"\x1f\x8b") and extension in _COMPRESSED_PICTURES)
    return not head.startswith(_FORBIDDEN_HEADS)


def _harmless_package(window: Window, entry: Entry) -> bool:
    """The workbook behind a chart of a presentation is a package too; anything else that begins so is an archive."""
    data = zipdir.whole(window, entry, limit=_EMBEDDED)
    inner = Window(BytesIO(data), len(data), window.left, depth=1)
    finding = _classify(inner, head=data[:64], tail=data[-zipdir.TAIL :])
    window.left = inner.left
    return finding.archive is Archive.OFFICE


def _extension(path: str) -> str:
    """As Windows reads it: trailing dots and spaces do not count."""
    return path.rstrip(". ").rpartition(".")[2]
