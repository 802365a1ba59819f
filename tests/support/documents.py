"""Every kind of document the tests need, made from nothing but the standard library, the same bytes every time.

They are as whole as their readers need: the PDF, PNG, TIFF, office and archive files open in real programs where a
real program is to be had in the standard library; JPEG, HEIC, 7z, RAR, OLE and EXE have the structure that tells
their kind, and no more. Long, because it is one catalogue: a test names what it needs and looks nowhere else.
"""

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping

_DATE = (2026, 1, 1, 0, 0, 0)
Parts = Mapping[str, bytes]


# --- PDF ------------------------------------------------------------------------------------------------------------


def pdf(text: str = "Facture 0231", *, objects: Iterable[bytes] = (), trailer: bytes = b"") -> bytes:
    """One page with `text`; `objects` are added after the five of the page, `trailer` to the trailer's dictionary."""
    stream = f"BT /F1 24 Tf 72 720 Td ({text}) Tj ET".encode("latin-1")
    bodies = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 595 842]/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>",
        _stream(b"", stream),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
        *objects,
    ]
    out, offsets = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", []
    for number, body in enumerate(bodies, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"xref\n0 %d\n0000000000 65535 f \n" % (len(bodies) + 1)
    table += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    end = b"trailer\n<</Size %d/Root 1 0 R%b>>\nstartxref\n%d\n%%%%EOF\n" % (len(bodies) + 1, trailer, len(out))
    return out + table + end


def _stream(dictionary: bytes, data: bytes) -> bytes:
    return b"<<%b/Length %d>>stream\n%b\nendstream" % (dictionary, len(data), data)


def pdf_of_size(size: int) -> bytes:
    """A PDF of exactly `size` bytes, at least 1,200: an object that nothing refers to fills it."""
    short = pdf(objects=[_stream(b"", b"")])
    filler = size - len(short)
    while True:
        whole = pdf(objects=[_stream(b"", _noise(filler))])
        if len(whole) == size:
            return whole
        filler += size - len(whole)


def pdf_with_junk(length: int, junk: bytes = b"-") -> bytes:
    return (junk * length)[:length] + pdf()


def encrypted_pdf() -> bytes:
    """Its trailer names an encryption dictionary; the page is not really enciphered."""
    encrypt = b"<</Filter/Standard/V 2/R 3/Length 128/P -3904/O<%b>/U<%b>>>" % (b"41" * 32, b"42" * 32)
    return pdf(objects=[encrypt], trailer=b"/Encrypt 6 0 R/ID[<%b><%b>]" % (b"43" * 16, b"43" * 16))


def signed_pdf() -> bytes:
    signature = (
        b"<</Type/Sig/Filter/Adobe.PPKLite/SubFilter/adbe.pkcs7.detached/ByteRange[0 100 200 300]/Contents<00>>>"
    )
    return pdf(objects=[signature])


def pdf_with_file(name: str, data: bytes) -> bytes:
    """A PDF that holds a file as it is, uncompressed."""
    specification = b"<</Type/Filespec/F(%b)/EF<</F 6 0 R>>>>" % name.encode()
    return pdf(objects=[_stream(b"/Type/EmbeddedFile", data), specification])


def pdfa3_with_xlsx() -> bytes:
    return pdf_with_file("detail.xlsx", xlsx())


def factur_x() -> bytes:
    return pdf_with_file("factur-x.xml", cii_xml())


# --- XML and text ---------------------------------------------------------------------------------------------------

_DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>\n'


def ubl_xml(*, declaration: str = _DECLARATION) -> bytes:
    root = "urn:oasis:names:specification:ubl:schema:xsd:Invoice-2"
    parts = "urn:oasis:names:specification:ubl:schema:xsd:CommonBasicComponents-2"
    return f'{declaration}<Invoice xmlns="{root}" xmlns:cbc="{parts}"><cbc:ID>0231</cbc:ID></Invoice>\n'.encode()


def cii_xml(*, declaration: str = "") -> bytes:
    root = "urn:un:unece:uncefact:data:standard:CrossIndustryInvoice:100"
    body = "<rsm:ExchangedDocument/><rsm:SupplyChainTradeTransaction/>"
    return f'{declaration}<rsm:CrossIndustryInvoice xmlns:rsm="{root}">{body}</rsm:CrossIndustryInvoice>\n'.encode()


def entity_bomb() -> bytes:
    lines = ['<!ENTITY a0 "ha">'] + [f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10)]
    return f"{_DECLARATION}<!DOCTYPE Invoice [{''.join(lines)}]>\n<Invoice>&a9;</Invoice>\n".encode()


