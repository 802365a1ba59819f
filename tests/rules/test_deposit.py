"""Golden cases: what differs between the inventory and the tree, and what it means."""

from dataclasses import replace
from itertools import product

import pytest

from rules.deposit import (
    Decision,
    Departed,
    Deposit,
    Difference,
    Empty,
    EmptyWait,
    Known,
    Moved,
    Rejudge,
    Replace,
    Returned,
    Role,
    Seen,
    Touched,
    Unsettled,
    Version,
    decide,
    doubt,
    is_baseline,
    questions,
)

SECOND = 1_000_000_000
NOW = 1_000 * SECOND
OLD = 10 * SECOND  # long before NOW: settled
SETTLE = 5 * SECOND


def seen(path: str, inode: int = 1, *, size: int = 100, mtime: int = OLD, ctime: int = OLD) -> Seen:
    return Seen(path, 8, inode, size, mtime, ctime)


def known(at: Seen, role: Role = "baseline", sha256: str | None = None) -> Known:
    return Known(at.path, at.device, at.inode, at.size, at.mtime_ns, at.ctime_ns, role, sha256)


def decided(difference: Difference, **hashes: str) -> tuple[Decision, ...]:
    """With hashes by the last letter before ".pdf" of the path; only those asked for are given."""
    asked = questions(difference, now_ns=NOW, settle_ns=SETTLE)
    answers = {path: hashes[path[-5]] for path in asked if path[-5] in hashes}
    return decide(difference, answers, now_ns=NOW, settle_ns=SETTLE)


def asks(difference: Difference) -> frozenset[str]:
    return questions(difference, now_ns=NOW, settle_ns=SETTLE)


A, B, C = seen("a.pdf", 1), seen("b.pdf", 2), seen("x/c.pdf", 3)

# --- activation ---


def test_baseline_is_told_by_ctime_alone() -> None:
    assert is_baseline(seen("a.pdf", mtime=99, ctime=49), activated_ns=50)
    assert not is_baseline(seen("a.pdf", mtime=1, ctime=50), activated_ns=50)  # cp -p: an old mtime


# --- deposits ---


def test_a_path_without_a_row_is_a_deposit_whatever_its_times() -> None:
    moved_in_with_its_folder = seen("new/a.pdf", ctime=1)
    assert decided(Difference(new=(A, moved_in_with_its_folder))) == (Deposit(A), Deposit(moved_in_with_its_folder))


def test_a_hard_link_is_a_deposit_and_its_twin_is_only_touched() -> None:
    twin, link = replace(A, ctime_ns=OLD + 1), replace(A, path="x/a.pdf", ctime_ns=OLD + 1)
    difference = Difference(changed=((known(A, sha256="h"), twin),), new=(link,))
    assert decided(difference, a="h") == (Touched(known(A, sha256="h"), twin), Deposit(link))


@pytest.mark.parametrize("ctime", [NOW - SETTLE + 1, NOW, NOW + 3600 * SECOND])
def test_a_young_file_or_one_of_the_future_waits(ctime: int) -> None:
    young = seen("a.pdf", ctime=ctime)
    assert decided(Difference(new=(young,))) == (Unsettled(young),)
    bigger = replace(young, size=200)
    assert decided(Difference(changed=((known(A, "sent"), bigger),))) == (Unsettled(bigger),)


def test_settled_to_the_nanosecond() -> None:
    just = seen("a.pdf", ctime=NOW - SETTLE)
    assert decided(Difference(new=(just,))) == (Deposit(just),)


def test_zero_bytes_wait_one_run() -> None:
    empty = seen("a.pdf", size=0)
    assert decided(Difference(new=(empty,))) == (EmptyWait(empty),)
    row = known(empty, "empty")
    assert decided(Difference(changed=((row, empty),))) == (Empty(row, empty),)
    assert decided(Difference(changed=((row, A),))) == (Deposit(A),)
    filling = replace(A, ctime_ns=NOW)
    assert decided(Difference(changed=((row, filling),))) == (Unsettled(filling),)


# --- changes in the same place ---

BIGGER = replace(A, size=101, mtime_ns=OLD + 1, ctime_ns=OLD + 1)


