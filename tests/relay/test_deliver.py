"""Real sockets: stock aiosmtpd as the far side for what is ordinary, a scripted server for what is odd.

Long because it is one table after another: every answer and every fault at every stage of the conversation.
"""

import asyncio
import itertools
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtpd.smtp import SMTP, Envelope, Session

from relay.deliver import ANYONE, SMALL, Connection, Destination, Job, Stored, Timeouts, Tls, destinations
from relay.dns import Resolver
from relay.spool import Body
from relay.wire import LineDots
from rules.outcome import Certainty, Fault, Outcome, Result, Scope
from rules.tls import Opportunistic, Required
from tests.support.farside import HANG_UP, SILENT, USUAL, Far, Say, content, listening
from tests.support.nameserver import NameServer

QUICK = Timeouts(connect=1, greeting=0.4, command=0.4, data=0.4, block=0.4, dot=0.4)
HEADER = b"Subject: x\r\n\r\n"


def job(body: bytes = b"hello\r\n", **changes: Any) -> Job:
    made = Job(
        "1", "retours+abc@welyb.fr", "dupont@meg.test", len(HEADER) + len(body), False, HEADER, lambda: iter([body])
    )
    return replace(made, **changes)


def in_a_file(folder: Path, body: bytes, **changes: Any) -> Job:
    """Its octets are those of a file, which begins with what is not sent from there."""
    (folder / "body").write_bytes(b"before" + HEADER + body)

    @contextmanager
    def opened() -> Iterator[Body]:
        fd = os.open(folder / "body", os.O_RDONLY)
        try:
            yield Body(fd, len(b"before"), os.fstat(fd).st_size - len(b"before"))
        finally:
            os.close(fd)

    dots = LineDots(HEADER)
    dots.feed(body)
    assert dots.found is not None
    tail = b"" if dots.last == b"\r\n" else b"\r\n"
    stored = Stored(opened, len(HEADER), dots.found, tail)
    return job(size=len(HEADER) + len(body + tail), chunks=lambda: iter([body, tail]), stored=stored, **changes)


@pytest.fixture(scope="module")
def certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("mx.meg.test").configure_cert(context)
    return context


async def opened(where: Destination, tls: Tls = ANYONE, timeouts: Timeouts = QUICK) -> Connection | Outcome:
    return await Connection.open(where, hostname="mx.welyb.fr", tls=tls, timeouts=timeouts)


def deliver(far: Far, *jobs: Job, tls: Tls = ANYONE, timeouts: Timeouts = QUICK) -> list[Outcome]:
    """The outcomes of `jobs` on one connection, as far as it went; that of opening it if it was not opened."""

    async def run() -> list[Outcome]:
        async with listening(far) as where:
            connection = await opened(where, tls, timeouts)
            if isinstance(connection, Outcome):
                return [connection]
            outcomes = []
            for one in jobs:
                outcomes.append(await connection.send(one))
                if not connection.usable:
                    break
            await connection.close()
            return outcomes

    return asyncio.run(run())


PLAIN = {"EHLO": b"250-mx\r\n250 SIZE 20000000\r\n"}  # no PIPELINING, no 8BITMIME


# ---
# What is ordinary


@pytest.mark.parametrize("extra", [{}, PLAIN], ids=["pipelined", "one by one"])
def test_a_message_arrives(extra: dict[str, bytes]) -> None:
    far = Far(extra)
    (outcome,) = deliver(far, job())
    assert outcome.result is Result.DONE
    assert (outcome.code, outcome.enhanced, outcome.text, outcome.tls) == (250, "2.0.0", "queued as A1", "")
    assert outcome.mx.startswith("mx.meg.test[127.0.0.1]:")
    assert far.messages == [HEADER + b"hello\r\n"]
    assert far.commands == [
        "EHLO mx.welyb.fr",
        "MAIL FROM:<retours+abc@welyb.fr> SIZE=21",
        "RCPT TO:<dupont@meg.test>",
        "DATA",
        "QUIT",
    ]


