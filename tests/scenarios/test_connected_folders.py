"""Connecting folders, and what a connected folder's own life means: domain.md §2 (S6 to S12) and §4 "GED"."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from email.utils import parseaddr
from pathlib import Path

import pytest

from tests.support import documents as made
from tests.support.clients import mail
from tests.support.firm import Client, Firm, digest

pytestmark = pytest.mark.debian("postfix")


@pytest.fixture(scope="module")
def firm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firm]:
    firm = Firm.start(tmp_path_factory.mktemp("firm"))
    yield firm
    firm.stop()


@pytest.fixture
def client(firm: Firm) -> Client:
    return firm.client()


@pytest.fixture(autouse=True)
def french(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command speaks the locale's language."""
    monkeypatch.setenv("LC_ALL", "fr_FR.UTF-8")


# --- connecting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "told", "code"),
    [
        ({"--application": "dext"}, "application inconnue : dext", 2),
        ({"--application": "ventes"}, "application inconnue : ventes", 2),
        ({"--client": "nulle-part"}, "client inconnu ou ambigu : nulle-part", 1),
        ({"--folder": "Absent"}, "dossier inaccessible : Absent", 1),
        ({"--folder": "../autre"}, "n'est pas un dossier du client", 2),
        ({"--address": "meg+achats@welyb.fr"}, "Adresse incorrecte : saisissez meg+achats+nomsociete@welyb.fr", 2),
        ({"--address": "meg+x@welyb.fr"}, "Adresse incorrecte", 2),
        ({"--address": "x@gmail.com"}, "Adresse incorrecte", 2),
    ],
    ids=lambda value: " ".join(map("=".join, value.items())) if isinstance(value, dict) else "",
)
def test_S6_one_must_add_the_application_first(
    firm: Firm, client: Client, changed: dict[str, str], told: str, code: int
) -> None:
    client.put("Achats/a.pdf", made.pdf())
    right = {"--application": "meg-achats", "--client": client.slug, "--folder": "Achats"}
    right |= {"--address": f"meg+achats+{client.slug}@welyb.fr"}
    before = firm.relay.json("connections", "list")
    refused = firm.relay.cli(
        "connections", "add", *(part for option in (right | changed).items() for part in option), check=False
    )
    assert refused.returncode == code
    assert told in refused.stderr
    assert firm.relay.json("connections", "list") == before


def test_S8_both_generations_of_address_in_one_run(firm: Firm) -> None:
    older, newer = firm.client(), firm.client()
    older.connect(application="meg", address=f"{older.slug}@factures-meg.fr")
    newer.connect(application="meg-achats", address=f"{newer.slug}@achats.factures-meg.fr")
    for each in (older, newer):
        each.put("Achats/facture.pdf", made.pdf(each.slug))
    firm.run()
    (one,), (other,) = older.arrived(f"{older.slug}@factures-meg.fr"), newer.arrived()
    assert one.sha256 == digest(made.pdf(older.slug))
    assert other.sha256 == digest(made.pdf(newer.slug))
    number = older.connection()["id"]
    address = older.collector_address  # the newer form, for the same client from now on
    firm.relay.cli("connections", "readdress", str(number), "--application", "meg-achats", "--address", address)
    older.put("Achats/suivante.pdf", made.pdf("suivante"))
    firm.run()
    assert older.names() == ["suivante.pdf"]
    assert len(older.arrived(f"{older.slug}@factures-meg.fr")) == 1


def test_S9_one_folder_for_the_application_then_the_client_files(firm: Firm) -> None:
    clients = [firm.client() for _ in range(3)]
    for each in clients:
        each.connect("Pièces à comptabiliser")
        each.put("Pièces à comptabiliser/facture.pdf", made.pdf(each.slug))
        each.put("Autre/facture.pdf", made.pdf("autre"))
    firm.run()
    for each in clients:
        assert [d.sha256 for d in each.arrived()] == [digest(made.pdf(each.slug))]


@pytest.mark.parametrize(
    ("application", "welyb", "collector"),
    [
        ("meg", "meg+{}@welyb.fr", "{}@factures-meg.fr"),
        ("meg-achats", "meg+achats+{}@welyb.fr", "{}@achats.factures-meg.fr"),
    ],
    ids=["S11", "S12"],
)
def test_S10_S11_S12_one_address_stands_for_the_other(
    firm: Firm, application: str, welyb: str, collector: str
) -> None:
    """Whichever of the two is typed, in whatever case, both are echoed."""
    for typed in (welyb, collector):
        client = firm.client()
        both = {"welyb_address": welyb.format(client.slug), "collector_address": collector.format(client.slug)}
        client.connect(application=application, address=typed.format(client.slug.title()))
        assert {key: client.connection()[key].lower() for key in both} == both
        client.put("Achats/facture.pdf", made.pdf())
        firm.run()
        assert [d.name for d in client.arrived(client.connection()["collector_address"])] == ["facture.pdf"]