@pytest.mark.parametrize(
    ("role", "decision"),
    [("baseline", Version), ("sent", Version), ("pending", Replace), ("held", Replace), ("refused", Rejudge)],
)
def test_new_bytes_mean_something_else_for_each_role(role: Role, decision: type[Version]) -> None:
    row = known(A, role, "h")
    assert decided(Difference(changed=((row, BIGGER),))) == (decision(row, BIGGER),)


def test_a_file_replaced_under_its_name_is_changed() -> None:
    row, other = known(A, "sent", "h"), replace(A, inode=9, ctime_ns=OLD + 1)
    difference = Difference(changed=((row, other),))
    assert asks(difference) == {"a.pdf"}
    assert decided(difference, a="other") == (Version(row, other),)
    assert decided(difference, a="h") == (Touched(row, other),)


def test_chmod_asks_nothing() -> None:
    row, changed = known(A, "sent", "h"), replace(A, ctime_ns=NOW)
    difference = Difference(changed=((row, changed),))
    assert asks(difference) == frozenset()
    assert decided(difference) == (Touched(row, changed),)


def test_another_device_number_after_a_restart_is_no_change() -> None:
    row, same = known(A), replace(A, device=77)
    assert decided(Difference(changed=((row, same),))) == (Touched(row, same),)


def test_touch_is_told_from_a_change_by_the_hash() -> None:
    row, touched = known(A, "baseline", "h"), replace(A, mtime_ns=OLD + 1, ctime_ns=OLD + 1)
    difference = Difference(changed=((row, touched),))
    assert asks(difference) == {"a.pdf"}
    assert decided(difference, a="h") == (Touched(row, touched),)
    assert decided(difference, a="new") == (Version(row, touched),)
    assert decided(difference) == (Unsettled(touched),)


def test_touch_of_a_baseline_file_not_yet_hashed_leaves_it_baseline() -> None:
    row, touched = known(A), replace(A, mtime_ns=OLD + 1, ctime_ns=OLD + 1)
    difference = Difference(changed=((row, touched),))
    assert asks(difference) == frozenset() and decided(difference) == (Touched(row, touched),)
    replaced = replace(touched, inode=9)
    assert decided(Difference(changed=((row, replaced),))) == (Version(row, replaced),)


# --- moves ---


@pytest.mark.parametrize("role", ["baseline", "sent", "pending", "refused", "held", "empty"])
def test_a_rename_is_a_move(role: Role) -> None:
    row, renamed = known(A, role, "h"), replace(A, path="x/z.pdf", ctime_ns=NOW)
    difference = Difference(gone=(row,), new=(renamed,))
    assert asks(difference) == {"x/z.pdf"}
    assert decided(difference, z="h") == (Moved(row, renamed),)


def test_a_folder_renamed_moves_its_files_unread() -> None:
    rows = known(A, "sent", "h"), known(C, "baseline", "k")
    there = replace(A, path="new/a.pdf"), replace(C, path="new/x/c.pdf")
    difference = Difference(gone=rows, new=there)
    assert asks(difference) == frozenset()
    assert decided(difference) == (Moved(rows[0], there[0]), Moved(rows[1], there[1]))


def test_a_reused_inode_is_no_move() -> None:
    row = known(A, "sent", "h")
    for other in (
        replace(A, path="n.pdf", size=7, ctime_ns=OLD + 1),
        replace(A, path="n.pdf", mtime_ns=7, ctime_ns=OLD + 1),
        replace(A, path="n.pdf", device=9, ctime_ns=OLD + 1),
        replace(A, path="n.pdf", ctime_ns=OLD + 1),  # all the same, but for its bytes
    ):
        assert decided(Difference(gone=(row,), new=(other,)), n="n") == (Departed(row), Deposit(other))


def test_a_move_whose_hash_is_missing_is_left_alone() -> None:
    row, renamed = known(A, "sent", "h"), replace(A, path="z.pdf", ctime_ns=NOW)
    assert decided(Difference(gone=(row,), new=(renamed,))) == (Unsettled(renamed),)