def test_commands_travel_together_where_announced() -> None:
    arrived: list[bytes] = []

    async def gather(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        await reader.readuntil(b"\r\n")
        writer.write(b"250-mx\r\n250 PIPELINING\r\n")
        arrived.append(await reader.readuntil(b"DATA\r\n"))
        writer.write(b"250 ok\r\n250 ok\r\n354 go\r\n")
        await content(reader)
        writer.write(b"250 done\r\n")

    (outcome,) = deliver(Far({"BANNER": gather}), job())
    assert outcome.result is Result.DONE
    assert arrived == [b"MAIL FROM:<retours+abc@welyb.fr>\r\nRCPT TO:<dupont@meg.test>\r\nDATA\r\n"]


def test_the_null_sender_and_8_bits() -> None:
    far = Far()
    (outcome,) = deliver(far, job(sender="", eight_bit=True))
    assert outcome.result is Result.DONE
    assert far.commands[1] == "MAIL FROM:<> SIZE=21 BODY=8BITMIME"


def test_many_messages_on_one_connection() -> None:
    far = Far()
    outcomes = deliver(far, *(job(b"%d\r\n" % n) for n in range(50)))
    assert [outcome.result for outcome in outcomes] == [Result.DONE] * 50
    assert far.messages == [HEADER + b"%d\r\n" % n for n in range(50)]
    assert far.connections == 1 and "RSET" not in far.commands


BODIES = {
    "empty": b"",
    "a dot": b".\r\n",
    "dots": b".\r\n..\r\n...\r\na.b\r\n.\r\n",
    "no final CRLF": b"a\r\n.b",
    "only CRLF": b"\r\n\r\n",
}


class Keeper:
    """A stock aiosmtpd handler that keeps what it is given."""

    def __init__(self) -> None:
        self.got: list[tuple[str | None, list[str], bytes | str | None]] = []

    async def handle_EHLO(
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        return [*responses[:-1], "250-PIPELINING", responses[-1]]

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        self.got.append((envelope.mail_from, envelope.rcpt_tos, envelope.content))
        return "250 kept"


def to_aiosmtpd(*jobs: Job, tls: Tls = ANYONE, context: ssl.SSLContext | None = None) -> tuple[Keeper, list[Outcome]]:
    keeper = Keeper()

    async def run() -> list[Outcome]:
        loop = asyncio.get_running_loop()

        def far() -> SMTP:
            return SMTP(keeper, hostname="mx.meg.test", loop=loop, tls_context=context, data_size_limit=50_000_000)

        async with await loop.create_server(far, "127.0.0.1", 0) as server:
            where = Destination("mx.meg.test", "127.0.0.1", server.sockets[0].getsockname()[1])
            connection = await opened(where, tls, Timeouts(30, 30, 30, 30, 30, 30))
            assert isinstance(connection, Connection)
            outcomes = [await connection.send(one) for one in jobs]
            await connection.close()
            return outcomes

    return keeper, asyncio.run(run())


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_aiosmtpd_gets_every_octet(body: bytes) -> None:
    keeper, (outcome,) = to_aiosmtpd(job(body))
    assert outcome.result is Result.DONE
    expected = HEADER + body if (HEADER + body).endswith(b"\r\n") else HEADER + body + b"\r\n"
    assert keeper.got == [("retours+abc@welyb.fr", ["dupont@meg.test"], expected)]


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_aiosmtpd_gets_every_octet_of_a_file(tmp_path: Path, body: bytes) -> None:
    jobs = [in_a_file(tmp_path, body), job()]
    keeper, outcomes = to_aiosmtpd(*jobs)
    assert [outcome.result for outcome in outcomes] == [Result.DONE] * 2
    assert keeper.got[0][2] == HEADER + body + (b"" if (HEADER + body).endswith(b"\r\n") else b"\r\n")
    assert keeper.got[1][2] == HEADER + b"hello\r\n"


@pytest.mark.parametrize("secured", [False, True])
def test_aiosmtpd_gets_a_large_file(tmp_path: Path, certificate: ssl.SSLContext, secured: bool) -> None:
    """More of it than the far side takes at once; under TLS it passes through here."""
    body = (b".%074d\r\n" % 7 + b"%076d\r\n" % 8 * 999) * 100
    keeper, outcomes = to_aiosmtpd(in_a_file(tmp_path, body), job(), context=certificate if secured else None)
    assert [outcome.result for outcome in outcomes] == [Result.DONE] * 2
    assert keeper.got[0][2] == HEADER + body


@pytest.mark.parametrize("secured", [False, True])
def test_aiosmtpd_gets_a_large_message(certificate: ssl.SSLContext, secured: bool) -> None:
    line = b".%074d\r\n" % 7
    body = line * 40_000
    pieces = [body[at : at + 65_537] for at in range(0, len(body), 65_537)]
    large = job(size=len(HEADER) + len(body), chunks=lambda: iter(pieces))
    assert large.size > SMALL
    keeper, outcomes = to_aiosmtpd(large, job(), context=certificate if secured else None)
    assert [outcome.result for outcome in outcomes] == [Result.DONE] * 2
    assert keeper.got[0][2] == HEADER + body
    assert keeper.got[1][2] == HEADER + b"hello\r\n"


# ---
# Refusals, stage by stage

REFUSALS: list[tuple[str, bytes, str, str, bool]] = [
    # verb, reply, scope, result, is the connection still good
    ("BANNER", b"421 4.3.2 closing\r\n", "session", "later", False),
    ("BANNER", b"450 busy\r\n", "host", "later", False),
    ("BANNER", b"554-5.7.1 you\r\n554 5.7.1 are blocked\r\n", "host", "later", False),
    ("EHLO", b"421 no\r\n", "session", "later", False),
    ("EHLO", b"450 no\r\n", "host", "later", False),
    ("MAIL", b"421 4.7.0 no\r\n", "session", "later", False),
    ("MAIL", b"452 4.3.1 disk\r\n", "message", "later", True),
    ("MAIL", b"550 5.7.1 sender\r\n", "host", "later", True),
    ("RCPT", b"421 4.7.0 no\r\n", "session", "later", False),
    ("RCPT", b"450 4.2.0 grey\r\n", "recipient", "later", True),
    ("RCPT", b"550 5.1.1 unknown\r\n", "recipient", "never", True),
    ("RCPT", b"552 5.2.2 many\r\n", "recipient", "later", True),
    ("DATA", b"421 4.7.0 no\r\n", "session", "later", False),
    ("DATA", b"451 no\r\n", "message", "later", True),
    ("DATA", b"554 5.7.1 no\r\n", "message", "never", True),
    ("DATA", b"250 odd\r\n", "session", "later", False),
    ("DOT", b"421 4.3.0 no\r\n", "session", "later", False),
    ("DOT", b"451 4.3.0 no\r\n", "message", "later", True),
    ("DOT", b"552 5.2.2 full\r\n", "message", "never", True),
    ("DOT", b"554-5.6.0 content\r\n554-5.6.0 \xff\x1b[31m\r\n554 5.6.0 end\r\n", "message", "never", True),
]


@pytest.mark.parametrize("extra", [{}, PLAIN], ids=["pipelined", "one by one"])
@pytest.mark.parametrize(("verb", "reply", "scope", "result", "good"), REFUSALS)
def test_refusals(verb: str, reply: bytes, scope: str, result: str, good: bool, extra: dict[str, bytes]) -> None:
    far = Far({**extra, verb: [reply, USUAL[verb]]})  # the second time all is well
    outcomes = deliver(far, job(), job())
    first = outcomes[0]
    assert (first.scope, first.result, first.code) == (scope, result, int(reply[:3]))
    assert first.certainty is Certainty.CERTAIN
    assert first.reply.isprintable()
    if good:
        assert outcomes[1].result is Result.DONE
        assert ("RSET" in far.commands) == (verb != "DOT")
        assert far.messages[-1] == HEADER + b"hello\r\n"
    else:
        assert len(outcomes) == 1


def test_a_refused_recipient_whose_data_is_taken_all_the_same() -> None:
    far = Far({"RCPT": [b"550 5.1.1 unknown\r\n", b"250 ok\r\n"], "DOT": [b"554 no recipients\r\n", b"250 ok\r\n"]})
    outcomes = deliver(far, job(), job())
    assert (outcomes[0].stage, outcomes[0].result) == ("rcpt", Result.NEVER)
    assert outcomes[1].result is Result.DONE
    assert far.messages == [b"", HEADER + b"hello\r\n"]  # a lone dot, then the second job


def test_the_refusal_stands_when_the_line_goes_down_after_it() -> None:
    (outcome,) = deliver(Far({"RCPT": b"550 5.1.1 unknown\r\n", "DATA": HANG_UP}), job())
    assert (outcome.stage, outcome.result, outcome.text) == ("rcpt", Result.NEVER, "unknown")


# ---
# Faults, stage by stage


async def half_a_reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"250-2.0.0 half")
    await writer.drain()
    writer.close()


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


STAGES = {"BANNER": "connect", "EHLO": "ehlo", "MAIL": "mail", "RCPT": "rcpt", "DATA": "data", "DOT": "dot"}
TROUBLES: list[tuple[Say, Fault]] = [
    (HANG_UP, Fault.LOST),
    (SILENT, Fault.TIMEOUT),
    (half_a_reply, Fault.LOST),
    (reset, Fault.LOST),
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", Fault.PROTOCOL),
    (b"250-x\r\n" * 200, Fault.PROTOCOL),
    (b"250 " + b"x" * 50_000 + b"\r\n", Fault.PROTOCOL),
    (b"x" * 100_000, Fault.PROTOCOL),
    (b"1234\r\n", Fault.PROTOCOL),
    (b"\r\n", Fault.PROTOCOL),
]


@pytest.mark.parametrize("extra", [{}, PLAIN], ids=["pipelined", "one by one"])
@pytest.mark.parametrize(("say", "fault"), TROUBLES)
@pytest.mark.parametrize("verb", STAGES)
def test_faults(verb: str, say: Say, fault: Fault, extra: dict[str, bytes]) -> None:
    (outcome,) = deliver(Far({**extra, verb: say}), job(), job())
    assert outcome.stage == STAGES[verb]
    assert outcome.fault is fault
    assert outcome.result is Result.LATER
    assert (outcome.certainty is Certainty.UNCERTAIN) == (verb == "DOT")
    assert outcome.scope == ("host" if verb in ("BANNER", "EHLO") else "session")


def test_nobody_listens() -> None:
    async def run() -> Connection | Outcome:
        async with listening(Far()) as where:
            pass
        return await opened(where)

    outcome = asyncio.run(run())
    assert isinstance(outcome, Outcome)
    assert (outcome.fault, outcome.scope, outcome.result) == (Fault.REFUSED, Scope.HOST, Result.LATER)


def test_one_octet_at_a_time_is_waited_for() -> None:
    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for octet in b"220-slow\r\n220 host\r\n":
            writer.write(bytes([octet]))
            await asyncio.sleep(0.005)

    (outcome,) = deliver(Far({"BANNER": slowly}), job())
    assert outcome.result is Result.DONE


def test_a_trickle_does_not_outlast_the_limit() -> None:
    async def forever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not reader.at_eof():
            writer.write(b"220-\r\n")
            await asyncio.sleep(0.05)

    (outcome,) = deliver(Far({"BANNER": forever}), job())
    assert outcome.fault is Fault.TIMEOUT


@pytest.fixture(params=["in pieces", "from its file"])
def large(request: pytest.FixtureRequest, tmp_path: Path) -> Job:
    piece = (b"x" * 998 + b"\r\n") * 100
    if request.param == "in pieces":
        return job(size=20_000_000, chunks=lambda: itertools.repeat(piece, 200))
    return in_a_file(tmp_path, piece * 199)


def test_a_host_that_hangs_up_in_the_middle(large: Job) -> None:
    async def middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"354 go\r\n")
        await reader.readexactly(500_000)
        writer.transport.abort()

    (outcome,) = deliver(Far({"DATA": middle}), large)
    assert (outcome.fault, outcome.stage, outcome.certainty) == (Fault.LOST, "data", Certainty.CERTAIN)


