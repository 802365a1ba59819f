"""Sales come in by mail and are found in the GED: every one, whole, in its client's folder (S23, S24)."""

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from email.header import Header
from zoneinfo import ZoneInfo

import pytest

from tests.support import debian
from tests.support import documents as made
from tests.support.clients import CLIENTS, Dialogue, Sent, mail
from tests.support.firm import digest
from tests.support.relay import Relay

SENDER = "fournisseur@ailleurs.example"


class Sales:
    """A relay whose clients receive sales."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay

    def send(self, slug: str, *documents: tuple[str, str, bytes], sender: str = SENDER) -> Sent:
        address = f"ventes+{slug}@welyb.fr"
        return CLIENTS["python"](self.relay.port, sender, [address], mail(sender, address, *documents))

    def raw(self, slug: str, message: bytes) -> None:
        with Dialogue(self.relay.port) as dialogue:
            dialogue.hello()
            dialogue.envelope(SENDER, f"ventes+{slug}@welyb.fr")
            reply = dialogue.data(message)
            assert reply.code == 250, reply

    def filed(self, folder: str, count: int, *, within: float = 10) -> dict[str, bytes]:
        """What stands below the client's folder once it is `count` documents and nothing is under way."""
        end = time.monotonic() + within
        while True:
            files = [path for path in (self.relay.ged / folder).rglob("*") if path.is_file()]
            if len(files) >= count and not any(path.name.startswith(".") for path in files):
                return {str(path.relative_to(self.relay.ged / folder)): path.read_bytes() for path in files}
            assert time.monotonic() < end, f"{files}\n{self.relay.program.told()}"
            time.sleep(0.02)

    def names(self, folder: str, count: int) -> list[str]:
        return sorted(path.rpartition("/")[2] for path in self.filed(folder, count))


@pytest.fixture(scope="module")
def sales(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sales]:
    relay = Relay(tmp_path_factory.mktemp("sales"))
    for name in ("Maçon & Dupont", "S23 Un", "S23 Deux", "S24", "Collisions", "Humain", "Casse", "Noms", "Imbrique"):
        relay.client(name)
    relay.start()
    yield Sales(relay)
    assert relay.stop() == 0


def today(form: str = "%Y/%m") -> str:
    return datetime.now(ZoneInfo("Europe/Paris")).strftime(form)


PDF = ("vente.pdf", "application/pdf", made.pdf("vente"))


# --- S23, S24 -------------------------------------------------------------------------------------------------------


def test_S23_every_client_has_its_address_with_nothing_to_set_up(sales: Sales) -> None:
    for slug, folder in (("macon-dupont", "Maçon & Dupont"), ("s23-un", "S23 Un"), ("s23-deux", "S23 Deux")):
        assert sales.send(slug, PDF).accepted
        assert sales.filed(folder, 1) == {f"Ventes/{today()}/vente.pdf": PDF[2]}


KINDS = [
    ("f.pdf", "application/pdf", made.pdf()),
    ("facture-x.pdf", "application/pdf", made.factur_x()),
    ("signe.pdf", "application/pdf", made.signed_pdf()),
    ("photo.jpg", "image/jpeg", made.jpeg(50_000)),
    ("scan.png", "image/png", made.png(50_000)),
    ("scan.tif", "image/tiff", made.tiff()),
    ("ubl.xml", "application/xml", made.ubl_xml()),
    ("cii.xml", "text/xml", made.cii_xml(declaration="")),
    ("liste.xlsx", "application/octet-stream", made.xlsx()),
    ("lettre.docx", "application/octet-stream", made.docx()),
    ("liste.ods", "application/vnd.oasis.opendocument.spreadsheet", made.ods()),
    ("gros.pdf", "application/pdf", made.pdf_of_size(3_000_000)),
]


def test_S24_every_kind_of_document_is_filed_as_it_came(sales: Sales) -> None:
    sent = sales.send("s24", *KINDS)
    assert sent.accepted
    assert sales.filed("S24", len(KINDS)) == {f"Ventes/{today()}/{name}": content for name, _, content in KINDS}
    listed = sales.relay.json("documents", "list", "--client", "s24")
    assert {row["name"]: row["sha256"] for row in listed} == {name: digest(content) for name, _, content in KINDS}
    assert {(row["status"], row["folder"]) for row in listed} == {("filed", f"S24/Ventes/{today()}")}
    (filed,) = [event for event in sales.relay.json("trace", "facture-x.pdf") if event["event"] == "filed"]
    assert filed["detail"]["path"] == f"S24/Ventes/{today()}/facture-x.pdf"