def test_two_names_for_one_file_count_as_one_move_and_one_deposit() -> None:
    row = known(A, "sent")
    other, same_name = replace(A, path="b.pdf"), replace(A, path="x/a.pdf")
    assert decided(Difference(gone=(row,), new=(other, same_name))) == (Moved(row, other), Deposit(same_name))


def test_hard_links_that_move_together_keep_their_names() -> None:
    rows = known(A, "sent"), known(replace(A, path="b.pdf"), "baseline")
    there = replace(A, path="x/a.pdf"), replace(A, path="x/b.pdf")
    for gone in (rows, rows[::-1]):
        assert decided(Difference(gone=gone, new=there)) == (Moved(rows[0], there[0]), Moved(rows[1], there[1]))


def test_files_can_swap_places() -> None:
    row_a, row_b = known(A, "pending", "ha"), known(B, "baseline", "hb")
    now_a, now_b = replace(B, path="a.pdf"), replace(A, path="b.pdf")
    difference = Difference(changed=((row_a, now_a), (row_b, now_b)))
    assert decided(difference) == (Moved(row_b, now_a), Moved(row_a, now_b))


def test_a_baseline_file_moved_over_a_pending_one_is_not_sent_in_its_place() -> None:
    row_a, row_b = known(A, "pending", "ha"), known(B, "baseline")
    now_a = replace(B, path="a.pdf", ctime_ns=NOW)
    difference = Difference(changed=((row_a, now_a),), gone=(row_b,))
    assert decided(difference) == (Departed(row_a), Moved(row_b, now_a))


def test_a_new_file_where_a_moved_one_stood_is_a_deposit() -> None:
    row = known(A, "sent", "h")
    archived, next_scan = replace(A, path="done/a.pdf", ctime_ns=NOW - 9 * SECOND), seen("a.pdf", 9, size=55)
    difference = Difference(changed=((row, next_scan),), new=(archived,))
    assert decided(difference, a="h") == (Moved(row, archived), Deposit(next_scan))
    assert set(decided(difference)) == {Unsettled(archived), Unsettled(next_scan)}


# --- departures and returns ---


def test_a_departure() -> None:
    assert decided(Difference(gone=(known(A, "sent"),))) == (Departed(known(A, "sent")),)


def test_nothing_below_an_unreadable_folder_has_departed() -> None:
    row, other = known(C), known(A)
    assert decided(Difference(gone=(row, other), unreadable=frozenset({"x"}))) == (Departed(other),)
    assert decided(Difference(gone=(row,), unreadable=frozenset({"x/c.pdf"}))) == ()
    assert decided(Difference(gone=(row,), unreadable=frozenset({"x/c", "c.pdf"}))) == (Departed(row),)
    assert decided(Difference(gone=(row, other), unreadable=frozenset({""}))) == ()
    elsewhere = replace(C, path="c.pdf")
    difference = Difference(gone=(row,), new=(elsewhere,), unreadable=frozenset({"x"}))
    assert decided(difference) == (Unsettled(elsewhere),)


def test_a_baseline_file_that_comes_back_is_baseline_by_its_hash() -> None:
    gone = known(A, "departed", "h")
    back = seen("x/b.pdf", 50, mtime=77)
    difference = Difference(new=(back,), away=(gone,))
    assert asks(difference) == {"x/b.pdf"}
    assert decided(difference, b="h") == (Returned(gone, back),)
    assert decided(difference, b="other") == (Deposit(back),)
    assert decided(difference) == (Unsettled(back),)
    same_look, other_bytes = Difference(new=(A,), away=(gone,)), "other"
    assert decided(same_look, a=other_bytes) == (Deposit(A),)


def test_a_baseline_file_without_hash_comes_back_by_name_size_and_mtime_or_as_the_same_file() -> None:
    gone = known(A, "departed")
    by_name, by_inode = seen("x/a.pdf", 50), replace(A, path="z.pdf", ctime_ns=OLD + 1)
    for back in (by_name, by_inode):
        assert decided(Difference(new=(back,), away=(gone,))) == (Returned(gone, back),)
    for other in (seen("x/b.pdf", 50), seen("a.pdf", 50, mtime=7), seen("a.pdf", 50, size=7)):
        assert decided(Difference(new=(other,), away=(gone,))) == (Deposit(other),)