def test_a_host_that_says_why_before_it_hangs_up(large: Job) -> None:
    async def middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"354 go\r\n")
        await reader.readexactly(500_000)
        writer.write(b"552 5.3.4 too big\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()

    (outcome,) = deliver(Far({"DATA": middle}), large)
    assert (outcome.code, outcome.result, outcome.stage) == (552, Result.NEVER, "data")


@pytest.mark.parametrize("size", [21, SMALL + 1])
def test_a_reply_before_the_dot_is_no_success(size: int) -> None:
    far = Far({"DATA": b"354 go\r\n250 2.0.0 queued, surely\r\n"})
    (outcome,) = deliver(far, job(size=size), job())
    assert (outcome.stage, outcome.code, outcome.result, outcome.scope) == ("data", 250, Result.LATER, Scope.SESSION)
    assert far.messages == []


def test_a_reply_while_a_file_is_sent_is_no_success(tmp_path: Path) -> None:
    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"354 go\r\n")
        await reader.readexactly(500_000)
        writer.write(b"250 2.0.0 queued, surely\r\n")
        await reader.read()

    (outcome,) = deliver(Far({"DATA": hasty}), in_a_file(tmp_path, b"x" * 19_000_000))
    assert (outcome.stage, outcome.code, outcome.result, outcome.scope) == ("data", 250, Result.LATER, Scope.SESSION)


