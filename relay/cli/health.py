"""`check --health`: does the relay do its work now? For probes: quick, read-only, no DNS, as whoever asks.

Knows alone: what a relay that works looks like from outside: it greets, its last run is not long ago, nothing has waited
too long, and there is room on the disk. Limits: with sockets from systemd a greeting may come from one just started.
"""

import socket
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Any

from relay import clock
from relay.cli.check import Finding, disk
from relay.cli.language import t
from relay.cli.options import reading
from relay.config import Config, endpoint
from relay.store.database import rows
from rules.peer import Network, is_trusted, networks

PATIENCE = 5.0  # seconds for a greeting
LATE_RUNS = 2  # a run may be as late as the next one; after that nobody does them


def findings(config: Config) -> Iterator[Finding]:
    """Exit 1 of the command is a reason to look, never one to start it again: mail that waits is safe."""
    proxies = networks(config.smtp.proxy)
    yield from (_greeting(text, proxies) for text in config.smtp.listen)
    with reading(config) as db:
        now = clock.now()
        yield disk(config.relay.data)
        yield _run(db, config, now)
        yield _queue(db, config, now)


def _greeting(text: str, proxies: Sequence[Network]) -> Finding:
    host, port = endpoint(text)
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        with socket.create_connection((here, port), PATIENCE) as connection:
            connection.settimeout(PATIENCE)
            if is_trusted(connection.getsockname()[0], proxies):
                connection.sendall(b"PROXY UNKNOWN\r\n")  # from here nobody is heard without
            said = connection.recv(512)
            connection.sendall(b"QUIT\r\n")
    except OSError as error:
        remedy = t("démarrez-le : systemctl start welyb-relay", "start it: systemctl start welyb-relay")
        return Finding(f"smtp {text}", False, str(error), remedy)
    remedy = t("voir le journal : journalctl -u welyb-relay", "look at the log: journalctl -u welyb-relay")
    greets = said.startswith(b"220 ")
    return Finding(f"smtp {text}", greets, said[:80].decode("ascii", "replace").strip(), "" if greets else remedy)


def _run(db: Any, config: Config, now: datetime) -> Finding:
    last = rows(db, "SELECT id, started_at FROM run ORDER BY id DESC LIMIT 1")
    if not last:
        return Finding("run", True, t("pas encore de passage", "no run yet"))
    number, started = last[0][0], clock.instant(str(last[0][1]))
    late = now - started > LATE_RUNS * config.run.every + timedelta(minutes=1)
    age = int((now - started).total_seconds() // 60)
    finding = t(f"passage {number} il y a {age} min", f"run {number}, {age} min ago")
    remedy = t("serve tourne-t-il ? puis : runs now", "does serve run? then: runs now")
    return Finding("run", not late, finding, remedy if late else "")


def _queue(db: Any, config: Config, now: datetime) -> Finding:
    """What was due before the last runs and has not been tried since: that is ours, not the far side's."""
    since = clock.stamp(now - LATE_RUNS * config.run.every - config.relay.warn_after)
    due, oldest = rows(
        db, "SELECT count(*), min(due_at) FROM delivery WHERE state = 'waiting' AND due_at < ?", (since,)
    )[0]
    if not due:
        return Finding("queue", True, t("rien n'attend en retard", "nothing is overdue"))
    finding = t(f"{due} envois en retard, depuis {oldest}", f"{due} overdue since {oldest}")
    return Finding("queue", False, finding, "queue list --state waiting")