def test_two_clients_do_not_share_a_collector_unless_forced(firm: Firm, client: Client) -> None:
    client.connect()
    other = firm.client()
    (other.path / "Achats").mkdir()
    add = ["connections", "add", "--application", "meg-achats", "--client", other.slug, "--folder", "Achats"]
    add += ["--address", client.collector_address]
    refused = firm.relay.cli(*add, check=False)
    assert refused.returncode == 1 and f"déjà le collecteur de {client.slug}" in refused.stderr
    firm.relay.cli(*add, "--force")
    assert other.connection()["collector_address"] == client.collector_address


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


DOUBTS = [_taken_away, _unmounted, _another_in_its_place, _emptied, _more_than_half_lost]


@pytest.mark.parametrize("lose", DOUBTS, ids=lambda lose: lose.__name__.strip("_"))
def test_a_root_in_doubt_is_an_error_and_nothing_is_concluded(firm: Firm, client: Client, lose: Callable[[Path], None]) -> None:
    for name in ("un", "deux", "trois"):
        client.put(f"Achats/{name}.pdf", made.pdf(name))
    client.connect()
    client.put("Achats/envoye.pdf", made.pdf("envoye"))
    firm.run()
    before = client.documents()
    folder = client.path / "Achats"
    lose(folder)
    for _ in range(2):
        firm.run()
        assert client.connection()["state"] == "error"
        assert client.connection()["reason"].startswith("Dossier connecté douteux")
    assert client.documents() == before
    aside = folder.with_name("debranche")
    if lose in (_emptied, _more_than_half_lost):
        for path in aside.iterdir():
            path.rename(folder / path.name)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    client.put("Achats/nouveau.pdf", made.pdf("nouveau"))
    firm.run()
    assert client.connection()["state"] == "active"
    assert client.names() == ["envoye.pdf", "nouveau.pdf"]
    assert sorted(client.statuses().values()) == ["baseline", "baseline", "baseline", "validated", "validated"]


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


def test_a_renamed_client_folder_stays_connected(firm: Firm, client: Client) -> None:
    client.put("Achats/ancien.pdf", made.pdf("ancien"))
    client.connect()
    firm.run()
    client.path = client.path.rename(client.path.with_name(f"{client.slug} Holding"))
    client.put("Achats/nouveau.pdf", made.pdf("nouveau"))
    firm.run()
    assert client.connection()["state"] == "active"
    assert client.names() == ["nouveau.pdf"]


# --- the life of a connection ---------------------------------------------------------------------------------------


def test_disconnected_then_connected_again_takes_a_new_baseline(firm: Firm, client: Client) -> None:
    number = client.connect()
    client.put("Achats/envoye.pdf", made.pdf("envoye"))
    firm.run()
    client.put("Achats/en file.pdf", made.pdf("en file"))
    with firm.collector_away():
        firm.run()
    firm.relay.cli("connections", "remove", str(number), "--reason", "fin de mission")
    client.put("Achats/entre deux.pdf", made.pdf("entre deux"))
    firm.run()
    assert client.names() == ["en file.pdf", "envoye.pdf"], "what was queued still goes, and nothing else"
    client.connect()
    os.utime(client.path / "Achats/envoye.pdf")
    client.put("Achats/apres.pdf", made.pdf("apres"))
    firm.run()
    assert client.names() == ["apres.pdf", "en file.pdf", "envoye.pdf"]


def test_readdressed_nothing_is_lost_and_nothing_sent_again(firm: Firm, client: Client) -> None:
    number = client.connect()
    client.put("Achats/envoye.pdf", made.pdf("envoye"))
    client.put("Achats/modifie.pdf", made.pdf("avant"))
    firm.run()
    client.put("Achats/modifie.pdf", made.pdf("apres"))
    client.put("Achats/en attente.pdf", made.pdf("en attente"))
    with firm.collector_away():
        firm.run()
    new = f"{client.slug}-sarl@achats.factures-meg.fr"
    firm.relay.cli("connections", "readdress", str(number), "--address", new, "--reason", "changement de nom")
    client.put("Achats/nouveau.pdf", made.pdf("nouveau"))
    firm.run()
    firm.relay.cli("queue", "release", client.document("modifie.pdf")["delivery"])
    firm.run()
    assert client.names() == ["envoye.pdf", "modifie.pdf"]
    arrived = client.arrived(new)
    assert sorted(d.name for d in arrived) == ["en attente.pdf", "modifie.pdf", "nouveau.pdf"]
    assert {parseaddr(str(d.message["To"]))[1] for d in arrived} == {new}
    assert client.connection()["collector_address"] == new


def test_of_nested_connections_the_nearest_wins(firm: Firm, client: Client) -> None:
    expenses = f"{client.slug}-frais@achats.factures-meg.fr"
    for name in ("un", "deux", "trois"):
        client.put(f"Achats/Notes de frais/{name}.pdf", made.pdf(name))
    client.put("Achats/quatre.pdf", made.pdf("quatre"))
    client.connect("Achats")
    firm.run()
    client.connect("Achats/Notes de frais", address=expenses)
    client.put("Achats/facture.pdf", made.pdf("facture"))
    client.put("Achats/Notes de frais/2026/taxi.pdf", made.pdf("taxi"))
    firm.run()
    assert client.names() == ["facture.pdf"]
    assert [d.name for d in client.arrived(expenses)] == ["taxi.pdf"]
    states = {row["state"] for row in firm.relay.json("connections", "list", "--client", client.slug)}
    assert states == {"active"}


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
