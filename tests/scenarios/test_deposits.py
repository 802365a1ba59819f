"""What becomes of a document laid in a connected folder. The tests bear the numbers of the promises (domain.md §2)."""

import os
import shutil
import subprocess
import time
import unicodedata
from collections.abc import Callable
from email.utils import parseaddr
from pathlib import Path

import pytest

from tests.support import documents as made
from tests.support.clients import mail
from tests.support.firm import Arrived, Client, Firm, digest

pytestmark = pytest.mark.debian("postfix")

LAST_YEAR = time.time() - 365 * 24 * 3600


@pytest.fixture(autouse=True)
def french(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command speaks the locale's language."""
    monkeypatch.setenv("LC_ALL", "fr_FR.UTF-8")


def what_stands_in(folder: Path) -> dict[str, tuple[str, os.stat_result]]:
    """Everything that an alteration of a file would change, but when it was last read."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.stat()
        kept = (status.st_ino, status.st_mode, status.st_nlink, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        found[str(path.relative_to(folder))] = (digest(path.read_bytes()) if path.is_file() else "", kept)
    return found


def test_S1_the_relay_only_ever_reads_the_documents(firm: Firm, client: Client) -> None:
    client.put("Achats/ancien.pdf", made.pdf("ancien"))
    client.connect()
    client.put("Achats/nouveau.pdf", made.pdf("nouveau"))
    client.put("Achats/2026/releve.zip", made.plain_zip())
    client.put("Achats/2026/vide.pdf", b"")
    before = what_stands_in(client.path)
    firm.run()
    firm.run()
    assert client.names() == ["nouveau.pdf"]
    assert what_stands_in(client.path) == before


def test_S3_in_the_firms_own_name(firm: Firm, client: Client) -> None:
    client.connect()
    client.put("Achats/a.pdf", made.pdf("a"))
    firm.run()
    client.put("Achats/b.pdf", made.pdf("b"))
    with firm.set_to({"delivery": {"sender": "depot@cabinet-riviere.example", "sender_name": "Cabinet Rivière"}}):
        firm.run()
    usual, own = (document.message for document in client.arrived())
    assert parseaddr(str(usual["From"])) == ("Welyb", "automate@welyb.fr")
    assert parseaddr(str(own["From"])) == ("Cabinet Rivière", "depot@cabinet-riviere.example")
    text = own.get_body(("plain",))
    assert text is not None and "Cabinet Rivière" in text.get_content()
    assert "Welyb" not in text.get_content()


def test_S5_without_anyone_doing_anything(firm: Firm, client: Client) -> None:
    client.connect()
    client.put("Achats/facture.pdf", made.pdf())
    assert client.arrived() == []
    firm.run()  # what the clock does (test_runs.py shows it doing so)
    assert client.names() == ["facture.pdf"]
    firm.run()
    assert client.names() == ["facture.pdf"]


def test_S13_from_that_moment_on(firm: Firm, client: Client) -> None:
    client.put("Achats/avant.pdf", made.pdf("avant"))
    client.connect()
    client.put("Achats/apres.pdf", made.pdf("apres"))  # before the first run
    firm.run()
    assert client.names() == ["apres.pdf"]
    assert client.statuses() == {"avant.pdf": "baseline", "apres.pdf": "validated"}


def test_S14_the_folder_and_its_subfolders(firm: Firm, client: Client) -> None:
    client.put("Achats/2025/vieux.pdf", made.pdf("vieux"))
    client.connect()
    deep = "/".join(f"niveau {number}" for number in range(1, 13))
    for name, folder in {
        "haut.pdf": "Achats",
        "present.pdf": "Achats/2025",
        "plus tard.pdf": "Achats/2026/11/Électricité & gaz",
        "au fond.pdf": f"Achats/{deep}",
        "ailleurs.pdf": "Ventes",
        "a cote.pdf": ".",
    }.items():
        client.put(f"{folder}/{name}", made.pdf(name))
    firm.run()
    assert client.names() == ["au fond.pdf", "haut.pdf", "plus tard.pdf", "present.pdf"]
    client.put("Achats/2027/01/annee suivante.pdf", made.pdf("2027"))
    firm.run()
    assert len(client.names()) == 5


def test_S15_every_kind_of_document_arrives_as_it_is(firm: Firm, client: Client) -> None:
    client.connect()
    laid = {
        "Facture n° 12 – été.pdf": made.pdf("12"),
        unicodedata.normalize("NFD", "Reçu d'août.jpg"): made.jpeg(3_000_000),
        "factur-x.pdf": made.factur_x(),
        "FAC_0231.xml": made.ubl_xml(),
        "tableau.xlsx": made.xlsx(),
        'devis "signé"; v2.docx': made.docx(),
        "scan.tiff": made.tiff(),
        "photo.HEIC": made.heic(),
        "lignes.csv": made.csv() + b"From moi\r\n.\r\n..\n\r",
        "x" * 200 + " é.pdf": made.pdf("nom long"),
        "protege.pdf": made.encrypted_pdf(),
        "sans extension": made.pdf("sans"),
    }
    for name, content in laid.items():
        client.put(f"Achats/{name}", content)
    firm.run()
    arrived = client.arrived()
    assert {document.name: document.sha256 for document in arrived} == {
        unicodedata.normalize("NFC", name): digest(content) for name, content in laid.items()
    }
    assert len({document.received.path for document in arrived}) == len(laid), "one message for each"
    assert all(document.message["X-Welyb-Document-SHA256"] == document.sha256 for document in arrived)
    assert set(client.statuses().values()) == {"validated"}


# --- S16: however it got there --------------------------------------------------------------------------------------

# Each is given a file that stood outside, with its old times, since before the activation, and where it is to go.


def _copied(source: Path, place: Path) -> None:
    shutil.copyfile(source, place)


def _copied_with_its_times(source: Path, place: Path) -> None:
    subprocess.run(["cp", "-p", source, place], check=True)
    assert place.stat().st_mtime == source.stat().st_mtime


def _as_rsync_does(source: Path, place: Path) -> None:
    """rsync -a: a dot file, its times set, then its name."""
    temporary = place.with_name(f".{place.name}.x7Kq2a")
    shutil.copy2(source, temporary)
    temporary.rename(place)


def _moved(source: Path, place: Path) -> None:
    source.rename(place)


def _moved_with_its_folder(source: Path, place: Path) -> None:
    """The file itself is not even touched: its ctime is from before the activation."""
    before = source.stat().st_ctime_ns
    folder = source.parent.rename(place.parent / source.parent.name)
    assert (folder / place.name).stat().st_ctime_ns == before


def _linked(source: Path, place: Path) -> None:
    os.link(source, place)


def _as_webdav_does(source: Path, place: Path) -> None:
    """PUT, by Apache's mod_dav_fs: a temporary file beside it, then a rename over the name."""
    temporary = place.with_name(".davfs.tmp8f3c1a")
    temporary.write_bytes(source.read_bytes())
    os.replace(temporary, place)


def _written_in_two_goes(source: Path, place: Path) -> None:
    content = source.read_bytes()
    place.write_bytes(content[:100])
    with place.open("ab") as file:
        file.write(content[100:])


Way = Callable[[Path, Path], None]
WAYS: list[Way] = [
    _copied,
    _copied_with_its_times,
    _as_rsync_does,
    _moved,
    _moved_with_its_folder,
    _linked,
    _as_webdav_does,
    _written_in_two_goes,
]


@pytest.fixture(scope="module")
def got_there(firm: Firm) -> list[Arrived]:
    """What arrived when a document had got there in each of WAYS."""
    client = firm.client()
    sources = [client.put(f"A classer/{way.__name__}/{way.__name__}.pdf", made.pdf(way.__name__)) for way in WAYS]
    for source in sources:
        os.utime(source, (LAST_YEAR, LAST_YEAR))
    client.put("Achats/ancien.pdf", made.pdf("ancien"))
    client.connect()
    for way, source in zip(WAYS, sources, strict=True):
        way(source, client.path / "Achats" / source.name)
    firm.run()
    return client.arrived()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))
