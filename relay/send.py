"""The part of a run that sends: every due delivery of every destination, fairly, over a few connections each.

Knows alone: who is served next (one batch from each collector in turn, so that one client's 5,000 documents do not delay
another's one), when a host is left alone for the rest of the run, and what the outgoing bytes of a delivery are.
"""

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlite_utils import Database

from relay import clock, compose, log, sign
from relay.commit import Writer
from relay.config import Config
from relay.deliver import Connection, Destination, Job, destinations
from relay.dns import Resolver
from relay.sign import Signer
from relay.spool import Spool, SpoolError
from relay.store import delivery
from relay.store.delivery import Claimed, Pace, Recorded, Result
from rules import outcome as outcomes
from rules.lifecycle import Change, State
from rules.outcome import Certainty, Fault, Outcome, Scope
from rules.replies import Reason

BATCH = 10  # deliveries of one collector before the next one's turn
MAX_HEADER = 256 * 1024


@dataclass(slots=True)
class Tally:
    """What a run counts, and what it must tell people afterwards."""

    sent: int = 0
    deferred: int = 0
    failed: int = 0
    told: list[tuple[Claimed, Outcome]] = field(default_factory=list)  # finally failed
    warned: list[str] = field(default_factory=list)

    @property
    def eligible(self) -> int:
        return self.sent + self.deferred + self.failed


@dataclass(slots=True)
class _Host:
    """One destination domain under way. `stopped` is the answer that ends it for this run."""

    domain: str
    groups: deque[tuple[str, str]]
    places: tuple[Destination, ...] = ()
    stopped: Outcome | None = None


