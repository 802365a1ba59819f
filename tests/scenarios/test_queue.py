"""The queue as the postmaster works it: orders and their manners, what is shown, and where an invoice is."""

import hashlib
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import documents as made
from tests.support.clients import mail
from tests.support.desk import SENDER, Desk
from tests.support.firm import AT_ONCE, Firm
from tests.support.program import free_port
from tests.support.relay import Relay, command

COLLECTORS = ("factures-meg.fr", "achats.factures-meg.fr")


def new_desk(folder: Path) -> Relay:
    relay = Relay(folder, AT_ONCE)
    relay.configure({"delivery": {"routes": dict.fromkeys(COLLECTORS, f"127.0.0.1:{free_port()}")}})
    return relay.start()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    relay = new_desk(tmp_path_factory.mktemp("desk"))
    yield Desk(relay)
    relay.stop()


# --- orders -----------------------------------------------------------------------------------------------------------


def test_hold_release_drop_by_id(desk: Desk) -> None:
    one = desk.mail("un")
    assert desk.order("hold", one, "--reason", "à voir avec le client") == (0, [one])
    (row,) = desk.json("queue", "list", "--id", one)
    assert row["state"] == "held"
    assert re.fullmatch(r"Retenu par \S+ : à voir avec le client", row["reason"])
    assert desk.order("hold", one) == (1, [])  # nothing is in a state for it
    assert desk.order("release", one) == (0, [one])
    assert desk.order("drop", one, "--reason", "doublon") == (0, [one])
    assert desk.order("release", one) == desk.order("retry", one) == (1, [])
    story = [r for r in desk.json("trace", one) if r["actor"] not in ("smtp", "run")]
    assert [(r["event"], r["detail"].get("why")) for r in story] == [
        ("held", "à voir avec le client"),
        ("released", ""),
        ("dropped", "doublon"),
    ]
    assert {r["actor"] for r in story} != {""}


def test_a_message_or_document_id_means_its_deliveries(desk: Desk) -> None:
    one = desk.mail("deux")
    assert desk.order("hold", one.removesuffix("-1")) == (0, [one])
    assert desk.order("release", one.replace("-1", ".2"), one.replace("-1", ".1")) == (0, [one])


def test_more_than_one_must_be_confirmed(desk: Desk) -> None:
    ids = sorted(desk.mail("nombreux", sender=f"{n}@beaucoup.example") for n in "ab")
    collector = ("--collector", "nombreux@factures-meg.fr")
    done = desk.relay.cli("queue", "hold", *collector, check=False)
    assert (done.returncode, "2 envois : hold ? Confirmez avec --yes." in done.stderr) == (2, True)
    assert set(desk.states(*collector).values()) == {"waiting"}
    assert desk.order("hold", *collector, "--sender", "a@beaucoup.example") == (0, ids[:1])  # one: no question
    assert desk.order("hold", *collector, "--yes") == (0, ids[1:])
    assert desk.order("drop", "--state", "held", *collector, "--yes") == (0, ids)


