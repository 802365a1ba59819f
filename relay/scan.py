"""The part of a run that looks into the connected folders: what differs, what it means, and what becomes of it.

Knows alone: how inventory and tree are compared without making an object of what has not changed, and how a deposit's
bytes go: copied whole with a look before and after → judged → composed once → durable → one transaction.
"""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from sqlite_utils import Database

from relay import clock, compose, ged, ids, log
from relay.commit import Writer
from relay.config import Config
from relay.examine import HEAD, TAIL, examine, examine_file, seekable
from relay.spool import Incoming, Spool, write_new
from relay.store import connections, intake, restore
from relay.store.connections import Connection
from relay.store.database import is_busy
from relay.store.deposits import Made, NewDeposit, add_deposit, apply_rows, shown_name
from rules import address, attachment, deposit
from rules.attachment import Content
from rules.deposit import Deposit, Difference, Doubt, Empty, Known, Rejudge, Replace, Seen, Unsettled, Version
from rules.replies import Reason
from rules.ruleset import Rule, RuleSet

AT_ONCE = 8  # deposits on their way to the spool together


@dataclass(frozen=True, slots=True)
class Survey:
    """One look at a connected folder: the decisions, or the doubt that forbids any."""

    connection: Connection
    decisions: tuple[deposit.Decision, ...] = ()
    doubt: Doubt | None = None
    root: deposit.Identity | None = None
    whole: bool = False  # no part of it could not be read

    @property
    def unsettled(self) -> int:
        return sum(isinstance(decision, Unsettled) for decision in self.decisions)


