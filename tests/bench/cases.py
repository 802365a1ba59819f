"""The measurements that several servers take part in: each starts a server with an empty queue and gives back facts.

Knows alone: the sizes, the numbers of connections, and what is in the time that is measured.
"""

import os
import random
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from tests.bench.meter import Meter
from tests.bench.ours import AUTHOR, Ours
from tests.bench.postfix import Behind
from tests.bench.server import Server
from tests.bench.traffic import BenchError, Load, Sink, received
from tests.support.clients import mail

Facts = dict[str, Any]
# In bytes of the mail; the last is a document of just under 10,000,000 bytes in base64.
SIZES: Mapping[str, int] = {"20 KB": 20_000, "200 KB": 200_000, "1 MB": 1_000_000, "13.7 MB": 13_684_000}
DRAINS: Mapping[str, int] = {"20 KB": 2000, "13.7 MB": 50}  # mails queued
SESSIONS: Mapping[str, int] = {"20 KB": 200, "13.7 MB": 20}  # mails on one session with a milter
LISTED = 10_000
EVERYBODY = 10_000_000  # recipients: more than mails, for a document is the same in all that bear one signature
PATIENCE = 180  # seconds for a queue to be sent


@dataclass(frozen=True, slots=True)
class Case:
    """One cell of a table. `needs` is what a server must be able to do; `unit` is of the value: "/s", "s" or "MB"."""

    what: str
    label: str
    measure: Callable[[Server, Sink], Facts]
    needs: str
    unit: str = "/s"
    key: tuple[str, int] = ("", 0)  # size and connections, for the quick bench to choose by


def accept(size: str, connections: int, *, per_connection: int = 1, bdat: bool = False, seconds: float = 4) -> Case:
    """Mails answered 250 in a second: lock-step, delivery held."""

    def measure(server: Server, sink: Sink) -> Facts:
        load = Load(
            bytes=SIZES[size],
            connections=connections,
            seconds=seconds,
            per_connection=per_connection,
            bdat=bdat,
            recipient=server.recipient,
        )
        server.start("hold")
        first = Load(bytes=SIZES["20 KB"], connections=connections, messages=2 * connections, recipient=load.recipient)
        first.send(server.port)  # let it fork what it forks
        time.sleep(0.3)
        with Meter(server.group) as meter:
            said = load.send(server.port)
            time.sleep(0.1)
        return {**said, **meter.facts, "value": said["rate"], "cpu_ms": 1e3 * meter.facts["cpu_s"] / said["sent"]}

    manner = "BDAT" if bdat else "kept open" if per_connection == 0 else "each its own"
    label = f"{size}, {connections} connections, {manner}"
    return Case("accept", label, measure, "bdat" if bdat else "accept", key=(size, connections))


def verify(size: str, *, seconds: float = 4) -> Case:
    """Mails that their author signed, answered 250 in a second; what was found out of each of them is looked at."""

    def measure(server: Server, sink: Sink) -> Facts:
        assert isinstance(server, Ours)
        server.start("hold")
        letter = server.folder / "signed.eml"
        letter.write_bytes(signed(SIZES[size]))
        first = Load(mail=letter, connections=10, messages=20, recipient=server.recipient, users=EVERYBODY)
        first.send(server.port)  # let it ask the DNS
        time.sleep(0.3)
        with Meter(server.group) as meter:
            said = replace(first, messages=0, seconds=seconds).send(server.port)
            time.sleep(0.1)
        if server.findings() != {server.expected: first.messages + said["sent"]}:
            raise BenchError(f"not what was to be found of {said['sent']} mails: {server.findings()}")
        return {**said, **meter.facts, "value": said["rate"], "cpu_ms": 1e3 * meter.facts["cpu_s"] / said["sent"]}

    return Case("verify", f"{size} signed, 10 connections", measure, "verify", key=(size, 10))


