"""The part of a run that sends: every due delivery of every destination, fairly, over a few connections each.

Knows alone: who is served next (one batch from each collector in turn, so that one client's 5,000 documents do not delay
another's one), when a host is left alone for the rest of the run, and how far ahead of the wire it is worked: while one
message travels the next ones are claimed, read and signed, and the results of the last ones are written.
When the run's time is over a far side that is still at it is cut short, unless it has the whole message.
Limits: a crash repeats what had arrived and was not recorded: for each connection the delivery on the wire, and UNRECORDED
more. A far side that says nothing to the final dot may hold a run for ten minutes past its time. Over 400 lines because
what one host is to a run is told in one place.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

from pysqlite3.dbapi2 import OperationalError
from sqlite_utils import Database

from relay import clock, ids, log, mtasts
from relay.caller import Caller, Means
from relay.commit import Writer
from relay.config import Config
from relay.deliver import SMALL, Connection, Destination, Job, destinations
from relay.dns import Resolver
from relay.outgoing import Outgoing, unreadable
from relay.sign import Signer
from relay.spool import Spool, SpoolError
from relay.store import delivery
from relay.store.delivery import Claimed, Pace, Recorded, Result
from relay.trust import Trust
from rules import outcome as outcomes
from rules.address import BOUNCE_PREFIX, TOKEN
from rules.lifecycle import Change, State
from rules.outcome import Certainty, Fault, Outcome, Scope

BATCH = 10  # deliveries of one collector before the next one's turn
TOGETHER = 5  # small ones that one visit to the thread makes ready
AHEAD = 2  # made ready for each connection
UNRECORDED = 2  # deliveries answered and not yet recorded, for each connection
HELD = 8 << 20  # octets of bodies kept for the wire, of all hosts; over that they are read again
RECORD_AGAIN = 2.0  # seconds before a result that the store did not take is offered to it again
LEAST = 10.0  # seconds that a far side is given, however late in the run it is asked
END_OF_RUN = "fin du passage (end of the run)"


@dataclass(slots=True)
class Tally:
    """What a run counts, and what it must tell people afterwards."""

    sent: int = 0
    deferred: int = 0
    failed: int = 0
    warned: list[str] = field(default_factory=list)

    @property
    def eligible(self) -> int:
        return self.sent + self.deferred + self.failed


@dataclass(frozen=True, slots=True)
class _Ready:
    """A claimed delivery with its message, or what becomes of it without."""

    taken: Claimed
    job: Job | Result
    held: int  # octets of it in memory


@dataclass(frozen=True, slots=True)
class _Answered:
    """A delivery and what came of it, to be recorded."""

    taken: Claimed
    result: Result
    at: datetime


@dataclass(slots=True)
class _Host:
    """One destination domain under way. `stopped` is the answer that ends it for this run, `fault` our own failure."""

    domain: str
    groups: deque[tuple[str, str]]
    room: asyncio.Semaphore  # for results that are not yet recorded
    places: tuple[Destination, ...] = ()
    stopped: Outcome | None = None
    ready: asyncio.Queue[_Ready | None] = field(default_factory=asyncio.Queue)  # None: no more will come
    records: set[asyncio.Future[Recorded]] = field(default_factory=set)
    fault: BaseException | None = None

    async def settled(self) -> None:
        """Once everything it was told is recorded, or that failed: then it raises."""
        while self.records:
            await asyncio.wait(self.records)
        if self.fault is not None:
            raise self.fault


class Sender:
    """One per run: it claims under `run`, and takes what is due by `horizon` until `deadline`."""

    def __init__(
        self,
        config: Config,
        *,
        db: Database,
        spool: Spool,
        writer: Writer,
        resolver: Resolver,
        signers: tuple[Signer, ...],
        token_key: ids.TokenKey,
    ) -> None:
        self._config = config
        self._token_key = token_key
        self._db = db
        self._outgoing = Outgoing(config, spool, signers)
        self._writer = writer
        self._resolver = resolver
        trust = Trust(config.delivery.authorities)
        published = mtasts.Policies(db, writer, resolver, trust)
        self._caller = Caller(config, Means(resolver, trust, published.of))
        self._threads = ThreadPoolExecutor(2, "outgoing")
        self._held = 0
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
        try:
            async with asyncio.TaskGroup() as tasks:
                for domain, groups in domains.items():
                    room = asyncio.Semaphore(UNRECORDED * self._config.delivery.connections_per_destination)
                    tasks.create_task(self._guarded(_Host(domain, groups, room)))
        finally:
            self._threads.shutdown(cancel_futures=True)
        return self.tally

    async def _guarded(self, host: _Host) -> None:
        """A fault of ours at one domain stops that one: what it claimed goes back to waiting at the next run."""
        try:
            await self._serve(host)
        except Exception as error:
            log.trouble(f"run {self.run}", error)  # without its domain: it may be a sender's
            while host.records:
                await asyncio.wait(host.records)  # what was answered is recorded all the same, and counted

    async def _serve(self, host: _Host) -> None:
        found = await destinations(host.domain, self._config.delivery.routes, self._resolver)
        if isinstance(found, Outcome):
            if found.result is outcomes.Result.NEVER:  # null MX: final for each of them
                await self._refuse_all(host, found)
            else:
                host.stopped = found
                for taken in await self._claim(host.groups[0], 1):  # an attempt like any other, for one of them
                    await self._record(host, taken, found)
        else:
            host.places = found
            connection = await self._probe(host)
            if connection is not None:
                await self._work_off(host, connection)
        await host.settled()
        if host.stopped is not None or host.groups:
            await self._put_off(host)

    async def _work_off(self, host: _Host, first: Connection) -> None:
        """The rest, over as many connections as it is worth."""
        several = min(self._config.delivery.connections_per_destination, self._backlog(host))
        host.ready = asyncio.Queue(AHEAD * several)
        async with asyncio.TaskGroup() as tasks:
            feeding = tasks.create_task(self._make_ready(host))
            connections = (first, *[None] * (several - 1))
            await asyncio.wait([tasks.create_task(self._work(host, connection)) for connection in connections])
            feeding.cancel()  # after a fault nobody takes what it makes ready

    def _backlog(self, host: _Host) -> int:
        """About how many connections the waiting deliveries are worth."""
        return (
            1 + sum(delivery.waiting(self._db, group, self._horizon, self.run, 4 * BATCH) for group in host.groups) // 4
        )

    async def _connect(self, host: _Host) -> Connection | None:
        """A session with the first host that gives one; None stops the domain for this run."""
        refused: Outcome | None = None
        try:
            async with asyncio.timeout(self._left()):
                for place in host.places:
                    opened = await self._caller.call(host.domain, place)
                    if isinstance(opened, Connection):
                        return opened
                    refused = opened
        except TimeoutError:
            refused = outcomes.of_fault("connect", Fault.TIMEOUT, END_OF_RUN)
        host.stopped = host.stopped or refused
        return None

    def _left(self) -> float:
        """Seconds a far side has. One that takes a byte a second must not keep the next run from everybody else."""
        return max((self._deadline - clock.now()).total_seconds(), LEAST)

    async def _make_ready(self, host: _Host) -> None:
        """A batch of each collector in turn, until nothing is due: claimed, and prepared for the wire."""
        making: deque[asyncio.Future[list[_Ready]]] = deque()
        while host.groups and host.stopped is None and host.fault is None and clock.now() < self._deadline:
            group = host.groups.popleft()
            claimed = await self._claim(group)
            if len(claimed) == BATCH:
                host.groups.append(group)
            for lot in _lots(claimed):
                making.append(self._prepared(lot))
                # Two at once only while the wire is the faster: where it is slow, no more is claimed than it can take.
                while making and (len(making) > 1 or host.ready.qsize() >= host.ready.maxsize // AHEAD):
                    await _hand_over(host, await making.popleft())
        for made in making:
            await _hand_over(host, await made)
        await host.ready.put(None)

    async def _work(self, host: _Host, connection: Connection | None) -> None:
        """One connection's worth of work: whatever is ready next, until no more will come."""
        try:
            while host.fault is None:
                ready = await host.ready.get()
                if ready is None:
                    host.ready.put_nowait(None)  # for the next
                    break
                connection = await self._one(host, ready, connection)
        finally:
            if connection is not None:
                await connection.close()

    async def _probe(self, host: _Host) -> Connection | None:
        """One delivery over one connection; the others are opened, and the rest claimed, once it has answered."""
        connection = None
        while host.groups and host.stopped is None and connection is None:
            claimed = await self._claim(host.groups[0], 1)
            if not claimed:
                host.groups.popleft()
            for ready in await self._prepared(claimed):
                connection = await self._one(host, ready, connection)
        return connection

    async def _claim(self, group: tuple[str, str], limit: int = BATCH) -> list[Claimed]:
        now = clock.now()

        def claim(db: Database, _: str) -> list[Claimed]:
            claimed = delivery.claim(
                db, group, kind="send", run=self.run, horizon=self._horizon, limit=limit, now=now, pace=self._pace
            )
            return [self._findable(db, taken, now) for taken in claimed]

        return await self._writer.write(claim)

    def _findable(self, db: Database, taken: Claimed, now: datetime) -> Claimed:
        """What was held for weeks, or goes once more, leaves under a new token: a report on it may come late, too."""
        token = taken.sender.partition("@")[0].removeprefix(BOUNCE_PREFIX)
        if not TOKEN.fullmatch(token):
            return taken
        if not ids.is_ageing(token, now=now, give_up_after=self._config.delivery.give_up_after):
            return taken
        return delivery.renew_token(db, taken, ids.token(self._token_key, now))

    def _prepared(self, some: Sequence[Claimed]) -> "asyncio.Future[list[_Ready]]":
        """Their messages, made in a thread. Small bodies are kept for the wire as long as there is room."""
        shares = []
        for taken in some:
            share = taken.size if taken.size <= SMALL and self._held + taken.size <= HELD else 0
            self._held += share
            shares.append(share)
        return asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: [self._ready(*each) for each in zip(some, shares, strict=True)]
        )

    def _ready(self, taken: Claimed, share: int) -> _Ready:
        try:
            return _Ready(taken, self._outgoing.job(taken, share), share)
        except (SpoolError, OSError) as error:
            return _Ready(taken, unreadable(error), share)

    async def _one(self, host: _Host, ready: _Ready, connection: Connection | None) -> Connection | None:
        """Sends one claimed delivery, over a new connection if the last is of no more use."""
        self._held -= ready.held
        if isinstance(ready.job, Result):
            await self._write(host, _Answered(ready.taken, ready.job, clock.now()))
            return connection
        if connection is not None and not connection.usable:
            await connection.close()
            connection = None
        if connection is None and host.stopped is None:
            connection = await self._connect(host)
        if connection is None:
            assert host.stopped is not None
            await self._record(host, ready.taken, host.stopped)
            return None
        try:
            outcome = await self._sent(connection, ready.job)
        except (SpoolError, OSError, EOFError) as error:  # its bytes went while it was sent: the dot was not
            await self._write(host, _Answered(ready.taken, unreadable(error), clock.now()))
            return None
        if outcome.scope is Scope.HOST and outcome.result is not outcomes.Result.DONE:
            host.stopped = outcome
        elif outcome.result is outcomes.Result.LATER and clock.now() >= self._deadline:
            host.stopped = outcomes.of_fault("connect", Fault.TIMEOUT, END_OF_RUN)  # no doubt hangs on the others
        await self._record(host, ready.taken, outcome)
        return connection

    async def _sent(self, connection: Connection, job: Job) -> Outcome:
        alarm = asyncio.get_running_loop().call_later(self._left(), connection.cut, END_OF_RUN)
        try:
            return await connection.send(job)
        finally:
            alarm.cancel()

    async def _record(self, host: _Host, taken: Claimed, outcome: Outcome) -> None:
        await self._write(host, _Answered(taken, _result(outcome), clock.now()))

    async def _write(self, host: _Host, answered: _Answered) -> None:
        """Has it recorded, and waits for that only where much is waiting already."""
        await host.room.acquire()
        self._follow(host, answered, self._offer(answered))

    def _offer(self, answered: _Answered) -> "asyncio.Future[Recorded]":
        taken, result, now = answered.taken, answered.result, answered.at
        return self._writer.write(
            lambda db, _: delivery.record(db, taken, result, run=self.run, now=now, pace=self._pace)
        )

    async def _offer_again(self, answered: _Answered) -> Recorded:
        await asyncio.sleep(RECORD_AGAIN)
        return await self._offer(answered)

    def _follow(self, host: _Host, answered: _Answered, writing: "asyncio.Future[Recorded]") -> None:
        host.records.add(writing)
        writing.add_done_callback(lambda done: self._written(host, answered, done))

    def _written(self, host: _Host, answered: _Answered, done: "asyncio.Future[Recorded]") -> None:
        host.records.discard(done)
        fault = None if done.cancelled() else done.exception()
        if isinstance(fault, OperationalError) and clock.now() < self._deadline:
            # Locked, or no room. What a far side has taken and nobody wrote down would be sent again: we insist.
            log.trouble(answered.taken.id, fault)
            self._follow(host, answered, asyncio.ensure_future(self._offer_again(answered)))
            return
        host.room.release()
        if fault is not None:
            host.fault = host.fault or fault
        elif not done.cancelled():
            self._count(answered, done.result())

    def _count(self, answered: _Answered, recorded: Recorded) -> None:
        taken, result = answered.taken, answered.result
        self.tally.sent += recorded.state is State.SENT
        self.tally.deferred += recorded.state is State.WAITING
        self.tally.failed += recorded.state is State.FAILED
        if recorded.warn:
            self.tally.warned.append(taken.id)
            log.warned(taken.id)
        if recorded.state is not None:
            log.delivered(taken.id, recorded.state, code=result.code, mx=result.mx)

    async def _refuse_all(self, host: _Host, outcome: Outcome) -> None:
        while host.groups:
            group = host.groups.popleft()
            while claimed := await self._claim(group):
                for taken in claimed:
                    await self._record(host, taken, outcome)

    async def _put_off(self, host: _Host) -> None:
        """What was due and not tried: the host is away, or the run's time is over."""
        why = host.stopped or outcomes.of_fault("connect", Fault.TIMEOUT, END_OF_RUN)
        now = clock.now()

        def some(first: str) -> "asyncio.Future[delivery.PutOff]":
            defer = partial(delivery.defer_domain, run=self.run, horizon=self._horizon, reply=why.reply, now=now)
            return self._writer.write(lambda db, _: defer(db, host.domain, first=first, pace=self._pace))

        put_off = await some("")
        while put_off.last is not None:
            self.tally.deferred += put_off.waiting
            self.tally.failed += len(put_off.given_up)
            self.tally.warned += put_off.warned
            put_off = await some(put_off.last)


async def _hand_over(host: _Host, made: Sequence[_Ready]) -> None:
    for ready in made:
        await host.ready.put(ready)


def _lots(claimed: Sequence[Claimed]) -> Iterator[list[Claimed]]:
    """In lots that one visit to the thread makes ready: a large one is a visit by itself."""
    lot: list[Claimed] = []
    for taken in claimed:
        if lot and (len(lot) == TOGETHER or taken.size > SMALL):
            yield lot
            lot = []
        lot.append(taken)
    if lot:
        yield lot


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
