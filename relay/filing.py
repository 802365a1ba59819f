"""The worker that puts documents into the GED, at once, and again later when the GED is away.

Knows alone: the order of a filing: the document under its final name, durable → recorded → the temporary forgotten. A
crash between any two leaves the temporary, by which `ged` knows again what is already filed.
"""

import asyncio
import errno
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from sqlite_utils import Database

from relay import clock, ged, log
from relay.commit import Writer
from relay.config import Config
from relay.directory import list_again
from relay.mime import decoded
from relay.outgoing import unreadable
from relay.spool import Spool, SpoolError
from relay.store import delivery, directory, filings
from relay.store.database import Anchor
from relay.store.delivery import Claimed, Pace, Result
from rules import filing
from rules.lifecycle import Change
from rules.replies import Reason
from rules.ruleset import RuleSet

Outcome = ged.Filed | ged.Damaged | ged.GedAway | Exception

RETRY_EVERY = timedelta(minutes=1)
AFTER_TROUBLE = 10.0  # seconds before the work is taken up again
BATCH = 20
LEFT = 100  # temporaries that are tried again; a folder that a person has renamed is not come back to for ever


class Filing:
    """One per daemon; `wake` after a commit that brought filings."""

    def __init__(self, config: Config, ruleset: RuleSet, *, spool: Spool, writer: Writer, db: Database) -> None:
        self._config = config
        self._ruleset = ruleset
        self._spool = spool
        self._writer = writer
        self._db = db  # for reading
        self._tree = ged.Tree(config.ged.root)
        self._pace = Pace(RETRY_EVERY, config.relay.warn_after)
        self._anchor = Anchor(config.database)
        self._wakeup = asyncio.Event()
        self._left: deque[tuple[ged.Tree, ged.Filed]] = deque(maxlen=LEFT)
        self._pass = 0  # counts down: the claims of runs count up
        self._listed_in = 0  # the pass that listed the clients again

    def adopt(self, config: Config, ruleset: RuleSet) -> None:
        """Settings and rules read again."""
        self._config, self._ruleset = config, ruleset
        self._tree = ged.Tree(config.ged.root)

    def wake(self) -> None:
        self._wakeup.set()

    async def work(self) -> None:
        """Until cancelled. Trouble of ours (the store locked or full, say) ends a turn, and the next one mends it."""
        while True:
            try:
                await self._turn()
            except Exception as error:
                log.trouble("filing", error)
                await asyncio.sleep(AFTER_TROUBLE)

    async def _turn(self) -> None:
        """What a dead worker, or a turn that failed, left half done goes back to waiting first."""
        at = clock.stamp(clock.now())
        await self._writer.write(lambda db, _: delivery.recover(db, "file", at))
        await asyncio.to_thread(self._forget_temporaries, filings.latest(self._db))
        while True:
            self._wakeup.clear()
            while await self.file_due():
                pass
            try:
                async with asyncio.timeout(RETRY_EVERY.total_seconds() / 2):
                    await self._wakeup.wait()
            except TimeoutError:
                pass

    def _forget_temporaries(self, latest: Sequence[tuple[str, str]]) -> None:
        """A dead worker may have recorded what it filed, and no more."""
        for id_, path in latest:
            self._forget(self._tree, ged.recorded(id_, path))

    def _forget(self, tree: ged.Tree, filed: ged.Filed) -> None:
        """Its second name goes; later, where the GED is away just now: hidden, it would keep a document that is deleted."""
        if tree.forget_temporary(filed) is not None:
            self._left.append((tree, filed))

    def _forget_left(self) -> None:
        for _ in range(len(self._left)):
            self._forget(*self._left.popleft())

    async def file_due(self) -> int:
        """Files what is due, one batch from each client; how many were tried."""
        self._anchor.confirm()
        if self._left:
            await asyncio.to_thread(self._forget_left)
        self._pass -= 1
        horizon = clock.stamp(clock.now())
        groups = delivery.groups(self._db, "file", horizon, self._pass)
        tried = 0
        for group in groups:
            tried += await self._file_group(group, horizon)
        return tried

    async def _file_group(self, group: tuple[str, str], horizon: str) -> int:
        now, number = clock.now(), self._pass

        def claim(db: Database, _: str) -> list[Claimed]:
            return delivery.claim(
                db, group, kind="file", run=number, horizon=horizon, limit=BATCH, now=now, pace=self._pace
            )

        claimed = await self._writer.write(claim)
        for taken in claimed:
            await self._file(taken)
        return len(claimed)

    async def _file(self, taken: Claimed) -> None:
        now = clock.now()
        found = filings.of(self._db, taken.id)
        tree, filed = self._tree, None
        if found is None or found.client_state == "ambiguous":
            result = Result(Change.DEFER, reply="client", reason=Reason("client-ambiguous"))
        else:
            # A listed client's folder is never made: where it is missing, its disk is not mounted. The folder of one
            # added by hand is made, but only in the tree that the clients were listed from.
            tree = self._of_added() if found.client_state == "added" else tree.within(found.folder)
            outcome = await asyncio.to_thread(self._put, taken, found, tree)
            if isinstance(outcome, ged.GedAway) and outcome.code == errno.ENOENT:
                await self._look_for_renamed()
            filed = outcome if isinstance(outcome, ged.Filed) else None
            result = self._result(outcome, tree.folder, now)
        done = await self._writer.write(
            lambda db, _: self._record(db, taken, result, document=found.document if found else "", now=now)
        )
        if filed is not None and done:
            await asyncio.to_thread(self._forget, tree, filed)
            log.filed(taken.id)
        elif filed is None:
            log.filing_waits(taken.id, result.reply)

    async def _look_for_renamed(self) -> None:
        """A client's folder that is gone may bear another name now, by which the next attempt finds it. Once a pass."""
        if self._listed_in != self._pass:
            self._listed_in = self._pass
            await list_again(self._writer, self._config.ged.root)

    def _of_added(self) -> ged.Tree:
        system, _, inode = directory.meta(self._db, directory.GED_ROOT).partition(":")
        return replace(self._tree, expected=(int(system), int(inode))) if inode else self._tree

    def _put(self, taken: Claimed, found: filings.Filing, tree: ged.Tree) -> Outcome:
        rule = self._ruleset.named(taken.route)
        received = clock.instant(taken.received_at)
        end = _month_and_day(found.fiscal_year_end)
        template = rule.file if rule and rule.file else "Ventes/{year}/{month}"
        folders = filing.folder(template, received, timezone=self._config.zone, fiscal_year_end=end)
        try:
            with self._spool.open(taken.spool) as body:
                part = found.spans[0]
                if part.offset + part.length > body.size:
                    raise SpoolError(f"{taken.spool}: cut to {body.size} bytes")
                return tree.file_document(
                    folders if tree.folder else (found.folder, *folders),
                    found.name,
                    delivery=taken.id,
                    chunks=decoded(body.read, found.spans),
                    sha256=found.sha256,
                )
        except (SpoolError, OSError) as error:  # the tree's own are an outcome: this is the spool's
            return error
        except Exception as error:  # of this document alone: whoever is behind it does not wait
            log.trouble(taken.id, error)
            return error

    def _result(self, outcome: Outcome, folder: str, now: datetime) -> Result:
        match outcome:
            case ged.Filed(path=path):
                return Result(Change.SUCCEED_FILE, target=f"{folder}/{path}" if folder else path)
            case ged.GedAway(reason=why):
                at = clock.stamp(now + RETRY_EVERY)
                return Result(Change.DEFER, reply=why, reason=Reason("ged-away", {"at": at}))
            case ged.Damaged():
                return Result(Change.FAIL, reply=str(outcome), reason=Reason("bytes-missing"))
            case SpoolError() | OSError():
                return unreadable(outcome)
            case _:
                return Result(Change.DEFER, reply=type(outcome).__name__, warn=1)

    def _record(self, db: Database, taken: Claimed, result: Result, *, document: str, now: datetime) -> bool:
        recorded = delivery.record(db, taken, result, run=self._pass, now=now, pace=self._pace)
        if result.change is Change.SUCCEED_FILE and recorded.state:
            db.conn.execute("UPDATE document SET path = ? WHERE id = ?", (result.target, document))
        return recorded.state is not None


def _month_and_day(text: str) -> tuple[int, int] | None:
    month, _, day = text.partition("-")
    return (int(month), int(day)) if day else None
