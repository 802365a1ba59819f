"""The directory of an OLE compound file [MS-CFB]: what the old Office formats, Outlook messages and installers are.

Knows alone: where the stream names stand and what they mean. libmagic needs the whole file for that, and is never
given it. Limits: the first 109 FAT sectors and 64 directory sectors are followed, which reaches 7 MB into a file of
512-byte sectors; the contents of streams are not read, so a program packed in one is not seen.
"""

import struct
from typing import BinaryIO

SIGNATURE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
ENCRYPTED_PACKAGE = "application/encrypted"  # an OOXML file under a password [MS-OFFCRYPTO §2.3]

_INSTALLER = bytes.fromhex("84100c0000000000c000000000000046")  # class of an MSI; a patch differs in the first byte
_STREAMS = (
    ("EncryptedPackage", ENCRYPTED_PACKAGE),
    ("WordDocument", "application/msword"),
    ("PowerPoint Document", "application/vnd.ms-powerpoint"),
    ("Workbook", "application/vnd.ms-excel"),
    ("Book", "application/vnd.ms-excel"),
    ("VisioDocument", "application/vnd.visio"),
    ("__nameid_version1.0", "application/vnd.ms-outlook"),
    ("__properties_version1.0", "application/vnd.ms-outlook"),
)
_MAX_SECTORS = 64
_ENTRY = 128


def media_type(file: BinaryIO) -> str | None:
    """The type that the directory shows; None where it cannot be read or says nothing."""
    header = _read(file, 0, 512)
    if len(header) < 512 or not header.startswith(SIGNATURE):
        return None
    entries = _directory(file, header)
    names = {_name(entry) for entry in entries}
    if entries and entries[0][81:96] == _INSTALLER[1:]:
        return "application/x-msi"
    return next((kind for stream, kind in _STREAMS if stream in names), None)


def _directory(file: BinaryIO, header: bytes) -> list[bytes]:
    """The directory entries, following the chain of their sectors through the FAT [MS-CFB §2.3]."""
    (shift,) = struct.unpack_from("<H", header, 30)
    if shift not in (9, 12):
        return []
    sector_size = 1 << shift
    difat = struct.unpack_from("<109I", header, 76)
    (sector,) = struct.unpack_from("<I", header, 48)
    entries: list[bytes] = []
    for _ in range(_MAX_SECTORS):
        data = _read(file, (sector + 1) << shift, sector_size)
        entries += [data[at : at + _ENTRY] for at in range(0, len(data) - _ENTRY + 1, _ENTRY)]
        table, position = divmod(sector, sector_size // 4)
        if len(data) < sector_size or table >= len(difat):
            break
        following = _read(file, ((difat[table] + 1) << shift) + position * 4, 4)
        if len(following) < 4:
            break
        (sector,) = struct.unpack("<I", following)
    return entries


def _name(entry: bytes) -> str:
    (length,) = struct.unpack_from("<H", entry, 64)
    return entry[: max(min(length, 64) - 2, 0)].decode("utf-16-le", "replace")


def _read(file: BinaryIO, at: int, length: int) -> bytes:
    file.seek(at)
    return file.read(length)