@dataclass(slots=True)
class Outcome:
    """What the scan of a run came to, besides what now waits."""

    refused: int = 0
    held: int = 0
    duplicate: int = 0
    unsettled: dict[int, tuple[Connection, int]] = field(default_factory=dict)  # by connection: how many at the end
    doubts: list[tuple[Connection, Doubt]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a dry run says of one document."""

    name: str
    client: str
    target: str
    verdict: str
    reason: Reason | None = None


class Scanner:
    """One per run. `survey` only looks; `scan` does what the decisions say."""

    def __init__(
        self, config: Config, ruleset: RuleSet, *, db: Database, spool: Spool, token_key: ids.TokenKey
    ) -> None:
        self._config = config
        self._ruleset = ruleset
        self._db = db
        self._spool = spool
        self._token_key = token_key
        self._empty: set[tuple[int, str]] = set()  # zero bytes for the first time in this run

    async def scan(self, writer: Writer, deadline: datetime) -> Outcome:
        """Every connection once, and those with files too young again until they have settled, or the time is up."""
        outcome = Outcome()
        open_: list[Connection] = connections.connections(self._db)
        # A file may need several looks to settle; one that never does is reported, not waited for.
        looks_end = min(deadline, clock.now() + 3 * self._config.run.settle)
        while open_:
            outcome.unsettled = {}
            for connection in open_:
                survey = await asyncio.to_thread(self.survey, connection)
                await self._apply(writer, survey, outcome)
                if survey.unsettled:
                    outcome.unsettled[connection.id] = connection, survey.unsettled
            again = [connection for connection, _ in outcome.unsettled.values()]
            open_ = again if clock.now() + timedelta(seconds=1) < looks_end else []
            if open_:
                await asyncio.sleep(min(1.0, self._config.run.settle.total_seconds() / 2))
        for connection, files in outcome.unsettled.values():
            log.unsettled(connection.id, files)
        return outcome

    # --- looking ----------------------------------------------------------------------------------------------------

    def survey(self, connection: Connection) -> Survey:
        """Blocks: for a thread."""
        tree = self._tree(connection)
        before = tree.identity()
        if isinstance(before, ged.GedAway):
            return Survey(connection, doubt="unreadable")
        compared = self._compare(connection, tree)
        if compared is None:
            return Survey(connection, doubt="unreadable")
        difference, known_count, seen_count = compared
        times = {"now_ns": time.time_ns(), "settle_ns": int(self._config.run.settle.total_seconds() * 1e9)}
        hashes = {path: sha for path in deposit.questions(difference, **times) if (sha := _hash(tree, path))}
        decisions = deposit.decide(difference, hashes, **times)
        # A second look within the run is not the following run that zero bytes wait for.
        decisions = tuple(
            d for d in decisions if not (isinstance(d, Empty) and (connection.id, d.seen.path) in self._empty)
        )
        departed = sum(isinstance(decision, deposit.Departed) for decision in decisions)
        doubt = deposit.doubt(connection.root, before, known=known_count, seen=seen_count, departed=departed)
        if connection.accepted:
            doubt = None  # the postmaster's word
        return Survey(connection, () if doubt else decisions, doubt, before, not difference.unreadable)

    def _tree(self, connection: Connection) -> ged.Tree:
        return ged.Tree(self._config.ged.root).within(connection.client_folder).within(connection.folder)

    def _nested(self, connection: Connection) -> frozenset[str]:
        """Folders that a nearer connection of the same application has for itself, relative to this one's."""
        prefix = f"{connection.folder}/" if connection.folder else ""
        return frozenset(
            other.folder.removeprefix(prefix)
            for other in connections.connections(self._db, connection.client)
            if other.application == connection.application
            and other.id != connection.id
            and other.folder.startswith(prefix)
        )

    def _compare(self, connection: Connection, tree: ged.Tree) -> tuple[Difference, int, int] | None:
        """(what differs, rows known, files seen); None where the tree went away meanwhile."""
        number, gaps = connection.id, _Gaps(self._nested(connection))
        # What we know of a folder that now has a connection of its own stays as it is, for when that one is removed.
        left = {folder for folder in connections.folders(self._db, number) if not deposit.is_below(folder, gaps.nested)}
        for found in tree.scan(gaps.nested):
            if isinstance(found, ged.GedAway):
                return None
            if isinstance(found, ged.Unreadable):
                gaps.unreadable.add(found.path)
                continue
            rows = connections.entries(self._db, number, found.folder)
            left.discard(found.folder)
            gaps.known += len(rows)
            gaps.seen += len(found.entries)
            self._compare_folder(number, found, rows, gaps)
        for folder in left:
            rows = connections.entries(self._db, number, folder)
            gaps.known += len(rows)
            gaps.gone += connections.known(self._db, number, folder, [row[0] for row in rows])
        self._add_empties(number, tree, gaps)
        self._add_moved_meanwhile(number, tree, gaps)
        away = tuple(connections.aside(self._db, number, "departed"))
        difference = Difference(
            tuple(gaps.gone), tuple(gaps.changed), tuple(gaps.new), away, frozenset(gaps.unreadable)
        )
        return difference, gaps.known, gaps.seen

    def _compare_folder(self, number: int, found: ged.Listing, rows: list[connections.Entry], gaps: "_Gaps") -> None:
        before = set(rows)
        # Names are unique in both: as many of one that are all in the other is equality, for one set instead of two.
        if len(found.entries) == len(before) and before.issuperset(found.entries):
            return
        there = set(found.entries)
        names = {entry[0] for entry in before - there}
        rows_of = {row.path: row for row in connections.known(self._db, number, found.folder, names)} if names else {}
        for entry in there - before:
            seen = found.seen(entry)
            row = rows_of.pop(seen.path, None)
            if row is None:
                gaps.new.append(seen)
            else:
                gaps.changed.append((row, seen))
        gaps.gone += rows_of.values()

    def _add_empties(self, number: int, tree: ged.Tree, gaps: "_Gaps") -> None:
        """A file that had zero bytes is looked at again though nothing of it changed."""
        already = {row.path for row, _ in gaps.changed} | {row.path for row in gaps.gone}
        for row in connections.aside(self._db, number, "empty"):
            seen = None if row.path in already or deposit.is_below(row.path, gaps.nested) else tree.look(row.path)
            if seen is not None:
                gaps.changed.append((row, seen))

    def _add_moved_meanwhile(self, number: int, tree: ged.Tree, gaps: "_Gaps") -> None:
        """A file moved while we looked, from a folder already seen into one not yet seen, stood in both."""
        gone = {row.path for row in gaps.gone}
        for seen in gaps.new:
            for row in connections.at_inode(self._db, number, seen.inode):
                if row.path != seen.path and row.path not in gone and tree.look(row.path) is None:
                    gaps.gone.append(row)
                    gone.add(row.path)
                    gaps.changed = [pair for pair in gaps.changed if pair[0].path != row.path]

    # --- doing ------------------------------------------------------------------------------------------------------

    async def _apply(self, writer: Writer, survey: Survey, outcome: Outcome) -> None:
        connection, at = survey.connection, clock.stamp(clock.now())
        if survey.doubt is not None:
            why = survey.doubt
            log.connection_error(connection.id, why)
            outcome.doubts.append((connection, why))
            await writer.write(lambda db, _: connections.set_state(db, connection.id, "error", why, at))
            return
        if connection.state != "active":
            await writer.write(lambda db, _: connections.set_state(db, connection.id, "active", None, at))
        await writer.write(lambda db, _: apply_rows(db, connection.id, survey.decisions, at))
        if connection.accepted and survey.root is not None:
            root = survey.root
            await writer.write(lambda db, _: connections.adopt(db, connection.id, root))
        self._empty |= {(connection.id, d.seen.path) for d in survey.decisions if isinstance(d, deposit.EmptyWait)}
        gate = asyncio.Semaphore(AT_ONCE)

        async def take(decision: deposit.Decision) -> Made | None:
            async with gate:
                return await self._take(writer, connection, decision)

        taken = await asyncio.gather(*(take(d) for d in survey.decisions if isinstance(d, _TAKEN)))
        for made in taken:
            outcome.refused += made is Made.REFUSED
            outcome.held += made is Made.HELD
            outcome.duplicate += made is Made.DUPLICATE
        whole = survey.whole and not survey.unsettled and None not in taken
        if whole and restore.is_unseen(self._db, connection.id):
            await writer.write(lambda db, _: restore.seen(db, connection.id))

    async def _take(self, writer: Writer, connection: Connection, decision: deposit.Decision) -> Made | None:
        """One file into the queue; None where it changed or vanished meanwhile: the next look decides."""
        assert isinstance(decision, _TAKEN)
        rule = self._ruleset.named(connection.application)
        if rule is None:
            return None  # `check` and the start say so; the file stays where it is
        try:
            draft = await asyncio.to_thread(self._drafted, connection, rule, decision)
        except OSError as error:  # no room, say: the file is there at the next look, and nobody else waits for it
            log.trouble(f"deposit for connection {connection.id}", error)
            return None
        if draft is None:
            return None
        new, body = draft
        try:
            return await writer.write(lambda db, placed: add_deposit(db, replace(new, spool=placed or new.spool)), body)
        except Exception as error:
            if is_busy(error) and new.spool:  # nothing was begun
                self._spool.remove(new.spool)
            raise  # else the row may stand all the same after a crash: the file stays until the next start looks

    def _drafted(
        self, connection: Connection, rule: Rule, decision: deposit.Decision
    ) -> tuple[NewDeposit, bytes | None] | None:
        """Its message durable where it is large, else in memory. Blocks: for a thread."""
        draft = self._draft(connection, rule, decision, clock.now())
        if draft is None:
            return None
        new, message = draft
        if message is None:
            return new, None
        if (small := message.small) is not None:
            return new, small
        try:
            return replace(new, spool=message.settle()), None
        except BaseException:
            message.discard()
            raise

    def _draft(
        self, connection: Connection, rule: Rule, decision: deposit.Decision, now: datetime
    ) -> tuple[NewDeposit, Incoming | None] | None:
        """The document judged and, if it is one, its message composed. Blocks: for a thread."""
        seen, known = _parts(decision)
        base, day = ids.new(now), now.date().isoformat()
        raw = self._spool.incoming(f"{base}.raw", day)
        try:
            copied = self._tree(connection).read_deposit(seen.path, raw.write)
            if not isinstance(copied, ged.Copied) or copied.seen != seen:
                return None
            content = _look(raw, copied.sha256)
            refused = attachment.judge(content, rule)
            reason = refused.reason if isinstance(refused, attachment.Refuse) else None
            new = self._new_deposit(connection, rule, base, seen=seen, content=content, now=now)
            new = replace(new, known=known, refused=reason, version=isinstance(decision, Version))
            message = None if reason else self._compose(new, rule, raw, base=base, now=now)
            return replace(new, size=message.size if message else content.size), message
        finally:
            raw.discard()

    def _new_deposit(
        self, connection: Connection, rule: Rule, base: str, *, seen: Seen, content: Content, now: datetime
    ) -> NewDeposit:
        token = ids.token(self._token_key, now)
        return NewDeposit(
            base=base,
            connection=connection,
            seen=seen,
            content=content,
            origins=rule.origins,
            at=clock.stamp(now),
            expires_at=clock.stamp(now + self._config.delivery.give_up_after),
            token=token,
            sender=f"{address.BOUNCE_PREFIX}{token}@{self._config.relay.domain}",
            message_id=f"<{base}@{self._config.relay.domain}>",
        )

    def _compose(self, new: NewDeposit, rule: Rule, raw: Incoming, *, base: str, now: datetime) -> Incoming:
        content, config = new.content, self._config
        enclosed = compose.Enclosed(new.document, new.name, content.type, content.size, content.sha256)
        letter = compose.Letter(
            sender=rule.sender or config.delivery.sender,
            sender_name=config.delivery.sender_name,
            recipient=new.connection.collector_address,
            message_id=new.message_id,
            date=now.astimezone(config.zone),
            domain=config.relay.domain,
            text=config.delivery.text or compose.TEXT,
        )
        composed = compose.deposit(enclosed, letter)

        def pieces() -> Iterator[bytes]:
            yield composed.header + composed.part
            yield from compose.encode_base64(_chunks(raw))
            yield composed.closing

        return write_new(self._spool, pieces(), name=base, day=now.date().isoformat())

    def unseen(self, connection: Connection) -> int:
        """How many deposits the next run would find in it. Blocks: for a thread."""
        return sum(isinstance(decision, _TAKEN | Unsettled) for decision in self.survey(connection).decisions)

    # --- a dry run --------------------------------------------------------------------------------------------------

    def foresee(self) -> Iterator[Verdict]:
        """What a run would make of each connected folder now; nothing is written. Blocks: for a thread."""
        for connection in connections.connections(self._db):
            survey = self.survey(connection)
            target = connection.collector_address
            if survey.doubt is not None:
                yield Verdict(
                    "", connection.client, target, "error", Reason("connection-doubt", {"doubt": survey.doubt})
                )
            for decision in survey.decisions:
                yield from self._foresee(connection, decision, target)

    def _foresee(self, connection: Connection, decision: deposit.Decision, target: str) -> Iterator[Verdict]:
        rule = self._ruleset.named(connection.application)
        if isinstance(decision, Unsettled):
            yield Verdict(shown_name(decision.seen), connection.client, target, "unsettled", Reason("unsettled"))
        if not isinstance(decision, _TAKEN) or rule is None:
            return
        seen, _ = _parts(decision)
        with tempfile.TemporaryFile() as file:
            copied = self._tree(connection).read_deposit(seen.path, file.write)
            if not isinstance(copied, ged.Copied):
                return
            file.seek(0)
            content = examine_file(file)
        judged = attachment.judge(content, rule)
        name = shown_name(seen)
        if isinstance(judged, attachment.Refuse):
            yield Verdict(name, connection.client, target, "refuse", judged.reason)
        elif isinstance(decision, Version):
            yield Verdict(name, connection.client, target, "hold", Reason("modified"))
        elif intake.came_from(self._db, [content.sha256], rule.origins):
            yield Verdict(name, connection.client, target, "hold", Reason("origin"))
        else:
            twin = next((t for t, n, _ in intake.twins(self._db, content.sha256, target) if n == name), None)
            verdict = Verdict(name, connection.client, target, "duplicate", Reason("duplicate", {"twin": twin or ""}))
            yield verdict if twin else Verdict(name, connection.client, target, "send")


_TAKEN = Deposit | Version | Replace | Rejudge | Empty


@dataclass(slots=True)
class _Gaps:
    """A comparison under way."""

    nested: frozenset[str]
    gone: list[Known] = field(default_factory=list)
    changed: list[tuple[Known, Seen]] = field(default_factory=list)
    new: list[Seen] = field(default_factory=list)
    unreadable: set[str] = field(default_factory=set)
    known: int = 0
    seen: int = 0


def _parts(decision: deposit.Decision) -> tuple[Seen, Known | None]:
    assert isinstance(decision, _TAKEN)
    return decision.seen, None if isinstance(decision, Deposit) else decision.known


def _hash(tree: ged.Tree, path: str) -> str | None:
    copied = tree.read_deposit(path, lambda _: None)
    return copied.sha256 if isinstance(copied, ged.Copied) else None


def _chunks(raw: Incoming) -> Iterator[bytes]:
    offset = 0
    while chunk := raw.read(offset, 1 << 20):
        offset += len(chunk)
        yield chunk


def _look(raw: Incoming, sha256: str) -> Content:
    size = raw.size

    head, tail = raw.read(0, HEAD), raw.read(max(0, size - TAIL), TAIL)
    return examine(size=size, sha256=sha256, head=head, tail=tail, reopen=lambda: seekable(_chunks(raw)))