def test_a_file_that_was_cut_leaves_no_message(tmp_path: Path) -> None:
    cut = in_a_file(tmp_path, b"x" * 3_000_000)
    assert cut.stored is not None
    opened = cut.stored.opened

    @contextmanager
    def longer() -> Iterator[Body]:
        with opened() as body:
            yield replace(body, size=body.size + 1)

    far = Far()
    with pytest.raises(EOFError):
        deliver(far, replace(cut, stored=replace(cut.stored, opened=longer)))
    assert far.messages == []


def test_one_reply_too_many_is_no_success() -> None:
    (outcome,) = deliver(Far({"MAIL": b"250 ok\r\n250 ok again\r\n"}), job(), job())
    assert (outcome.stage, outcome.result, outcome.scope) == ("data", Result.LATER, Scope.SESSION)


def test_a_host_that_stops_reading(large: Job) -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"354 go\r\n")
        await asyncio.sleep(5)

    (outcome,) = deliver(Far({"DATA": deaf}), large)
    assert (outcome.fault, outcome.stage, outcome.certainty) == (Fault.TIMEOUT, "data", Certainty.CERTAIN)


# ---
# What the far side cannot take


def test_too_big_for_the_size_announced() -> None:
    far = Far({"EHLO": b"250-mx\r\n250 SIZE 20\r\n"})
    first, second = deliver(far, job(), job(b"", size=14))
    assert (first.fault, first.result, first.size, first.limit) == (Fault.TOO_BIG, Result.NEVER, 21, 20)
    assert first.mx and second.result is Result.DONE
    assert len(far.messages) == 1