def test_S16_however_the_document_got_there(got_there: list[Arrived], way: Way) -> None:
    found = [document.sha256 for document in got_there if document.name == f"{way.__name__}.pdf"]
    assert found == [digest(made.pdf(way.__name__))]
    assert len(got_there) == len(WAYS), "and nothing else"


def test_S16_renamed_in_from_a_name_that_was_no_documents(firm: Firm, client: Client) -> None:
    early = client.put("Achats/facture.pdf.part", made.pdf())
    client.connect()
    firm.run()
    early.rename(early.with_suffix(""))
    firm.run()
    assert client.names() == ["facture.pdf"]


def test_S16_by_a_mail_that_was_filed_there(firm: Firm, client: Client) -> None:
    client.connect("Ventes", application="meg", address=f"meg+{client.slug}@welyb.fr")
    invoice = ("Facture 7.pdf", "application/pdf", made.pdf("7"))
    assert firm.mail(f"ventes+{client.slug}@welyb.fr", mail("a@b.example", "x@welyb.fr", invoice)).accepted
    firm.wait_until(lambda: bool(list(client.path.glob("Ventes/*/*/Facture 7.pdf"))))
    firm.run()
    assert [d.sha256 for d in client.arrived(f"{client.slug}@factures-meg.fr")] == [digest(invoice[2])]


