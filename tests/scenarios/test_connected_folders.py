"""What the life of a connected folder means: versions, duplicates, files still being written, trees gone away."""

import os
import shutil
import threading
from pathlib import Path

import pytest

from tests.support import documents as made
from tests.support.clients import mail
from tests.support.firm import Client, Firm, digest

pytestmark = pytest.mark.debian("postfix")


@pytest.fixture(autouse=True)
def french(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command speaks the locale's language."""
    monkeypatch.setenv("LC_ALL", "fr_FR.UTF-8")


# --- versions, duplicates -------------------------------------------------------------------------------------------


def test_changed_after_it_was_sent_is_held_until_released(firm: Firm, client: Client) -> None:
    client.connect()
    client.put("Achats/facture.pdf", made.pdf("une"))
    firm.run()
    client.put("Achats/facture.pdf", made.pdf("deux"))
    firm.run()
    firm.run()
    assert [d.sha256 for d in client.arrived()] == [digest(made.pdf("une"))]
    held = client.document("facture.pdf")
    assert (held["status"], held["sha256"]) == ("modified", digest(made.pdf("deux")))
    assert held["reason"].startswith("Modifié depuis l'envoi")
    assert len(client.documents()) == 2, "the validated one stays validated"
    firm.relay.cli("queue", "release", held["delivery"], "--reason", "le client a corrigé sa facture")
    firm.run()
    assert [d.sha256 for d in client.arrived()] == [digest(made.pdf("une")), digest(made.pdf("deux"))]
    assert client.document("facture.pdf")["status"] == "validated"


def test_a_changed_baseline_document_is_held_too(firm: Firm, client: Client) -> None:
    client.put("Achats/tableau.pdf", made.pdf("avant"))
    client.connect()
    firm.run()
    client.put("Achats/tableau.pdf", made.pdf("apres"))
    firm.run()
    assert client.arrived() == []
    assert client.statuses() == {"tableau.pdf": "modified"}
    client.put("Achats/tableau.pdf", made.pdf("encore apres"))  # before anyone has said a word
    firm.run()
    assert [row["status"] for row in client.documents()] == ["modified", "skipped"]
    firm.relay.cli("queue", "release", client.document("tableau.pdf")["delivery"])
    firm.run()
    assert [d.sha256 for d in client.arrived()] == [digest(made.pdf("encore apres"))]


def test_changed_before_it_was_sent_only_the_new_bytes_go(firm: Firm, client: Client) -> None:
    client.connect()
    client.put("Achats/facture.pdf", made.pdf("une"))
    with firm.collector_away():
        firm.run()
        assert client.statuses() == {"facture.pdf": "pending"}
        client.put("Achats/facture.pdf", made.pdf("deux"))
        firm.run()
    firm.run()
    assert [d.sha256 for d in client.arrived()] == [digest(made.pdf("deux"))]
    assert [row["status"] for row in client.documents()] == ["validated", "skipped"]


def test_a_duplicate_is_shown_and_not_sent(firm: Firm, client: Client) -> None:
    client.connect()
    client.put("Achats/facture.pdf", made.pdf())
    firm.run()
    client.put("Achats/2026/facture.pdf", made.pdf())
    client.put("Achats/2027/facture.pdf", made.pdf())
    client.put("Achats/facture (copie).pdf", made.pdf())
    firm.run()
    assert client.names() == ["facture (copie).pdf", "facture.pdf"]
    assert sorted(row["status"] for row in client.documents()) == ["duplicate", "duplicate", "validated", "validated"]
    first = next(r for r in client.documents() if r["status"] == "validated" and r["name"] == "facture.pdf")
    assert first["delivery"] in client.document("facture.pdf")["reason"]
    flagged = firm.relay.json("trace", client.document("facture (copie).pdf")["id"])
    assert first["delivery"] in [row["detail"].get("twin") for row in flagged if row["event"] == "again"]


def test_a_mailed_document_makes_its_deposit_a_duplicate(firm: Firm, client: Client) -> None:
    client.connect()
    invoice = ("facture.pdf", "application/pdf", made.pdf(client.slug))
    address = f"meg+achats+{client.slug}@welyb.fr"
    assert firm.mail(address, mail("compta@cabinet.example", address, invoice)).accepted
    client.put("Achats/facture.pdf", invoice[2])
    firm.run()
    assert client.names() == ["facture.pdf"]
    assert client.document("facture.pdf")["status"] == "duplicate"


def test_when_the_first_comes_to_nothing_its_twin_goes(firm: Firm, client: Client) -> None:
    client.connect()
    client.put("Achats/facture.pdf", made.pdf())
    with firm.collector_away():
        firm.run()
        client.put("Achats/2026/facture.pdf", made.pdf())
        firm.run()
    twin, first = client.documents()
    assert (first["status"], twin["status"]) == ("pending", "duplicate")
    firm.relay.cli("queue", "drop", first["delivery"], "--reason", "déposée par erreur")
    firm.run()
    assert [d.message["X-Welyb-Document-Id"] for d in client.arrived()] == [twin["id"]]


# --- what is looked at ----------------------------------------------------------------------------------------------


def test_names_that_are_no_documents_are_ignored(firm: Firm, client: Client) -> None:
    client.connect()
    ignored = ["a.pdf.part", "b.tmp", "c.PDF.crdownload", "~$devis.docx", ".~lock.devis.odt#", ".DS_Store"]
    ignored += ["Thumbs.db", "thumbs.DB", "desktop.ini", ".cache", ".git/facture.pdf"]
    for name in [*ignored, "facture.pdf", "part.pdf", "mon desktop.ini.pdf"]:
        client.put(f"Achats/{name}", made.pdf(name.replace("/", "-")))
    firm.run()
    assert client.names() == ["facture.pdf", "mon desktop.ini.pdf", "part.pdf"]
    assert len(client.documents()) == 3


def test_a_symbolic_link_does_not_lead_out_of_the_tree(firm: Firm, client: Client, tmp_path: Path) -> None:
    client.connect()
    (tmp_path / "secret.pdf").write_bytes(made.pdf("secret"))
    folder = client.path / "Achats"
    (folder / "lien.pdf").symlink_to(tmp_path / "secret.pdf")
    (folder / "dossier").symlink_to(tmp_path, target_is_directory=True)
    (folder / "boucle").symlink_to(folder, target_is_directory=True)
    os.mkfifo(folder / "tube.pdf")
    client.put("Achats/facture.pdf", made.pdf())
    firm.run()
    assert client.names() == ["facture.pdf"]


def test_zero_bytes_wait_one_run_then_are_refused(firm: Firm, client: Client) -> None:
    client.connect()
    client.put("Achats/vide.pdf", b"")
    client.put("Achats/en cours.pdf", b"")
    firm.run()
    assert client.documents() == []
    client.put("Achats/en cours.pdf", made.pdf())
    firm.run()
    assert client.statuses() == {"vide.pdf": "refused", "en cours.pdf": "validated"}
    assert client.document("vide.pdf")["reason"] == "Non pris en compte : document vide (0 octet)."
    firm.run()
    assert len(client.documents()) == 2
    client.put("Achats/vide.pdf", made.pdf("enfin"))
    firm.run()
    assert client.names() == ["en cours.pdf", "vide.pdf"]


def test_a_deposit_still_being_written_waits_and_goes_whole(firm: Firm, client: Client) -> None:
    """It never settles during the run: reported, not forgotten. Zero bytes beside it wait a run all the same."""
    client.connect()
    scan = client.put("Achats/scan.pdf", b"")
    client.put("Achats/vide.pdf", b"")
    content, done = made.pdf_of_size(100_000), threading.Event()

    def write_slowly() -> None:
        with scan.open("wb", buffering=0) as file:
            for byte in content[:1000]:
                file.write(bytes([byte]))
                if done.wait(0.1):
                    break
            file.write(content[file.tell() :])

    scanner = threading.Thread(target=write_slowly)
    scanner.start()
    settings = {"run": {"settle": "1 s"}, "relay": {"postmaster": "postmaster@cabinet.example"}}
    try:
        with firm.set_to(settings):
            foreseen = firm.relay.json("runs", "now", "--dry-run")
            assert ("scan.pdf", "unsettled") in [(row["name"], row["verdict"]) for row in foreseen]
            ran = firm.relay.cli("runs", "now")
            assert "unsettled" in ran.stderr
            assert client.documents() == []
            done.set()
            scanner.join()
            firm.run()
    finally:
        done.set()
        scanner.join()
    assert [(d.name, d.sha256) for d in client.arrived()] == [("scan.pdf", digest(content))]
    told = [m for m in firm.collector.messages() if m.envelope_recipient == "postmaster@cabinet.example"]
    assert told


def test_a_document_in_two_parts_of_a_run_settles_within_it(firm: Firm, client: Client) -> None:
    client.connect()
    client.put("Achats/facture.pdf", made.pdf())
    with firm.set_to({"run": {"settle": "1 s"}}):
        firm.run()
    assert client.names() == ["facture.pdf"]


def test_deleted_from_the_ged_it_is_still_sent(firm: Firm, client: Client) -> None:
    client.connect()
    kept = client.put("Achats/garde.pdf", made.pdf("garde"))
    gone = client.put("Achats/supprime.pdf", made.pdf("supprime"))
    with firm.collector_away():
        firm.run()
    gone.unlink()
    firm.run()
    assert client.names() == [kept.name, gone.name]
    assert client.document(gone.name)["sha256"] == digest(made.pdf("supprime"))


def test_moved_after_it_was_sent_it_is_not_sent_again(firm: Firm, client: Client) -> None:
    client.connect()
    invoice = client.put("Achats/facture.pdf", made.pdf())
    firm.run()
    (client.path / "Achats/2026").mkdir()
    invoice.rename(client.path / "Achats/2026/facture payee.pdf")
    firm.run()
    assert client.names() == ["facture.pdf"]
    assert len(client.documents()) == 1


# --- a tree in doubt ------------------------------------------------------------------------------------------------


def _taken_away(folder: Path) -> None:
    folder.rename(folder.with_name("debranche"))


def _unmounted(folder: Path) -> None:
    """What stays is the mount point: an empty folder that is another one."""
    _taken_away(folder)
    folder.mkdir()


def _another_in_its_place(folder: Path) -> None:
    _unmounted(folder)
    shutil.copytree(folder.with_name("debranche"), folder, dirs_exist_ok=True)
    (folder / "etranger.pdf").write_bytes(made.pdf("etranger"))


def _emptied(folder: Path) -> None:
    folder.with_name("debranche").mkdir()
    for path in folder.iterdir():
        path.rename(folder.with_name("debranche") / path.name)


def _more_than_half_lost(folder: Path) -> None:
    folder.with_name("debranche").mkdir()
    for path in list(folder.iterdir())[1:]:
        path.rename(folder.with_name("debranche") / path.name)


def _folder_back(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.with_name("debranche").rename(folder)


def _files_back(folder: Path) -> None:
    for path in folder.with_name("debranche").iterdir():
        path.rename(folder / path.name)


DOUBTS = {
    _taken_away: _folder_back,
    _unmounted: _folder_back,
    _another_in_its_place: _folder_back,
    _emptied: _files_back,
    _more_than_half_lost: _files_back,
}


def test_a_root_in_doubt_is_an_error_and_nothing_is_concluded(firm: Firm) -> None:
    clients = {lose: firm.client() for lose in DOUBTS}
    for client in clients.values():
        for name in ("un", "deux", "trois"):
            client.put(f"Achats/{name}.pdf", made.pdf(name))
        client.connect()
        client.put("Achats/envoye.pdf", made.pdf("envoye"))
    firm.run()
    before = {lose: client.documents() for lose, client in clients.items()}
    for lose, client in clients.items():
        lose(client.path / "Achats")
    firm.run()
    firm.run()
    for lose, client in clients.items():
        connection = client.connection()
        assert (connection["state"], connection["reason"][:23]) == ("error", "Dossier connecté douteu"), lose
        assert client.documents() == before[lose], lose
        DOUBTS[lose](client.path / "Achats")
        client.put("Achats/nouveau.pdf", made.pdf("nouveau"))
    firm.run()
    for lose, client in clients.items():
        assert client.connection()["state"] == "active", lose
        assert client.names() == ["envoye.pdf", "nouveau.pdf"], lose
        assert sorted(client.statuses().values()) == ["baseline"] * 3 + ["validated"] * 2, lose


def test_the_postmaster_may_say_that_the_root_is_right(firm: Firm, client: Client) -> None:
    kept = [client.put(f"Achats/{name}.pdf", made.pdf(name)) for name in ("un", "deux", "trois")]
    number = client.connect()
    firm.run()
    for path in kept[1:]:
        path.unlink()
    client.put("Achats/nouveau.pdf", made.pdf("nouveau"))
    firm.run()
    assert client.arrived() == []
    firm.relay.cli("connections", "accept", str(number), "--reason", "ménage de fin d'année")
    firm.run()
    assert client.connection()["state"] == "active"
    assert client.names() == ["nouveau.pdf"]


# --- origin ---------------------------------------------------------------------------------------------------------


def test_a_document_that_came_from_meg_is_never_sent_back(firm: Firm, client: Client) -> None:
    client.connect("Ventes", application="meg", address=f"meg+{client.slug}@welyb.fr")
    ventes = f"ventes+{client.slug}@welyb.fr"
    issued = ("Facture émise.pdf", "application/pdf", made.pdf(client.slug))
    own = ("Avoir.pdf", "application/pdf", made.pdf(f"avoir {client.slug}"))
    assert firm.mail(ventes, mail("facturation@factures-meg.fr", ventes, issued), sender="rebond@smtp.example").accepted
    assert firm.mail(ventes, mail("boutique@b.example", ventes, own), sender="boutique@b.example").accepted
    firm.wait_until(lambda: len(list(client.path.glob("Ventes/*/*/*.pdf"))) == 2)
    (copy := client.path / "Ventes/copie").mkdir()
    shutil.copy(next(client.path.glob("Ventes/*/*/Facture émise.pdf")), copy / "autre nom.pdf")
    firm.run()
    firm.run()
    assert [d.name for d in client.arrived(f"{client.slug}@factures-meg.fr")] == ["Avoir.pdf"]
    held = [row for row in client.documents() if row["status"] == "held"]
    assert sorted(row["name"] for row in held) == ["Facture émise.pdf", "autre nom.pdf"]
    assert all(row["reason"].startswith("Document reçu de l'application elle-même") for row in held)
