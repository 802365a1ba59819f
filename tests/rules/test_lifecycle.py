"""The life of a delivery: every state against every change, and every time it computes."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from zoneinfo import ZoneInfo

import pytest

from rules.lifecycle import (
    ALIVE,
    COUNTS_NOT_AS_DONE,
    FINAL,
    INITIAL,
    POSTMASTER,
    TRANSITIONS,
    Change,
    Schedule,
    State,
    after,
    backoff,
    catch_up,
    grid_at_or_after,
    next_run,
    reschedule,
)

QUARTER = timedelta(minutes=15)
DAYS = timedelta(days=5)
WARN = timedelta(hours=4)

# Every legal change, state by state; whatever is not here is illegal. Written out, not taken from the table under test.
LEGAL = {
    (State.WAITING, Change.HOLD): State.HELD,
    (State.WAITING, Change.DROP): State.DROPPED,
    (State.WAITING, Change.CLAIM_SEND): State.SENDING,
    (State.WAITING, Change.CLAIM_FILE): State.FILING,
    (State.WAITING, Change.FAIL): State.FAILED,
    (State.WAITING, Change.REFUSE): State.REFUSED,
    (State.WAITING, Change.SUSPEND): State.HELD,
    (State.WAITING, Change.MATCH): State.DUPLICATE,
    (State.SENDING, Change.SUCCEED_SEND): State.SENT,
    (State.SENDING, Change.DEFER): State.WAITING,
    (State.SENDING, Change.FAIL): State.FAILED,
    (State.FILING, Change.SUCCEED_FILE): State.FILED,
    (State.FILING, Change.DEFER): State.WAITING,
    (State.FILING, Change.FAIL): State.FAILED,
    (State.SENT, Change.BOUNCE): State.BOUNCED,
    (State.HANDED, Change.BOUNCE): State.BOUNCED,
    (State.HELD, Change.RELEASE): State.WAITING,
    (State.HELD, Change.DROP): State.DROPPED,
    (State.REFUSED, Change.RETRY): State.WAITING,
    (State.REFUSED, Change.DROP): State.DROPPED,
    (State.FAILED, Change.RETRY): State.WAITING,
    (State.FAILED, Change.DROP): State.DROPPED,
    (State.DUPLICATE, Change.REVIVE): State.WAITING,
}


@pytest.mark.parametrize(("state", "change"), list(product(State, Change)))
def test_every_state_against_every_change(state: State, change: Change) -> None:
    assert after(state, change) == LEGAL.get((state, change))


def test_every_change_has_a_row() -> None:
    assert set(TRANSITIONS) == set(Change)


def test_nothing_the_postmaster_says_touches_a_delivery_in_flight() -> None:
    assert [c for c in POSTMASTER for s in (State.SENDING, State.FILING) if after(s, c)] == []


def test_every_state_is_alive_or_final_and_can_be_reached() -> None:
    assert set(State) == ALIVE | FINAL
    assert not ALIVE & FINAL
    assert set(State) == INITIAL | set(LEGAL.values())
    assert COUNTS_NOT_AS_DONE < FINAL


# --- the grid ---------------------------------------------------------------------------------------------------------


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    ("now", "grid", "following"),
    [
        ("2026-11-24T10:00:00Z", "2026-11-24T10:00:00Z", "2026-11-24T10:15:00Z"),
        ("2026-11-24T10:00:00.000001Z", "2026-11-24T10:15:00Z", "2026-11-24T10:15:00Z"),
        ("2026-11-24T10:14:59.999999Z", "2026-11-24T10:15:00Z", "2026-11-24T10:15:00Z"),
        ("2026-11-24T23:45:00Z", "2026-11-24T23:45:00Z", "2026-11-25T00:00:00Z"),
        ("2026-12-31T23:59:00Z", "2027-01-01T00:00:00Z", "2027-01-01T00:00:00Z"),
    ],
)
def test_the_grid(now: str, grid: str, following: str) -> None:
    assert grid_at_or_after(at(now), QUARTER) == at(grid)
    assert next_run(at(now), QUARTER) == at(following)


@pytest.mark.parametrize("zone", ["Europe/Paris", "Asia/Kathmandu", "America/St_Johns"])
def test_the_quarters_of_every_zone_are_the_same(zone: str) -> None:
    local = datetime(2026, 11, 24, 10, 7, tzinfo=ZoneInfo(zone))
    assert next_run(local, QUARTER).astimezone(ZoneInfo(zone)).minute % 15 == 0


@pytest.mark.parametrize("night", ["2026-03-29T00:50:00Z", "2026-10-25T00:50:00Z"])
def test_the_clock_change_neither_skips_nor_doubles_a_run(night: str) -> None:
    """Paris goes from 02:00 to 03:00, and back from 03:00 to 02:00: still four runs an hour."""
    instant, seen = at(night).astimezone(ZoneInfo("Europe/Paris")), []
    for _ in range(8):
        instant = next_run(instant, QUARTER)
        seen.append(instant)
    assert [b - a for a, b in pairwise(seen)] == [QUARTER] * 7


@pytest.mark.parametrize(
    ("last_started", "now", "missed"),
    [
        (None, "2026-11-24T10:20:00Z", False),  # never ran: nothing was missed
        ("2026-11-24T10:15:00Z", "2026-11-24T10:20:00Z", False),
        ("2026-11-24T10:15:00Z", "2026-11-24T10:30:00Z", False),  # due this instant: the clock does it
        ("2026-11-24T10:15:00Z", "2026-11-24T10:30:01Z", True),
        ("2026-11-20T10:15:00Z", "2026-11-24T10:30:01Z", True),  # four days down: one run, not 384
        ("2026-11-24T11:15:00Z", "2026-11-24T10:20:00Z", False),  # the clock went back an hour
    ],
)
def test_catch_up(last_started: str | None, now: str, missed: bool) -> None:
    assert catch_up(at(last_started) if last_started else None, at(now), QUARTER) is missed


# --- attempts ---------------------------------------------------------------------------------------------------------


def test_backoff_is_15_15_30_60_then_hourly() -> None:
    assert [backoff(n).total_seconds() / 60 for n in range(1, 8)] == [15, 15, 30, 60, 60, 60, 60]


def story(created: datetime, every: timedelta = QUARTER, *, took: timedelta = timedelta()) -> list[datetime]:
    """The attempts of a delivery that never succeeds, from its first run on; each takes `took` to fail."""
    tried, attempts, due = [], 0, next_run(created, every)
    while True:
        tried.append(due)
        attempts += 1
        now = due + took
        schedule = reschedule(
            attempts=attempts, now=now, created_at=created, expires_at=created + DAYS, every=every, warn_after=WARN
        )
        if schedule.give_up:
            return tried
        due = schedule.due_at


@pytest.mark.parametrize("took", [timedelta(), timedelta(seconds=1), timedelta(minutes=2)])
def test_the_runs_at_which_a_delivery_is_tried(took: timedelta) -> None:
    created = datetime(2026, 11, 24, 10, 7, tzinfo=UTC)
    tried = story(created, took=took)
    waits = [(b - a).total_seconds() / 60 for a, b in pairwise(tried)]
    assert waits[:6] == [15, 15, 30, 60, 60, 60]
    assert set(waits[3:]) == {60}
    assert DAYS <= tried[-1] - created < DAYS + timedelta(hours=1)  # RFC 5321 §4.5.4.1: at least 4-5 days
    assert all(t.minute % 15 == 0 for t in tried)


@pytest.mark.parametrize("minutes", [5, 15, 60, 1440])
def test_the_next_attempt_is_a_later_run_of_any_grid(minutes: int) -> None:
    every = timedelta(minutes=minutes)
    tried = story(datetime(2026, 11, 24, 10, 7, tzinfo=UTC), every)
    assert all(a < b and (b - a) % every == timedelta() for a, b in pairwise(tried))


@pytest.mark.parametrize(
    ("waited", "give_up", "warn"),
    [
        (timedelta(hours=3, minutes=59), False, False),
        (WARN, False, True),
        (DAYS - timedelta(seconds=1), False, True),
        (DAYS, True, True),
        (timedelta(days=30), True, True),  # the machine was off
        (timedelta(hours=-1), False, False),  # the clock went back
    ],
)
def test_when_to_warn_and_when_to_give_up(waited: timedelta, give_up: bool, warn: bool) -> None:
    created = datetime(2026, 11, 24, 10, 7, tzinfo=UTC)
    schedule = reschedule(
        attempts=9,
        now=created + waited,
        created_at=created,
        expires_at=created + DAYS,
        every=QUARTER,
        warn_after=WARN,
    )
    assert schedule == Schedule(schedule.due_at, give_up=give_up, warn=warn)
    assert schedule.due_at > created + waited
