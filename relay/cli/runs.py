"""`runs`: past, next, and now."""

import asyncio
import time
from typing import Any

import click

from relay import clock
from relay.cli.language import current, t
from relay.cli.options import changing, json_option, narrowed, reading, reason_option, rules, settings, short_filters
from relay.cli.output import Record, emit, fail, paged
from relay.config import Config
from rules.lifecycle import next_run
from rules.replies import history
from rules.ruleset import RuleSet

COLUMNS = ("id", "started_at", "finished_at", "eligible", "sent", "deferred", "refused", "held", "duplicate")
WAIT = 60.0  # seconds for a run of another process to end


@click.group(help=t("Les passages de l'automate.", "The runs."))
def runs() -> None:
    pass


@runs.command("list", help=t("Les passages et leurs comptes.", "Past runs and their counts."))
@json_option
@short_filters
@click.pass_context
def list_(ctx: click.Context, wanted: Any, as_json: bool) -> None:
    from relay.store import listing

    with reading(settings(ctx)) as db:
        rows = narrowed(listing.runs(db), wanted, key="id")
        emit(paged(rows, key="id", limit=wanted.limit, as_json=as_json), COLUMNS, as_json=as_json)


@runs.command(help=t("Un passage, envoi par envoi.", "A run, delivery by delivery."))
@click.argument("number", type=int, metavar="ID")
@json_option
@click.pass_context
def show(ctx: click.Context, number: int, as_json: bool) -> None:
    from relay.store import listing

    with reading(settings(ctx)) as db:
        found = listing.runs(db, run=number)
        if not found:
            raise fail(t(f"passage inconnu : {number}", f"no run {number}"), 1)
        emit(found, COLUMNS, as_json=as_json)
        if not as_json:
            emit(listing.attempts_of(db, number), ("id", "client", "target", "state", "reply"), as_json=False)


@runs.command("next", help=t("L'heure du prochain passage.", "When the next run is."))
@json_option
@click.pass_context
def next_(ctx: click.Context, as_json: bool) -> None:
    config = settings(ctx)
    at = next_run(clock.now(), config.run.every)
    if as_json:
        emit([{"at": clock.stamp(at)}], (), as_json=True)
    else:
        click.echo(at.astimezone(config.zone).isoformat(timespec="seconds"))


@runs.command("now", help=t("Fait le prochain passage tout de suite.", "Does the next run at once."))
@click.option("--dry-run", is_flag=True, help=t("dire ce qui partirait, sans rien faire", "say what would leave"))
@json_option
@reason_option
@click.pass_context
def now_(ctx: click.Context, dry_run: bool, as_json: bool, reason: str) -> None:
    config = settings(ctx)
    ruleset = rules(config)
    if dry_run:
        _foresee(config, ruleset, as_json)
        return
    with changing(config):
        pass  # exit 3 without a store; and we are its owner from here on
    from relay import daemon

    try:
        number = asyncio.run(_run(config, ruleset))
    except daemon.StartError as error:
        raise fail(str(error), 2) from None
    from relay.store import listing

    with reading(config) as db:
        emit(listing.runs(db, run=number), COLUMNS, as_json=as_json)


async def _run(config: Config, ruleset: RuleSet) -> int:
    """Takes the run lock, waiting a while for a run under way, and does the run itself."""
    from relay import daemon, flush

    end = time.monotonic() + WAIT
    while True:
        try:
            with flush.lock(config.relay.data):
                async with daemon.means(config, ruleset) as means:
                    return await flush.run(means, next_run(clock.now(), config.run.every))
        except flush.RunUnderWay:
            if time.monotonic() > end:
                raise fail(t("un passage est déjà en cours", "a run is already under way"), 1) from None
            await asyncio.sleep(0.2)


def _foresee(config: Config, ruleset: RuleSet, as_json: bool) -> None:
    from relay.ids import TokenKey
    from relay.scan import Scanner
    from relay.spool import Spool
    from relay.store import listing
    from relay.store.listing import Filter

    with reading(config) as db:
        horizon = clock.stamp(next_run(clock.now(), config.run.every))
        rows: list[Record] = [
            {"name": row["name"], "client": row["client"], "target": row["collector"], "verdict": "send", "reason": ""}
            for row in listing.documents(db, Filter(states=("waiting",)))
            if row["kind"] == "send" and row["due_at"] <= horizon
        ]
        spool = Spool.existing(config.relay.data / "spool")
        scanner = Scanner(config, ruleset, db=db, spool=spool, token_key=TokenKey(b""))  # nothing is made
        rows += [_row(verdict) for verdict in scanner.foresee()]
    emit(rows, ("name", "client", "target", "verdict", "reason"), as_json=as_json)


def _row(verdict: Any) -> Record:
    return {
        "name": verdict.name,
        "client": verdict.client,
        "target": verdict.target,
        "verdict": verdict.verdict,
        "reason": history(verdict.reason, current()) if verdict.reason else "",
    }
