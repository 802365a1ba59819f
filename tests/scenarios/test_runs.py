"""The automaton: when it runs, that it runs alone, fairly and in time, and that its books balance."""

import asyncio
import fcntl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support import debian
from tests.support import documents as made
from tests.support.clients import mail
from tests.support.farside import Far, listening
from tests.support.firm import Client, Firm, digest

pytestmark = pytest.mark.debian("postfix")

QUARTER = 15 * 60


@pytest.fixture
def firm(tmp_path: Path) -> Iterator[Firm]:
    firm = Firm.start(tmp_path, defer=["occupe@achats.factures-meg.fr"], reject=["parti@achats.factures-meg.fr"])
    yield firm
    firm.stop()


def history(firm: Firm) -> list[dict[str, Any]]:
    """Every run, the oldest first."""
    return firm.relay.json("runs", "list", "--limit", "1000")[::-1]


# --- by the clock ---------------------------------------------------------------------------------------------------


def begin_at(firm: Firm, *, seconds: float) -> None:
    """Start the relay, its clock that many seconds past the coming quarter of an hour."""
    now = time.time()
    ahead = -now % QUARTER + QUARTER * (seconds < 0) + seconds
    # What the files say of their times stays true.
    firm.relay.program.env |= debian.faked_time(f"+{ahead:.3f}") | {"NO_FAKE_STAT": "1"}
    firm.relay.start()


def test_S17_the_clock_does_it_every_fifteen_minutes(firm: Firm) -> None:
    client = firm.client()
    client.connect()
    firm.relay.stop()
    firm.relay.configure({"run": {"every": "15 min"}})
    client.put("Achats/une.pdf", made.pdf("une"))
    begin_at(firm, seconds=-5)
    assert history(firm) == []
    firm.collector.wait(1, timeout=20)
    firm.wait_until(lambda: bool(history(firm)[0]["finished_at"]))
    (run,) = history(firm)
    started = datetime.fromisoformat(run["started_at"])
    assert started.minute % 15 == 0 and started.second < 3
    firm.relay.stop()

    client.put("Achats/deux.pdf", made.pdf("deux"))
    begin_at(firm, seconds=65 * 60)  # four quarters were missed: one run catches them up
    firm.collector.wait(2)
    firm.relay.stop()
    client.put("Achats/trois.pdf", made.pdf("trois"))
    begin_at(firm, seconds=66 * 60)  # none was missed since
    time.sleep(1)
    assert len(history(firm)) == 2
    assert client.names() == ["deux.pdf", "une.pdf"]


def test_S17_the_next_run_is_on_the_quarter(firm: Firm) -> None:
    firm.relay.configure({"run": {"every": "15 min"}})
    (next_run,) = firm.relay.json("runs", "next")
    at = datetime.fromisoformat(next_run["at"])
    assert at.minute % 15 == 0 and at.second == 0
    assert 0 <= at.timestamp() - time.time() <= QUARTER


def test_S17_a_run_that_took_too_long_is_followed_at_once(firm: Firm) -> None:
    """A collector that is silent after the dot holds it past the next instant, which is caught up; then it is on time."""
    client = firm.client()
    client.connect()
    client.put("Achats/facture.pdf", made.pdf())
    firm.relay.stop()

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(6.5)
        writer.write(b"250 2.0.0 taken\r\n")

    async def run_against_it() -> None:
        async with listening(Far({"DOT": slowly})) as where:
            route = {"achats.factures-meg.fr": f"{where.address}:{where.port}"}
            firm.relay.configure({"run": {"every": "5 s", "settle": "1 s"}, "delivery": {"routes": route}})
            await asyncio.to_thread(firm.relay.start)
            await asyncio.to_thread(firm.wait_until, lambda: len(history(firm)) >= 4, timeout=40)

    asyncio.run(run_against_it())
    started = [datetime.fromisoformat(run["started_at"]) for run in history(firm)]
    (slow,) = (at for at, run in enumerate(history(firm)) if run["sent"])
    ended = datetime.fromisoformat(history(firm)[slow]["finished_at"])
    assert (ended - started[slow]).total_seconds() > 5
    assert (started[slow + 1] - ended).total_seconds() < 1
    assert (started[slow + 2].timestamp() + 0.1) % 5 < 1, "and then on the grid again"


