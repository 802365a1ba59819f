"""Mail of our own: the report to a sender whose mail finally failed, and the warning to the postmaster.

Knows alone: that whoever is told is told once for a mail, and what the history says of that. Whether it may be told is
asked of rules.notification; of a deposit only the postmaster hears. Both leave with the null sender, at the next run.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime

from sqlite_utils import Database

from relay import clock, compose, ids
from relay.commit import Writer
from relay.config import Config
from relay.outgoing import MAX_HEADER, header_block
from relay.spool import Spool, SpoolError
from relay.store import intake, notices
from relay.store.delivery import Claimed
from relay.store.events import Event, write
from rules.lifecycle import State
from rules.notification import AT_MOST_EVERY, Failed, Silent, Tell, decide
from rules.outcome import status_of

Failures = Sequence[notices.Failure]


class Notices:
    """Composes and queues; one per run."""

    def __init__(self, config: Config, *, db: Database, spool: Spool, writer: Writer) -> None:
        self._config = config
        self._db = db
        self._spool = spool
        self._writer = writer

    async def tell_senders(self) -> notices.Untold:
        """A DSN for each mail that failed, if its sender is to be told; the history says which and why not."""
        untold = await asyncio.to_thread(notices.untold, self._db)
        mails: dict[str, list[notices.Failure]] = {}
        for failure in untold.failures:
            if failure.taken.message is not None:  # else a deposit, or a notice of ours
                mails.setdefault(failure.taken.message, []).append(failure)
        for of_mail in mails.values():
            await self._tell_sender(of_mail)
        return untold

    async def _tell_sender(self, failures: Failures) -> None:
        if not failures:
            return
        now = clock.now()
        match self._decide(failures[0].taken, now):
            case Tell():
                await self._notify(failures, now)
            case Silent(why=why):
                await self._leave(failures, why, now)

    def _decide(self, taken: Claimed, now: datetime) -> Tell | Silent:
        failed = Failed(
            sender=taken.original_sender,
            trusted=bool(taken.trusted),
            automatic=notices.mail(self._db, taken.id).automatic,
            domain=self._config.relay.domain,
            told_at=notices.told_at(self._db, taken.original_sender, now, AT_MOST_EVERY),
        )
        return decide(failed, now)

    async def _notify(self, failures: Failures, now: datetime) -> None:
        """A DSN (RFC 3464): one for a mail, however many of its recipients failed."""
        taken, base = failures[0].taken, ids.new(now)
        try:
            header = await asyncio.to_thread(self._header, taken.spool)
        except SpoolError:
            header = b"\r\n"
        failed = (compose.Undelivered(notices.mail(self._db, f.taken.id).typed, status_of(f.reply)) for f in failures)
        failure = compose.Failure(
            taken.original_sender, tuple(failed), received_at=clock.instant(taken.received_at), header=header
        )
        try:
            message = compose.dsn(failure, self._report(base, now))
        except ValueError:  # an envelope sender that cannot be written in a header has nobody behind it
            await self._leave(failures, "unwritable", now)
            return
        new = self._new(base, "dsn", taken.original_sender, size=len(message), now=now)
        events = _events("notified", failures, {"by": new.id})

        def add(db: Database, spool: str) -> bool:
            if len(notices.still(db, failures)) < len(failures):
                return False  # whoever is told to send again must not be sent again by us
            _add(db, new, spool, events)
            return True

        if not await self._writer.write(add, message):
            await self._tell_sender(notices.still(self._db, failures))

    async def _leave(self, failures: Failures, why: str, now: datetime) -> None:
        events = _events("not-notified", failures, {"why": why})
        await self._writer.write(lambda db, _: write(db, clock.stamp(now), "run", events))

    async def warn_postmaster(self, lines: Sequence[str]) -> bool:
        """One mail for all that a run has to say; False where no postmaster is configured."""
        if not lines or not self._config.relay.postmaster:
            return False
        now = clock.now()
        base = ids.new(now)
        letter = EmailMessage(policy=SMTP)
        letter["From"] = f"{self._config.delivery.sender_name} <postmaster@{self._config.relay.domain}>"
        letter["To"] = self._config.relay.postmaster
        letter["Subject"] = "welyb-relay : a surveiller (attention needed)"
        letter["Date"] = format_datetime(now)
        letter["Message-ID"] = f"<{base}@{self._config.relay.domain}>"
        letter["Auto-Submitted"] = "auto-generated"
        letter[compose.LOOP_HEADER] = self._config.relay.domain
        letter.set_content("Bonjour,\n\n" + "\n".join(lines) + "\n\nDétail : welyb-relay queue show ID\n", cte="base64")
        message = letter.as_bytes()
        new = self._new(base, "warning", self._config.relay.postmaster, size=len(message), now=now)
        await self._writer.write(lambda db, spool: _add(db, new, spool, ()), message)
        return True

    def _new(self, base: str, route: str, target: str, *, size: int, now: datetime) -> intake.NewDelivery:
        at = clock.stamp(now)
        return intake.NewDelivery(
            id=f"{base}-1",
            kind="send",
            route=route,
            client="",
            recipient="",
            target=target,
            state=State.WAITING,
            reason=None,
            created_at=at,
            due_at=at,
            expires_at=clock.stamp(now + self._config.delivery.give_up_after),
            sender="",
            token="",
            outbound_message_id=f"<{base}@{self._config.relay.domain}>",
            size=size,
            documents=(),
        )

    def _header(self, key: str) -> bytes:
        with self._spool.open(key) as body:
            return header_block(body.read(0, MAX_HEADER))

    def _report(self, base: str, now: datetime) -> compose.Report:
        relay = self._config.relay
        return compose.Report(
            message_id=f"<{base}@{relay.domain}>",
            date=now.astimezone(self._config.zone),
            hostname=relay.hostname,
            domain=relay.domain,
            sender_name=self._config.delivery.sender_name,
        )


def _add(db: Database, new: intake.NewDelivery, spool: str, events: Sequence[Event]) -> None:
    intake.add_own(db, new, spool)
    write(db, new.created_at, "run", events)


def _events(event: str, failures: Failures, detail: dict[str, str]) -> list[Event]:
    return [Event(event, message=f.taken.message, delivery=f.taken.id, detail=detail) for f in failures]
