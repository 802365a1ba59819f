"""The clock is set an hour forth or back while the relay works, and the two nights when Paris changes its time."""

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.faults.clocks import Clock
from tests.faults.door import SALES, NewRelay, documents, letter, post, run, states, until
from tests.faults.far import Placed
from tests.support import debian
from tests.support import documents as made
from tests.support.program import free_port
from tests.support.relay import Relay

pytestmark = pytest.mark.debian("faketime")
QUARTER = timedelta(minutes=15)


def test_the_clock_is_set_an_hour_forth_and_back(
    tmp_path: Path, new_relay: NewRelay, far: Placed, processes: dict[str, Any]
) -> None:
    """Mail is taken, filed and sent throughout, by the daemon's own runs: each of them once."""
    clock = Clock(tmp_path)
    relay = new_relay(processes, env=clock.environment)
    relay.configure({"run": {"every": "1 s"}, "delivery": {"routes": {"factures-meg.fr": far.place}}})
    relay.start()
    told: dict[str, tuple[bytes, bytes]] = {}
    for offset in ("+0", "+3600", "-3600"):
        clock.set(offset)
        mail, sale = told[offset + str(len(told))] = letter(), letter(SALES)
        assert (post(relay, mail).code, post(relay, sale, SALES).code) == (250, 250)
        until(lambda mail=mail: states(relay, mail) == ["sent"], f"send at {offset}")  # type: ignore[misc]
        until(lambda sale=sale: states(relay, sale) == ["filed"], f"file at {offset}")  # type: ignore[misc]
    assert len(far.messages) == len(told) == len(documents(relay.ged))
    assert all(run["finished_at"] for run in relay.json("runs", "list", "--limit", "1000")[1:])
    assert relay.stop() == 0


def test_what_waits_is_not_lost_by_a_clock_set_back(
    tmp_path: Path, new_relay: NewRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the hour it was put off to, or is tried again at once where the clock is ahead; never given up."""
    relay = new_relay({"delivery": {"routes": {"factures-meg.fr": f"127.0.0.1:{free_port()}"}}})
    relay.configure({"run": {"every": "15 min"}})
    relay.start()
    assert post(relay, letter()).accepted
    relay.stop()  # its own runs would count
    attempts = []
    for offset in ("+0", "-1h", "+1h", "+0"):
        with monkeypatch.context() as patched:
            for key, value in debian.faked_time(offset).items():
                patched.setenv(key, value)
            run(relay)
        (row,) = relay.json("queue", "list")
        assert row["state"] == "waiting"
        attempts.append(row["attempts"])
    first = attempts[0]
    assert first and attempts[1:3] == [first, first + 1] and attempts == sorted(attempts)


def test_a_deposit_from_the_future_waits_for_its_hour(
    new_relay: NewRelay, far: Placed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock was set back an hour after the file came: it is not lost, nor sent twice once the clock is right."""
    relay = new_relay({"delivery": {"routes": {"factures-meg.fr": far.place}}}).start()
    folder = relay.client("Martin") / "Achats"
    folder.mkdir()
    address = ("--application", "meg", "--client", "martin", "--address", "martin@factures-meg.fr")
    relay.cli("connections", "add", *address, "--folder", "Achats")
    (folder / "facture.pdf").write_bytes(made.pdf("facture"))
    sent = []
    for offset in ("-1h", "+0", "-1h", "+1h"):
        with monkeypatch.context() as patched:
            for key, value in (debian.faked_time(offset) | {"NO_FAKE_STAT": "1"}).items():
                patched.setenv(key, value)
            counts = run(relay)
            assert counts["refused"] == counts["held"] == counts["duplicate"] == 0
            sent.append(counts["sent"])
    assert sum(sent) == 1 and len(far.messages) == 1


NIGHTS = {"spring": "2026-03-29", "autumn": "2026-10-25"}  # at 01:00 UTC


def test_the_nights_when_the_time_changes(tmp_path: Path) -> None:
    """The runs stay on the quarter, one in each, over the hour that is missing and the hour that comes twice."""
    relays = {}
    try:
        for name, day in NIGHTS.items():
            env = debian.faked_time(f"@{day} 00:58:30 x100") | {"TZ": "UTC"}
            relays[name] = Relay(tmp_path / name, {"run": {"every": "15 min"}}, env=env)
        for relay in relays.values():
            relay.start()
        for name, relay in relays.items():
            until(lambda relay=relay: len(after_the_change(relay)) >= 2, f"run in {name}")  # type: ignore[misc]
    finally:
        for relay in relays.values():
            relay.kill()
    for name, relay in relays.items():
        runs = [datetime.fromisoformat(run["started_at"]) for run in relay.json("runs", "list", "--limit", "100")]
        quarters = [run.timestamp() // QUARTER.total_seconds() for run in runs]
        assert quarters == [quarters[0] - number for number in range(len(quarters))], f"{name}: one in each: {runs}"


def after_the_change(relay: Relay) -> list[str]:
    starts = [run["started_at"] for run in relay.json("runs", "list", "--limit", "100")]
    return [start for start in starts if re.search(r"T0[1-9]:", start)]


INSTANTS = [  # UTC, and the folder by the clock on the wall in Paris
    ("2026-03-29 00:59:00", "2026/03"),
    ("2026-03-29 01:01:00", "2026/03"),
    ("2026-03-31 21:58:00", "2026/03"),
    ("2026-03-31 22:01:00", "2026/04"),
    ("2026-10-25 00:30:00", "2026/10"),
    ("2026-10-25 01:30:00", "2026/10"),
    ("2026-10-31 22:58:00", "2026/10"),
    ("2026-10-31 23:01:00", "2026/11"),
]


def test_the_month_is_that_of_paris_whatever_the_season(tmp_path: Path, new_relay: NewRelay) -> None:
    clock = Clock(tmp_path)
    clock.set("@2026-03-28 12:00:00")
    relay = new_relay(env=clock.environment).start()
    for instant, month in INSTANTS:
        before = set(documents(relay.ged))
        clock.set(f"@{instant}")
        sale = letter(SALES)
        assert post(relay, sale, SALES).accepted
        until(lambda sale=sale: states(relay, sale) == ["filed"], f"file at {instant}")  # type: ignore[misc]
        (new,) = set(documents(relay.ged)) - before
        assert str(new.parent.relative_to(relay.ged)) == f"Martin/Ventes/{month}", instant