# --- one at a time --------------------------------------------------------------------------------------------------


def test_S17_never_two_at_once(firm: Firm) -> None:
    """The daemon runs every other second, and three postmasters would run now, while documents arrive and settle."""
    clients = [firm.client() for _ in range(3)]
    for client in clients:
        client.connect()
    firm.relay.stop()
    firm.relay.configure({"run": {"every": "2 s", "settle": "1 s"}})
    firm.relay.start()

    def deposit(client: Client) -> None:
        for number in range(40):
            client.put(f"Achats/{number:02}.pdf", made.pdf(f"{client.slug} {number}"))
            time.sleep(0.1)

    def run_now(_: object) -> None:
        firm.relay.cli("runs", "now")

    with ThreadPoolExecutor() as people:
        laid, ran = people.map(deposit, clients), people.map(run_now, range(3))
        assert list(laid) + list(ran) == [None] * 6, "none of them failed"
    firm.wait_until(lambda: all(len(client.names()) == 40 for client in clients), timeout=30)
    firm.relay.stop()
    firm.relay.cli("runs", "now")
    runs = history(firm)
    assert len(runs) >= 5, "the daemon had its turns too"
    assert all(run["finished_at"] for run in runs)
    for before, after in pairwise(runs):
        assert before["finished_at"] <= after["started_at"]
    for client in clients:
        assert client.names() == [f"{number:02}.pdf" for number in range(40)], "each of them, once"


def test_run_now_waits_for_the_run_under_way(firm: Firm) -> None:
    client = firm.client()
    client.connect()
    client.put("Achats/facture.pdf", made.pdf())
    with (firm.relay.folder / "var/run.lock").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with ThreadPoolExecutor() as postmaster:
            waiting = postmaster.submit(firm.run)
            time.sleep(1.5)
            assert history(firm) == [] and client.arrived() == []
            fcntl.flock(other, fcntl.LOCK_UN)
            assert waiting.result()["sent"] == 1
    assert client.names() == ["facture.pdf"]


# --- its books ------------------------------------------------------------------------------------------------------


def lay_out_one_of_each(firm: Firm) -> Client:
    """Documents with every fate there is, and nothing yet done about them."""
    client, busy, gone = firm.client(), firm.client("occupe"), firm.client("parti")
    for each in (client, busy, gone):
        each.connect()
    client.put("Achats/change.pdf", made.pdf("avant"))
    firm.run()
    client.put("Achats/change.pdf", made.pdf("apres"))
    client.put("Achats/une.pdf", made.pdf("une"))
    client.put("Achats/deux.pdf", made.pdf("deux"))
    client.put("Achats/2026/change.pdf", made.pdf("avant"))  # what was sent, under its name
    client.put("Achats/releve.zip", made.plain_zip())
    client.put("Achats/vide.pdf", b"")
    busy.put("Achats/occupe.pdf", made.pdf("occupe"))
    gone.put("Achats/parti.pdf", made.pdf("parti"))
    letter = mail("compta@cabinet.example", "x@y.example", ("mail.pdf", "application/pdf", made.pdf("mail")))
    assert firm.mail("meg+achats+dupont@welyb.fr", letter).accepted
    return client


def test_the_counts_of_a_run_balance(firm: Firm) -> None:
    lay_out_one_of_each(firm)
    run = firm.run()
    counted = {key: run[key] for key in ("sent", "deferred", "refused", "held", "duplicate")}
    assert counted == {"sent": 3, "deferred": 1, "refused": 2, "held": 1, "duplicate": 1}
    assert run["eligible"] == sum(counted.values())
    assert firm.relay.json("runs", "show", str(run["id"])) == [run]
    assert history(firm)[-1] == run
    again = firm.run()  # the empty file's second run; the busy collector once more
    assert [again[key] for key in ("eligible", *counted)] == [2, 0, 1, 1, 0, 0]
    idle = firm.run()
    assert [idle[key] for key in ("eligible", *counted)] == [1, 0, 1, 0, 0, 0]


