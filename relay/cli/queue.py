"""`queue`: where every delivery stands, and the postmaster's word on it."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import click

from relay import clock
from relay.cli.language import t
from relay.cli.options import (
    changing,
    confirm,
    filters,
    json_option,
    order,
    reading,
    reason_option,
    settings,
    yes_option,
)
from relay.cli.output import Record, emit, encoded, fail, paged, printable, reason, write_lines
from relay.config import Config
from rules.lifecycle import FINAL, TRANSITIONS, Change


@click.group(help=t("La file des envois.", "The queue of deliveries."))
def queue() -> None:
    pass


COLUMNS = ("id", "state", "kind", "client", "target", "documents", "size", "received_at", "due_at", "reason")


def _shown(row: dict[str, Any], config: Config) -> Record:
    row["reason"], row["reason_code"] = reason(row["reason"], config.zone)
    return row


@queue.command("list", help=t("Les envois, les plus récents d'abord.", "Deliveries, the newest first."))
@json_option
@filters
@click.pass_context
def list_(ctx: click.Context, wanted: Any, as_json: bool) -> None:
    from relay.store import listing

    config = settings(ctx)
    with reading(config) as db:
        if as_json:
            found = listing.queue_as_text(db, wanted)
            write_lines(line if stands else encoded(_shown(json.loads(line), config)) for line, stands in found)
        else:
            rows = (_shown(row, config) for row in listing.queue(db, wanted))
            emit(paged(rows, key="id", limit=wanted.limit, as_json=False), COLUMNS, as_json=False)


@queue.command(help=t("Tout sur un envoi : ses documents, son histoire.", "All of one delivery."))
@click.argument("id_", metavar="ID")
@json_option
@click.pass_context
def show(ctx: click.Context, id_: str, as_json: bool) -> None:
    from relay.cli.trace import lines
    from relay.store import listing

    config = settings(ctx)
    with reading(config) as db:
        rows = [_shown(row, config) for row in listing.queue(db, listing.Filter(ids=(id_,)))]
        if not rows:
            raise fail(_nothing(id_), 1)
        if as_json:
            emit(rows, (), as_json=True)
            return
        for row in rows:
            for key, value in row.items():
                click.echo(f"{key:12} {printable(str(value if value is not None else ''))}")
            wanted = listing.Filter(ids=(str(row["id"]),))
            emit(listing.documents(db, wanted), ("id", "name", "type", "size", "sha256"), as_json=False)
            story = (line for event in listing.trace(db, str(row["id"])) for line in lines(event))
            emit(story, ("at", "actor", "event", "detail"), as_json=False)


@queue.command(help=t("Les octets du message d'un envoi.", "The bytes of a delivery's message."))
@click.argument("id_", metavar="ID")
@click.pass_context
def body(ctx: click.Context, id_: str) -> None:
    from relay.spool import Spool, SpoolError
    from relay.store.listing import body_key

    config = settings(ctx)
    with reading(config) as db:
        key = body_key(db, id_)
    if not key:
        raise fail(_nothing(id_), 1)
    try:
        with Spool.existing(config.relay.data / "spool").open(key) as opened:
            for piece in opened.pieces():
                sys.stdout.buffer.write(piece)
    except SpoolError as error:
        raise fail(t(f"contenu absent : {error}", f"bytes missing: {error}"), 1) from None


@queue.command(help=t("Combien, par état.", "How many, by state."))
@json_option
@click.pass_context
def summary(ctx: click.Context, as_json: bool) -> None:
    from relay.store import listing

    with reading(settings(ctx)) as db:
        emit(listing.summary(db), ("kind", "state", "deliveries", "size", "oldest"), as_json=as_json)


def _nothing(id_: str) -> str:
    return t(f"aucun envoi {id_}", f"no delivery {id_}")


def _changing_verb(change: Change, french: str, english: str) -> None:
    """hold, release, retry, drop: the same manners, another row of the transition table."""

    @queue.command(change.value, help=t(french, english))
    @click.argument("given", nargs=-1, metavar="[ID]…")
    @filters
    @reason_option
    @yes_option
    @click.pass_context
    def verb(ctx: click.Context, wanted: Any, given: tuple[str, ...], reason: str, yes: bool) -> None:
        from relay.store import delivery
        from relay.store.database import transaction

        config = settings(ctx)
        with changing(config) as db:
            ids = list(_selected(db, wanted, given, tuple(TRANSITIONS[change][0])))
            confirm(len(ids), change.value, yes)
            with transaction(db):
                changed = delivery.change(db, ids, change, order(config, reason))
        _report(changed, change.value)


def _selected(db: Any, wanted: Any, given: tuple[str, ...], states: tuple[str, ...]) -> Iterator[str]:
    """The deliveries meant, whose state allows the change."""
    from dataclasses import replace

    from relay.store import delivery, listing

    wanted = replace(wanted, ids=(*wanted.ids, *given))
    if not wanted.narrows:
        raise click.UsageError(t("Nommez des envois : des ID, ou un filtre.", "Name deliveries: ids, or a filter."))
    condition, parameters = listing.where(wanted)
    allowed = ", ".join("?" * len(states))
    yield from delivery.selected(db, f"({condition}) AND d.state IN ({allowed})", [*parameters, *states])


def _report(changed: list[str], what: str) -> None:
    for id_ in changed:
        click.echo(f"{what} {id_}")
    if not changed:
        raise fail(t(f"{what} : aucun envoi dans un état qui le permet", f"{what}: no delivery in a state for it"), 1)


_changing_verb(Change.HOLD, "Retient des envois qui attendent.", "Holds deliveries that wait.")
_changing_verb(Change.RELEASE, "Remet en file des envois retenus.", "Puts held deliveries back in the queue.")
_changing_verb(Change.RETRY, "Remet en file des envois refusés ou échoués.", "Puts refused or failed ones back.")
_changing_verb(Change.DROP, "Abandonne des envois.", "Drops deliveries.")


@queue.command(help=t("Envoie une fois de plus ce qui est terminé.", "Sends once more what has ended."))
@click.argument("given", nargs=-1, metavar="[ID]…")
@filters
@reason_option
@yes_option
@click.pass_context
def resend(ctx: click.Context, wanted: Any, given: tuple[str, ...], reason: str, yes: bool) -> None:
    from relay.daemon import token_key
    from relay.ids import token
    from relay.store import delivery
    from relay.store.database import transaction

    config = settings(ctx)
    with changing(config) as db:
        ids = list(_selected(db, wanted, given, tuple(FINAL)))
        confirm(len(ids), "resend", yes)
        key, now = token_key(config.relay.data), clock.now()
        with transaction(db):
            each = (delivery.resend(db, id_, order(config, reason), token=token(key, now)) for id_ in ids)
            made = [new for new in each if new]
    _report(made, "resend")