def test_S24_two_documents_of_one_name_are_two_files(sales: Sales) -> None:
    one, other = ("facture.pdf", "application/pdf", made.pdf("1")), ("FACTURE.pdf", "application/pdf", made.pdf("2"))
    assert sales.send("collisions", one, other).accepted
    assert sales.send("collisions", one).accepted
    assert sorted(sales.filed("Collisions", 3).values()) == sorted([one[2], one[2], other[2]])
    assert sales.names("Collisions", 3) == ["FACTURE (2).pdf", "facture (3).pdf", "facture.pdf"]


def test_S24_a_file_of_a_person_is_never_touched(sales: Sales) -> None:
    place = sales.relay.ged / "Humain/VENTES" / today()  # as that person spells it
    place.mkdir(parents=True)
    theirs = place / "Vente.PDF"
    theirs.write_text("d'un humain")
    before = theirs.stat()
    assert sales.send("humain", PDF).accepted
    folder = f"VENTES/{today()}"
    assert sales.filed("Humain", 2) == {f"{folder}/Vente.PDF": b"d'un humain", f"{folder}/vente (2).pdf": PDF[2]}
    assert theirs.stat().st_mtime_ns == before.st_mtime_ns and theirs.stat().st_ino == before.st_ino


def test_S24_answered_250_means_safely_stored(new_relay: Callable[..., Relay]) -> None:
    sales = Sales(new_relay())
    sales.relay.client("Martin")
    sales.relay.start()
    for number in range(3):
        sent = sales.send("martin", (f"vente {number}.pdf", "application/pdf", made.pdf(str(number))))
        sales.relay.kill()
        assert sent.accepted
        sales.relay.start()
    assert sales.names("Martin", 3) == [f"vente {number}.pdf" for number in range(3)]


def test_the_documents_inside_forwarded_mails_are_filed(sales: Sales) -> None:
    inner = mail("a@b.example", "c@d.example", PDF, ("photo.jpg", "image/jpeg", made.jpeg(5000)))
    message = b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n--b\r\n\r\nTransmis.\r\n--b\r\n'
    message += b"Content-Type: message/rfc822\r\n\r\n" + inner + b"\r\n--b--\r\n"
    sales.raw("imbrique", message)
    assert sorted(sales.filed("Imbrique", 2).values()) == sorted([PDF[2], made.jpeg(5000)])


# --- names (edge-cases F14, F15, P18) -------------------------------------------------------------------------------

ENCODED = Header("Facture réglée n°12.pdf", "utf-8", maxlinelen=200).encode()
NAMES: list[tuple[bytes, str]] = [
    (b'attachment; filename="Facture 12.pdf"', "Facture 12.pdf"),
    (b"attachment; filename=Facture Mars 2024.pdf", "Facture Mars 2024.pdf"),
    (b"attachment; filename*=utf-8''Factur%C3%A9%20%E2%82%AC.pdf; filename=\"plain.pdf\"", "Facturé €.pdf"),
    (b"attachment; filename*0*=utf-8''re%C3%A7; filename*1=\"u.pdf\"", "reçu.pdf"),
    (b"attachment; filename*=iso-8859-1'fr'd%E9p%F4t.pdf", "dépôt.pdf"),
    (b'attachment; filename="' + ENCODED.encode() + b'"', "Facture réglée n°12.pdf"),
    (b'attachment; filename="f\xe9vrier.pdf"', "février.pdf"),  # raw cp1252
    ('attachment; filename="août.pdf"'.encode(), "août.pdf"),  # raw UTF-8
    ('attachment; filename="e\u0301te\u0301.pdf"'.encode(), "été.pdf"),  # as a Mac writes it
    (b'inline; filename="en ligne.pdf"', "en ligne.pdf"),
    (b'attachment; filename="../../etc/x1.pdf"', "x1.pdf"),
    (b'attachment; filename="C:\\temp\\x2.pdf"', "x2.pdf"),
    (b'attachment; filename="CON.pdf"', "_CON.pdf"),
    (b'attachment; filename=" fin. . "', "fin.pdf"),
    (b'attachment; filename="sans extension"', "sans extension.pdf"),
    ('attachment; filename="fact\u202efdp.exe.pdf"'.encode(), "factfdp.exe.pdf"),
    (b'attachment; filename="a:b?c*.pdf"', "a_b_c_.pdf"),
    (b'attachment; filename=".cache.pdf"', "cache.pdf"),
    (b'attachment; filename="logo noname.pdf"', "logo noname.pdf"),
    ('attachment; filename="reçu \U0001f9fe.pdf"'.encode(), "reçu \U0001f9fe.pdf"),
    (b'attachment; filename="' + "é".encode() * 300 + b'.pdf"', "é" * 118 + ".pdf"),
]