@cache
def signed(size: int) -> bytes:
    """Just under `size`, its Message-ID not signed and left to the generator."""
    pdf = b"%PDF-1.4\n" + random.Random(size).randbytes((size - 2000) * 57 // 78)
    message = mail(AUTHOR.address, "collecte@welyb.example", ("facture.pdf", "application/pdf", pdf))
    header, _, body = message.partition(b"\r\n\r\n")
    fields = [field for field in header.split(b"\r\n") if not field.startswith(b"Message-ID:")]
    return AUTHOR.signed(b"\r\n".join(fields) + b"\r\n\r\n" + body)


def milter(size: str) -> Case:
    """Mails a second on one session with a mail server that keeps them, or has the relay take them all."""
    count = SESSIONS[size]

    def measure(server: Server, sink: Sink) -> Facts:
        server.start("hold")
        # Both have been at work for a while: so much that the relay's WAL has gone round.
        first = Load(bytes=SIZES["20 KB"], messages=1000, per_connection=0, recipient=server.recipient)
        first.send(server.port)
        time.sleep(0.3)
        with Meter(server.group) as meter:
            said = replace(first, bytes=SIZES[size], messages=count).send(server.port)
        if isinstance(server, Behind) and server.taken() != first.messages + count:
            raise BenchError(f"the relay took {server.taken()} mails of {first.messages + count}")
        return {**said, **meter.facts, "value": said["rate"], "cpu_ms": 1e3 * meter.facts["cpu_s"] / count}

    return Case("milter", f"{count} × {size}, one session", measure, "milter", key=(size, 1))


def memory() -> Case:
    """MB of PSS of all its processes while 50 documents of 10 MB come in at once."""
    taking = accept("13.7 MB", 50)

    def measure(server: Server, sink: Sink) -> Facts:
        facts = taking.measure(server, sink)
        return {**facts, "value": facts["pss_mb"]}

    return Case("memory", "50 connections × 13.7 MB in flight", measure, "accept", unit="MB", key=("13.7 MB", 50))


def fill(server: Server, messages: int, size: int) -> None:
    """Into a queue that is kept, whatever it takes."""
    Load(bytes=size, connections=4, messages=messages, per_connection=50, recipient=server.recipient).send(server.port)
    time.sleep(0.5)
    os.sync()


def drain(size: str) -> Case:
    """A queue that is released: mails a second until the sink has the last one."""
    count = DRAINS[size]

    def measure(server: Server, sink: Sink) -> Facts:
        server.start("hold")
        fill(server, count, SIZES[size])
        with sink.expecting(count) as program, Meter(server.group) as meter:
            begun = time.monotonic()
            server.flush()
            came = received(program, PATIENCE)
        return _sent(came, begun, count, meter) | server.last_run

    return Case("drain", f"{count} × {size}", measure, "drain", key=(size, 0))


def through(size: str) -> Case:
    """In over 10 connections and out again, signed: mails a second from the first in to the last out."""
    count = DRAINS[size]

    def measure(server: Server, sink: Sink) -> Facts:
        server.start("relay")
        load = Load(bytes=SIZES[size], connections=10, messages=count, recipient=server.recipient)
        with sink.expecting(count) as program, Meter(server.group) as meter:
            begun = time.monotonic()
            load.send(server.port)
            if server.name == "ours":
                server.flush()
            came = received(program, PATIENCE)
        return _sent(came, begun, count, meter)

    return Case("through", f"{count} × {size}, signed", measure, "through", key=(size, 0))


def _sent(came: Facts, begun: float, count: int, meter: Meter) -> Facts:
    if came["messages"] < count:
        raise BenchError(f"{came['messages']} of {count} mails came")
    seconds = came["last"] - begun
    cost = {"cpu_ms": 1e3 * meter.facts["cpu_s"] / count, "mb_s": came["bytes"] / seconds / 1e6}
    return {**meter.facts, **cost, "value": count / seconds, "bytes_out": came["bytes"] / count}


def listing() -> Case:
    """Seconds to list a whole queue with the server's own command, its start included; the best of three."""

    def measure(server: Server, sink: Sink) -> Facts:
        server.start("hold")
        fill(server, LISTED, 2500)
        with Meter(server.group) as meter:
            times = [_timed(server) for _ in range(3)]
        return {**meter.facts, "value": min(times), "cpu_ms": 1e3 * meter.facts["cpu_s"] / 3}

    return Case("list", f"{LISTED} queued, whole", measure, "list", unit="s", key=("20 KB", 0))


def _timed(server: Server) -> float:
    begun = time.perf_counter()
    done = subprocess.run([*server.group.prefix, *server.listing()], stdout=subprocess.PIPE, check=False)
    seconds = time.perf_counter() - begun
    if done.stdout.count(b"\n") < LISTED:
        raise BenchError(f"{server.name}: {len(done.stdout.splitlines())} lines for {LISTED} mails")
    return seconds


def cases(*, quick: bool) -> list[Case]:
    """In the order they are run; the quick bench has those that decide."""
    seconds = 2.0 if quick else 4.0
    chosen = [accept(size, count, seconds=seconds) for size in SIZES for count in (1, 10, 50)]
    chosen += [accept("20 KB", count, per_connection=0, seconds=seconds) for count in (1, 10, 50)]
    chosen += [accept("13.7 MB", 10, bdat=True, seconds=seconds)]
    chosen += [make(size) for make in (drain, through) for size in DRAINS]
    chosen += [listing(), memory()]
    chosen += [verify(size, seconds=seconds) for size in ("20 KB", "1 MB", "13.7 MB")]
    chosen += [milter(size) for size in SESSIONS]
    if quick:
        return [case for case in chosen if case.what != "accept" or case.key in (("20 KB", 10), ("13.7 MB", 10))]
    return chosen
