"""The sending part of a run against scripted far sides, on a real store and spool: how far ahead it works, and what a
fault of ours leaves.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database

from relay import send
from relay.commit import Writer
from relay.config import Config
from relay.dns import Resolver
from relay.ids import TokenKey
from relay.send import UNRECORDED, Sender, Tally
from relay.spool import Spool
from relay.store import delivery, intake
from relay.store.database import open_for_reading, open_for_writing, rows, transaction
from relay.store.delivery import Recorded, recover
from tests.support.farside import Far, listening
from tests.support.records import NOON, mail

DOMAIN = "factures-meg.fr"


@dataclass
class Office:
    """Store, spool and what waits there."""

    db: Database
    spool: Spool

    def put(self, number: int, target: str, *, size: int = 300) -> None:
        message = b"Subject: %d\r\n\r\n" % number + b"." * size + b"\r\n"
        (key,) = self.spool.append([message])
        accepted = mail(f"m{number:03}", target, message_id=f"<{number}@cabinet.example>", content=str(number))
        sized = tuple(replace(each, size=len(message)) for each in accepted.deliveries)
        with transaction(self.db):
            intake.commit(self.db, replace(accepted, deliveries=sized), spool=key)

    def states(self) -> Counter[str]:
        return Counter(str(row[0]) for row in rows(self.db, "SELECT state FROM delivery"))


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    db = open_for_writing(tmp_path / "relay.db")
    names = iter(range(1000))
    yield Office(db, Spool(tmp_path / "spool", lambda: f"segment{next(names)}"))
    db.close()


def config(connections: int, ports: dict[str, int]) -> Config:
    base = Config()
    routes = {domain: f"127.0.0.1:{port}" for domain, port in ports.items()}
    return replace(base, delivery=replace(base.delivery, routes=routes, connections_per_destination=connections))


def sender(office: Office, path: Path, writer: Writer, settings: Config) -> Sender:
    reader = open_for_reading(path / "relay.db")
    resolver, key = Resolver(()), TokenKey(bytes(32))
    return Sender(settings, db=reader, spool=office.spool, writer=writer, resolver=resolver, signers=(), token_key=key)


class Late(Writer):
    """Says that a result is recorded when it is told to."""

    def __init__(self, db: Database, spool: Spool) -> None:
        super().__init__(db, spool)
        self.told: list[Callable[[], None]] = []
        self.held = True

    def write(self, change: Any, body: bytes | None = None) -> "asyncio.Future[Any]":
        written = super().write(change, body)
        if not self.held:
            return written
        late: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def pass_on(done: "asyncio.Future[Any]") -> None:
            if self.held and isinstance(done.result(), Recorded):
                self.told.append(lambda: late.set_result(done.result()))
            else:
                late.set_result(done.result())

        written.add_done_callback(pass_on)
        return late

    def release(self) -> None:
        self.held = False
        for tell in self.told:
            tell()


def drained(
    office: Office,
    path: Path,
    far: Far,
    *,
    connections: int = 1,
    run: int = 1,
    meanwhile: Callable[[Late], Awaitable[None]] | None = None,
) -> Tally:
    async def through() -> Tally:
        async with listening(far) as where:
            writer = Late(office.db, office.spool)
            if meanwhile is None:
                writer.release()
            settings = config(connections, dict.fromkeys((DOMAIN, "achats.factures-meg.fr"), where.port))
            sending = sender(office, path, writer, settings)
            deadline = send.clock.now() + timedelta(minutes=1)
            draining = asyncio.create_task(sending.drain(run, NOON + timedelta(hours=1), deadline))
            if meanwhile is not None:
                await meanwhile(writer)
            tally = await draining
            await writer.close()
            return tally

    return asyncio.run(through())


def numbers(far: Far) -> list[int]:
    found = [re.search(rb"(?m)^Subject: (\d+)\r", message) for message in far.messages]
    return [int(match[1]) for match in found if match]


def test_a_connection_goes_on_while_results_are_recorded_but_not_far(office: Office, tmp_path: Path) -> None:
    for number in range(8):
        office.put(number, f"dupont@{DOMAIN}")
    far = Far()

    async def look(writer: Late) -> None:
        while len(far.messages) < 1 + UNRECORDED:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert len(far.messages) == 1 + UNRECORDED  # one with its answer in hand, the others being recorded
        writer.release()

    tally = drained(office, tmp_path, far, meanwhile=look)
    assert (tally.sent, tally.deferred, tally.failed) == (8, 0, 0)
    assert sorted(numbers(far)) == list(range(8)) and far.connections == 1
    assert office.states() == {"sent": 8}


def test_a_result_that_cannot_be_recorded_stops_its_host_only(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        office.put(number, f"dupont@{DOMAIN}")
    office.put(40, "dupont@achats.factures-meg.fr")
    real = delivery.record

    def broken(db: Database, taken: Any, *rest: Any, **named: Any) -> Recorded:
        if taken.id == "m005-1":
            raise OSError("disk")
        return real(db, taken, *rest, **named)

    far = Far()
    with monkeypatch.context() as patched:
        patched.setattr(delivery, "record", broken)
        tally = drained(office, tmp_path, far, connections=2)
    states = office.states()
    assert states["sent"] == tally.sent == len(far.messages) - 1  # all that was answered but the one
    assert 40 in numbers(far) and states["waiting"] >= 10 and sum(states.values()) == 41
    with transaction(office.db):
        recover(office.db, "send", "2026-11-24T12:00:00.000Z")
    office.db.execute("UPDATE delivery SET due_at = created_at WHERE state = 'waiting'")
    assert drained(office, tmp_path, far, connections=2, run=2).sent == 41 - tally.sent
    assert office.states() == {"sent": 41}
    assert {number for number, count in Counter(numbers(far)).items() if count > 1} == {5}


def test_no_more_is_held_than_there_is_room_for(
    office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(send, "HELD", 50_000)
    held: list[int] = []
    senders: list[Sender] = []
    real = Sender._prepared

    def watched(self: Sender, some: Any) -> Any:
        made = real(self, some)
        held.append(self._held)
        senders.append(self)
        return made

    monkeypatch.setattr(Sender, "_prepared", watched)
    for number in range(30):
        office.put(number, f"dupont@{DOMAIN}", size=20_000)
    far = Far()
    assert drained(office, tmp_path, far, connections=2).sent == 30
    assert 20_000 < max(held) <= 50_000 and senders[0]._held == 0
    assert sorted(numbers(far)) == list(range(30))
    assert {len(re.sub(rb"(?s).*\r\n\r\n", b"", message)) for message in far.messages} == {20_003}


def test_slow_wires_are_not_claimed_for(office: Office, tmp_path: Path) -> None:
    """A run that dies flags what it had claimed: not much more than what the wire could take."""
    for number in range(60):
        office.put(number, f"dupont@{DOMAIN}")
    most = 0

    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal most
        await asyncio.sleep(0.02)
        most = max(most, office.states()["sending"])
        writer.write(b"250 2.0.0 taken\r\n")

    assert drained(office, tmp_path, Far({"DOT": slowly}), connections=2).sent == 60
    assert most <= send.BATCH + 2 * (send.AHEAD + 1 + UNRECORDED)
