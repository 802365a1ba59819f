"""How the relay's own work grows: with the queue (accept, claim, list) and with the connected folders (scan).

Knows alone: how a store is filled with a past that never was, by SQL, in the product's own schema.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from relay import clock
from relay.store import delivery
from relay.store.database import open_for_writing
from tests.bench.cases import SIZES, Facts
from tests.bench.meter import Meter
from tests.bench.ours import Ours
from tests.bench.traffic import BenchError, Load, Sink
from tests.support.relay import command

SCALES = (10_000, 100_000, 1_000_000)
COLLECTORS = 1000
PER_FOLDER = 1000
NEW_FILES = 20
NEVER, LATER = "2099-01-01T00:00:00.000Z", "2099-01-02T00:00:00.000Z"


def measure(ours: Ours, sink: Sink, what: list[str], *, quick: bool) -> list[Facts]:
    """The parts of `what` that are the relay's alone."""
    scales = SCALES[:2] if quick else SCALES
    found: list[Facts] = []
    for name, part in (("growth", _growth), ("scan", _scan)):
        if name in what:
            for facts in part(ours, sink, scales):
                row = {"what": name, "server": "ours", "round": 0, "unit": "/s", **facts}
                print(f"  {name:8} {row['case']:52} {row['value']:12.2f} {row['unit']}", flush=True)
                found.append(row)
    return found


@contextmanager
def _laid_out(ours: Ours) -> Iterator[Path]:
    """A relay with an empty store, not running; its data folder."""
    ours.folder.mkdir(parents=True)
    relay = ours.lay_out(ours.folder)
    relay.configure({"run": {"settle": "1 s"}})
    try:
        ours.serve()
        relay.stop()
        yield relay.folder / "var"
    finally:
        ours.stop()


# --- the queue ------------------------------------------------------------------------------------------------------


def _growth(ours: Ours, sink: Sink, scales: tuple[int, ...]) -> Iterator[Facts]:
    with _laid_out(ours) as data:
        assert ours.relay is not None
        ours.serve()
        Load(bytes=SIZES["20 KB"], messages=1, recipient=ours.recipient).send(ours.port)
        ours.relay.stop()
        there = 0
        for count in scales:
            fill(data / "relay.db", there, count)
            there = count
            yield from _at(ours, data / "relay.db", f"{count:,} deliveries")


def _at(ours: Ours, database: Path, scale: str) -> Iterator[Facts]:
    assert ours.relay is not None
    yield {"case": f"first page, {scale}", "unit": "s", **_best(lambda: _page(ours))}
    yield {"case": f"claim of 10, {scale}", "unit": "ms", "value": _claims(database)}
    ours.serve()
    try:
        load = Load(bytes=SIZES["20 KB"], connections=10, seconds=4, recipient=ours.recipient)
        load.send(ours.port)
        with Meter(ours.group) as meter:
            said = load.send(ours.port)
        cpu = 1e3 * meter.facts["cpu_s"] / said["sent"]
        yield {**said, **meter.facts, "case": f"accept 20 KB × 10, {scale}", "value": said["rate"], "cpu_ms": cpu}
    finally:
        ours.relay.stop()


def _best(look: Callable[[], None]) -> Facts:
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        look()
        times.append(time.perf_counter() - begun)
    return {"value": min(times)}


def _page(ours: Ours) -> None:
    assert ours.relay is not None
    listing = [*command(), "--config", str(ours.relay.config), "queue", "list", "--limit", "100", "--json"]
    done = subprocess.run(listing, stdout=subprocess.PIPE, check=True)
    if done.stdout.count(b"\n") != 100:
        raise BenchError("the first page is not 100 rows")


def _claims(database: Path) -> float:
    """Milliseconds for a batch of one collector, its planning included; nothing of it stays."""
    pace = delivery.Pace(timedelta(minutes=15), timedelta(hours=4))
    now = clock.now()
    with closing(open_for_writing(database)) as db:
        groups = delivery.groups(db, "send", LATER, 1)
        db.conn.execute("BEGIN IMMEDIATE")
        begun = time.perf_counter()
        for group in groups[:200]:
            taken = delivery.claim(db, group, kind="send", run=1, horizon=LATER, limit=10, now=now, pace=pace)
            if not taken:
                raise BenchError(f"nothing to claim for {group}")
        spent = time.perf_counter() - begun
        db.conn.execute("ROLLBACK")
    return 1e3 * spent / len(groups[:200])


