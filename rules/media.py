"""Which media types mean what to us: archives, programs, and the parts of a mail that are no documents.

Knows alone: the names that libmagic (5.41 to 5.45) gives to what we refuse, and the names mailers give to their own
parts. Limits: a script whose text has no mark of its own (VBScript, PowerShell) is plain text to libmagic, and to us.
"""

from collections.abc import Mapping

# → what a reader calls it
ARCHIVES: Mapping[str, str] = {
    "application/x-7z-compressed": "7z",
    "application/x-rar": "RAR",
    "application/vnd.rar": "RAR",
    "application/x-tar": "tar",
    "application/x-gtar": "tar",
    "application/gzip": "gzip",
    "application/x-gzip": "gzip",
    "application/x-bzip": "bzip",
    "application/x-bzip2": "bzip2",
    "application/x-xz": "xz",
    "application/x-lzma": "lzma",
    "application/x-lzip": "lzip",
    "application/x-lzop": "lzop",
    "application/x-lz4": "lz4",
    "application/zstd": "zstd",
    "application/x-zstd": "zstd",
    "application/x-compress": "compress",
    "application/x-lzh-compressed": "lzh",
    "application/x-lharc": "lzh",
    "application/x-arc": "arc",
    "application/x-arj": "arj",
    "application/x-ace-compressed": "ace",
    "application/x-zoo": "zoo",
    "application/x-stuffit": "StuffIt",
    "application/x-xar": "xar",
    "application/x-cpio": "cpio",
    "application/x-archive": "ar",
    "application/vnd.ms-cab-compressed": "CAB",
    "application/x-iso9660-image": "ISO",
    "application/x-apple-diskimage": "DMG",
    "application/x-ms-wim": "WIM",
    "application/vnd.debian.binary-package": "deb",
    "application/x-rpm": "RPM",
}

_SCRIPTS = frozenset({"application/javascript", "text/javascript", "text/x-shellscript", "text/x-msdos-batch"})
EXECUTABLES = frozenset(
    {
        "application/x-dosexec",
        "application/vnd.microsoft.portable-executable",
        "application/x-executable",
        "application/x-pie-executable",
        "application/x-sharedlib",
        "application/x-object",
        "application/x-mach-binary",
        "application/x-java-applet",  # a class file
        "application/x-ms-shortcut",
        "application/x-msi",
        *_SCRIPTS,
    }
)

# Types whose signature no text bears by chance: such bytes are what they are, whatever the mail calls them.
UNMISTAKABLE = frozenset(
    {
        "application/pdf",
        "application/encrypted",
        "application/msword",
        "application/vnd.ms-excel",
        "application/vnd.ms-powerpoint",
        "application/x-ole-storage",
        "image/bmp",
        "image/gif",
        "image/heic",
        "image/heif",
        "image/jpeg",
        "image/png",
        "image/tiff",
        "image/webp",
    }
)
# … and these a text may well begin like: "!<arch>", "BZh", "070707", "#!", "@echo off".
_TEXTLIKE = frozenset({"application/x-archive", "application/x-bzip", "application/x-bzip2", "application/x-cpio"})
FORBIDDEN = (ARCHIVES.keys() | EXECUTABLES) - _TEXTLIKE - _SCRIPTS
SHORT: Mapping[str, str] = {
    "application/pdf": "PDF",
    "application/vnd.microsoft.portable-executable": "EXE",
    "application/x-dosexec": "EXE",
    "image/jpeg": "JPEG",
    "image/png": "PNG",
    **ARCHIVES,
}

# text/plain and text/html, and what stands beside them in a multipart/alternative and is never a document.
BODIES = frozenset({"text/plain", "text/html", "text/enriched", "text/x-amp-html", "text/watch-html"})
REPORTS = frozenset(
    {
        "message/delivery-status",
        "message/disposition-notification",
        "message/feedback-report",
        "message/global-delivery-status",
        "message/global-disposition-notification",
        "message/global-headers",
        "text/rfc822-headers",
    }
)
SIGNATURES = frozenset(
    {
        "application/pgp-keys",
        "application/pgp-signature",
        "application/pkcs7-signature",
        "application/x-pkcs7-signature",
    }
)
CALENDARS = frozenset({"text/calendar", "application/ics"})
VCARDS = frozenset({"text/vcard", "text/x-vcard", "text/directory"})
TNEF = frozenset({"application/ms-tnef", "application/vnd.ms-tnef"})
OPAQUE = frozenset({"application/pkcs7-mime", "application/x-pkcs7-mime", "application/pgp-encrypted"})
