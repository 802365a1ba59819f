"""One function per event, called after its commit: a log line, and later a metric.

Knows alone: the vocabulary of the log, and what may stand in it. Technical logs are personal data: ids, hashes and codes
only; no subject, no file name, no mail address, no client's name. Who wants those asks `trace`. An exception quotes
whatever it was raised over, so of one that we did not write ourselves only kind and place are told.
Limits: the network address of a client and the host name of a server stand in clear, for abuse is dealt with by these.
"""

import hashlib
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import CodeType
from typing import Any, Literal

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


Form = Literal["text", "json"]
_LEVELS = {logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}  # syslog's numbers, as sd-daemon(3) has them


def set_up(form: Form = "text") -> None:
    """Lines to stderr, as [relay] log has them. What others would write there is told our way."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Shown(form, to_journal=_is_journal(sys.stderr.fileno())))
    _log.handlers[:] = [handler]
    _log.setLevel(logging.INFO)
    _log.propagate = False
    logging.getLogger().handlers[:] = [handler]
    sys.excepthook = lambda kind, error, at: trouble("uncaught", error)
    threading.excepthook = lambda args: trouble("thread", args.exc_value or RuntimeError())
    sys.unraisablehook = lambda args: trouble("unraisable", args.exc_value or RuntimeError())


def _is_journal(descriptor: int) -> bool:
    """Is that systemd's journal (systemd.exec(5), $JOURNAL_STREAM)? It knows the time of a line, and reads its level."""
    try:
        seen = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM", "") == f"{seen.st_dev}:{seen.st_ino}"


class _Shown(logging.Formatter):
    """A line of ours, or where a library's was written: not what, for that may be a line of somebody's mail."""

    def __init__(self, form: Form, *, to_journal: bool) -> None:
        super().__init__()
        self._form, self._to_journal = form, to_journal

    def format(self, record: logging.LogRecord) -> str:
        event, facts = _facts_of(record)
        level = f"<{_LEVELS.get(record.levelno, 6)}>" if self._to_journal else ""
        if self._form == "json":
            head = {"at": self.formatTime(record), "level": record.levelname.lower(), "event": event}
            return level + json.dumps({**head, **_said(facts)}, default=str)
        line = _line(event, facts)
        return level + line if self._to_journal else f"{self.formatTime(record)} {record.levelname} {line}"


def _facts_of(record: logging.LogRecord) -> tuple[str, Mapping[str, object]]:
    if record.name == _log.name:
        return record.__dict__["event"], record.__dict__["facts"]
    facts: dict[str, object] = {"logger": record.name, "at": f"{record.module}:{record.lineno}"}
    if record.exc_info and record.exc_info[1] is not None:
        facts["error"] = described(record.exc_info[1])
    return "foreign", facts


def _said(facts: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in facts.items() if value not in ("", None)}


def _line(event: str, facts: Mapping[str, object]) -> str:
    return " ".join((event, *(f"{key}={value}" for key, value in _said(facts).items())))


def _tell(level: int, event: str, facts: Mapping[str, object]) -> None:
    if _log.isEnabledFor(level):
        _log.log(level, _line(event, facts), extra={"event": event, "facts": facts})


def _info(event: str, **facts: object) -> None:
    _tell(logging.INFO, event, facts)


def _warn(event: str, **facts: object) -> None:
    _tell(logging.WARNING, event, facts)


def _error(event: str, **facts: object) -> None:
    _tell(logging.ERROR, event, facts)


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
    _error("trouble", id=where, error=described(error))


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


_watchers: list[Callable[[float], None]] = []


def on_answered(watcher: Callable[[float], None]) -> None:
    """Who is told how long each mail waited for its answer."""
    _watchers.append(watcher)


def answered(seconds: float) -> None:
    """The end of a mail's data was answered, whatever the answer: counted, and no line."""
    for watcher in _watchers:
        watcher(seconds)


def accepted(message: str, *, size: int, peer: str, deliveries: int) -> None:
    _info("accepted", message=message, size=size, peer=peer, deliveries=deliveries)


def authenticated(user: str, *, peer: str) -> None:
    _info("authenticated", user=_hashed(user), peer=peer)


def not_authenticated(user: str, *, peer: str) -> None:
    """`user` is "" where nobody bears that name: it may be a password typed in the wrong place."""
    _warn("not-authenticated", user=_hashed(user) if user else "", peer=peer)


def proxy_refused(peer: str, why: str) -> None:
    """A proxy's connection without a header that can be read: no mail comes that way."""
    _warn("proxy-refused", peer=peer, why=why)


def repeated(message: str, *, peer: str) -> None:
    _info("repeated", message=message, peer=peer)


def refused(refusal: str, reply: Reply) -> None:
    _info("refused", refusal=refusal, code=reply.code, status=reply.enhanced)


def scanner_away(message: str, *, why: str, remedy: str) -> None:
    """A mail was answered 451 because nobody could say whether it is clean."""
    _warn("scanner-away", message=message, why=why, remedy=remedy)


def taken(message: str, *, queue: str, others: int) -> None:
    """By the milter; `queue` is the mail server's own id, and `others` the recipients left to it."""
    _info("taken", message=message, queue=queue, others=others)


def milter_broken(why: str) -> None:
    """What came there is not the milter protocol as it was agreed: that connection was closed."""
    _warn("milter-broken", why=why)


def worker_lost(pid: int) -> None:
    """One process less takes mail: its connections are taken over, its core is not."""
    _error("worker-lost", pid=pid)


def client_unclear(slug: str, why: str) -> None:
    _warn("client-unclear", client=_hashed(slug), why=why)


def client_silent(slug: str) -> None:
    _warn("client-silent", client=_hashed(slug))


def throttled(kind: str, subject: str, held: int) -> None:
    """At most once a minute for each. A network address stands in clear, a domain and a client do not."""
    named = {"peer": subject} if kind in ("peer", "unknown", "passwords") else {"subject": _hashed(subject)}
    _warn("throttled", kind=kind, **named, held=held)


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


def sts_testing(mx: str, why: str) -> None:
    """The domain's MTA-STS policy is in mode testing: the message goes all the same."""
    _warn("sts-testing", mx=mx, why=why)


def sts_unfetched(host: str, why: str) -> None:
    """A domain announces an MTA-STS policy that cannot be had: the last one holds while it lasts."""
    _warn("sts-unfetched", host=host, why=why)


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