def what_is_stored(firm: Firm) -> dict[str, str]:
    """Every file of the data folder; but the index of the write-ahead log, which readers share."""
    files = [path for path in (firm.relay.folder / "var").rglob("*") if path.is_file()]
    return {str(path): digest(path.read_bytes()) for path in files if not path.name.endswith("-shm")}


def test_a_dry_run_says_it_all_and_writes_nothing(firm: Firm) -> None:
    client = lay_out_one_of_each(firm)
    before = what_is_stored(firm)
    with firm.set_to({"run": {"settle": "60 s"}}):
        young = firm.relay.json("runs", "now", "--dry-run")
    foreseen = firm.relay.json("runs", "now", "--dry-run")
    assert what_is_stored(firm) == before
    assert firm.collector.messages()[1:] == []
    assert {tuple(row) for row in foreseen} == {("name", "client", "target", "verdict", "reason")}
    assert sorted((row["name"], row["verdict"]) for row in foreseen) == [
        ("change.pdf", "duplicate"),
        ("change.pdf", "hold"),
        ("deux.pdf", "send"),
        ("mail.pdf", "send"),
        ("occupe.pdf", "send"),
        ("parti.pdf", "send"),
        ("releve.zip", "refuse"),
        ("une.pdf", "send"),
    ]
    assert {row["verdict"] for row in young if row["name"] != "mail.pdf"} == {"unsettled"}
    targets = {row["target"] for row in foreseen if row["client"] == client.slug}
    assert targets == {client.collector_address}


# --- in time, and fairly --------------------------------------------------------------------------------------------


def test_one_clients_many_documents_do_not_delay_anothers_one(firm: Firm) -> None:
    many, one = firm.client("aaa-grand"), firm.client("zzz-petit")
    for client in (many, one):
        client.connect()
    for number in range(150):
        many.put(f"Achats/{number:03}.pdf", made.pdf(str(number)))
    one.put("Achats/seule.pdf", made.pdf("seule"))
    with firm.set_to({"delivery": {"connections_per_destination": 1}}):
        assert firm.run()["sent"] == 151
    order = [received.envelope_recipient for received in firm.collector.messages()]
    assert order.index(one.collector_address) < 60


def test_of_ten_thousand_documents_only_the_hundred_new_ones_are_looked_into(firm: Firm) -> None:
    client = firm.client()
    for number in range(9_900):
        client.put(f"Achats/{number // 100:02}/{number:04}.txt", b"ancien %d" % number)
    client.connect()
    firm.run()
    for number in range(100):
        client.put(f"Achats/{number:02}/nouveau {number:02}.pdf", made.pdf(str(number)))
    began = time.monotonic()
    assert firm.run()["sent"] == 100
    assert time.monotonic() - began < 10
    assert client.names() == [f"nouveau {number:02}.pdf" for number in range(100)]


def test_a_run_ends_in_time_and_leaves_the_rest_to_the_next(firm: Firm) -> None:
    client = firm.client()
    client.connect()
    for number in range(30):
        client.put(f"Achats/{number:02}.pdf", made.pdf(str(number)))

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        writer.write(b"250 2.0.0 taken\r\n")

    far = Far({"DOT": slowly})

    async def run_against_it() -> dict[str, Any]:
        async with listening(far) as where:
            route = {"achats.factures-meg.fr": f"{where.address}:{where.port}"}
            settings = {"run": {"every": "2 s"}, "delivery": {"routes": route, "connections_per_destination": 1}}
            with firm.set_to(settings):
                return await asyncio.to_thread(firm.run)

    run = asyncio.run(run_against_it())
    assert run["sent"] == len(far.messages) < 30
    assert (run["eligible"], run["deferred"]) == (30, 30 - run["sent"])
    lasted = datetime.fromisoformat(run["finished_at"]) - datetime.fromisoformat(run["started_at"])
    assert lasted.total_seconds() < 5
    assert firm.run()["sent"] == run["deferred"]
    assert len(client.names()) + len(far.messages) == 30
