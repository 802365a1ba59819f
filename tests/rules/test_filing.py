"""Slugs, folders and file names: tables."""

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo

import pytest

from rules.filing import MAX_NAME, SLUG, folder, is_ignored, is_system, numbered, safe_name, slug

PARIS = ZoneInfo("Europe/Paris")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Maçon & Dupont", "macon-dupont"),
        ("  L'Œuvre d'Été  ", "l-oeuvre-d-ete"),
        ("SARL Le Goût, Frères_2", "sarl-le-gout-freres-2"),
        ("Mac\u0327on", "macon"),
        ("Straße", "strasse"),
        ("dupont", "dupont"),
        ("--dupont--", "dupont"),
        ("Кафе", ""),
        ("&", ""),
        ("", ""),
        ("caf\udce9", "caf"),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_slug_pattern_is_what_an_address_can_hold() -> None:
    assert SLUG.fullmatch("macon-dupont") and SLUG.fullmatch("a" * 64)
    for bad in ("", "a" * 65, "-a", "a-", "a--b", "Maçon", "a.b", "a+b", "a\n"):
        assert not SLUG.fullmatch(bad), bad


def test_system_folders_are_no_clients() -> None:
    assert all(map(is_system, [".Trash", "@eaDir", "#recycle", "lost+found", "$RECYCLE.BIN", "__MACOSX"]))
    assert is_system("System Volume Information") and not is_system("Dupont") and not is_system("@home")


TEMPLATE = "Ventes/{year}/{month}"


def test_folder_follows_the_reception_date_in_the_zone() -> None:
    just_before_midnight_utc = datetime(2026, 12, 31, 23, 30, tzinfo=UTC)
    assert folder(TEMPLATE, just_before_midnight_utc, timezone=PARIS) == ("Ventes", "2027", "01")
    assert folder(TEMPLATE, just_before_midnight_utc, timezone=UTC) == ("Ventes", "2026", "12")
    assert folder("Divers", just_before_midnight_utc, timezone=PARIS) == ("Divers",)
    assert folder("{year}-{month}/V", just_before_midnight_utc, timezone=UTC) == ("2026-12", "V")


@pytest.mark.parametrize(
    ("end", "received", "year"),
    [
        ((6, 30), date(2026, 6, 30), "2026"),
        ((6, 30), date(2026, 7, 1), "2027"),
        ((12, 31), date(2026, 12, 31), "2026"),
        ((2, 28), date(2028, 2, 29), "2028"),  # the last day of February, in a leap year too
        ((2, 28), date(2027, 3, 1), "2028"),
        ((2, 29), date(2027, 2, 28), "2027"),
        (None, date(2026, 7, 1), "2026"),
    ],
)
def test_fiscal_year_is_named_after_its_end(end: tuple[int, int] | None, received: date, year: str) -> None:
    noon = datetime(received.year, received.month, received.day, 12, tzinfo=PARIS)
    month = f"{received.month:02}"
    assert folder(TEMPLATE, noon, timezone=PARIS, fiscal_year_end=end) == ("Ventes", year, month)


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store",
        "thumbs.DB",
        "Desktop.ini",
        "~$facture.docx",
        ".~lock.facture.ods#",
        "a.part",
        "A.TMP",
        "b.pdf.crdownload",
        ".welyb-1.part",
    ],
)
def test_ignored(name: str) -> None:
    assert is_ignored(name)


@pytest.mark.parametrize("name", ["facture.pdf", "part", "a.part.pdf", "tmp", "thumbs.db.pdf", "x~$.docx", "~a.pdf"])
def test_not_ignored(name: str) -> None:
    assert not is_ignored(name)


PDF = "application/pdf"


@pytest.mark.parametrize(
    ("name", "type", "expected"),
    [
        ("Facture n° 12.pdf", PDF, "Facture n° 12.pdf"),
        ("../../etc/x.pdf", PDF, "x.pdf"),
        ("C:\\temp\\x.pdf", PDF, "x.pdf"),
        ("C:x.pdf", PDF, "C_x.pdf"),
        ("dossier/", PDF, "dossier.pdf"),
        ("CON.pdf", PDF, "_CON.pdf"),
        ("nul", PDF, "_nul.pdf"),
        ("Com1 .tar.gz", "application/gzip", "_Com1 .tar.gz"),
        ("console.pdf", PDF, "console.pdf"),
        ("facture.pdf. . ", PDF, "facture.pdf"),
        ("  ...facture.pdf", PDF, "facture.pdf"),
        ("fact\u202efdp.exe", PDF, "factfdp.exe"),
        ("fac\u200bture\u2028.pdf\x00", PDF, "facture.pdf"),
        ("fac\r\n\tture.pdf", PDF, "fac ture.pdf"),
        ('a<b>c:d"e|f?g*h.pdf', PDF, "a_b_c_d_e_f_g_h.pdf"),
        ("e\u0301te\u0301.pdf", PDF, "été.pdf"),
        ("e\u200d\u0301.pdf", PDF, "é.pdf"),
        ("🧾 reçu 👍🏽.pdf", PDF, "🧾 reçu 👍🏽.pdf"),
        ("caf\udce9.pdf", PDF, "caf.pdf"),
        ("Facture Mars 2024", PDF, "Facture Mars 2024.pdf"),
        ("Facture 12.03.2024", PDF, "Facture 12.03.2024.pdf"),
        ("M. Dupont", "image/jpeg", "M. Dupont.jpg"),
        ("bordereau", "application/x-unknown", "bordereau.bin"),
        ("facture.part", PDF, "facture.part.pdf"),
        ("~$facture.docx", PDF, "_~$facture.docx"),
        ("Thumbs.db", "image/jpeg", "Thumbs.db.jpg"),
        (".DS_Store", "application/octet-stream", "DS_Store.bin"),
        ("archive.7z", "application/x-7z-compressed", "archive.7z"),
    ],
)
def test_safe_name(name: str, type: str, expected: str) -> None:
    assert safe_name(name, type=type, serial=1, date=date(2026, 11, 24)) == expected


@pytest.mark.parametrize("name", [None, "", " ", "...", "../..", "\u202e\u200b", "\x00/\\"])
def test_a_name_is_made_up_where_there_is_none(name: str | None) -> None:
    assert safe_name(name, type="image/png", serial=3, date=date(2026, 1, 2)) == "document-2026-01-02-3.png"


def test_a_long_name_keeps_its_extension_and_whole_characters() -> None:
    name = safe_name("é" * 300 + ".pdf", type=PDF, serial=1, date=date(2026, 1, 2))
    assert name == "é" * 118 + ".pdf" and len(name.encode()) == MAX_NAME
    assert len(numbered(name, 999).encode()) <= 255


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("x.pdf", 1, "x.pdf"),
        ("x.pdf", 2, "x (2).pdf"),
        ("a.b.tar.gz", 3, "a.b.tar (3).gz"),
        ("Facture 12.03.2024", 2, "Facture 12.03.2024 (2)"),
    ],
)
def test_numbered(name: str, number: int, expected: str) -> None:
    assert numbered(name, number) == expected
