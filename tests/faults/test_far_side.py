"""What a collector may do beyond the answers of tests/scenarios/test_failures.py: nothing at all, half of it, or slowly."""

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.crash.audit import rows
from tests.faults.door import LONG, NewRelay, data, letter, post, run, states, until
from tests.faults.far import collectors
from tests.support import debian
from tests.support.farside import HANG_UP, SILENT
from tests.support.relay import Relay, toml

Story = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


def saying(text: bytes, *, then: str) -> Story:
    """Half a reply, and then: "ends" or "waits"."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(text)
        await writer.drain()
        if then == "waits":
            await reader.read()
        else:
            writer.close()

    return say


async def read_a_byte_a_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Of a message larger than what the system and the reader would take in its place."""
    transport: Any = writer.transport
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    transport.pause_reading()
    writer.write(b"354 go\r\n")
    while True:
        await asyncio.sleep(1)
        with suppress(BlockingIOError):
            if not os.read(sock.fileno(), 1):
                return


def a_byte_a_tick(text: bytes) -> Story:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for octet in text:
            writer.write(bytes([octet]))
            await writer.drain()
            await asyncio.sleep(0.02)

    return say


SCRIPTS: dict[str, tuple[dict[str, Any], str, int]] = {
    # name: what it says, the state that leaves, and whether the message may have been taken
    "nobanner": ({"BANNER": SILENT}, "waiting", 0),
    "halfbanner": ({"BANNER": saying(b"220 mx.m", then="waits")}, "waiting", 0),
    "bannerthennothing": ({"EHLO": SILENT}, "waiting", 0),
    "halfehlo": ({"EHLO": saying(b"250-mx.meg.test\r\n250-SIZE", then="ends")}, "waiting", 0),
    "norcpt": ({"RCPT": SILENT}, "waiting", 0),
    "nodata": ({"DATA": SILENT}, "waiting", 0),
    "halfdata": ({"DATA": saying(b"35", then="ends")}, "waiting", 0),
    "nodot": ({"DOT": SILENT}, "waiting", 1),
    "halfdot": ({"DOT": saying(b"250 2.0.0 que", then="ends")}, "waiting", 1),
    "firstlineofdot": ({"DOT": saying(b"250-2.0.0 queued\r\n", then="ends")}, "waiting", 1),
    "halfdotwaits": ({"DOT": saying(b"2", then="waits")}, "waiting", 1),
    "dotcut": ({"DOT": HANG_UP}, "waiting", 1),
    "dribble": ({"DOT": a_byte_a_tick(b"250 2.0.0 queued as A1\r\n")}, "sent", 0),
    "fine": ({}, "sent", 0),
}
HASTE = 200  # the longest wait, for the answer to the dot, is ten minutes


def ruled(folder: Path, new_relay: NewRelay, places: dict[str, str]) -> Relay:
    rules = {name: {"address": f"{name}+{{name}}", "relay": f"{{name}}@{name}.test"} for name in places}
    (folder / "rules.toml").write_text(toml({"rule": rules}))
    routes = {f"{name}.test": place for name, place in places.items()}
    return new_relay({"relay": {"rules": str(folder / "rules.toml")}, "delivery": {"routes": routes}})


@pytest.mark.debian("faketime")
def test_nothing_and_half_of_a_reply(tmp_path: Path, new_relay: NewRelay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flagged « peut-être reçu deux fois » where the final dot was out, and only there; each is tried again."""
    with collectors({name: script for name, (script, _, _) in SCRIPTS.items()}) as found:
        relay = ruled(tmp_path, new_relay, {name: far.place for name, far in found.items()}).start()
        messages = {name: letter() for name in SCRIPTS}
        for name, message in messages.items():
            assert post(relay, message, f"{name}+x@welyb.fr").accepted
        with monkeypatch.context() as hurried:
            for key, value in debian.faked_time(f"+0 x{HASTE}").items():
                hurried.setenv(key, value)
            run(relay)
        rows = {row["route"]: (row["state"], int(row["uncertain"])) for row in relay.json("queue", "list")}
        assert rows == {name: (state, uncertain) for name, (_, state, uncertain) in SCRIPTS.items()}
        for name, (_, state, uncertain) in SCRIPTS.items():
            assert len(found[name].messages) == (state == "sent" or uncertain), name


@pytest.mark.parametrize("size", [9_000_000, 0] if LONG else [9_000_000])
def test_one_byte_a_second_keeps_neither_the_run_nor_the_others(tmp_path: Path, new_relay: NewRelay, size: int) -> None:
    """When the run's time is over the slow one is put off, not flagged: its dot was never sent."""
    scripts: dict[str, dict[str, Any]] = {
        "slow": {"DATA": read_a_byte_a_second} if size else {"BANNER": a_byte_a_tick(b"220" + b"x" * 3000)},
        "fine": {},
    }
    with collectors(scripts) as found:
        relay = ruled(tmp_path, new_relay, {name: far.place for name, far in found.items()})
        relay.configure({"run": {"every": "20 s"}})
        relay.program.env |= debian.faked_time("+0 x5") | {"TZ": "UTC"}
        relay.start()
        slow, fine = letter(size=size), letter()
        assert post(relay, slow, "slow+x@welyb.fr").accepted
        until(lambda: found["slow"].connections, "begin with the slow one")
        assert post(relay, fine, "fine+x@welyb.fr").accepted
        until(lambda: states(relay, fine) == ["sent"], "send the other, in the next run")
        (row,) = [row for row in relay.json("queue", "list") if row["route"] == "slow"]
        assert row["state"] in ("waiting", "sending") and not row["uncertain"]
        until(lambda: told(relay, b"end of the run"), "put the slow one off")
        assert found["slow"].messages == []


def told(relay: Relay, reply: bytes) -> bool:
    replies = [str(row[0]) for row in rows(data(relay), "SELECT reply FROM delivery WHERE route = 'slow'")]
    return reply.decode() in replies[0]
