"""One function per event, called after its commit: a log line, and later a metric.

Knows alone: the vocabulary of the log. Technical logs are personal data: ids, hashes and codes only; no subject, no file
name, no address. Who wants those asks `trace`.
"""

import logging
import traceback

from rules.replies import Reply

_log = logging.getLogger("welyb-relay")


def set_up() -> None:
    """Lines to stderr: systemd and terminals add what else is wanted."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    _log.propagate = False


def _line(event: str, facts: dict[str, object]) -> str:
    return " ".join((event, *(f"{key}={value}" for key, value in facts.items() if value not in ("", None))))


def _info(event: str, **facts: object) -> None:
    if _log.isEnabledFor(logging.INFO):
        _log.info(_line(event, facts))


def _warn(event: str, **facts: object) -> None:
    _log.warning(_line(event, facts))


def serving(endpoints: str) -> None:
    _info("serving", on=endpoints)


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


def trouble(where: str, error: BaseException) -> None:
    """Our own fault: the peer was told 451 and no more; the line has what the postmaster needs."""
    text = "".join(traceback.format_exception(error)).strip().replace("\n", " | ")
    _log.error(_line("trouble", {"id": where, "error": repr(text)}))


def worker_lost(pid: int) -> None:
    """One process less takes mail: its connections are taken over, its core is not."""
    _log.error(_line("worker-lost", {"pid": pid}))


def client_unclear(slug: str, why: str) -> None:
    _warn("client-unclear", client=slug, why=why)


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
