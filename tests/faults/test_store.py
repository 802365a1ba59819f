"""The store is locked, damaged or gone: mail waits or gets 451, a result is never dropped, and the remedy is told."""

import shutil
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pysqlite3.dbapi2 as sqlite3
import pytest

from tests.faults.door import (
    LONG,
    SALES,
    NewRelay,
    data,
    documents,
    letter,
    locked,
    post,
    restarted,
    run,
    states,
    stored,
    until,
)
from tests.faults.far import collectors
from tests.support import debian
from tests.support.program import ProgramFailed
from tests.support.relay import Relay

HASTE = 5  # the relay's seconds in one of ours: it waits ten for a lock


@pytest.mark.debian("faketime")
def test_another_process_holds_the_lock(new_relay: NewRelay, processes: dict[str, Any]) -> None:
    """Three seconds: mail waits and is taken. Fifteen: 451 after ten, and all goes on when the lock is gone."""
    relay = new_relay(processes, env=debian.faked_time(f"+0 x{HASTE}") | {"TZ": "UTC"})
    relay.start()
    with locked(relay):
        release = threading.Timer(3 / HASTE, lambda: None)
        taken = letter()
        codes: list[int] = []
        sender = threading.Thread(target=lambda: codes.append(post(relay, taken).code))
        release.start()
        sender.start()
        release.join()
        assert codes == [], "no answer yet"
    sender.join()
    assert codes == [250] and stored(relay, taken) == 1
    refused, sale = letter(), letter(SALES)
    assert post(relay, sale, SALES).accepted
    with locked(relay):
        assert post(relay, refused).code == 451
        assert stored(relay, refused) == 0
    assert post(relay, refused).accepted and stored(relay, refused) == 1
    until(lambda: states(relay, sale) == ["filed"], "file what came before")
    assert len(documents(relay.ged)) == 1
    assert relay.program.running


@pytest.mark.debian("faketime")
def test_the_filing_survives_a_lock(new_relay: NewRelay) -> None:
    """The worker's own write fails after ten seconds: it takes the work up again, and files once."""
    relay = new_relay(env=debian.faked_time("+0 x30") | {"TZ": "UTC"}).start()
    away = relay.ged.rename(relay.ged.with_name("away"))
    sale = letter(SALES)
    assert post(relay, sale, SALES).accepted
    until(lambda: b"filing-waits" in relay.program.err.read_bytes(), "try to file it")
    with locked(relay):
        until(lambda: b"trouble id=filing" in relay.program.err.read_bytes(), "tell its trouble")
    away.rename(relay.ged)
    until(lambda: states(relay, sale) == ["filed"], "file it")
    assert len(documents(relay.ged)) == 1
    assert relay.program.running


@pytest.mark.debian("faketime")
def test_a_result_waits_for_the_lock_and_is_not_sent_twice(
    new_relay: NewRelay, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay: Relay

    async def answer_with_the_store_locked(reader: Any, writer: Any) -> None:
        holding = threading.Event()

        def hold() -> None:
            with locked(relay):
                holding.set()
                time.sleep(13 / HASTE)  # longer than a writer waits

        threading.Thread(target=hold).start()
        holding.wait()
        writer.write(b"250 2.0.0 queued\r\n")

    with collectors({"far": {"DOT": [answer_with_the_store_locked, b"250 2.0.0 queued\r\n"]}}) as found:
        relay = new_relay({"delivery": {"routes": {"factures-meg.fr": found["far"].place}}})
        relay.start()
        message = letter()
        assert post(relay, message).accepted
        with monkeypatch.context() as hurried:
            for name, value in debian.faked_time(f"+0 x{HASTE}").items():
                hurried.setenv(name, value)
            assert run(relay)["sent"] == 1
        assert states(relay, message) == ["sent"]
        run(relay)
        assert len(found["far"].messages) == 1


# --- damaged ------------------------------------------------------------------------------------------------------------


def garbage(store: Path) -> None:
    store.write_bytes(b"this is no database\n" * 1000)


def cut(store: Path) -> None:
    with store.open("r+b") as file:
        file.truncate(store.stat().st_size // 2)


@pytest.mark.parametrize("damage", [garbage, cut])
def test_a_store_that_is_none_is_told_at_the_start_with_its_remedy(new_relay: NewRelay, damage: Any) -> None:
    relay = new_relay().start()
    assert post(relay, letter()).accepted
    relay.stop()
    with closing(sqlite3.connect(str(data(relay) / "relay.db"))) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    damage(data(relay) / "relay.db")
    kept = (data(relay) / "relay.db").read_bytes()
    with pytest.raises(ProgramFailed):
        relay.start()
    told = relay.program.err.read_text().rpartition("stopping")[2]
    assert "relay.db" in told and "Remedy" in told and "Traceback" not in told
    assert (data(relay) / "relay.db").read_bytes() == kept, "nothing is made worse"


@pytest.mark.parametrize(
    ("lost", "way"),
    [
        ("relay.db", "removed"),
        ("relay.db-wal", "removed"),
        *([("relay.db", "replaced"), ("relay.db-wal", "replaced")] if LONG else []),
    ],
)
def test_a_store_that_vanishes_takes_no_mail_with_it(
    new_relay: NewRelay, processes: dict[str, Any], lost: str, way: str
) -> None:
    """SQLite goes on writing into a file without a name: nothing of that may be answered 250."""
    relay = new_relay(processes).start()
    assert post(relay, letter()).accepted
    file, aside = data(relay) / lost, data(relay) / f"{lost}.aside"
    if way == "removed":
        file.rename(aside)
    else:
        shutil.copy(file, aside)
        aside.rename(file)
    assert post(relay, letter(SALES), SALES).code == 451
    assert [post(relay, letter()).code for _ in range(4)] == [451] * 4
    assert not list(relay.ged.rglob("*.pdf")), "what its sender keeps is not filed"
    told = relay.program.err.read_text()
    assert f"{lost}: moved, removed or replaced while the relay serves" in told and "Remedy" in told


def test_a_page_is_overwritten_while_it_serves(new_relay: NewRelay, processes: dict[str, Any]) -> None:
    """Mail is taken or gets 451; what got 250 is there."""
    relay = new_relay(processes).start()
    store = data(relay) / "relay.db"
    for _ in range(3):
        assert post(relay, letter()).accepted
    restarted(relay)
    size = store.stat().st_size
    with store.open("r+b") as file:
        for page in range(1, size // 4096):
            file.seek(4096 * page)
            file.write(b"\xff" * 4096)
    messages = [letter() for _ in range(6)]
    codes = [post(relay, message).code for message in messages]
    assert set(codes) <= {250, 451}
    for code, message in zip(codes, messages, strict=True):
        assert code == 451 or stored(relay, message) == 1
    assert relay.program.running
