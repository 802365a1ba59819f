"""What the log says of an exception: where and of what kind, never over whose mail."""

import asyncio
import json
import logging
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pysqlite3.dbapi2 as sqlite3
import pytest

from relay import config, log
from relay.spool import SpoolError

NAME = "quetzal"
REPOSITORY = Path(__file__).parents[2]


def _decode() -> None:
    f"{NAME}\udce9".encode("ascii")


def _sqlite() -> None:
    with sqlite3.connect(":memory:") as db:
        db.execute("SELECT CAST(x'E9' || ? AS TEXT)", (NAME.encode(),)).fetchone()


def _unique() -> None:
    with sqlite3.connect(":memory:") as db:
        db.execute("CREATE TABLE t (name TEXT UNIQUE)")
        db.executemany("INSERT INTO t VALUES (?)", [(NAME,), (NAME,)])


def _settings() -> None:
    config.parse(f'[relay]\npostmaster = "no address {NAME}@cabinet.example"\n', "relay.toml")


def _caused() -> None:
    try:
        raise KeyError(NAME)
    except KeyError as error:
        raise ValueError(NAME) from error


def _meanwhile() -> None:
    try:
        raise KeyError(NAME)
    except KeyError:
        {}[f"{NAME}"]


def _group() -> None:
    raise ExceptionGroup(NAME, [ValueError(NAME), OSError(5, NAME, NAME)])


def _raise(error: Exception) -> Callable[[], None]:
    def raising() -> None:
        raise error

    return raising


@pytest.mark.parametrize(
    ("raising", "expected"),
    [
        (_raise(ValueError(f"not a name: {NAME}")), "ValueError security/test_log.py:"),
        (_raise(KeyError(NAME)), "KeyError security/"),
        (_raise(FileNotFoundError(2, "No such file", f"/ged/{NAME}")), "FileNotFoundError (2 No such file or direct"),
        (_raise(OSError(NAME)), "OSError security/"),
        (_raise(ssl.SSLCertVerificationError(1, f"not valid for {NAME}")), "SSLCertVerificationError (1 "),
        (_raise(RuntimeError(NAME)), "RuntimeError security/"),
        (_raise(AttributeError("'Claimed' object has no attribute 'mx'")), "has no attribute 'mx'"),
        (_raise(SpoolError("f/2026-11-24/01m8: 5 bytes expected, 2 found")), "(f/2026-11-24/01m8: 5 bytes expected"),
        (_decode, "UnicodeEncodeError (ascii ordinal not in range(128))"),
        (_sqlite, "OperationalError (Could not decode to UTF-8 column"),
        (_unique, "IntegrityError (UNIQUE constraint failed: t.name)"),
        (_settings, "ConfigError (relay.toml:2: [relay] postmaster: « no address …@… » is not an address"),
        (_caused, " < KeyError "),
        (_meanwhile, " < KeyError "),
        (_group, "[ValueError; OSError (5 Input/output error)]"),
    ],
)
def test_an_exception_is_told_without_what_it_quotes(raising: Callable[[], None], expected: str) -> None:
    try:
        raising()
    except Exception as error:
        told = log.described(error)
    assert expected in told and NAME not in told and "\n" not in told


def test_one_that_leads_back_to_itself_ends() -> None:
    one, other = ValueError(), KeyError()
    one.__cause__, other.__cause__ = other, one
    assert log.described(one) == "ValueError < KeyError"


def test_what_nobody_waited_for_is_told_our_way(caplog: pytest.LogCaptureFixture) -> None:
    async def forgotten() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(log.astray)
        loop.call_soon(_raise(ValueError(NAME)))
        loop.call_exception_handler({"message": NAME})
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with caplog.at_level(logging.ERROR, "welyb-relay"):
        asyncio.run(forgotten())
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all(line.startswith("trouble id=loop") for line in said)
    assert "ValueError" in said[1] and NAME not in "".join(said)


SCRIPT = f"""
import logging, threading
from relay import log
log.set_up()
class Bad:
    def __del__(self):
        raise ValueError("{NAME}")
Bad()
thread = threading.Thread(target=lambda: {{}}["{NAME}"])
thread.start()
thread.join()
try:
    {{}}["{NAME}"]
except KeyError:
    logging.getLogger("mail.log").exception("oh, %s", "{NAME}")
raise ValueError("{NAME}")
"""


def test_whoever_writes_to_stderr_does_it_our_way() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    lines = [line.split(" ", 2)[2] for line in done.stderr.splitlines()]
    kinds = ["ERROR trouble id=unraisable", "ERROR trouble id=thread", "ERROR foreign logger=mail.log", "ERROR trouble"]
    assert [line.startswith(kind) for line, kind in zip(lines, kinds, strict=True)] == [True] * 4, done.stderr
    assert done.returncode == 1 and NAME not in done.stderr and NAME not in done.stdout


JOURNAL = """
import os
from relay import log
seen = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{seen.st_dev}:{seen.st_ino}"
log.set_up("%s")
log.accepted("k3", size=7, peer="192.0.2.1", deliveries=2)
log.trouble("k4", KeyError("quetzal"))
"""


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("text", ["<6>accepted message=k3 size=7 peer=192.0.2.1 deliveries=2", "<3>trouble id=k4 error=KeyError"]),
        ("json", [{"level": "info", "event": "accepted", "message": "k3", "size": 7, "peer": "192.0.2.1", "deliveries": 2},
                  {"level": "error", "event": "trouble", "id": "k4", "error": "KeyError"}]),
    ],
)  # fmt: skip
def test_the_journal_is_told_levels_and_programs_get_objects(form: str, said: list[object]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", JOURNAL % form], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    lines = done.stderr.splitlines()
    if form == "text":
        assert lines == said
    else:
        assert [line[:3] for line in lines] == ["<6>", "<3>"]
        found = [json.loads(line[3:]) for line in lines]
        assert all(each.pop("at") for each in found) and found == said


def test_a_client_is_a_hash(caplog: pytest.LogCaptureFixture) -> None:
    log.client_unclear(NAME, "ambiguous")
    assert caplog.messages == ["client-unclear client=8a77370ceb18 why=ambiguous"]