@pytest.mark.parametrize(("answer", "code", "state"), [("n", 1, "waiting"), ("y", 0, "held")])
def test_on_a_terminal_it_asks(desk: Desk, answer: str, code: int, state: str) -> None:
    name = f"terminal-{answer}"
    ids = [desk.mail(name, sender=f"{n}@terminal.example") for n in "ab"]
    ours, theirs = pty.openpty()
    words = [*command(), "--config", str(desk.relay.config), "queue", "hold", "--collector", f"{name}@factures-meg.fr"]
    asking = subprocess.Popen(words, stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    os.write(ours, f"{answer}\n".encode())
    out, _ = asking.communicate(timeout=30)
    os.close(ours)
    os.close(theirs)
    assert b"2 envois : hold ?" in out
    assert (asking.returncode, {desk.state(i) for i in ids}) == (code, {state})


@pytest.mark.parametrize("verb", ["hold", "release", "retry", "drop", "resend"])
def test_an_order_without_an_object_is_a_mistake(desk: Desk, verb: str) -> None:
    assert desk.order(verb)[0] == desk.order(verb, "--yes")[0] == 2
    assert desk.order(verb, "--state", "perdu")[0] == 2
    assert desk.order(verb, "--since", "naguère", "--yes")[0] == 2
    assert desk.order(verb, "inconnu-1") == (1, [])


def test_a_held_delivery_stays_and_a_waiting_one_is_tried(desk: Desk) -> None:
    held, waiting = desk.mail("reste"), desk.mail("part")
    desk.order("hold", held)
    desk.relay.cli("runs", "now")
    rows = {row["id"]: row for row in desk.json("queue", "list")}
    assert (rows[held]["state"], rows[held]["attempts"]) == ("held", 0)
    assert (rows[waiting]["state"], "Dernière réponse" in rows[waiting]["reason"]) == ("waiting", True)


# --- a collector is there ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def firm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firm]:
    firm = Firm.start(tmp_path_factory.mktemp("firm"), reject=["parti@factures-meg.fr"])
    yield firm
    firm.stop()


@pytest.mark.debian("postfix")
def test_retry_after_a_failure_and_resend_after_success(firm: Firm) -> None:
    desk = Desk(firm.relay)
    one = desk.mail("parti")
    firm.run()
    assert desk.state(one) == "failed"
    assert desk.order("resend", one.replace("-1", "-9")) == (1, [])
    firm.collector.change(reject=[])
    assert desk.order("retry", one, "--reason", "compte rouvert") == (0, [one])
    firm.run()
    assert desk.state(one) == "sent"
    code, (again,) = desk.order("resend", one)
    assert (code, again) == (0, one.replace("-1", "-2"))
    assert desk.order("hold", again) == (0, [again])
    assert desk.order("release", again) == (0, [again])
    firm.run()
    assert desk.states("--id", one.removesuffix("-1")) == {one: "sent", again: "sent"}
    first, second = (m for m in firm.collector.messages() if m.envelope_recipient == "parti@factures-meg.fr")
    assert first.transmitted == second.transmitted


@pytest.mark.debian("postfix")
def test_the_firms_view_of_each_document(firm: Firm) -> None:
    """One client, one document for each status."""
    client = firm.client("statuts")
    client.put("Achats/ancien.pdf", made.pdf("ancien"))
    client.connect()
    client.put("Achats/parti.pdf", made.pdf("parti"))
    client.put("Achats/lot.zip", made.plain_zip())
    client.put("Achats/vivant.pdf", made.pdf("v1"))
    firm.run()
    client.put("Achats/copie/parti.pdf", made.pdf("parti"))
    client.put("Achats/vivant.pdf", made.pdf("v2"))
    firm.run()
    with firm.collector_away():
        client.put("Achats/attend.pdf", made.pdf("attend"))
        client.put("Achats/oublie.pdf", made.pdf("oublie"))
        client.put("Achats/retenu.pdf", made.pdf("retenu"))
        firm.run()
    firm.relay.cli("queue", "drop", client.document("oublie.pdf")["delivery"], "--reason", "x")
    firm.relay.cli("queue", "hold", client.document("retenu.pdf")["delivery"], "--reason", "modified")
    to = "ventes+statuts@welyb.fr"
    assert firm.mail(to, mail("meg@ailleurs.example", to, ("vente.pdf", "application/pdf", made.pdf("vente")))).accepted
    firm.wait_until(lambda: client.document("vente.pdf")["status"] == "filed")
    rows = {(row["name"], row["status"]) for row in client.documents()}
    assert rows == {
        ("ancien.pdf", "baseline"),
        ("parti.pdf", "validated"),
        ("parti.pdf", "duplicate"),
        ("lot.zip", "refused"),
        ("vivant.pdf", "validated"),
        ("vivant.pdf", "modified"),
        ("attend.pdf", "pending"),
        ("oublie.pdf", "skipped"),
        ("retenu.pdf", "held"),
        ("vente.pdf", "filed"),
    }
    for status in ("baseline", "validated", "duplicate", "refused", "modified", "pending", "skipped", "filed"):
        found = Desk(firm.relay).json("documents", "list", "--client", "statuts", "--state", status)
        assert {row["name"] for row in found} == {name for name, its in rows if its == status}
    zip_ = client.document("lot.zip")
    assert zip_["reason"] == "Non pris en compte : archive ZIP. Déposez séparément les documents qu'elle contient."
    vente = client.document("vente.pdf")
    assert re.fullmatch(r"statuts/Ventes/\d{4}/\d\d", vente["folder"])
    assert client.document("ancien.pdf")["folder"] == "Achats"


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_body_gives_the_exact_bytes(desk: Desk) -> None:
    small = mail(SENDER, "x@y.fr", text="é\n.\n..\nFrom moi\n").replace(b"\r\n\r\n", b"\r\nX-Odd:\t\xe9  \r\n\r\n", 1)
    large = mail(SENDER, "x@y.fr", ("a.pdf", "application/pdf", made.pdf_of_size(300_000)))
    for number, message in enumerate((small, large)):
        one = desk.raw(f"octets{number}", message)
        for id_ in (one, one.removesuffix("-1")):
            words = [*command(), "--config", str(desk.relay.config), "queue", "body", id_]
            assert subprocess.run(words, capture_output=True, check=True).stdout == message
    assert desk.here("queue", "body", "inconnu-1").exit_code == 1


def test_show_tells_documents_and_history(desk: Desk) -> None:
    one = desk.mail("montre")
    shown = desk.here("queue", "show", one).stdout
    assert all(word in shown for word in (one, "montre@factures-meg.fr", "montre.pdf", "accepted", "waiting"))
    assert "sender=" in shown and "{'" not in shown
    (row,) = desk.json("queue", "show", one)
    assert row["id"] == one
    assert desk.here("queue", "show", "inconnu-1").exit_code == 1


def test_trace_by_whatever_is_known(desk: Desk) -> None:
    content = made.pdf("introuvable")
    one = desk.mail(
        "cherche", ("Facture n° 12 (mars).pdf", "application/pdf", content), sender="patron@cherche.example"
    )
    (document,) = desk.json("documents", "list", "--id", one)
    (row,) = desk.json("queue", "list", "--id", one)
    queries = [
        *(one, one.removesuffix("-1"), document["id"], "Facture n° 12 (mars).pdf", hashlib.sha256(content).hexdigest()),
        *(row["message_id"], row["message_id"].strip("<>"), "patron@cherche.example", "cherche@factures-meg.fr"),
    ]
    for query in queries:
        story = desk.json("trace", query)
        assert [r["event"] for r in story] == ["accepted"], query
        assert story[0]["message"] == one.removesuffix("-1")
    assert desk.json("trace", "jamais vu") == []
    assert (desk.here("trace", "jamais vu").exit_code, desk.here("trace", "jamais vu").stdout) == (0, "")


def test_a_refused_mail_is_traced_by_the_name_of_its_file(desk: Desk) -> None:
    to = "meg+refus@welyb.fr"
    message = mail("patron@refus.example", to, ("releve.zip", "application/zip", made.plain_zip()))
    assert desk.send(to, message, sender="patron@refus.example").code == 554
    for query in ("releve.zip", "patron@refus.example", to, hashlib.sha256(made.plain_zip()).hexdigest(), "refus"):
        (event,) = desk.json("trace", query)
        assert (event["event"], event["delivery"]) == ("refused", None)
        assert "archive ZIP" in event["detail"]["reply"]
    assert desk.json("queue", "list", "--collector", "refus@factures-meg.fr") == []


HOSTILE = 'a\x1b[31m\u202egpj.exe\u2028\x07"; rm -rf.pdf'


def test_hostile_names_are_escaped_in_every_output(desk: Desk) -> None:
    encoded = "".join(f"%{byte:02X}" for byte in HOSTILE.encode())
    message = mail(SENDER, "x@y.fr", ("NAME.pdf", "application/pdf", made.pdf("hostile")))
    field = f"attachment; filename*=UTF-8''{encoded}".encode()
    message = re.sub(rb'attachment; filename="NAME\.pdf"', field, message)
    one = desk.raw("hostile", message)
    (row,) = desk.json("documents", "list", "--id", one)
    assert row["name"].endswith(".pdf")
    outputs = [
        desk.here(*words).stdout
        for words in (
            ("documents", "list", "--id", one),
            ("documents", "list", "--id", one, "--json"),
            ("queue", "show", one),
            ("trace", one),
            ("trace", one, "--json"),
            ("explain", HOSTILE.replace("\x00", "")),
            ("explain", HOSTILE, "--json"),
        )
    ]
    for output in outputs:
        assert output
        assert set("\x1b\x07\u202e\u2028\x9b\x7f").isdisjoint(output)


def test_summary_counts_by_state(desk: Desk) -> None:
    states = list(desk.states().values())
    rows = desk.json("queue", "summary")
    assert sum(row["deliveries"] for row in rows) == len(states)
    assert {row["state"]: row["deliveries"] for row in rows if row["kind"] == "send"} == {
        state: states.count(state) for state in set(states)
    }


def test_pages_cover_everything_once(desk: Desk) -> None:
    # Enough of its own for three pages of either listing: the order of tests is random.
    for number in range(5):
        several = [(f"{number}-{k}.pdf", "application/pdf", made.pdf(f"{number}{k}")) for k in range(2)]
        desk.mail(f"pages{number}", *several)
    for verb, key in ((("queue", "list"), "id"), (("documents", "list"), "key")):
        whole = desk.json(*verb)
        found, after = [], ""
        while page := desk.json(*verb, "--limit", "2", "--after", after):
            found += page
            after = page[-1][key]
        assert found == whole
        assert len(whole) >= 5


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        (("--sender", "a@filtres.example"), {"filtres-a"}),
        (("--sender", "a@filtres.example", "--state", "held"), set()),
        (("--since", "1 hour", "--collector", "filtres-b@factures-meg.fr"), {"filtres-b"}),
        (("--since", "2099-01-01"), set()),
        (("--state", "waiting,held", "--sender", "b@filtres.example"), {"filtres-b"}),
        (("--state", "pending", "--sender", "b@filtres.example"), {"filtres-b"}),
        (("--client", "personne"), set()),
    ],
)
def test_filters(desk: Desk, filters: tuple[str, ...], names: set[str]) -> None:
    if not desk.json("queue", "list", "--sender", "a@filtres.example"):
        for letter in "ab":
            desk.mail(f"filtres-{letter}", sender=f"{letter}@filtres.example")
    rows = desk.json("queue", "list", *filters)
    assert {row["target"].partition("@")[0] for row in rows} == names


def test_a_table_is_for_people(desk: Desk) -> None:
    desk.mail("table")
    head, rule, *rows = desk.here("queue", "list", "--collector", "table@factures-meg.fr").stdout.splitlines()
    assert head.split()[:5] == ["id", "state", "kind", "client", "target"]
    assert set(rule) <= set("- ")
    assert all("table@factures-meg.fr" in row for row in rows)
    empty = desk.here("queue", "list", "--client", "personne")
    assert (empty.stdout, empty.stderr.strip()) == ("", "(rien)")


def test_listings_do_not_disturb_what_is_served(desk: Desk) -> None:
    store = desk.relay.folder / "var/relay.db"
    before = store.stat()
    for words in (
        ("queue", "list"),
        ("documents", "list"),
        ("runs", "list"),
        ("clients", "list"),
        ("queue", "summary"),
    ):
        desk.here(*words)
    after = store.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (before.st_mtime_ns, before.st_size, before.st_ino)
    assert desk.mail("encore-la")
