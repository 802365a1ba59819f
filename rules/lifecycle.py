"""The life of a delivery: its states, what may change them, and when the next attempt is due.

Knows alone: which change is legal from which state, where the quarter-hour grid falls, how long to back off and when
to give up. Limits: it decides from values; that a change happened is the store's word, written with its event.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum


class State(StrEnum):
    WAITING = "waiting"  # for a run (send) or for the filing worker (file)
    SENDING = "sending"  # claimed: an attempt is under way
    SENT = "sent"  # the next hop said 250 after the dot
    FILING = "filing"
    FILED = "filed"  # its file stands in the GED under its final name
    HELD = "held"  # by the postmaster, or by a rule; only `release` moves it
    REFUSED = "refused"  # by our rules
    FAILED = "failed"  # by the far side, or given up
    DUPLICATE = "duplicate"  # the same document is sent or on its way
    DROPPED = "dropped"  # by the postmaster
    BOUNCED = "bounced"  # sent, then a failure report came back
    HANDED = (
        "handed"  # left to the mail server in front of us, which sends it on itself; whether it arrives is its to say
    )


class Change(StrEnum):
    """What can happen to a delivery. The first group is the postmaster's; the rest is the machine's."""

    HOLD = "hold"
    RELEASE = "release"
    DROP = "drop"
    RETRY = "retry"

    CLAIM_SEND = "claim-send"
    CLAIM_FILE = "claim-file"
    SUCCEED_SEND = "succeed-send"
    SUCCEED_FILE = "succeed-file"
    DEFER = "defer"
    FAIL = "fail"
    REFUSE = "refuse"
    SUSPEND = "suspend"  # a rule holds it: a version, an origin that must not be sent back
    MATCH = "match"  # it turned out to be the same as one sent or on its way
    BOUNCE = "bounce"
    REVIVE = "revive"  # the one it was the same as came to nothing


_S, _C = State, Change

TRANSITIONS: dict[Change, tuple[frozenset[State], State]] = {
    _C.HOLD: (frozenset({_S.WAITING}), _S.HELD),
    _C.RELEASE: (frozenset({_S.HELD}), _S.WAITING),
    _C.DROP: (frozenset({_S.WAITING, _S.HELD, _S.REFUSED, _S.FAILED}), _S.DROPPED),
    _C.RETRY: (frozenset({_S.REFUSED, _S.FAILED}), _S.WAITING),
    _C.CLAIM_SEND: (frozenset({_S.WAITING}), _S.SENDING),
    _C.CLAIM_FILE: (frozenset({_S.WAITING}), _S.FILING),
    _C.SUCCEED_SEND: (frozenset({_S.SENDING}), _S.SENT),
    _C.SUCCEED_FILE: (frozenset({_S.FILING}), _S.FILED),
    _C.DEFER: (frozenset({_S.SENDING, _S.FILING}), _S.WAITING),
    _C.FAIL: (frozenset({_S.SENDING, _S.FILING, _S.WAITING}), _S.FAILED),
    _C.REFUSE: (frozenset({_S.WAITING}), _S.REFUSED),
    _C.SUSPEND: (frozenset({_S.WAITING}), _S.HELD),
    _C.MATCH: (frozenset({_S.WAITING}), _S.DUPLICATE),
    _C.BOUNCE: (frozenset({_S.SENT, _S.HANDED}), _S.BOUNCED),
    _C.REVIVE: (frozenset({_S.DUPLICATE}), _S.WAITING),
}

POSTMASTER = (_C.HOLD, _C.RELEASE, _C.DROP, _C.RETRY)
INITIAL = frozenset({_S.WAITING, _S.HELD, _S.REFUSED, _S.DUPLICATE, _S.HANDED})
FINAL = frozenset({_S.SENT, _S.FILED, _S.REFUSED, _S.FAILED, _S.DUPLICATE, _S.DROPPED, _S.BOUNCED, _S.HANDED})
ALIVE = frozenset({_S.WAITING, _S.SENDING, _S.FILING, _S.HELD})
# An earlier delivery of the same thing makes a later one a repeat, or a duplicate, unless it ended in one of these.
COUNTS_NOT_AS_DONE = frozenset({_S.REFUSED, _S.FAILED, _S.DROPPED, _S.BOUNCED})


def after(state: State, change: Change) -> State | None:
    """The state `change` leads to from `state`; None where it is not allowed there."""
    sources, target = TRANSITIONS[change]
    return target if state in sources else None


# --- time -----------------------------------------------------------------------------------------------------------


def grid_at_or_after(instant: datetime, every: timedelta) -> datetime:
    """The first instant of the clock's grid not before `instant`: :00 :15 :30 :45 for a quarter of an hour.

    The grid stands on UTC, whose quarters are those of every zone in use; `instant` must carry a zone.
    """
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    steps = -((epoch - instant) // every)
    return epoch + steps * every


def next_run(instant: datetime, every: timedelta) -> datetime:
    """The first grid instant strictly after `instant`."""
    return grid_at_or_after(instant + timedelta(microseconds=1), every)


def catch_up(last_started: datetime | None, now: datetime, every: timedelta) -> bool:
    """Was a run missed? Whatever the number missed, one run catches them all up."""
    return last_started is not None and next_run(last_started, every) < now


BACKOFF = (timedelta(minutes=15), timedelta(minutes=15), timedelta(minutes=30), timedelta(hours=1))


def backoff(attempts: int) -> timedelta:
    """How long to wait after the `attempts`-th failed attempt (from 1): 15, 15, 30, 60 minutes, then hourly."""
    return BACKOFF[min(attempts, len(BACKOFF)) - 1]


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a delivery that failed for now is tried again (`due_at`), whether it is given up, whether to warn."""

    due_at: datetime
    give_up: bool
    warn: bool


def reschedule(
    *, attempts: int, now: datetime, created_at: datetime, expires_at: datetime, every: timedelta, warn_after: timedelta
) -> Schedule:
    """After a failed attempt: RFC 5321 §4.5.4.1 asks for 4–5 days of trying before giving up.

    The next try falls on the grid, since nothing leaves between runs. `warn` is true once `warn_after` has passed.
    """
    # Counted from the run before, so that one which took two minutes still gets the next quarter, not the one after it.
    due_at = next_run(now + max(backoff(attempts) - every, timedelta()), every)
    return Schedule(due_at, give_up=now >= expires_at, warn=now - created_at >= warn_after)