# What distinguishes one mail's rows from another's; all else is as in the mail that serves as the pattern.
_DISTINCT = {
    "sha256": "digest(i)",
    "token": "substr(digest(i), 1, 16)",
    "message_id": "'<' || i || '@client.example>'",
    "outbound_message_id": "'<' || i || '@client.example>'",
    "content_hash": "digest(-i)",
    "name": "'facture-' || i || '.pdf'",
    "address": "'meg+user' || c || '@welyb.fr'",
    "typed": "'meg+user' || c || '@welyb.fr'",
    "recipient": "'meg+user' || c || '@welyb.fr'",
    "target": "'user' || c || '@factures-meg.fr'",
    "due_at": f"'{NEVER}'",
    "expires_at": f"'{LATER}'",
}


def fill(database: Path, start: int, end: int) -> None:
    """Mails number `start` to `end` - 1, all waiting, spread over the collectors: each a copy of the first one."""
    with closing(open_for_writing(database)) as db:
        conn = db.conn
        conn.create_function("digest", 1, lambda n: sha256(str(n).encode()).hexdigest(), deterministic=True)
        conn.execute("PRAGMA cache_size=-1000000")
        conn.execute("CREATE TEMP TABLE fresh (i INTEGER PRIMARY KEY, new TEXT, c INTEGER)")
        conn.execute("BEGIN IMMEDIATE")
        conn.execute(
            """WITH RECURSIVE n (i) AS (SELECT ? UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?)
            INSERT INTO fresh SELECT i, printf('00%014d', i), i % ? FROM n""",
            (start, end, COLLECTORS),
        )
        (pattern,) = conn.execute("SELECT max(id) FROM message").fetchone()  # ids of copies sort before it
        for table in ("message", "recipient", "document", "delivery", "delivery_document", "event"):
            conn.execute(_copying(conn, table), {"pattern": pattern})
        conn.execute("COMMIT")
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _copying(conn: Any, table: str) -> str:
    """The rows of the pattern, over and over, under new ids."""
    columns = conn.execute(f"PRAGMA table_info({table})").fetchall()
    # A number that counts by itself is left to do so.
    names = [name for _, name, kind, _, _, is_key in columns if not (is_key and kind == "INTEGER")]
    values = [_DISTINCT.get(name, f"replace(t.{name}, :pattern, new)") for name in names]
    given = [
        f"CASE WHEN t.{name} IS NULL THEN NULL ELSE {value} END" for name, value in zip(names, values, strict=True)
    ]
    owner = {"message": "id", "delivery_document": "delivery"}.get(table, "message")
    return (
        f"INSERT INTO {table} ({', '.join(names)}) SELECT {', '.join(given)} FROM fresh "
        f"JOIN (SELECT * FROM {table} WHERE {owner} >= :pattern AND {owner} < :pattern || '~') t"
    )


# --- the connected folders ------------------------------------------------------------------------------------------


def _scan(ours: Ours, sink: Sink, scales: tuple[int, ...]) -> Iterator[Facts]:
    with _laid_out(ours):
        assert ours.relay is not None
        for count in scales:
            yield from _scanned(ours, sink, count)


def _scanned(ours: Ours, sink: Sink, count: int) -> Iterator[Facts]:
    """A tree of `count` files is connected; then a run finds what is new among them."""
    relay = ours.relay
    assert relay is not None
    client = f"client-{count}"
    achats = relay.client(client) / "Achats"
    _plant(achats, count)
    begun = time.perf_counter()
    address = f"meg+achats+{client}@welyb.fr"
    places = ("--client", client, "--folder", "Achats", "--address", address)
    relay.cli("connections", "add", "--application", "meg-achats", *places)
    yield {"case": f"baseline of {count:,} files", "value": count / (time.perf_counter() - begun)}
    for number in range(NEW_FILES):
        (achats / "0" / f"nouveau-{number}.pdf").write_bytes(b"%PDF-1.4\nnouveau " + str(number).encode())
    time.sleep(1.5)  # to settle
    with sink.expecting(0), Meter(ours.group) as meter:
        said = ours.run_now()
    if said["sent"] != NEW_FILES or said["eligible"] != NEW_FILES:
        raise BenchError(f"{NEW_FILES} new files among {count}: {said}")
    yield {**meter.facts, "case": f"run over {count:,} files, {NEW_FILES} new", "value": count / seconds(said)}
    relay.cli("connections", "remove", str(relay.json("connections", "list")[0]["id"]))


def _plant(folder: Path, count: int) -> None:
    for start in range(0, count, PER_FOLDER):
        inside = folder / str(start // PER_FOLDER)
        inside.mkdir(parents=True)
        for number in range(min(PER_FOLDER, count - start)):
            os.close(os.open(inside / f"facture-{number}.pdf", os.O_WRONLY | os.O_CREAT, 0o600))


def seconds(run: dict[str, Any]) -> float:
    """Of a run, by its own record."""
    return (clock.instant(run["finished_at"]) - clock.instant(run["started_at"])).total_seconds()