# --- S19 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs_before", [0, 1], ids=["before the first run", "once its bytes are known"])
def test_S19_not_retroactive(firm: Firm, client: Client, runs_before: int) -> None:
    for name in ("intact", "touche", "renomme", "deplace", "droits", "sorti"):
        client.put(f"Achats/{name}.pdf", made.pdf(name))
    client.put("Achats/2025/dans un dossier.pdf", made.pdf("dossier"))
    client.connect()
    for _ in range(runs_before):
        firm.run()
    folder = client.path / "Achats"
    os.utime(folder / "touche.pdf")
    (folder / "renomme.pdf").rename(folder / "nouveau nom.pdf")
    (folder / "2026").mkdir()
    (folder / "deplace.pdf").rename(folder / "2026/deplace.pdf")
    (folder / "droits.pdf").chmod(0o600)
    (folder / "2025").rename(folder / "Exercice 2025")
    firm.run()
    (folder / "sorti.pdf").rename(client.path / "sorti.pdf")
    firm.run()
    (client.path / "sorti.pdf").rename(folder / "2026/sorti.pdf")
    firm.run()
    assert client.arrived() == []
    assert set(client.statuses().values()) == {"baseline"}
    assert client.connection()["state"] == "active"


# --- S20, S21, S22: what is not taken -------------------------------------------------------------------------------


def test_S20_zip_is_not_taken_and_the_others_go(firm: Firm, client: Client) -> None:
    client.connect()
    for name, content in {
        "releve.zip": made.plain_zip(),
        "RELEVE.ZIP": made.encrypted_zip(),
        "facture.pdf": made.plain_zip(),
        "deguise.pdf": made.pdf_zip_polyglot(),
        "classeur.docx": made.plain_zip(),
        "bon.docx": made.docx_odd_order(),
        "bon.pdf": made.pdfa3_with_xlsx(),
    }.items():
        client.put(f"Achats/{name}", content)
    before = what_stands_in(client.path)
    firm.run()
    assert client.names() == ["bon.docx", "bon.pdf"]
    refused = {name for name, status in client.statuses().items() if status == "refused"}
    assert refused == {"releve.zip", "RELEVE.ZIP", "facture.pdf", "deguise.pdf", "classeur.docx"}
    assert all("archive ZIP" in client.document(name)["reason"] for name in refused)
    assert what_stands_in(client.path) == before


def test_S21_deposit_the_contents_separately(firm: Firm, client: Client) -> None:
    client.connect()
    client.put("Achats/releve.zip", made.zip_of({"une.pdf": made.pdf("une"), "deux.pdf": made.pdf("deux")}))
    firm.run()
    reason = "Non pris en compte : archive ZIP. Déposez séparément les documents qu'elle contient."
    assert client.document("releve.zip")["reason"] == reason
    assert client.arrived() == []
    assert [path.name for path in (client.path / "Achats").iterdir()] == ["releve.zip"]
    client.put("Achats/une.pdf", made.pdf("une"))
    client.put("Achats/deux.pdf", made.pdf("deux"))
    firm.run()
    assert client.names() == ["deux.pdf", "une.pdf"]


def test_S22_ten_megabytes_at_most(firm: Firm, client: Client) -> None:
    client.connect()
    at_the_limit = made.pdf_of_size(10_000_000)
    client.put("Achats/limite.pdf", at_the_limit)
    client.put("Achats/un de trop.pdf", made.pdf_of_size(10_000_001))
    client.put("Achats/onze.pdf", made.pdf_of_size(11_000_000))
    client.put("Achats/zip de onze.zip", made.zip_of_size(11_000_000))
    firm.run()
    assert [(d.name, d.sha256) for d in client.arrived()] == [("limite.pdf", digest(at_the_limit))]
    reasons = {row["name"]: row["reason"].replace("\u202f", " ") for row in client.documents()}
    assert reasons["onze.pdf"] == "Trop volumineux : 11 000 000 octets (11,0 Mo), limite 10 Mo."
    assert reasons["un de trop.pdf"] == "Trop volumineux : 10 000 001 octets (10,000001 Mo), limite 10 Mo."
    assert "archive ZIP" in reasons["zip de onze.zip"]  # the type before the size
    assert sorted(client.statuses().values()) == ["refused", "refused", "refused", "validated"]


def test_S22_a_refused_document_is_not_tried_again_until_it_changes(firm: Firm, client: Client) -> None:
    client.connect()
    scan = client.put("Achats/scan.pdf", made.pdf_of_size(10_000_001))
    firm.run()
    firm.run()
    assert len(client.documents()) == 1
    os.utime(scan)
    firm.run()
    assert len(client.documents()) == 1
    smaller = client.put("Achats/scan.pdf", made.pdf_of_size(9_000_000))
    firm.run()
    assert [d.sha256 for d in client.arrived()] == [digest(smaller.read_bytes())]
    assert client.statuses() == {"scan.pdf": "validated"}
