"""Who comes too often waits: counts in memory, asked at RCPT, told of in the store. The SMTP server and the milter ask here.

Knows alone: who is never held back (whom we trust, by network or password: a scanner, the firm's own server), in which
order the limits are asked, and how often it is told. Whoever knocks too often at unknown addresses is answered 450
before anything is looked up, for known ones too: neither the answer nor its time says which they are. An address that was
unknown a moment ago costs nothing when it is asked for again: who mails a client that left is no prober. A domain and a
client are charged for mail that we took: anybody can write a domain, and ask for a client, in mail that we refuse.

Limits: each process counts its own ([smtp] processes), so n of them let through up to n times as much. A restart forgets
the counts, and what was held back since it was last told of, a minute at most. Of MOST subjects of a kind the one that
was busy longest ago is forgotten; of more than MOST_TOLD new ones a minute the rest is held back and not listed.
"""

import asyncio
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial

from sqlite_utils import Database

from relay import clock, log
from relay.commit import Commits
from relay.config import Throttle
from relay.draft import Envelope, Recipient
from relay.store import throttles
from relay.store.throttles import Held
from rules import path, replies, throttle
from rules.peer import Peer
from rules.replies import Reply
from rules.throttle import Account, Subject
from rules.units import Limit

MOST = 10_000
MOST_TOLD = 256
TELL_EVERY = 60.0  # seconds
Wait = Callable[[Account | None, Limit, float], float]


