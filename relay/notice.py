"""Mail of our own: the report to a sender whose mail finally failed, and the warning to the postmaster.

Knows alone: who may be told (domain.md §4 "Who is told"): the sender of a relayed mail, if it was trusted and is not null;
of a deposit only the postmaster. Both leave with the null sender, at the next run.
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
from relay.store import intake
from relay.store.delivery import Claimed
from relay.store.events import Event, write
from rules.lifecycle import State
from rules.outcome import Outcome


class Notices:
    """Composes and queues; one per run."""

    def __init__(self, config: Config, *, spool: Spool, writer: Writer) -> None:
        self._config = config
        self._spool = spool
        self._writer = writer

    async def tell_sender(self, taken: Claimed, outcome: Outcome) -> bool:
        """A DSN (RFC 3464) for a relayed mail that failed; False where nobody is to be told."""
        if taken.message is None or not taken.trusted or not taken.original_sender:
            return False
        now = clock.now()
        base = ids.new(now)
        try:
            header = await asyncio.to_thread(self._header, taken.spool)
        except SpoolError:
            header = b"\r\n"
        failure = compose.Failure(
            sender=taken.original_sender,
            recipient=taken.recipient,
            status=outcome.enhanced or "5.0.0",
            received_at=clock.instant(taken.received_at),
            header=header,
        )
        try:
            message = compose.dsn(failure, self._report(base, now))
        except ValueError:
            return False  # an envelope sender that cannot be written in a header has nobody behind it
        told = Event("notified", message=taken.message, delivery=taken.id, detail={"by": f"{base}-1"})
        await self._queue(base, "dsn", taken.original_sender, message=message, event=told, now=now)
        return True

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
        await self._queue(
            base, "warning", self._config.relay.postmaster, message=letter.as_bytes(), event=None, now=now
        )
        return True

    async def _queue(
        self, base: str, route: str, target: str, *, message: bytes, event: Event | None, now: datetime
    ) -> None:
        at = clock.stamp(now)
        new = intake.NewDelivery(
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
            size=len(message),
            documents=(),
        )

        def add(db: Database, spool: str) -> None:
            intake.add_own(db, new, spool)
            if event is not None:
                write(db, at, "run", [event])

        await self._writer.write(add, message)

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