@pytest.mark.parametrize("size", ["SIZE", "SIZE 0", "SIZE big", "SIZE 21"])
def test_no_limit_announced(size: str) -> None:
    (outcome,) = deliver(Far({"EHLO": f"250-mx\r\n250 {size}\r\n".encode()}), job())
    assert outcome.result is Result.DONE


def test_8_bits_for_a_7_bit_host() -> None:
    far = Far(PLAIN)
    first, second = deliver(far, job(eight_bit=True), job())
    assert (first.fault, first.enhanced, first.result) == (Fault.EIGHT_BIT, "5.6.3", Result.NEVER)
    assert second.result is Result.DONE and len(far.messages) == 1


def test_a_host_of_before_ehlo() -> None:
    far = Far({"EHLO": b"502 what?\r\n", "HELO": b"250 SIZE 3\r\n"})
    (outcome,) = deliver(far, job())
    assert outcome.result is Result.DONE
    assert far.commands[1:3] == ["HELO mx.welyb.fr", "MAIL FROM:<retours+abc@welyb.fr>"]


@pytest.mark.parametrize(
    "address",
    ["a@b\r\nRCPT TO:<x@y>", "a@b> SIZE=1 <", "a b@c", "é@b", "a", "@b", "a@", '"a"b@c', "a@b\x00", "a@b c", "<a@b>"],
)
def test_an_address_that_cannot_be_said_is_our_mistake(address: str) -> None:
    far = Far()
    with pytest.raises(ValueError, match="not an address"):
        deliver(far, job(recipient=address))
    assert far.messages == []