class Throttles:
    """One per process. `held` before a recipient is looked up, `judged` after it, then `begun`, `accepted` after its 250."""

    def __init__(
        self, limits: Throttle, *, writer: Commits, db: Database, time: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits
        self._writer = writer
        self._db = db
        self.time = time
        self._accounts: defaultdict[str, OrderedDict[str, Account]] = defaultdict(OrderedDict)  # by kind
        self._asked: OrderedDict[int, None] = OrderedDict()  # hashes of a peer and an unknown address
        self._order = throttles.cleared(db)
        self._untold: dict[Subject, tuple[int, float]] = {}  # recipients held back, and when one may come
        self._told: dict[Subject, float] = {}  # when, within the last minute
        self._timer: asyncio.TimerHandle | None = None

    def held(self, asked: path.Path, peer: Peer, sender: str) -> Reply | None:
        """The reply to a RCPT of a peer or of a domain that must wait."""
        if peer.trusted:
            return None
        subjects = throttle.of_mail(peer.ip, sender)
        if throttle.is_for_people(asked):
            waits = any(self._must_wait(subject, throttle.wait_for_people) for subject in subjects)
        else:
            waits = any(self._must_wait(subject) for subject in (throttle.of_probe(peer.ip), *subjects))
        return replies.THROTTLED if waits else None

    def judged(self, asked: path.Path, peer: Peer, judged: Recipient | Reply) -> Recipient | Reply:
        """What a RCPT deserves, as its client's limit has it; an unknown one is counted."""
        if peer.trusted:
            return judged
        if isinstance(judged, Recipient):
            client = _client(judged)
            return replies.THROTTLED if client is not None and self._must_wait(client) else judged
        if judged == replies.UNKNOWN:
            self._count_probe(throttle.of_probe(peer.ip), asked)
        return judged

    def begun(self, envelope: Envelope) -> None:
        """One mail more of its peer, whatever becomes of it."""
        if not envelope.peer.trusted:
            self._take(throttle.of_peer(envelope.peer.ip))

    def accepted(self, envelope: Envelope, recipients: Sequence[Recipient]) -> None:
        """One for its sender's domain and each of its clients: with what we refuse nobody uses up what is theirs."""
        if envelope.peer.trusted:
            return
        clients = {client for recipient in recipients if (client := _client(recipient)) is not None}
        for subject in (*throttle.of_domain(envelope.sender), *clients):
            self._take(subject)

    # --- passwords ---------------------------------------------------------------------------------------------------

    def guesses(self, peer: Peer) -> bool:
        """Must it wait before another password of its is looked at?"""
        return not peer.trusted and self._must_wait(throttle.of_guess(peer.ip))

    def guessed(self, peer: Peer) -> None:
        """It gave one that is wrong."""
        if not peer.trusted:
            self._take(throttle.of_guess(peer.ip))

    # --- counts -----------------------------------------------------------------------------------------------------

    def _limit(self, subject: Subject) -> Limit:
        limit: Limit = getattr(self.limits, subject.kind)
        return limit

    def _count_probe(self, subject: Subject, asked: path.Path) -> None:
        key = hash((subject, asked.address.lower()))
        if key not in self._asked:
            self._asked[key] = None
            if len(self._asked) > MOST:
                self._asked.popitem(last=False)
            self._take(subject)

    def _take(self, subject: Subject) -> None:
        limit, accounts = self._limit(subject), self._accounts[subject.kind]
        if limit.count:
            accounts[subject.name] = throttle.taken(accounts.get(subject.name), limit, self.time())
            accounts.move_to_end(subject.name)
            if len(accounts) > MOST:
                accounts.popitem(last=False)

    def _must_wait(self, subject: Subject, asked: Wait = throttle.wait) -> bool:
        accounts, now = self._accounts[subject.kind], self.time()
        wait = asked(accounts.get(subject.name), self._limit(subject), now)
        if not wait or self._is_let_through(subject):
            return False
        accounts.move_to_end(subject.name)  # whoever is held back is not forgotten before those who are not
        self._note(subject, now, now + wait)
        return True

    def _is_let_through(self, subject: Subject) -> bool:
        """By the postmaster, since this was last asked?"""
        order = throttles.cleared(self._db)
        if order == self._order:
            return False
        for cleared in throttles.cleared_after(self._db, self._order):
            self._accounts[cleared.kind].pop(cleared.name, None)
            self._untold.pop(cleared, None)
            self._told.pop(cleared, None)  # if it is held back again, that is news
        self._order = order
        return subject.name not in self._accounts[subject.kind]

    # --- telling ----------------------------------------------------------------------------------------------------

    def _note(self, subject: Subject, now: float, until: float) -> None:
        """One more recipient held back: told at once where it is news, else with the others of the same minute."""
        if subject not in self._untold and subject not in self._told and len(self._told) >= MOST_TOLD:
            return
        count, _ = self._untold.get(subject, (0, 0.0))
        self._untold[subject] = count + 1, until
        if subject not in self._told:
            self._tell([subject], now)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TELL_EVERY, self._tell_all)

    def _tell_all(self) -> None:
        now, self._timer = self.time(), None
        self._told = {subject: at for subject, at in self._told.items() if now - at < TELL_EVERY}
        self._tell([subject for subject in self._untold if subject not in self._told], now)
        if self._told:
            self._timer = asyncio.get_running_loop().call_later(TELL_EVERY, self._tell_all)

    def _tell(self, subjects: Sequence[Subject], now: float) -> None:
        if not subjects:
            return
        at, news = clock.now(), []
        for subject in subjects:
            count, until = self._untold.pop(subject)
            self._told[subject] = now
            free = clock.stamp(at + timedelta(seconds=until - now))
            news.append(Held(subject, clock.stamp(at), free, count))
            log.throttled(subject.kind, subject.name, count)
        self._writer.write(partial(_record, news)).add_done_callback(_written)


def _client(recipient: Recipient) -> Subject | None:
    return throttle.of_route(recipient.route, recipient.client.slug if recipient.client is not None else "")


def _record(news: Sequence[Held], db: Database, _: str) -> None:
    """Where the writer is, which may be another process."""
    throttles.record(db, news)


def _written(done: "asyncio.Future[None]") -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        log.trouble("throttle", error)  # it is held back all the same
