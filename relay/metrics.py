"""The relay in figures, for Prometheus: an HTTP answer on a local port, made when it is asked for.

Knows alone: what is counted, and under which name. All but the time an answer takes is read from the store and the spool,
read-only, in a thread: nothing that moves mail waits for it, and whichever process did the work, it is counted.
Labels are states, codes and the domains of collectors: never an address, a client or a sender's domain.
Limits: counters begin at 0 when the daemon does, as Prometheus expects; whoever asks is not asked who they are, so the
port is for loopback. With [smtp] processes above 1 the workers take mail, and how long they took is not known here.
"""

import asyncio
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from relay import clock, log
from relay.config import Config, endpoint
from relay.store.database import Reader, one, open_for_listing, rows

UNDER_WAY = ("waiting", "sending", "filing", "held", "refused", "failed")  # what a postmaster may do something about
OURS = ("postmaster", "dsn", "warning")  # routes to people, whose domains are nobody's business
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
REQUEST_WITHIN = 10.0  # seconds
MAX_REQUEST = 8192


_OUTCOMES = """SELECT e.id, e.event, coalesce(e.detail ->> 'reply', ''), d.domain, d.route
FROM event e JOIN delivery d ON d.id = e.delivery
WHERE e.id > ? AND e.event IN ('sent', 'deferred', 'failed', 'bounced', 'filed') ORDER BY e.id"""


class Figures(Collector):
    """What the store and the spool say, and what has been added to the history since the last look."""

    def __init__(self, config: Config) -> None:
        self._spool = config.relay.data / "spool"
        self._database = config.database
        self._outcomes: Counter[tuple[str, str, str]] = Counter()
        self._refusals: Counter[str] = Counter()
        with _reading(self._database) as db:
            self._event = int((one(db, "SELECT coalesce(max(id), 0) FROM event") or (0,))[0])
            self._refusal = str((one(db, "SELECT coalesce(max(id), '') FROM refusal") or ("",))[0])

    def collect(self) -> Iterator[Metric]:
        with _reading(self._database) as db:
            yield from _queue(db)
            yield from _runs(db)
            yield self._delivered(db)
            yield self._refused(db)
        yield from _spool(self._spool)

    def _delivered(self, db: Reader) -> Metric:
        """By the history, which every process writes: two looks never count one event twice, and none is missed."""
        for id_, event, reply, domain, route in rows(db, _OUTCOMES, (self._event,)):
            code = reply[:3] if reply[:3].isdigit() else ""
            self._outcomes[event, route if route in OURS else domain, code] += 1
            self._event = id_
        told = CounterMetricFamily(
            "welyb_relay_outcomes", "Attempts by what came of them.", labels=("event", "collector", "code")
        )
        for labels, count in self._outcomes.items():
            told.add_metric(labels, count)
        return told

    def _refused(self, db: Reader) -> Metric:
        for id_, reply in rows(db, "SELECT id, reply FROM refusal WHERE id > ? ORDER BY id", (self._refusal,)):
            self._refusals[" ".join(str(reply).split()[:2])] += 1
            self._refusal = str(id_)
        told = CounterMetricFamily("welyb_relay_refusals", "Mails refused for what they hold.", labels=("reason",))
        for reason, count in self._refusals.items():
            told.add_metric((reason,), count)
        return told


def _reading(database: Path) -> "closing[Reader]":
    return closing(open_for_listing(database))


def _queue(db: Reader) -> Iterator[Metric]:
    queue = GaugeMetricFamily("welyb_relay_queue", "Deliveries by state.", labels=("state",))
    for state in UNDER_WAY:
        row = one(db, "SELECT count(*) FROM delivery INDEXED BY delivery_by_state WHERE state = ?", (state,))
        queue.add_metric((state,), row[0] if row else 0)
    yield queue
    due = one(db, "SELECT min(due_at) FROM delivery INDEXED BY delivery_waiting WHERE state = 'waiting'")
    late = (clock.now() - clock.instant(due[0])).total_seconds() if due and due[0] else 0
    yield GaugeMetricFamily("welyb_relay_oldest_due_seconds", "Since when the oldest is due.", max(late, 0))


def _runs(db: Reader) -> Iterator[Metric]:
    row = one(db, "SELECT started_at, finished_at FROM run WHERE finished_at IS NOT NULL ORDER BY id DESC LIMIT 1")
    if row is None:
        return
    started, finished = clock.instant(row[0]), clock.instant(row[1])
    yield GaugeMetricFamily(
        "welyb_relay_run_duration_seconds", "Of the last run that finished.", (finished - started).total_seconds()
    )
    age = (clock.now() - started).total_seconds()
    yield GaugeMetricFamily("welyb_relay_run_age_seconds", "Since the last run that finished began.", age)


def _spool(root: Path) -> Iterator[Metric]:
    size = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with suppress(FileNotFoundError):  # purged meanwhile
                size += os.stat(os.path.join(folder, name)).st_size
    yield GaugeMetricFamily("welyb_relay_spool_bytes", "Of messages kept.", size)
    disk = os.statvfs(root)
    yield GaugeMetricFamily("welyb_relay_spool_free_ratio", "Of its disk.", disk.f_bavail / max(disk.f_blocks, 1))


class Exposition:
    """The port. `answered` is told of every mail answered at the end of its data."""

    def __init__(self, config: Config) -> None:
        self._where = config.metrics.listen
        self._registry = CollectorRegistry()
        self._registry.register(Figures(config))
        self._took = Histogram(
            "welyb_relay_accept_seconds",
            "From the end of a mail to its answer.",
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._server: asyncio.Server | None = None
        self._turn = asyncio.Lock()

    def answered(self, seconds: float) -> None:
        self._took.observe(seconds)

    async def start(self) -> None:
        host, port = endpoint(self._where)
        self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_REQUEST)
        log.on_answered(self.answered)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_WITHIN):
                request = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(request))
                await writer.drain()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever it is did not ask for anything
        finally:
            writer.close()

    async def _answer(self, request: bytes) -> bytes:
        if not request.startswith((b"GET /metrics ", b"GET /metrics?")):
            return _http("404 Not Found", "text/plain", b"GET /metrics\n")
        try:
            async with self._turn:  # counters are added up by one look at a time
                body = await asyncio.to_thread(generate_latest, self._registry)
        except Exception as error:
            log.trouble("metrics", error)
            return _http("503 Service Unavailable", "text/plain", b"see the log\n")
        return _http("200 OK", CONTENT_TYPE_LATEST, body)


def _http(status: str, media_type: str, body: bytes) -> bytes:
    """RFC 9112; one answer a connection."""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
