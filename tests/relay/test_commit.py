"""Bytes durable, then one transaction, then the word: with a real database, a real spool and a second process's lock."""

import asyncio
from collections.abc import Callable, Coroutine
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlite_utils import Database

from relay.commit import BATCH, Writer
from relay.spool import Spool
from relay.store.database import open_for_reading, open_for_writing, rows, transaction
from relay.store.directory import set_meta
from tests.relay.test_spool import files_no_larger_than

Story = Callable[[Writer, Database, Spool], Coroutine[Any, Any, None]]


def tell(folder: Path, story: Story) -> Database:
    """Runs `story` with a writer, and a connection of its own to look; then closes in order."""

    async def all_of_it() -> None:
        numbers = count(1)
        db, spool = open_for_writing(folder / "relay.db"), Spool(folder / "spool", lambda: f"s{next(numbers)}")
        writer = Writer(db, spool)
        try:
            await story(writer, open_for_reading(folder / "relay.db"), spool)
        finally:
            await writer.close()
            spool.close()
            db.close()

    asyncio.run(all_of_it())
    return open_for_reading(folder / "relay.db")


def kept(db: Database) -> dict[str, str]:
    return {str(name): str(value) for name, value in rows(db, "SELECT name, value FROM meta")}


def note(name: str, value: str = "x") -> Callable[[Database, str], str]:
    def change(db: Database, key: str) -> str:
        set_meta(db, name, key or value)
        return key

    return change


def trouble(db: Database, _: str) -> str:
    set_meta(db, "bad", "never")
    raise ValueError("this one cannot be")


def test_bytes_then_rows_then_the_word(tmp_path: Path) -> None:
    async def story(writer: Writer, look: Database, spool: Spool) -> None:
        seen: list[bytes] = []

        def change(db: Database, key: str) -> str:
            set_meta(db, "mail", key)
            assert kept(look) == {}, "no row before the commit"

            def on_statement(statement: str) -> None:
                if statement == "COMMIT":
                    with spool.open(key) as body:
                        seen.append(body.read(0, 100))

            db.conn.set_trace_callback(on_statement)
            return key

        await writer.write(change, b"the bytes")
        assert seen == [b"the bytes"], "the bytes are there when the commit begins"
        assert list(kept(look)) == ["mail"], "but before anyone is told"

    tell(tmp_path, story)


def test_what_comes_together_shares_one_sync(tmp_path: Path) -> None:
    async def story(writer: Writer, look: Database, spool: Spool) -> None:
        others = asyncio.gather(*(writer.write(note(f"m{n}"), b"%d" % n) for n in range(3 * BATCH)))
        keys = await others
        assert len(set(keys)) == 3 * BATCH
        assert {spool_key.split("/")[1] for spool_key in keys} == {"s1"}
        for number, key in enumerate(keys):
            with spool.open(key) as body:
                assert body.read(0, 10) == b"%d" % number

    assert len(kept(tell(tmp_path, story))) == 3 * BATCH


def test_one_that_fails_refuses_nobody_else(tmp_path: Path) -> None:
    async def story(writer: Writer, look: Database, spool: Spool) -> None:
        jobs = [writer.write(note("a"), b"a"), writer.write(trouble, b"b"), writer.write(note("c"))]
        first, second, third = await asyncio.gather(*jobs, return_exceptions=True)
        assert isinstance(second, ValueError)
        assert (type(first), third) == (str, "")
        assert kept(look).keys() == {"a", "c"}
        await writer.write(note("later"))

    assert kept(tell(tmp_path, story)).keys() == {"a", "c", "later"}


def test_whoever_waits_may_leave_the_change_stands(tmp_path: Path) -> None:
    async def story(writer: Writer, look: Database, spool: Spool) -> None:
        waiting = asyncio.ensure_future(writer.write(note("a"), b"a"))
        waiting.cancel()
        await writer.write(note("b"))

    assert kept(tell(tmp_path, story)).keys() == {"a", "b"}


def test_close_finishes_what_was_given(tmp_path: Path) -> None:
    async def story(writer: Writer, look: Database, spool: Spool) -> None:
        for number in range(BATCH + 1):
            writer.write(note(f"m{number}"))

    assert len(kept(tell(tmp_path, story))) == BATCH + 1


def test_a_full_disk_refuses_and_leaves_no_row(tmp_path: Path) -> None:
    async def story(writer: Writer, look: Database, spool: Spool) -> None:
        await writer.write(note("before"), b"b")
        with files_no_larger_than(1_000_000):
            tried = [writer.write(note("no"), b"x" * 2_000_000), writer.write(note("small"), b"y")]
            large, small = await asyncio.gather(*tried, return_exceptions=True)
        assert isinstance(large, OSError)
        assert isinstance(small, str), "what still fits is taken"
        with spool.open(small) as body:
            assert body.read(0, 10) == b"y"
        await writer.write(note("after"), b"z" * 2_000_000)

    assert kept(tell(tmp_path, story)).keys() == {"before", "small", "after"}


def test_another_process_that_writes_is_waited_for(tmp_path: Path) -> None:
    async def story(writer: Writer, look: Database, spool: Spool) -> None:
        other = open_for_writing(tmp_path / "relay.db")
        with transaction(other):
            set_meta(other, "theirs", "1")
            ours = asyncio.ensure_future(writer.write(note("ours")))
            await asyncio.sleep(0.2)
            assert not ours.done()
        await ours
        other.close()

    assert kept(tell(tmp_path, story)).keys() == {"theirs", "ours"}


@pytest.mark.parametrize("ending", [ValueError, asyncio.CancelledError])
def test_a_transaction_that_is_left_by_an_exception_never_was(tmp_path: Path, ending: type[BaseException]) -> None:
    db = open_for_writing(tmp_path / "relay.db")
    with pytest.raises(ending), transaction(db):
        set_meta(db, "a", "1")
        raise ending
    with transaction(db):
        set_meta(db, "b", "1")
    assert kept(db) == {"b": "1"}