def test_a_baseline_file_copied_and_deleted_is_baseline_still() -> None:
    row, copy = known(A, "baseline", "h"), seen("x/b.pdf", 50, mtime=77)
    assert decided(Difference(gone=(row,), new=(copy,)), b="h") == (Returned(row, copy),)


def test_a_sent_file_that_comes_back_is_a_deposit() -> None:
    row, copy = known(A, "sent", "h"), seen("x/a.pdf", 50)
    assert decided(Difference(gone=(row,), new=(copy,)), a="h") == (Departed(row), Deposit(copy))


def test_a_return_stands_for_one_file() -> None:
    gone = known(A, "departed", "h")
    one, two = seen("x/a.pdf", 50), seen("y/a.pdf", 51)
    assert decided(Difference(new=(one, two), away=(gone,)), a="h") == (Returned(gone, one), Deposit(two))


def test_an_empty_file_is_no_file_that_came_back() -> None:
    empty = seen("a.pdf", 9, size=0)
    for sha256 in (None, "h"):
        gone = known(seen("a.pdf", size=0), "departed", sha256)
        assert decided(Difference(new=(empty,), away=(gone,)), a="h") == (EmptyWait(empty),)


# --- the tree as a whole ---

HERE = (1, 2)


@pytest.mark.parametrize(
    ("now", "counts", "expected"),
    [
        (HERE, (10, 10, 0), None),
        (HERE, (10, 5, 5), None),
        (HERE, (10, 4, 6), "half"),
        (HERE, (10, 0, 10), "empty"),
        (HERE, (0, 0, 0), None),
        (HERE, (0, 3, 0), None),
        ((1, 3), (10, 10, 0), "identity"),
        ((9, 2), (0, 0, 0), "identity"),
        (None, (10, 0, 0), "unreadable"),
    ],
)
def test_doubt(now: tuple[int, int] | None, counts: tuple[int, int, int], expected: str | None) -> None:
    rows, there, departed = counts
    assert doubt(HERE, now, known=rows, seen=there, departed=departed) == expected


# --- the whole against a model ---


def test_every_difference_is_decided_once() -> None:
    """Nothing is dropped, nothing decided twice, over all pairs of rows and files of a small world."""
    roles: tuple[Role, ...] = ("baseline", "sent", "pending")
    for role, hash_a, hash_b in product(roles, (None, "h"), (None, "h")):
        row_a, row_b = known(A, role, hash_a), known(B, "baseline", hash_b)
        for now_a, now_z in product((None, A, B, replace(A, size=9)), (None, A, B, seen("z.pdf", 7))):
            for had in ({"a": "h", "z": "h"}, {"a": "h"}, {"z": "h"}, {}):
                _check_decided_once(_difference(row_a, row_b, now_a, now_z), had)


def _difference(row_a: Known, row_b: Known, now_a: Seen | None, now_z: Seen | None) -> Difference:
    at_a = now_a and replace(now_a, path="a.pdf", ctime_ns=OLD + 1)
    at_z = now_z and replace(now_z, path="z.pdf", ctime_ns=OLD + 1)
    return Difference(
        gone=(row_b,) if at_a else (row_a, row_b),
        changed=((row_a, at_a),) if at_a else (),
        new=(at_z,) if at_z else (),
    )


def _check_decided_once(difference: Difference, hashes: dict[str, str]) -> None:
    before = {*difference.gone, *(row for row, _ in difference.changed)}
    there = sorted(s.path for s in (*difference.new, *(s for _, s in difference.changed)))
    decisions = decided(difference, **hashes)
    assert sorted(d.seen.path for d in decisions if not isinstance(d, Departed)) == there
    rows = [d.known for d in decisions if not isinstance(d, Deposit | Unsettled | EmptyWait)]
    assert len(rows) == len(set(rows)) and set(rows) <= before
    if not any(isinstance(d, Unsettled) for d in decisions):
        assert set(rows) == before
    # A row left alone keeps its place: no other file is recorded there.
    kept = {row.path for row in before - set(rows)}
    assert not kept & {d.seen.path for d in decisions if not isinstance(d, Departed | Unsettled)}