def test_a_quoted_local_part_can_be_said() -> None:
    far = Far()
    (outcome,) = deliver(far, job(recipient='"a b\\"c"@[192.0.2.1]'))
    assert outcome.result is Result.DONE


@pytest.mark.parametrize("size", [21, SMALL + 1])
def test_a_body_that_cannot_be_read_leaves_no_message(size: int) -> None:
    def broken() -> Iterator[bytes]:
        yield b"begins\r\n"
        raise OSError("disk")

    far = Far()
    with pytest.raises(OSError, match="disk"):
        deliver(far, job(size=size, chunks=broken))
    assert far.messages == []


def test_cancelled_in_the_middle_leaves_no_message() -> None:
    async def run() -> bool:
        far = Far({"DATA": b"354 go\r\n"})
        async with listening(far) as where:
            connection = await opened(where)
            assert isinstance(connection, Connection)

            def endless() -> Iterator[bytes]:
                while True:
                    yield b"x" * 998 + b"\r\n"

            sending = asyncio.create_task(connection.send(job(size=19_000_000, chunks=endless)))
            await asyncio.sleep(0.1)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            assert far.messages == []
            return connection.usable

    assert asyncio.run(run()) is False


# ---
# TLS

OFFERED: dict[str, Say | list[Say]] = {
    "EHLO": [b"250-mx\r\n250-SIZE 5\r\n250 STARTTLS\r\n", b"250-mx\r\n250-SIZE 900\r\n250 PIPELINING\r\n"],
    "STARTTLS": b"220 go\r\n",
}


@pytest.mark.parametrize("tls", [Opportunistic(), Required()])
def test_tls_where_offered(certificate: ssl.SSLContext, tls: Tls) -> None:
    keeper, (outcome,) = to_aiosmtpd(job(), tls=tls, context=certificate)
    assert outcome.result is Result.DONE and len(keeper.got) == 1
    assert outcome.tls in ("TLSv1.2", "TLSv1.3")


def test_what_was_announced_in_clear_is_forgotten(certificate: ssl.SSLContext) -> None:
    far = Far(OFFERED, certificate)
    (outcome,) = deliver(far, job())
    assert outcome.result is Result.DONE and outcome.tls  # SIZE 5 no longer counts
    assert far.commands.count("EHLO mx.welyb.fr") == 2


def test_replies_injected_before_the_handshake_are_forgotten(certificate: ssl.SSLContext) -> None:
    injected = b"220 go\r\n250-evil\r\n250 SIZE 1\r\n"
    (outcome,) = deliver(Far({**OFFERED, "STARTTLS": injected}, certificate), job())
    assert outcome.result is Result.DONE and outcome.tls


def test_a_failed_handshake_is_tried_in_clear() -> None:
    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 go\r\n")
        await reader.read(100)
        writer.write(b"this is no handshake\r\n")
        await writer.drain()
        writer.close()

    script: dict[str, Any] = {"EHLO": b"250-mx\r\n250 STARTTLS\r\n", "STARTTLS": garbage}
    far = Far(script)
    (outcome,) = deliver(far, job())
    assert outcome.result is Result.DONE and outcome.tls == ""
    assert far.connections == 2

    (outcome,) = deliver(Far(script), job(), tls=Required())
    assert (outcome.fault, outcome.result, outcome.scope) == (Fault.TLS, Result.LATER, Scope.HOST)
    assert outcome.warns


def test_a_silent_handshake_is_tried_in_clear() -> None:
    async def nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 go\r\n")
        await reader.read()
        writer.close()

    far = Far({"EHLO": b"250-mx\r\n250 STARTTLS\r\n", "STARTTLS": nothing})
    (outcome,) = deliver(far, job(), timeouts=replace(QUICK, connect=0.2))
    assert outcome.result is Result.DONE and far.connections == 2


