"""Whatever octets come, cut anywhere: every command has exactly one final reply, every reply is well formed (RFC 5321
§4.2), mail is answered 250 only when its row and its size are in the store, the session ends with its input, and
nothing of it is a trouble of ours.

The listener, the sessions and all behind them are real, in this process; so is the socket. What should have been said
is worked out from the octets and the replies by a few lines here that know commands, mail data and chunks.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from relay import config as configuration
from relay.accept import Intake
from relay.daemon import list_clients_of, means
from relay.directory import Directory
from relay.smtp.conversation import MAX_LINE
from relay.smtp.listener import Listener, bind
from relay.store.database import open_for_reading, rows
from tests.support.effort import examples

LINE = re.compile(rb"(\d{3})([ -])([ -~]*)\r\n")
ACCEPTED = re.compile(r"Message accepte \(accepted\) (\S+)")
PATIENCE = 60  # seconds: far more than any of this takes


@dataclass(frozen=True, slots=True)
class Heard:
    replies: list[tuple[int, str]]
    cut_off: bool  # the server hung up while there was still something to say to it


class Door:
    """A relay that listens; `converse` is one connection, from greeting to end."""

    def __init__(self, runner: asyncio.Runner, port: int, db: Any) -> None:
        self._run, self._port, self._db = runner.run, port, db
        self.troubles: list[str] = []

    def converse(self, pieces: Sequence[bytes]) -> Heard:
        return self._run(asyncio.wait_for(self._converse(pieces), PATIENCE))

    async def _converse(self, pieces: Sequence[bytes]) -> Heard:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        heard = bytearray()
        listening = asyncio.create_task(_listen(reader, heard))
        cut_off = False
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
            writer.write_eof()
        except (ConnectionError, OSError):
            cut_off = True
        try:
            await listening
        except ConnectionError:
            cut_off = True
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        whole = bytes(heard[: heard.rfind(b"\n") + 1] if cut_off else heard)
        return Heard(read(whole, cut_off=cut_off), cut_off)

    def size_of(self, message: str) -> int | None:
        found = rows(self._db, "SELECT size FROM message WHERE id = ?", (message,))
        return int(found[0][0]) if found else None


async def _listen(reader: asyncio.StreamReader, heard: bytearray) -> None:
    while piece := await reader.read(1 << 16):
        heard += piece


def read(heard: bytes, *, cut_off: bool) -> list[tuple[int, str]]:
    """The replies, each with its last line; all of them well formed."""
    replies, code = [], None
    for line in heard.splitlines(keepends=True):
        found = LINE.fullmatch(line)
        assert found and len(line) <= 512, line
        assert b"2" <= line[:1] <= b"5" and code in (None, found[1]), heard
        code = found[1] if found[2] == b"-" else None
        if code is None:
            replies.append((int(found[1]), found[3].decode("ascii")))
    assert cut_off or code is None, heard
    return replies


class _Lines(logging.Handler):
    def __init__(self, kept: list[str]) -> None:
        super().__init__(logging.ERROR)
        self.emit = lambda record: kept.append(record.getMessage())  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    (folder / "ged/Dupont").mkdir(parents=True)
    trustme.CA().issue_cert("mx.welyb.fr").private_key_and_cert_chain_pem.write_to_path(str(folder / "cert.pem"))
    smtp = 'listen = ["127.0.0.1:0"]\ncertificate = "cert.pem"\nkey = "cert.pem"\nmax_message_size = "20 kB"\n'
    (folder / "relay.toml").write_text(
        f'[relay]\ndata = "var"\n[ged]\nroot = "ged"\n[authentication]\nverify = "none"\n[smtp]\n{smtp}'
    )
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()
        yield runner.run(_open(configuration.load(folder / "relay.toml"), stack, runner))
        runner.run(stack.aclose())


async def _open(config: configuration.Config, stack: contextlib.AsyncExitStack, runner: asyncio.Runner) -> Door:
    ruleset = configuration.load_rules(config)
    tools = await stack.enter_async_context(means(config, ruleset))
    list_clients_of(config)
    db = stack.enter_context(contextlib.closing(open_for_reading(config.database)))
    directory = Directory(db, tools.writer, config.ged.root)
    intake = Intake(
        config, ruleset, spool=tools.spool, writer=tools.writer, directory=directory, token_key=tools.token_key
    )
    listener = Listener(intake)
    (share,) = bind(config)
    await listener.start(share)
    stack.push_async_callback(intake.settled)
    stack.push_async_callback(listener.stop)
    door = Door(runner, share[0].socket.getsockname()[1], db)
    for name in ("welyb-relay", "asyncio"):
        handler, logger = _Lines(door.troubles), logging.getLogger(name)
        logger.addHandler(handler)
        stack.callback(logger.removeHandler, handler)
    return door


# --- what should have been said -------------------------------------------------------------------------------------


class Expected:
    """Goes through the octets as RFC 5321 and RFC 3030 have it, taking a reply for every command."""

    def __init__(self, sent: bytes, heard: Heard) -> None:
        self._sent, self._at = sent, 0
        self._replies = list(heard.replies)
        self._cut_off = heard.cut_off
        self._chunks = 0  # octets of the mail in chunks
        self.accepted: list[tuple[str, int]] = []  # message, size

    def check(self) -> None:
        code, _ = self._next() or (421, "")
        while code not in (221, 421) and (line := self._line()) is not None:
            answer = self._answer(line)
            if answer is None:
                break  # it waits for more, or the server is gone
            code, text = answer
            self._note(line, code, text)
        if len(self._replies) == 1 and self._replies[0][0] == 421:
            self._replies.pop()  # too many errors: said behind the last reply
        assert self._replies == [], "a reply too many"

    def _line(self) -> bytes | None:
        end = self._sent.find(b"\n", self._at)
        if end < 0:
            return None
        line, self._at = self._sent[self._at : end], end + 1
        return line.removesuffix(b"\r") if len(line) < MAX_LINE else b""

    def _answer(self, line: bytes) -> tuple[int, str] | None:
        word, _, argument = line.partition(b" ")
        size, _, last = argument.strip().partition(b" ")
        chunked = word.upper() == b"BDAT" and size.isdigit() and len(size) <= 12 and last.upper() in (b"", b"LAST")
        if chunked:
            self._at += int(size)
            self._chunks += int(size)
            if self._at > len(self._sent):
                return None
        answer = self._next()
        if word.upper() == b"DATA" and answer is not None and answer[0] == 354:
            return self._mail_data()
        if word.upper() == b"STARTTLS" and answer is not None and answer[0] == 220:
            return None  # what follows is no handshake
        return answer

    def _mail_data(self) -> tuple[int, str] | None:
        data = b"\r\n" + self._sent[self._at :]
        end = data.find(b"\r\n.\r\n")
        if end < 0:
            return None
        self._at += end + 3
        self._chunks = len(data[: end + 2].replace(b"\r\n.", b"\r\n")) - 2
        return self._next()

    def _next(self) -> tuple[int, str] | None:
        assert self._replies or self._cut_off, f"no reply to what ends at {self._at}"
        return self._replies.pop(0) if self._replies else None

    def _note(self, line: bytes, code: int, text: str) -> None:
        found = ACCEPTED.search(text)
        if found:
            assert code == 250
            self.accepted.append((found[1], self._chunks))
        if found or code >= 400 or not line.upper().startswith(b"BDAT"):
            self._chunks = 0


# --- what is said to it ---------------------------------------------------------------------------------------------

PDF = b"Content-Type: application/pdf\r\nMessage-ID: <%d@x>\r\n\r\n%%PDF-1.4\r\nendobj\r\n"
GREETINGS = [b"EHLO cabinet.example", b"HELO x", b"ehlo \xe9", b"EHLO", b"EHLO a b"]
SENDERS = [b"MAIL FROM:<a@cabinet.example>", b"mail from:<>", b"MAIL FROM:<a@x> SIZE=100 BODY=8BITMIME"]
SENDERS += [
    b"MAIL FROM:<a@x> SIZE=99999999",
    b"MAIL FROM:<\xc3\xa9@x>",
    b"MAIL FROM:<a@x> SIZE=x",
    b"MAIL FROM: a@x AUTH=<>",
]
RECIPIENTS = [
    b"RCPT TO:<meg+dupont@welyb.fr>",
    b"RCPT TO:<ventes+dupont@welyb.fr>",
    b"RCPT TO:<ventes+nobody@welyb.fr>",
]
RECIPIENTS += [b"RCPT TO:<meg+\0@welyb.fr>", b"rcpt to:<postmaster>", b"RCPT TO:<>", b"RCPT TO:<a@b> NOTIFY=NEVER"]
OTHERS = [
    b"RSET",
    b"NOOP x",
    b"VRFY a",
    b"EXPN a",
    b"HELP",
    b"QUIT",
    b"DATA x",
    b"BDAT",
    b"BDAT x",
    b"BDAT -1",
    b"BDAT 5 5",
    b"AUTH PLAIN AGEAYg==",
    b"AUTH LOGIN",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25",
]
OTHERS += [
    b"",
    b" ",
    b"XYZZY",
    b"GET / HTTP/1.1",
    b"\x16\x03\x01",
    b"x" * 600,
    b"x" * 5000,
    b"MAIL",
    b"RCPT",
    b"\0",
    b"\r",
]
ends = st.sampled_from([b"\r\n"] * 9 + [b"\n", b"\r", b"\r\r\n", b""])
bodies = st.sampled_from(
    [PDF % 1, PDF % 2, b"", b"\r\n", b".", b"..\r\n", b"x\ny", b"x\ry", b"\r\n.\n", b"a" * 30_000, b"\r\n..\r\n.x\r\n"]
) | st.binary(max_size=20)


def lines(some: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(st.sampled_from(some), ends).map(b"".join)


chunks = st.tuples(bodies, st.sampled_from([b"", b" LAST", b" last"])).map(
    lambda pair: b"BDAT %d%b\r\n%b" % (len(pair[0]), pair[1], pair[0])
)
mail_data = bodies.map(lambda body: b"DATA\r\n" + re.sub(rb"(?m)^\.", b"..", body) + b"\r\n.\r\n")
raw_data = bodies.map(lambda body: b"DATA\r\n" + body + b"\r\n.\r\n")
tls = st.sampled_from(
    [
        b"STARTTLS\r\n",
        b"STARTTLS\r\nEHLO x\r\nMAIL FROM:<a@x>\r\n",
        b"STARTTLS x\r\n",
        b"STARTTLS\r\n\x16\x03\x01\0\5abcde",
    ]
)
envelopes = st.tuples(lines(GREETINGS), lines(SENDERS), lines(RECIPIENTS)).map(b"".join)
good = st.just(b"EHLO x\r\nMAIL FROM:<a@cabinet.example>\r\nRCPT TO:<meg+dupont@welyb.fr>\r\n")
anything = st.one_of(
    good, good, envelopes, chunks, chunks, mail_data, mail_data, raw_data, lines(OTHERS), lines(RECIPIENTS), tls
) | st.binary(max_size=30)


@given(st.lists(anything, max_size=12).map(b"".join), st.lists(st.integers(0, 1 << 16), max_size=6))
@example(b"EHLO x\r\nSTARTTLS\r\nNOOP\r\n", [])  # what was pipelined behind it is nobody's
@example(b"NOOP\r\n" * 5000, [])
@example(b"XYZZY\r\n" * 40, [7])
@example(b"x" * 300_000 + b"\r\nNOOP\r\n", [100, 5000])
@example(b"RCPT TO:<a@b>\r\n" * 20_000, [])
@example(b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<meg+a@welyb.fr>\r\n" + b"BDAT 0\r\n" * 500 + b"BDAT 0 LAST\r\n", [])
@settings(max_examples=examples(250), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_every_command_has_one_well_formed_reply_and_no_mail_is_accepted_without_its_row(
    door: Door, sent: bytes, cuts: list[int]
) -> None:
    places = sorted({0, len(sent), *(cut % (len(sent) + 1) for cut in cuts)})
    heard = door.converse([sent[at:end] for at, end in pairwise(places)])
    expected = Expected(sent, heard)
    expected.check()
    for message, size in expected.accepted:
        assert door.size_of(message) == size
    assert door.troubles == []
