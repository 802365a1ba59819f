"""One function per event, called after its commit: a log line, and later a metric.

Knows alone: the vocabulary of the log, and what may stand in it. Technical logs are personal data: ids, hashes and codes
only; no subject, no file name, no mail address, no client's name. Who wants those asks `trace`. An exception quotes
whatever it was raised over, so of one that we did not write ourselves only kind and place are told.
Limits: the network address of a client and the host name of a server stand in clear, for abuse is dealt with by these.
"""

import hashlib
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from types import CodeType
from typing import Any

from rules.replies import Reply

_log = logging.getLogger("welyb-relay")

# Whose texts were written to be read in a log: they hold settings, ids of ours and codes, nothing out of a mail.
_PLAIN = frozenset("relay." + name for name in ("config", "daemon", "sign", "spool", "store.database", "worker")) | {
    "rules.ruleset",
    "sqlite3",
    "pysqlite3.dbapi2",
}
_OF_CODE = (AttributeError, NameError, ImportError)  # these quote the program, not what it works on
_ADDRESS = re.compile(r"[^\s<>\"'«»,;:]*@[^\s<>\"'«»,;:]*")
_FRAMES = 12


def set_up() -> None:
    """Lines to stderr: systemd and terminals add what else is wanted. What others would write there is told our way."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False
    foreign = logging.StreamHandler()
    foreign.setFormatter(_Foreign())
    logging.getLogger().addHandler(foreign)
    sys.excepthook = lambda kind, error, at: trouble("uncaught", error)
    threading.excepthook = lambda args: trouble("thread", args.exc_value or RuntimeError())
    sys.unraisablehook = lambda args: trouble("unraisable", args.exc_value or RuntimeError())


class _Foreign(logging.Formatter):
    """A line of a library: where it was written, and not what, for that may be a line of somebody's mail."""

    def format(self, record: logging.LogRecord) -> str:
        facts: dict[str, object] = {"logger": record.name, "at": f"{record.module}:{record.lineno}"}
        if record.exc_info and record.exc_info[1] is not None:
            facts["error"] = described(record.exc_info[1])
        return f"{self.formatTime(record)} {record.levelname} {_line('foreign', facts)}"


def _line(event: str, facts: dict[str, object]) -> str:
    return " ".join((event, *(f"{key}={value}" for key, value in facts.items() if value not in ("", None))))


def _info(event: str, **facts: object) -> None:
    if _log.isEnabledFor(logging.INFO):
        _log.info(_line(event, facts))


def _warn(event: str, **facts: object) -> None:
    _log.warning(_line(event, facts))


# --- exceptions -----------------------------------------------------------------------------------------------------


def described(error: BaseException) -> str:
    """An exception without what it quotes: its kind, its text where that may be told, and where it comes from."""
    return " < ".join(_told(one) for one in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and what led to it, the last first."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)


def _told(error: BaseException) -> str:
    parts = [type(error).__name__, _text(error), " ".join(_frames(error))]
    if isinstance(error, BaseExceptionGroup):
        parts.append(f"[{'; '.join(map(described, error.exceptions))}]")
    return " ".join(part for part in parts if part)


def _text(error: BaseException) -> str:
    if type(error).__module__ in _PLAIN or type(error) in _OF_CODE:
        plain = str(error).partition(" with text ")[0]  # SQLite's word before a column that is not UTF-8
        return f"({_ADDRESS.sub('…@…', plain)})".replace("\n", " | ")
    if isinstance(error, OSError):  # its text may name a file
        return f"({error.errno} {os.strerror(error.errno)})" if error.errno else ""
    if isinstance(error, UnicodeError):
        return f"({getattr(error, 'encoding', '')} {getattr(error, 'reason', '')})"
    return ""


def _frames(error: BaseException) -> list[str]:
    """The places it came through, the innermost last."""
    found, at = [], error.__traceback__
    while at is not None:
        found.append(_place(at.tb_frame.f_code, at.tb_lineno))
        at = at.tb_next
    return found[-_FRAMES:]


def _place(code: CodeType, line: int) -> str:
    return f"{'/'.join(code.co_filename.split('/')[-2:])}:{line}:{code.co_name}"


def trouble(where: str, error: BaseException) -> None:
    """Our own fault: the peer was told 451 and no more; the line has what the postmaster needs."""
    _log.error(_line("trouble", {"id": where, "error": described(error)}))


def astray(loop: Any, context: dict[str, Any]) -> None:
    """For asyncio: what nobody waited for. Its own words quote what was under way."""
    error = context.get("exception")
    trouble("loop", error if isinstance(error, BaseException) else RuntimeError())


# --- events ---------------------------------------------------------------------------------------------------------


def _hashed(text: str) -> str:
    """The same for the same name, and to be compared with `printf %s NAME | sha256sum`."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def serving(endpoints: str) -> None:
    _info("serving", on=endpoints)


def as_root() -> None:
    """Whoever finds a way into this process has the whole machine; the remedy is in `check`."""
    _warn("as-root")


def stopping(why: str) -> None:
    _info("stopping", why=why)


def reloaded() -> None:
    _info("reloaded")


def accepted(message: str, *, size: int, peer: str, deliveries: int) -> None:
    _info("accepted", message=message, size=size, peer=peer, deliveries=deliveries)


def repeated(message: str, *, peer: str) -> None:
    _info("repeated", message=message, peer=peer)


def refused(refusal: str, reply: Reply) -> None:
    _info("refused", refusal=refusal, code=reply.code, status=reply.enhanced)


def worker_lost(pid: int) -> None:
    """One process less takes mail: its connections are taken over, its core is not."""
    _log.error(_line("worker-lost", {"pid": pid}))


def client_unclear(slug: str, why: str) -> None:
    _warn("client-unclear", client=_hashed(slug), why=why)


def recovered(deliveries: int, files: int) -> None:
    _info("recovered", deliveries=deliveries, orphan_files=files)


def run_started(run: int) -> None:
    _info("run-started", run=run)


def run_finished(run: int, counts: dict[str, int]) -> None:
    _info("run-finished", run=run, **counts)


def run_skipped(why: str) -> None:
    _warn("run-skipped", why=why)


def delivered(delivery: str, result: str, *, code: int, mx: str) -> None:
    _info(result, delivery=delivery, code=code, mx=mx)


def filed(delivery: str) -> None:
    _info("filed", delivery=delivery)


def filing_waits(delivery: str, why: str) -> None:
    _warn("filing-waits", delivery=delivery, why=why)


def connection_error(connection: int, why: str) -> None:
    _warn("connection-error", connection=connection, why=why)


def unsettled(connection: int, files: int) -> None:
    _warn("unsettled", connection=connection, files=files)


def warned(delivery: str) -> None:
    _warn("waiting-too-long", delivery=delivery)