def svg() -> bytes:
    return b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"><rect width="1" height="1"/></svg>\n'


def html() -> bytes:
    return b"<!DOCTYPE html>\n<html lang=fr><head><title>Erreur</title></head><body>Votre facture</body></html>\n"


def xhtml() -> bytes:
    return f'{_DECLARATION}<html xmlns="http://www.w3.org/1999/xhtml"><head/><body/></html>\n'.encode()


def text() -> bytes:
    return "Bonjour,\r\n\r\nVoici la facture du mois, réglée à réception.\r\n\r\nMaçon & Dupont\r\n".encode()


def csv() -> bytes:
    return b"date;piece;montant\n" + b"".join(b"2026-01-%02d;F%04d;%d,00\n" % (n, n, n * 10) for n in range(1, 29))


# --- pictures -------------------------------------------------------------------------------------------------------


def png(size: int = 0) -> bytes:
    """One grey pixel; padded with a private chunk to `size` bytes where that is more."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    front = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    back = chunk(b"IDAT", zlib.compress(b"\0\x80")) + chunk(b"IEND", b"")
    room = size - len(front) - len(back) - 12
    return front + (chunk(b"prVt", bytes(room)) if room >= 0 else b"") + back


def jpeg(size: int = 0) -> bytes:
    front = b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0\xff\xda\0\x08\1\1\0\0\x3f\0"
    return front + _noise(max(size - len(front) - 2, 200)).replace(b"\xff", b"\xfe") + b"\xff\xd9"


def gif() -> bytes:
    return b"GIF89a\1\0\1\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"


def tiff() -> bytes:
    """One white pixel, as a scanner writes it."""
    tags = [(256, 1), (257, 1), (258, 1), (259, 1), (262, 0), (273, 8), (277, 1), (278, 1), (279, 1)]
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 12) + b"\0" * 4 + struct.pack("<H", len(tags)) + fields + bytes(4)


def heic() -> bytes:
    return struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + struct.pack(">I", 208) + b"mdat" + _noise(200)


# --- ZIP and what looks like it -------------------------------------------------------------------------------------


def zip_of(parts: Parts, *, stored: bool = False, comment: bytes = b"") -> bytes:
    """The parts in their order."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            info = zipfile.ZipInfo(name, _DATE)
            # OCF 3.3 and ODF 1.2 part 3: the mimetype is not compressed.
            info.compress_type = zipfile.ZIP_STORED if stored or name == "mimetype" else zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
        archive.comment = comment
    return out.getvalue()


def plain_zip() -> bytes:
    return zip_of({"facture-1.pdf": pdf("1"), "facture-2.pdf": pdf("2")})


def zip_of_size(size: int) -> bytes:
    front = len(zip_of({"a": b""}, stored=True))
    return zip_of({"a": _noise(size - front)}, stored=True)


def encrypted_zip() -> bytes:
    return with_flags(plain_zip(), 1)


