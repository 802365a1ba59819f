"""`check --store`: what rows and bytes say of each other, each finding with its remedy; `--mend` repairs what is sure.

Knows alone: what may be mended. Refuse goes only while nobody serves; a delivery whose bytes are gone is given up, and says
so; nothing else is touched. Exit 1 while anything is found.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay import clock
from relay.cli.language import t
from relay.cli.options import actor
from relay.config import Config
from relay.lock import held
from rules.ruleset import RuleSet

MEND = "welyb-relay check --store --mend"
_REMEDY = {
    "damaged": ("arrêtez le relais et restaurez une sauvegarde", "stop the relay and restore a backup"),
    "reference": ("restaurez une sauvegarde", "restore a backup"),
    "balance": ("welyb-relay runs show ID", "welyb-relay runs show ID"),
    "recipient": ("restaurez une sauvegarde", "restore a backup"),
    "document": ("restaurez une sauvegarde", "restore a backup"),
    "finished": ("welyb-relay queue show ID", "welyb-relay queue show ID"),
    "rule": ("remettez la règle, ou queue drop", "put the rule back, or queue drop"),
    "erasing": (MEND, MEND),
    "altered": (
        "le disque a changé ces octets : restaurez-les d'une sauvegarde",
        "the disk changed these bytes: put them back from a backup",
    ),
    "bytes": (
        f"remettez le fichier d'une sauvegarde ; sinon {MEND}",
        f"put the file back from a backup; else {MEND}",
    ),
    "file": (
        f"le prochain démarrage l'enlève, ou {MEND} le relais arrêté",
        f"the next start removes it, or {MEND} with the relay stopped",
    ),
    "segment": ("le prochain passage l'enlève : runs now", "the next run removes it: runs now"),
    "sending": ("le prochain passage les reprend : runs now", "the next run takes them up: runs now"),
    "filing": ("le prochain démarrage de serve les reprend", "the next start of serve takes them up"),
}


@dataclass(frozen=True, slots=True)
class Orders:
    """What was asked for beside the look."""

    deep: bool
    mend: bool
    why: str


def findings(config: Config, ruleset: RuleSet, db: Any, orders: Orders) -> Iterator[tuple[str, bool, str, str]]:
    """(subject, ok, finding, remedy)."""
    from relay import care
    from relay.spool import Spool
    from relay.store import audit

    data, began, count = config.relay.data, time.time(), 0
    with ExitStack() as locks:
        alone = _take(locks, data / "serve.lock")
        runs = (alone or orders.mend or _stuck(db, "sending") > 0) and _take(locks, data / "run.lock")
        if not orders.mend:
            locks.close()  # a look keeps nobody waiting: what is newer than its beginning is no finding
        if orders.mend and not runs:
            yield _finding("mend", "run.lock", t("un passage est en cours : rien n'est réparé", "a run is under way"))
        mends = _Mends(db, data, orders, alone=alone and runs, runs=runs)
        spool = Spool.existing(data / "spool")
        problems = [*audit.problems(db, [rule.name for rule in ruleset.rules])]
        problems += care.altered_documents(db, spool) if orders.deep else ()
        for problem in problems:
            done = mends.erasing() if problem.code == "erasing" else ""
            yield _finding(problem.code, problem.what, problem.detail, done)
            count += 1
        for bare in care.rows_without_bytes(db, spool):
            yield _finding("bytes", f"{bare.row.table} {bare.row.id}", bare.found, mends.bare(bare))
            count += 1
        age = time.time() - began if alone and runs else care.YOUNG
        for key in care.files_without_row(db, data, older_than=age):
            yield _finding("file", key, t("aucune ligne n'en parle", "no row speaks of it"), mends.file(key))
            count += 1
        keep = config.relay.keep_bodies.total_seconds() + 86400
        for name in care.segments_without_row(db, data, older_than=keep):
            yield _finding("segment", name, t("plus rien d'utile", "nothing needed in it"))
            count += 1
        for state, free in (("sending", runs), ("filing", alone)):
            if free and (stuck := _stuck(db, state)):
                yield _finding(state, state, t(f"{stuck} sans personne pour finir", f"{stuck} in nobody's hands"))
                count += 1
    if not count:
        yield "store", True, t("lignes et octets se répondent", "rows and bytes agree"), ""


def _finding(code: str, what: str, detail: str, done: str = "") -> tuple[str, bool, str, str]:
    remedy = done or t(*_REMEDY.get(code, (MEND, MEND)))
    return f"{code} {what}", False, detail or what, remedy


def _stuck(db: Any, state: str) -> int:
    from relay.store import audit

    return audit.in_flight(db, state)


def _take(locks: ExitStack, path: Path) -> bool:
    """Is nobody there? Then nobody comes, either, while the lock is kept."""
    with suppress(_Held, OSError):
        locks.enter_context(held(path, _Held()))
        return True
    return False


class _Held(Exception):
    """Somebody serves, or runs."""


@dataclass(frozen=True, slots=True)
class _Mends:
    """What is done about a finding, "" where nothing is: the remedy is told then."""

    db: Any
    data: Path
    orders: Orders
    alone: bool
    runs: bool

    def bare(self, bare: Any) -> str:
        from relay.store import audit
        from relay.store.database import transaction

        if not (self.orders.mend and self.runs and bare.sure):
            return ""
        at, why = clock.stamp(clock.now()), self.orders.why
        with transaction(self.db):
            failed = audit.fail_without_bytes(self.db, bare.row, at=at, actor=actor(), why=why)
            if not failed and audit.forget_missing(self.db, bare.row, at=at, actor=actor()):
                return t("plus demandé", "no longer asked for")
        return t(f"abandonné : {' '.join(failed)}", f"given up: {' '.join(failed)}") if failed else ""

    def file(self, key: str) -> str:
        from relay.spool import Spool
        from relay.store import retention

        if not (self.orders.mend and self.alone) or retention.is_referred_to(self.db, key):
            return ""
        Spool.existing(self.data / "spool").remove(key)
        return t("enlevé", "removed")

    def erasing(self) -> str:
        from relay import care

        if not (self.orders.mend and self.runs):
            return ""
        care.erase_bytes(self.db, self.data)
        return t("terminé", "finished")