@pytest.mark.parametrize(
    ("script", "fault", "code"),
    [
        ({}, Fault.TLS, 0),  # not offered
        ({"EHLO": b"250-mx\r\n250 STARTTLS\r\n", "STARTTLS": b"454 not now\r\n"}, None, 454),
    ],
)
def test_required_and_not_to_be_had(script: dict[str, Say], fault: Fault | None, code: int) -> None:
    far = Far(script)
    (outcome,) = deliver(far, job(), tls=Required())
    assert (outcome.stage, outcome.fault, outcome.code, outcome.result) == ("starttls", fault, code, Result.LATER)
    assert far.messages == []


def test_starttls_refused_goes_on_in_clear() -> None:
    far = Far({"EHLO": b"250-mx\r\n250 STARTTLS\r\n", "STARTTLS": b"454 not now\r\n"})
    (outcome,) = deliver(far, job())
    assert outcome.result is Result.DONE and far.connections == 1


# ---
# Where to

ZONE = """
meg.test. 300 IN MX 20 backup.test.
meg.test. 300 IN MX 10 mx.test.
mx.test. 300 IN A 192.0.2.1
mx.test. 300 IN AAAA 2001:db8::1
backup.test. 300 IN A 192.0.2.2
null.test. 300 IN MX 0 .
"""


def where(domain: str, **routes: str) -> tuple[Destination, ...] | Outcome:
    with NameServer(ZONE) as server:
        server.fail("broken.test", "servfail")
        table = {name.replace("_", "."): route for name, route in routes.items()}
        return asyncio.run(destinations(domain, table, Resolver([server.address])))


MX = Destination("mx.test", "192.0.2.1", 25)


def test_mx_in_order() -> None:
    assert where("meg.test") == (
        MX,
        Destination("mx.test", "2001:db8::1", 25),
        Destination("backup.test", "192.0.2.2", 25),
    )


@pytest.mark.parametrize(
    ("signed", "bases"),
    [
        (("meg.test", "mx.test"), ["mx.test", "mx.test", ""]),
        (("mx.test", "backup.test"), ["", "", ""]),  # whose MX they are is not signed
        ((), ["", "", ""]),
    ],
)
def test_dane_is_for_what_is_signed_all_the_way(signed: tuple[str, ...], bases: list[str]) -> None:
    with NameServer(ZONE) as server:
        server.sign(*signed)
        found = asyncio.run(destinations("meg.test", {}, Resolver([server.address])))
    assert isinstance(found, tuple)
    assert [place.alias_of for place in found] == bases


@pytest.mark.parametrize(
    ("route", "answer"),
    [
        ("127.0.0.1:2526", (Destination("127.0.0.1", "127.0.0.1", 2526),)),
        ("[::1]:2526", (Destination("::1", "::1", 2526),)),
        ("localhost:2526", (Destination("localhost", "127.0.0.1", 2526), Destination("localhost", "::1", 2526))),
        ("mx.test", (MX, Destination("mx.test", "2001:db8::1", 25))),
    ],
)
def test_a_fixed_route_comes_before_mx(route: str, answer: tuple[Destination, ...]) -> None:
    assert where("Meg.Test", meg_test=route) == answer


@pytest.mark.parametrize(
    ("domain", "fault", "result"),
    [
        ("null.test", Fault.NULL_MX, Result.NEVER),
        ("nowhere.test", Fault.NXDOMAIN, Result.LATER),
        ("broken.test", Fault.DNS, Result.LATER),
        ("lost.test", Fault.NXDOMAIN, Result.LATER),
    ],
)
def test_nowhere_to_go(domain: str, fault: Fault, result: Result) -> None:
    outcome = where(domain, lost_test="nowhere.test:25")
    assert isinstance(outcome, Outcome)
    assert (outcome.fault, outcome.result, outcome.scope) == (fault, result, Scope.HOST)


def test_a_destination_reads_as_postfix_writes_it() -> None:
    assert str(MX) == "mx.test[192.0.2.1]:25"
    assert str(Destination("::1", "::1", 25)) == "[::1]:25"