def with_flags(archive: bytes, flags: int, member: bytes = b"") -> bytes:
    """`archive` with general purpose bits set on the members whose name has `member` in it."""
    data = bytearray(archive)
    for mark, at_flags, at_name, at_length in ((b"PK\3\4", 6, 30, 26), (b"PK\1\2", 8, 46, 28)):
        at = data.find(mark)
        while at >= 0:
            (length,) = struct.unpack_from("<H", data, at + at_length)
            if member in data[at + at_name : at + at_name + length]:
                data[at + at_flags] |= flags
            at = data.find(mark, at + 4)
    return bytes(data)


def empty_zip() -> bytes:
    return b"PK\5\6" + bytes(18)


def spanned_zip() -> bytes:
    """Split, and in one piece after all (APPNOTE §8.5.4): the offsets count the mark in front."""
    marked = bytearray(b"PK00" + plain_zip())
    at = marked.find(b"PK\1\2")
    while at >= 0:
        struct.pack_into("<I", marked, at + 42, struct.unpack_from("<I", marked, at + 42)[0] + 4)
        at = marked.find(b"PK\1\2", at + 4)
    end = marked.rfind(b"PK\5\6")
    struct.pack_into("<I", marked, end + 16, struct.unpack_from("<I", marked, end + 16)[0] + 4)
    return bytes(marked)


