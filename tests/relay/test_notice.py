"""What a run tells while the postmaster is at work, on a real store and spool."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlite_utils import Database

from relay import clock
from relay.commit import Writer
from relay.config import Config
from relay.notice import Notices
from relay.spool import Body, Spool
from relay.store import delivery, intake, notices
from relay.store.database import open_for_writing, rows, transaction
from relay.store.delivery import Pace, Result
from rules.lifecycle import Change
from tests.support.records import COLLECTOR, mail, order

OTHER = "durand@factures-meg.fr"
PACE = Pace(timedelta(minutes=15), timedelta(hours=4))


class _Interrupted(Spool):
    """`done` happens once, when bytes are asked for."""

    done: Callable[[], None] | None = None

    def open(self, key: str) -> AbstractContextManager[Body]:
        done, self.done = self.done, None
        if done:
            done()
        return super().open(key)


Again = Callable[[Database, datetime], None]  # what the postmaster does about m1-1


def retry(db: Database, now: datetime) -> None:
    assert delivery.change(db, ["m1-1"], Change.RETRY, order(now)) == ["m1-1"]


def resend(db: Database, now: datetime) -> None:
    assert delivery.resend(db, "m1-1", order(now), token="again") == "m1-3"


@pytest.mark.parametrize("again", [retry, resend])
def test_what_is_tried_again_while_its_report_is_written_is_not_in_it(tmp_path: Path, again: Again) -> None:
    db = open_for_writing(tmp_path / "relay.db")
    ours = open_for_writing(tmp_path / "relay.db")
    spool = _Interrupted(tmp_path / "spool", lambda: "segment")
    now = clock.now()
    (key,) = spool.append([b"Subject: a\r\n\r\n"])
    with transaction(db):
        notices.begin(db)
        intake.commit(db, mail("m1", COLLECTOR, OTHER, at=now), spool=key)
        for target in (COLLECTOR, OTHER):
            group, horizon = ("factures-meg.fr", target), clock.stamp(now)
            (taken,) = delivery.claim(db, group, kind="send", run=1, horizon=horizon, limit=1, now=now, pace=PACE)
            delivery.record(db, taken, Result(Change.FAIL, "550 5.1.1 no"), run=1, now=now, pace=PACE)

    def meanwhile() -> None:
        with transaction(db):
            again(db, now)

    async def tell() -> None:
        writer = Writer(ours, spool)
        try:
            spool.done = meanwhile
            await Notices(Config(), db=ours, spool=spool, writer=writer).tell_senders()
        finally:
            await writer.close()

    asyncio.run(tell())
    ((written,),) = rows(db, "SELECT spool FROM delivery WHERE route = 'dsn'")
    with spool.open(written) as body:
        report = body.read(0, 10_000)
    told = [row[0] for row in rows(db, "SELECT delivery FROM event WHERE event = 'notified'")]
    assert told == ["m1-2"] and report.count(b"Final-Recipient:") == 1 and b"durand" in report
    spool.close()
    for each in (db, ours):
        each.close()