class Sender:
    """One per run: it claims under `run`, and takes what is due by `horizon` until `deadline`."""

    def __init__(
        self, config: Config, *, db: Database, spool: Spool, writer: Writer, resolver: Resolver, signer: Signer | None
    ) -> None:
        self._config = config
        self._db = db
        self._spool = spool
        self._writer = writer
        self._resolver = resolver
        self._signer = signer
        self._pace = Pace(config.run.every, config.relay.warn_after)
        self.tally = Tally()
        self.run = 0
        self._horizon = ""
        self._deadline = clock.now()

    async def drain(self, run: int, horizon: datetime, deadline: datetime) -> Tally:
        """Sends what is due, one task for each destination domain."""
        self.run, self._horizon, self._deadline = run, clock.stamp(horizon), deadline
        domains: dict[str, deque[tuple[str, str]]] = {}
        for group in delivery.groups(self._db, "send", self._horizon, run):
            domains.setdefault(group[0], deque()).append(group)
        async with asyncio.TaskGroup() as tasks:
            for domain, groups in domains.items():
                tasks.create_task(self._guarded(_Host(domain, groups)))
        return self.tally

    async def _guarded(self, host: _Host) -> None:
        """A fault of ours at one domain stops that one: what it claimed goes back to waiting at the next run."""
        try:
            await self._serve(host)
        except Exception as error:
            log.trouble(f"run {self.run} {host.domain}", error)

    async def _serve(self, host: _Host) -> None:
        found = await destinations(host.domain, self._config.delivery.routes, self._resolver)
        if isinstance(found, Outcome):
            if found.result is outcomes.Result.NEVER:  # null MX: final for each of them
                await self._refuse_all(host, found)
            else:
                host.stopped = found
                for taken in await self._claim(host.groups[0], 1):  # an attempt like any other, for one of them
                    await self._record(taken, found)
        else:
            host.places = found
            connection = await self._probe(host)
            if connection is not None:
                several = self._config.delivery.connections_per_destination
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._work(host, connection))
                    for _ in range(min(several, self._backlog(host)) - 1):
                        tasks.create_task(self._work(host, None))
        if host.stopped is not None or host.groups:
            await self._put_off(host)

    def _backlog(self, host: _Host) -> int:
        """About how many connections the waiting deliveries are worth."""
        return (
            1 + sum(delivery.waiting(self._db, group, self._horizon, self.run, 4 * BATCH) for group in host.groups) // 4
        )

    async def _connect(self, host: _Host) -> Connection | None:
        """A session with the first host that gives one; None stops the domain for this run."""
        policy = self._config.delivery.tls.get(host.domain, "opportunistic")
        refused: Outcome | None = None
        for place in host.places:
            opened = await Connection.open(
                place,
                hostname=self._config.relay.hostname,
                tls="required" if policy == "required" else "opportunistic",
            )
            if isinstance(opened, Connection):
                return opened
            refused = opened
        host.stopped = host.stopped or refused
        return None

    async def _work(self, host: _Host, connection: Connection | None) -> None:
        """One connection's worth of work: a batch of each collector in turn, until nothing is due."""
        try:
            while host.groups and host.stopped is None and clock.now() < self._deadline:
                group = host.groups.popleft()
                claimed = await self._claim(group)
                if len(claimed) == BATCH:
                    host.groups.append(group)
                for taken in claimed:
                    connection = await self._one(host, taken, connection)
        finally:
            if connection is not None:
                await connection.close()

    async def _probe(self, host: _Host) -> Connection | None:
        """One delivery over one connection; the others are opened, and the rest claimed, once it has answered."""
        connection = None
        while host.groups and host.stopped is None and connection is None:
            for taken in await self._claim(host.groups[0], 1):
                connection = await self._one(host, taken, connection)
                break
            else:
                host.groups.popleft()
        return connection

    async def _claim(self, group: tuple[str, str], limit: int = BATCH) -> list[Claimed]:
        now = clock.now()
        return await self._writer.write(
            lambda db, _: delivery.claim(
                db, group, kind="send", run=self.run, horizon=self._horizon, limit=limit, now=now, pace=self._pace
            )
        )

    async def _one(self, host: _Host, taken: Claimed, connection: Connection | None) -> Connection | None:
        """Sends one claimed delivery, over a new connection if the last is of no more use."""
        try:
            job = await asyncio.to_thread(self._job, taken)
        except SpoolError as error:
            await self._write(taken, Result(Change.FAIL, reply=str(error), reason=Reason("bytes-missing")))
            return connection
        if connection is not None and not connection.usable:
            await connection.close()
            connection = None
        if connection is None and host.stopped is None:
            connection = await self._connect(host)
        if connection is None:
            assert host.stopped is not None
            await self._record(taken, host.stopped)
            return None
        outcome = await connection.send(job)
        if outcome.scope is Scope.HOST and outcome.result is not outcomes.Result.DONE:
            host.stopped = outcome
        await self._record(taken, outcome)
        return connection

    async def _record(self, taken: Claimed, outcome: Outcome) -> None:
        recorded = await self._write(taken, _result(outcome))
        if recorded.state is State.FAILED:
            self.tally.told.append((taken, outcome))

    async def _write(self, taken: Claimed, result: Result) -> Recorded:
        now = clock.now()
        recorded = await self._writer.write(
            lambda db, _: delivery.record(db, taken, result, run=self.run, now=now, pace=self._pace)
        )
        self.tally.sent += recorded.state is State.SENT
        self.tally.deferred += recorded.state is State.WAITING
        self.tally.failed += recorded.state is State.FAILED
        if recorded.warn:
            self.tally.warned.append(taken.id)
            log.warned(taken.id)
        if recorded.state is not None:
            log.delivered(taken.id, recorded.state, code=result.code, mx=result.mx)
        return recorded

    async def _refuse_all(self, host: _Host, outcome: Outcome) -> None:
        while host.groups:
            group = host.groups.popleft()
            while claimed := await self._claim(group):
                for taken in claimed:
                    await self._record(taken, outcome)

    async def _put_off(self, host: _Host) -> None:
        """What was due and not tried: the host is away, or the run's time is over."""
        why = host.stopped or outcomes.of_fault("connect", Fault.TIMEOUT, "fin du passage (end of the run)")
        now = clock.now()
        put_off = await self._writer.write(
            lambda db, _: delivery.defer_domain(
                db, host.domain, run=self.run, horizon=self._horizon, reply=why.reply, now=now, pace=self._pace
            )
        )
        self.tally.deferred += put_off.waiting
        self.tally.failed += len(put_off.given_up)
        self.tally.told += [(taken, why) for taken in put_off.given_up]
        self.tally.warned += put_off.warned

    # --- bytes ------------------------------------------------------------------------------------------------------

    def _job(self, taken: Claimed) -> Job:
        """The message as it leaves. The same bytes at every attempt: nothing in it comes from now. Blocks."""
        with self._spool.open(taken.spool) as body:
            block = header_block(body.read(0, MAX_HEADER + 4))
            hashed = sign.SimpleBodyHash()
            last = block
            for piece in body.pieces(len(block)):
                hashed.feed(piece)
                last = piece
            size = body.size
        missing = b"\r\n" if compose.needs_final_crlf(last[-2:]) else b""
        prefix = self._prefix(taken, block)
        if self._signer is not None:
            created = int(clock.instant(taken.created_at).timestamp())
            prefix = self._signer.sign(sign.fields(prefix), hashed.digest(), created) + prefix

        def rest() -> Iterator[bytes]:
            with self._spool.open(taken.spool) as again:
                yield from again.pieces(len(block))
            yield missing

        return Job(
            id=taken.id,
            sender=taken.sender,
            recipient=taken.target,
            size=len(prefix) + size - len(block) + len(missing),
            eight_bit=bool(taken.eight_bit),
            prefix=prefix,
            chunks=rest,
        )

    def _prefix(self, taken: Claimed, block: bytes) -> bytes:
        if taken.message is None:
            # Of our own making. A deposit may have been readdressed since; a report or a warning has no `recipient`.
            return compose.addressed(block, taken.target) if taken.recipient else block
        received = compose.Received(
            hostname=self._config.relay.hostname,
            domain=self._config.relay.domain,
            helo=taken.helo,
            peer=taken.peer,
            protocol=taken.protocol,
            id=taken.message,
            at=clock.instant(taken.received_at).astimezone(self._config.zone),
            tls=taken.tls,
        )
        return compose.relayed(block, received)


def header_block(start: bytes) -> bytes:
    """Up to the empty line, inclusive; a message of headers only is all header."""
    if start.startswith(b"\r\n"):
        return b"\r\n"
    end = start.find(b"\r\n\r\n")
    return start[: end + 4] if end >= 0 else start


def _result(outcome: Outcome) -> Result:
    """An outcome of the far side as the store records it."""
    facts = Result(
        Change.SUCCEED_SEND,
        reply=outcome.reply,
        code=outcome.code,
        mx=outcome.mx,
        tls=outcome.tls,
        uncertain=int(outcome.certainty is Certainty.UNCERTAIN),
        warn=int(outcome.warns),
    )
    match outcome.result:
        case outcomes.Result.DONE:
            return facts
        case outcomes.Result.LATER:
            return replace(facts, change=Change.DEFER)
        case _:
            return replace(facts, change=Change.FAIL, reason=outcomes.reason(outcome))
