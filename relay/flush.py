"""The quarter-hour run: look into the connected folders, send what is due, balance the books.

Knows alone: that there is one run at a time (an OS lock, released by the death of its holder), that results of a dead one's
claims are not believed, and that the counts must balance: eligible = sent + deferred + refused + held + duplicate.
"""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from sqlite_utils import Database

from relay import care, clock, log, scan, silence
from relay.commit import Writer
from relay.config import Config
from relay.directory import list_again
from relay.dns import Resolver
from relay.ids import TokenKey
from relay.lock import held
from relay.notice import Notices
from relay.send import Sender
from relay.sign import Signer
from relay.spool import Spool
from relay.store import delivery, notices
from relay.store.database import Anchor
from rules import lifecycle
from rules.replies import Reason, history
from rules.ruleset import RuleSet

TIME_SHARE = 0.9  # of the interval: a run ends before the next begins
CARE_SHARE = 0.97  # what is left of it for purging, which the next run may go on with


class RunUnderWay(RuntimeError):
    """Another process holds the run lock."""


def lock(data: Path, *, within: float = 0) -> AbstractContextManager[int]:
    """The run lock, for the life of the block. Raises RunUnderWay if somebody still holds it after `within` seconds."""
    return held(data / "run.lock", RunUnderWay(), within=within)


@dataclass(frozen=True, slots=True)
class Means:
    """What a run works with, put together by the daemon or by the command."""

    config: Config
    ruleset: RuleSet
    db: Database  # for reading
    spool: Spool
    writer: Writer
    signers: tuple[Signer, ...]
    token_key: TokenKey


async def run(means: Means, horizon: datetime) -> int:
    """One run over what is due by `horizon`; its number. The caller holds the lock."""
    config, writer, started = means.config, means.writer, clock.now()
    deadline = started + TIME_SHARE * config.run.every
    at = clock.stamp(started)
    recovered = await writer.write(lambda db, _: delivery.recover(db, "send", at))
    if recovered:
        log.recovered(recovered, 0)
    selectors = [signer.selector for signer in means.signers]
    number = await writer.write(lambda db, _: _begin(db, at, selectors))
    log.run_started(number)
    await list_again(writer, config.ged.root)  # a client's folder may have been renamed
    scanner = scan.Scanner(config, means.ruleset, db=means.db, spool=means.spool, token_key=means.token_key)
    found = await scanner.scan(writer, deadline)
    sender = Sender(
        config,
        db=means.db,
        spool=means.spool,
        writer=writer,
        resolver=Resolver(config.delivery.dns),
        signers=means.signers,
        token_key=means.token_key,
    )
    tally = await sender.drain(number, max(horizon, clock.now()), deadline)
    counts = {
        "eligible": tally.eligible + found.refused + found.held + found.duplicate,
        "sent": tally.sent,
        "deferred": tally.deferred,
        "refused": tally.failed + found.refused,
        "held": found.held,
        "duplicate": found.duplicate,
    }
    told = await _tell(means, found, sender)
    finished = clock.stamp(clock.now())
    await writer.write(lambda db, _: _finish(db, number, counts=counts, at=finished, told=told))
    log.run_finished(number, counts)
    until = started + CARE_SHARE * config.run.every
    await care.after_run(config, means.db, spool=means.spool, writer=writer, until=until)
    return number


@dataclass(frozen=True, slots=True)
class _Told:
    """How far in the history people have been told of failures, and the silences that were told of."""

    failures: str
    silences: silence.Look


def _begin(db: Database, at: str, selectors: Sequence[str]) -> int:
    notices.begin(db)
    return delivery.begin_run(db, at, selectors)


def _finish(db: Database, number: int, *, counts: dict[str, int], at: str, told: _Told) -> None:
    """Until here a run that is killed leaves all it had to tell to the next."""
    notices.told(db, told.failures)
    silence.told(db, told.silences)
    delivery.finish_run(db, number, counts, at)


async def _tell(means: Means, found: scan.Outcome, sender: Sender) -> _Told:
    """Reports to senders, one warning to the postmaster."""
    telling = Notices(means.config, db=means.db, spool=means.spool, writer=means.writer)
    lines = []
    language = means.config.relay.language
    for connection, doubt in found.doubts:
        reason = history(Reason("connection-doubt", {"doubt": doubt}), language)
        lines.append(f"- connexion {connection.id} ({connection.client}/{connection.folder}) : {reason}")
    for connection, files in found.unsettled.values():
        reason = history(Reason("unsettled"), language)
        lines.append(f"- connexion {connection.id} ({connection.client}/{connection.folder}) : {files} × {reason}")
    untold = await telling.tell_senders()
    failures = (f for f in untold.failures if f.taken.route not in ("dsn", "warning"))
    lines += [f"- envoi {f.taken.id} ({f.taken.client}) : {f.reply}" for f in failures]
    silences = await silence.newly_silent(means.config, means.db, clock.now())
    for slug, since in silences.found:
        facts: dict[str, str | int] = {"client": slug, "since": since.since.isoformat(), "documents": since.documents}
        lines.append(f"- {history(Reason('silent', facts), language)}")
        log.client_silent(slug)
    lines += [f"- envoi {waiting} : en attente depuis trop longtemps" for waiting in sender.tally.warned]
    await telling.warn_postmaster(lines)
    return _Told(untold.latest, silences)


class Clockwork:
    """The daemon's half: runs on the wall-clock quarter, one at a time, a missed one caught up once: missed while nobody was
    there, or because the one before took too long.
    """

    def __init__(self, means: Means) -> None:
        self._means = means
        self._anchor = Anchor(means.config.database)

    @property
    def _every(self) -> timedelta:
        return self._means.config.run.every

    def adopt(self, config: Config, ruleset: RuleSet, signers: tuple[Signer, ...]) -> None:
        """Settings and rules read again: for the next run."""
        self._means = replace(self._means, config=config, ruleset=ruleset, signers=signers)

    async def work(self) -> None:
        """Until cancelled."""
        last = delivery.last_run(self._means.db)
        started = clock.instant(last[1]) if last else None
        while True:
            now = clock.now()
            due = now if lifecycle.catch_up(started, now, self._every) else lifecycle.next_run(now, self._every)
            if await self._came(due):
                started = clock.now()
                await self._try(due)

    async def _came(self, due: datetime) -> bool:
        """Sleeps until then, in short steps: the clock may be set, the machine suspended."""
        while (left := (due - clock.now()).total_seconds()) > 0:
            if left > self._every.total_seconds():
                return False  # the clock went back: the grid is looked at again
            await asyncio.sleep(min(left, 20.0))
        return True

    async def _try(self, horizon: datetime) -> None:
        try:
            self._anchor.confirm()
            with lock(self._means.config.relay.data):
                await run(self._means, horizon)
        except RunUnderWay:
            log.run_skipped("another run is under way")
        except Exception as error:
            log.trouble("run", error)  # what it had claimed goes back to waiting at the next one
