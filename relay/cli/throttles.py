"""`throttles`: who was held back for coming too often, and the postmaster's word that lets one through."""

from dataclasses import replace
from typing import Any

import click

from relay import clock
from relay.cli.language import t
from relay.cli.options import actor, changing, json_option, narrowed, reading, reason_option, settings, short_filters
from relay.cli.output import emit, fail, paged, printable
from rules.throttle import KINDS, Kind, Subject, network

COLUMNS = ("id", "kind", "subject", "state", "count", "since", "until")


@click.group(help=t("Qui a dû attendre (réponse 450).", "Who was held back (answered 450)."))
def throttles() -> None:
    pass


@throttles.command(
    "list",
    help=t(
        "Qui a dû attendre depuis un jour, ou depuis --since.", "Who was held back in the last day, or since --since."
    ),
)
@json_option
@short_filters
@click.pass_context
def list_(ctx: click.Context, wanted: Any, as_json: bool) -> None:
    from relay.store import throttles as store

    now = clock.now()
    since = wanted.since or clock.stamp(now - store.RECENT)
    with reading(settings(ctx)) as db:
        rows = narrowed(store.listing(db, since, clock.stamp(now)), replace(wanted, since=""), key="id")
        emit(paged(rows, key="id", limit=wanted.limit, as_json=as_json), COLUMNS, as_json=as_json)


@throttles.command(
    help=t(
        "Laisse repasser SUBJECT (une adresse IP, un domaine, un client), retenu depuis moins d'un jour.",
        "Lets SUBJECT (an IP address, a domain, a client), held back within the last day, through again.",
    )
)
@click.argument("kind", type=click.Choice(KINDS))
@click.argument("subject")
@reason_option
@click.pass_context
def clear(ctx: click.Context, kind: Kind, subject: str, reason: str) -> None:
    from relay.store import throttles as store
    from relay.store.database import transaction
    from relay.store.events import Event, write

    named = network(subject) if kind in ("peer", "unknown", "passwords") else subject.lower()
    now = clock.now()
    with changing(settings(ctx)) as db, transaction(db):
        found = store.clear(db, Subject(kind, named), since=clock.stamp(now - store.RECENT))
        if not found:
            raise fail(t(f"{kind} {named} : n'est pas retenu", f"{kind} {named}: not held back"), 1)
        detail = {"kind": kind, "throttles": found, "why": reason}  # not whom: that goes with its row
        write(db, clock.stamp(now), actor(), [Event("throttle-cleared", detail=detail)])
    click.echo(f"cleared {kind} {printable(named)}")
