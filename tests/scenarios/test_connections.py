"""Connecting folders to an application, and the life of a connection: domain.md §2 (S6 to S12) and §4 "GED"."""

import os
from email.utils import parseaddr

import pytest

from tests.support import documents as made
from tests.support.firm import Client, Firm, digest

pytestmark = pytest.mark.debian("postfix")


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
    refused = firm.relay.cli(
        "connections", "add", *(part for option in (right | changed).items() for part in option), check=False
    )
    assert refused.returncode == code
    assert told in refused.stderr
    assert firm.relay.json("connections", "list", "--client", client.slug) == []


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
def test_S10_S11_S12_one_address_stands_for_the_other(firm: Firm, application: str, welyb: str, collector: str) -> None:
    """Whichever of the two is typed, both are echoed."""
    clients = [firm.client(), firm.client()]
    for client, typed in zip(clients, (welyb, collector), strict=True):
        both = {"welyb_address": welyb.format(client.slug), "collector_address": collector.format(client.slug)}
        client.connect(application=application, address=typed.format(client.slug))
        connection = client.connection()
        assert {key: connection[key] for key in both} == both
        client.put("Achats/facture.pdf", made.pdf())
    firm.run()
    for client in clients:
        assert [d.name for d in client.arrived(collector.format(client.slug))] == ["facture.pdf"]


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


# --- the life of a connection ---------------------------------------------------------------------------------------


def test_disconnected_then_connected_again_takes_a_new_baseline(firm: Firm, client: Client) -> None:
    number = client.connect()
    client.put("Achats/envoye.pdf", made.pdf("envoye"))
    firm.run()
    client.put("Achats/en file.pdf", made.pdf("en file"))
    with firm.collector_away():
        firm.run()
    client.put("Achats/dernier.pdf", made.pdf("dernier"))
    refused = firm.relay.cli("connections", "remove", str(number), check=False)
    assert refused.returncode == 1 and "1 dépôts depuis le dernier passage" in refused.stderr
    with firm.collector_away():
        firm.run()
    firm.relay.cli("connections", "remove", str(number), "--reason", "fin de mission")
    client.put("Achats/entre deux.pdf", made.pdf("entre deux"))
    firm.run()
    assert client.names() == ["dernier.pdf", "en file.pdf", "envoye.pdf"], (
        "what was queued still goes, and nothing else"
    )
    client.connect()
    os.utime(client.path / "Achats/envoye.pdf")
    client.put("Achats/apres.pdf", made.pdf("apres"))
    firm.run()
    assert client.names() == ["apres.pdf", "dernier.pdf", "en file.pdf", "envoye.pdf"]


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
    inner = client.connect("Achats/Notes de frais", address=expenses)
    client.put("Achats/facture.pdf", made.pdf("facture"))
    client.put("Achats/Notes de frais/2026/taxi.pdf", made.pdf("taxi"))
    firm.run()
    assert client.names() == ["facture.pdf"]
    assert [d.name for d in client.arrived(expenses)] == ["taxi.pdf"]
    states = [row["state"] for row in firm.relay.json("connections", "list", "--client", client.slug)]
    assert states == ["active", "active"]
    firm.relay.cli("connections", "remove", str(inner))
    client.put("Achats/Notes de frais/2026/hotel.pdf", made.pdf("hotel"))
    firm.run()
    assert client.names() == ["facture.pdf", "hotel.pdf"], "what the inner one sent is not sent again"
    assert client.connection()["state"] == "active"


def test_a_renamed_client_folder_stays_connected(firm: Firm, client: Client) -> None:
    client.put("Achats/ancien.pdf", made.pdf("ancien"))
    client.connect()
    firm.run()
    client.path = client.path.rename(client.path.with_name(f"{client.slug} Holding"))
    client.slug += "-holding"
    client.put("Achats/nouveau.pdf", made.pdf("nouveau"))
    firm.run()
    assert client.connection()["state"] == "active"
    assert client.names() == ["nouveau.pdf"]


def test_a_deposit_that_no_run_has_seen_goes_when_its_folder_gets_a_connection_of_its_own(firm: Firm) -> None:
    client = firm.client()
    client.put("Achats/deja-la.pdf", made.pdf(f"{client.slug} before"))
    client.put("Achats/Notes/deja-la.pdf", made.pdf(f"{client.slug} before, below"))
    client.connect()
    client.put("Achats/Notes/nouveau.pdf", made.pdf(f"{client.slug} new"))
    firm.relay.cli(
        *("connections", "add", "--application", "meg-achats", "--client", client.slug, "--folder", "Achats/Notes"),
        *("--address", f"{client.slug}-notes@achats.factures-meg.fr"),
    )
    firm.run()
    assert [row["name"] for row in client.documents() if row["status"] == "validated"] == ["nouveau.pdf"]
