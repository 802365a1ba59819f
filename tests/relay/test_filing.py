"""The worker that files: at once, once, in the folder of the reception date, and later where the GED is away."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from relay import filing
from relay.spool import SMALL
from relay.store import delivery, directory
from tests.support.clients import mail
from tests.support.documents import pdf
from tests.support.inside import SENDER, Inside, inside

VENTES = "ventes+dupont@welyb.fr"
CONTENT = pdf("Vente 1")
INVOICE = ("vente.pdf", "application/pdf", CONTENT)


@pytest.fixture
def relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inside]:
    monkeypatch.setattr(filing, "RETRY_EVERY", timedelta(milliseconds=1))
    with inside(tmp_path) as relay:
        yield relay


def received(relay: Inside, at: str) -> None:
    """A sale came in at that instant."""
    assert relay.take(mail(SENDER, VENTES, INVOICE), VENTES).code == 250
    relay.change("UPDATE message SET received_at = ?", at)


def reason(relay: Inside) -> str:
    (text,) = relay.column("SELECT reason FROM delivery")
    return str(json.loads(text)["code"])


def test_a_document_is_filed_recorded_and_its_temporary_forgotten(relay: Inside) -> None:
    received(relay, "2026-11-24T10:00:00.000Z")
    assert relay.file() == 1
    assert relay.filed() == {"Dupont/Ventes/2026/11/vente.pdf": CONTENT}
    place = "Dupont/Ventes/2026/11/vente.pdf"
    assert relay.rows("SELECT state, target FROM delivery") == [("filed", place)]
    assert relay.column("SELECT path FROM document") == [place]
    assert relay.file() == 0


@pytest.mark.parametrize(
    ("at", "folder"),
    [
        ("2026-12-31T22:59:59.999Z", "2026/12"),  # 23:59:59 in Paris
        ("2026-12-31T23:00:00.000Z", "2027/01"),
        ("2026-03-29T00:59:59.000Z", "2026/03"),  # the night that lacks an hour
        ("2026-03-31T21:59:59.000Z", "2026/03"),  # summer time: 23:59:59
        ("2026-03-31T22:00:00.000Z", "2026/04"),
        ("2026-10-25T01:00:00.000Z", "2026/10"),  # the hour that comes twice
        ("2026-10-31T22:59:59.000Z", "2026/10"),  # winter time again
        ("2026-10-31T23:00:00.000Z", "2026/11"),
    ],
)
def test_it_goes_by_the_reception_date_in_paris(relay: Inside, at: str, folder: str) -> None:
    received(relay, at)
    relay.file()
    assert list(relay.filed()) == [f"Dupont/Ventes/{folder}/vente.pdf"]


@pytest.mark.parametrize(("end", "year"), [("06-30", "2027"), ("11-24", "2026"), ("11-23", "2027"), ("12-31", "2026")])
def test_the_year_is_the_clients_fiscal_year(relay: Inside, end: str, year: str) -> None:
    relay.change("UPDATE client SET fiscal_year_end = ?", end)
    received(relay, "2026-11-24T10:00:00.000Z")
    relay.file()
    assert list(relay.filed()) == [f"Dupont/Ventes/{year}/11/vente.pdf"]


def test_existing_folders_are_used_whatever_their_case(relay: Inside) -> None:
    (relay.root / "Dupont/VENTES/2026").mkdir(parents=True)
    received(relay, "2026-11-24T10:00:00.000Z")
    relay.file()
    assert list(relay.filed()) == ["Dupont/VENTES/2026/11/vente.pdf"]


def test_a_name_already_taken_is_numbered_and_nobodys_file_is_touched(relay: Inside) -> None:
    place = relay.root / "Dupont/Ventes/2026/11"
    place.mkdir(parents=True)
    (place / "VENTE.PDF").write_text("d'un humain")
    received(relay, "2026-11-24T10:00:00.000Z")
    received(relay, "2026-11-24T10:00:00.000Z")
    relay.file()
    folder = "Dupont/Ventes/2026/11"
    expected = {f"{folder}/VENTE.PDF": b"d'un humain"}
    assert relay.filed() == expected | {f"{folder}/vente ({n}).pdf": CONTENT for n in (2, 3)}


def test_while_the_ged_is_away_it_waits_without_end_and_then_is_filed(relay: Inside) -> None:
    received(relay, "2026-11-24T10:00:00.000Z")
    relay.change("UPDATE delivery SET expires_at = '2026-01-01T00:00:00.000Z'")
    away = relay.root.rename(relay.root.with_name("demonte"))
    for attempts in (1, 2):
        while not relay.file():
            pass
        assert relay.rows("SELECT state, attempts FROM delivery") == [("waiting", attempts)]
    assert reason(relay) == "ged-away" and not relay.root.exists()
    away.rename(relay.root)
    while not relay.file():
        pass
    assert relay.filed() == {"Dupont/Ventes/2026/11/vente.pdf": CONTENT}


def test_a_client_folder_that_is_not_there_is_not_made(relay: Inside) -> None:
    received(relay, "2026-11-24T10:00:00.000Z")
    (relay.root / "Dupont").rmdir()
    assert relay.file() == 1
    assert relay.filed() == {} and list(relay.root.iterdir()) == []
    assert reason(relay) == "ged-away"


def test_the_folder_of_a_client_added_by_hand_is_made(relay: Inside) -> None:
    relay.change("UPDATE client SET state = 'added'")
    (relay.root / "Dupont").rmdir()
    received(relay, "2026-11-24T10:00:00.000Z")
    relay.file()
    assert list(relay.filed()) == ["Dupont/Ventes/2026/11/vente.pdf"]


def test_a_client_folder_renamed_meanwhile_is_found_again(relay: Inside) -> None:
    received(relay, "2026-11-24T10:00:00.000Z")
    (relay.root / "Dupont").rename(relay.root / "Dupont et fils")
    while not relay.filed():
        relay.file()
    assert list(relay.filed()) == ["Dupont et fils/Ventes/2026/11/vente.pdf"]
    assert relay.take(mail(SENDER, VENTES, INVOICE), VENTES).code == 250  # the old name is an alias


def test_two_folders_of_one_name_file_nothing_until_one_is_renamed(relay: Inside) -> None:
    received(relay, "2026-11-24T10:00:00.000Z")
    relay.change("UPDATE client SET state = 'ambiguous'")
    relay.file()
    assert relay.filed() == {} and reason(relay) == "client-ambiguous"


@pytest.mark.parametrize("moved", [False, True])
def test_what_a_crash_left_between_file_and_record_is_not_filed_twice(relay: Inside, moved: bool) -> None:
    received(relay, "2026-11-24T10:00:00.000Z")
    (claimed,) = relay.column("SELECT id FROM delivery")
    (sha256,) = relay.column("SELECT sha256 FROM document")
    tree = filing.ged.Tree(relay.root).within("Dupont")
    tree.file_document(("Ventes", "2026", "11"), "vente.pdf", delivery=claimed, chunks=[CONTENT], sha256=sha256)
    if moved:  # by a person, before the daemon was back
        (relay.root / "Dupont/Ventes/2026/11/vente.pdf").rename(relay.root / "Dupont/Ventes/vue.pdf")
    relay.file()
    place = "Dupont/Ventes/vue.pdf" if moved else "Dupont/Ventes/2026/11/vente.pdf"
    assert relay.filed() == {place: CONTENT}
    assert relay.column("SELECT target FROM delivery") == [place]


def test_bytes_missing_from_the_spool_are_a_failure_that_can_be_mended(relay: Inside) -> None:
    assert relay.take(mail(SENDER, VENTES, INVOICE, text="x" * SMALL), VENTES).code == 250
    (spooled,) = relay.spooled()
    kept = spooled.rename(spooled.with_suffix(".kept"))
    relay.file()
    assert relay.column("SELECT state FROM delivery") == ["failed"] and reason(relay) == "bytes-missing"
    assert relay.filed() == {}
    kept.rename(spooled)
    order = delivery.Order("moi", "remis", "2026-11-24T10:00:00.000Z", "2026-01-01T00:00:00.000Z", "2027-01-01")
    relay.do(lambda db: delivery.change(db, relay.column("SELECT id FROM delivery"), delivery.Change.RETRY, order))
    relay.file()
    assert list(relay.filed().values()) == [CONTENT]


def test_a_client_that_is_forgotten_makes_its_sales_wait(relay: Inside) -> None:
    received(relay, "2026-11-24T10:00:00.000Z")
    relay.do(lambda db: directory.remove_client(db, "dupont"))
    relay.change("DELETE FROM client")
    relay.file()
    assert relay.column("SELECT state FROM delivery") == ["waiting"]
    assert relay.filed() == {}