def test_whatever_way_a_name_is_written_the_file_bears_it(sales: Sales) -> None:
    for disposition, _ in NAMES:
        sales.raw(
            "noms", b"Content-Type: application/pdf\r\nContent-Disposition: " + disposition + b"\r\n\r\n%PDF-1.4\r\n"
        )
    sales.raw("noms", b'Content-Type: application/pdf; name="du type.pdf"\r\n\r\n%PDF-1.4\r\n')
    sales.raw("noms", b"Content-Type: application/pdf\r\n\r\n%PDF-1.4\r\n")
    made_up = today("document-%Y-%m-%d-1.pdf")
    expected = sorted([name for _, name in NAMES] + ["du type.pdf", made_up])
    assert sales.names("Noms", len(expected)) == expected


# --- folders that go and come ---------------------------------------------------------------------------------------


@pytest.fixture
def hurried(new_relay: Callable[..., Relay]) -> Sales:
    """A relay whose minutes last two seconds, for what is tried again every minute."""
    relay = new_relay(env=debian.faked_time("+0 x30") | {"TZ": "UTC"})
    relay.client("Martin")
    relay.client("Dupont")
    relay.start()
    return Sales(relay)


@pytest.mark.debian("faketime")
def test_while_the_ged_is_away_mail_is_taken_and_filed_later(hurried: Sales) -> None:
    ged = hurried.relay.ged
    away = ged.rename(ged.with_name("demonte"))
    assert hurried.send("martin", PDF).accepted
    assert hurried.send("quidam", PDF).code == 550
    time.sleep(0.5)
    (row,) = hurried.relay.json("queue", "list")
    assert (row["state"], row["attempts"] > 0) == ("waiting", True)
    assert not ged.exists()
    away.rename(ged)
    assert list(hurried.filed("Martin", 1).values()) == [PDF[2]]


@pytest.mark.debian("faketime")
def test_a_client_folder_that_is_missing_is_waited_for_not_made(hurried: Sales) -> None:
    ged = hurried.relay.ged
    (ged / "Martin").rmdir()
    assert hurried.send("martin", PDF).accepted
    time.sleep(0.5)
    assert not (ged / "Martin").exists()
    assert [row["state"] for row in hurried.relay.json("queue", "list")] == ["waiting"]
    (ged / "Martin").mkdir()
    assert list(hurried.filed("Martin", 1).values()) == [PDF[2]]


@pytest.mark.debian("faketime")
def test_a_client_whose_folder_is_renamed_keeps_its_old_address(hurried: Sales) -> None:
    (hurried.relay.ged / "Martin").rename(hurried.relay.ged / "Martin & Fils")
    assert hurried.send("martin", PDF).accepted
    assert list(hurried.filed("Martin & Fils", 1).values()) == [PDF[2]]
    assert hurried.send("martin-fils", PDF).accepted
    assert hurried.send("martin", PDF).accepted
    assert len(hurried.filed("Martin & Fils", 3)) == 3
    (client,) = [row for row in hurried.relay.json("clients", "list") if row["slug"] == "martin-fils"]
    assert client["aliases"] == ["martin"]


@pytest.mark.debian("faketime")
def test_S24_it_goes_by_the_reception_date_in_paris_and_the_fiscal_year(new_relay: Callable[..., Relay]) -> None:
    relay = new_relay(env={"TZ": "UTC"})
    sales = Sales(relay)
    for name in ("Martin", "Decale"):
        relay.client(name)
    relay.start()
    relay.cli("clients", "add", "decale", "--fiscal-year-end", "06-30", "--reason", "exercice décalé")
    for name, began in (("avant", "@2026-12-31 22:59:00"), ("apres", "@2026-12-31 23:00:00")):  # 24:00 in Paris
        relay.stop()
        relay.program.env |= debian.faked_time(began)
        relay.start()
        for slug in ("martin", "decale"):
            assert sales.send(slug, (f"{name}.pdf", "application/pdf", made.pdf(name))).accepted
    assert sorted(sales.filed("Martin", 2)) == ["Ventes/2026/12/avant.pdf", "Ventes/2027/01/apres.pdf"]
    assert sorted(sales.filed("Decale", 2)) == ["Ventes/2027/01/apres.pdf", "Ventes/2027/12/avant.pdf"]


# --- MEG's own documents --------------------------------------------------------------------------------------------


def test_what_meg_sends_is_filed_and_marked_as_its_own(sales: Sales) -> None:
    assert sales.send("casse", PDF, sender="noreply@factures-meg.fr").accepted
    sales.filed("Casse", 1)
    (row,) = sales.relay.json("documents", "list", "--client", "casse")
    assert (row["status"], row["origin"]) == ("filed", "factures-meg.fr")