def zip64(archive: bytes) -> bytes:
    """The same archive, its end in ZIP64 form (APPNOTE §4.3.14–16)."""
    at = archive.rfind(b"PK\5\6")
    count, length, offset = struct.unpack_from("<HII", archive, at + 10)
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, offset)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, at, 1)
    end = struct.pack("<4s4HIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return archive[:at] + record + locator + end


def jar() -> bytes:
    return zip_of({"META-INF/MANIFEST.MF": b"Manifest-Version: 1.0\r\n", "Main.class": b"\xca\xfe\xba\xbe\0\0\0\x34"})


def apk() -> bytes:
    return zip_of({"AndroidManifest.xml": b"\3\0\x08\0", "classes.dex": b"dex\n035\0", "resources.arsc": b"\2\0\x0c\0"})


def kmz() -> bytes:
    return zip_of({"doc.kml": b'<kml xmlns="http://www.opengis.net/kml/2.2"/>'})


def shifted(prefix: bytes, archive: bytes) -> bytes:
    """`archive` behind `prefix`, its offsets corrected, as a self-extracting archive has them."""
    out = io.BytesIO(prefix)
    out.seek(0, io.SEEK_END)
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(out, "a") as target:
        for info in source.infolist():
            target.writestr(info, source.read(info))
    return out.getvalue()


def pdf_zip_polyglot() -> bytes:
    return pdf() + plain_zip()


def jpeg_zip() -> bytes:
    return jpeg() + plain_zip()


def sfx() -> bytes:
    return shifted(exe(), plain_zip())


# --- office ---------------------------------------------------------------------------------------------------------

_OOXML = "application/vnd.openxmlformats-officedocument."
_OFFICE_RELATION = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"


def ooxml_parts(main: str, content_type: str, *, relation: str = _OFFICE_RELATION) -> dict[str, bytes]:
    """The least that makes an OPC package with `main` as its main part."""
    types = (
        f'{_DECLARATION}<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        f'<Default Extension="xml" ContentType="application/xml"/>'
        f'<Override PartName="/{main}" ContentType="{content_type}"/></Types>'
    )
    relations = (
        f'{_DECLARATION}<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
        f'<Relationship Id="rId1" Type="{relation}" Target="{main}"/></Relationships>'
    )
    return {
        "[Content_Types].xml": types.encode(),
        "_rels/.rels": relations.encode(),
        main: f"{_DECLARATION}<document/>".encode(),
        "docProps/core.xml": f"{_DECLARATION}<coreProperties/>".encode(),
    }


def docx_parts() -> dict[str, bytes]:
    return ooxml_parts("word/document.xml", _OOXML + "wordprocessingml.document.main+xml")


def xlsx_parts() -> dict[str, bytes]:
    return ooxml_parts("xl/workbook.xml", _OOXML + "spreadsheetml.sheet.main+xml")


def pptx_parts() -> dict[str, bytes]:
    return ooxml_parts("ppt/presentation.xml", _OOXML + "presentationml.presentation.main+xml")


def docx() -> bytes:
    return zip_of(docx_parts())


def xlsx() -> bytes:
    return zip_of(xlsx_parts(), stored=True)


def docm() -> bytes:
    main = ooxml_parts("word/document.xml", "application/vnd.ms-word.document.macroEnabled.main+xml")
    return zip_of({**main, "word/vbaProject.bin": _OLE + bytes(504)})


def docx_odd_order(first: str = "docProps/core.xml") -> bytes:
    """The same parts with `first` in front and [Content_Types].xml last: libmagic calls this an octet-stream."""
    parts = docx_parts()
    middle = [name for name in parts if name not in (first, "[Content_Types].xml")]
    order = [first, *middle, *(["[Content_Types].xml"] if first != "[Content_Types].xml" else [])]
    return zip_of({name: parts[name] for name in order})


def pptx_with_workbook(workbook: bytes | None = None) -> bytes:
    name = "ppt/embeddings/Microsoft_Excel_Sheet1.xlsx"
    return zip_of({**pptx_parts(), name: xlsx() if workbook is None else workbook})


def odf_parts(kind: str = "spreadsheet", *, encrypted: bool = False) -> dict[str, bytes]:
    media = f"application/vnd.oasis.opendocument.{kind}"
    sealed = '<manifest:encryption-data manifest:checksum="AAAA"/>' if encrypted else ""
    manifest = (
        f'{_DECLARATION}<manifest:manifest xmlns:manifest="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0">'
        f'<manifest:file-entry manifest:full-path="/" manifest:media-type="{media}"/>'
        f'<manifest:file-entry manifest:full-path="content.xml" manifest:media-type="text/xml">{sealed}'
        "</manifest:file-entry></manifest:manifest>"
    )
    content = b"MZ" + _noise(200) if encrypted else f"{_DECLARATION}<document-content/>".encode()
    return {"mimetype": media.encode(), "content.xml": content, "META-INF/manifest.xml": manifest.encode()}


def ods() -> bytes:
    return zip_of(odf_parts())


def epub_parts() -> dict[str, bytes]:
    container = (
        f'{_DECLARATION}<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        '<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>'
    )
    return {
        "mimetype": b"application/epub+zip",
        "META-INF/container.xml": container.encode(),
        "OEBPS/book.opf": f"{_DECLARATION}<package/>".encode(),
    }


def epub() -> bytes:
    return zip_of(epub_parts())


_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def ole(*streams: str, size: int = 4096, class_id: bytes = bytes(16)) -> bytes:
    """A compound file [MS-CFB]: one FAT sector per 64 KiB, `streams` sharing the data, the directory at the end."""
    data_sectors = size // 512
    tables = 1
    while tables * 128 < data_sectors + tables + (len(streams) + 4) // 4:
        tables += 1
    directory = data_sectors + tables
    entries = [_ole_entry("Root Entry", 5, 0xFFFFFFFE, 0, class_id), *(_ole_entry(s, 2, 0, size) for s in streams)]
    listing = b"".join(entries)
    listing += bytes(-len(listing) % 512)
    last = directory + len(listing) // 512 - 1
    chain = [*range(1, data_sectors), 0xFFFFFFFE, *[0xFFFFFFFD] * tables, *range(directory + 1, last + 1), 0xFFFFFFFE]
    chain += [0xFFFFFFFF] * (tables * 128 - len(chain))
    numbers = (0x3E, 3, 0xFFFE, 9, 6, 0, tables, directory, 0, 4096, 0xFFFFFFFE, 0, 0xFFFFFFFE, 0)
    header = _OLE + bytes(16) + struct.pack("<5H6x9I", *numbers)
    header += struct.pack("<109I", *range(data_sectors, directory), *[0xFFFFFFFF] * (109 - tables))
    return header + bytes(size) + struct.pack(f"<{len(chain)}I", *chain) + listing


def _ole_entry(name: str, kind: int, start: int, size: int, class_id: bytes = bytes(16)) -> bytes:
    spelled = name.encode("utf-16-le") + b"\0\0"
    front = spelled.ljust(64, b"\0") + struct.pack("<HBB3I", len(spelled), kind, 1, *[0xFFFFFFFF] * 3) + class_id
    return front + struct.pack("<IQQIQ", 0, 0, 0, start, size)


def old_doc(size: int = 200 * 1024) -> bytes:
    return ole("WordDocument", "1Table", size=size)


def old_xls() -> bytes:
    return ole("Workbook")


def old_ppt() -> bytes:
    return ole("Current User", "Pictures", "\5SummaryInformation", "PowerPoint Document")


def encrypted_docx() -> bytes:
    return ole("EncryptionInfo", "EncryptedPackage")


def outlook_msg() -> bytes:
    return ole("__nameid_version1.0", "__properties_version1.0")


def msi() -> bytes:
    return ole("\u4840\u3f3f", class_id=bytes.fromhex("84100c0000000000c000000000000046"))


# --- other archives, programs ---------------------------------------------------------------------------------------


def seven_zip() -> bytes:
    start = struct.pack("<QQI", 0, 0, 0)
    return b"7z\xbc\xaf\x27\x1c\0\4" + struct.pack("<I", zlib.crc32(start)) + start


def rar() -> bytes:
    return b"Rar!\x1a\x07\1\0" + bytes.fromhex("3392b5e50a01050600050101808000") + bytes(16)


def tar(parts: Parts | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in (parts or {"facture.pdf": pdf()}).items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tar_gz() -> bytes:
    return gzip.compress(tar(), mtime=0)


def stored_gz() -> bytes:
    """A gzip that compresses nothing: the PDF inside is near the beginning, in clear."""
    return gzip.compress(pdf(), compresslevel=0, mtime=0)


def iso() -> bytes:
    return bytes(32768) + b"\1CD001\1\0" + b"LINUX".ljust(32) + b"CDROM".ljust(32) + bytes(4096)


def exe() -> bytes:
    return b"MZ" + bytes(58) + struct.pack("<I", 64) + b"PE\0\0\x4c\1" + bytes(200)


def elf() -> bytes:
    return b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHI", 2, 62, 1) + bytes(200)


def shell_script() -> bytes:
    return b"#!/bin/sh\necho bonjour\n"


# --- parts of a mail ------------------------------------------------------------------------------------------------


def tnef() -> bytes:
    return b"\x78\x9f\x3e\x22" + bytes(60)


def smime_signature() -> bytes:
    return bytes.fromhex("3080 06092a864886f70d010702 a080 3080 020101") + _noise(200)


def pgp_signature() -> bytes:
    return b"-----BEGIN PGP SIGNATURE-----\n\niQEzBAABCAAdFiEE\n-----END PGP SIGNATURE-----\n"


def pgp_message() -> bytes:
    return b"-----BEGIN PGP MESSAGE-----\n\nhQEMA6rR8cyV\n-----END PGP MESSAGE-----\n"


def calendar() -> bytes:
    return b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nMETHOD:REQUEST\r\nEND:VCALENDAR\r\n"


def vcard() -> bytes:
    return b"BEGIN:VCARD\r\nVERSION:3.0\r\nFN:Jean Dupont\r\nEND:VCARD\r\n"


def _noise(length: int) -> bytes:
    """Bytes that do not compress, without a `PK` among them; the same for the same length."""
    out, state = bytearray(), b"welyb"
    while len(out) < min(length, 1 << 16):
        state = struct.pack("<II", zlib.crc32(state), zlib.adler32(state) ^ len(out))
        out += state[:4]
    block = bytes(out).replace(b"PK", b"pk")
    return (block * (length // max(len(block), 1) + 1))[:length]
