"""`forwarding`: what mailbox services ask before they forward a client's mail to one of our addresses."""

from typing import Any

import click

from relay.cli.language import t
from relay.cli.options import json_option, reading, settings, short_filters
from relay.cli.output import emit, fail, paged, printable


@click.group(help=t("Les demandes de confirmation de transfert.", "Requests to confirm a forward."))
def forwarding() -> None:
    pass


COLUMNS = ("id", "state", "received_at", "recipient", "service", "code", "sender")


@forwarding.command("list", help=t("Les demandes, les plus récentes d'abord.", "Requests, the newest first."))
@json_option
@short_filters
@click.pass_context
def list_(ctx: click.Context, wanted: Any, as_json: bool) -> None:
    from relay.store.forwardings import forwardings

    with reading(settings(ctx)) as db:
        rows = forwardings(db, wanted)
        emit(paged(rows, key="id", limit=wanted.limit, as_json=as_json), COLUMNS, as_json=as_json)


@forwarding.command(help=t("Une demande : son code, son lien.", "One request: its code, its link."))
@click.argument("id_", metavar="ID")
@json_option
@click.pass_context
def show(ctx: click.Context, id_: str, as_json: bool) -> None:
    from relay.store.forwardings import forwardings
    from relay.store.listing import Filter

    with reading(settings(ctx)) as db:
        rows = list(forwardings(db, Filter(ids=(id_,))))
    if not rows:
        raise fail(t(f"aucune demande {id_}", f"no request {id_}"), 1)
    if as_json:
        emit(rows, (), as_json=True)
        return
    for key, value in rows[0].items():
        click.echo(f"{key:12} {printable(str(value))}")
    click.echo(_what_to_do(rows[0], printable(id_)))


def _what_to_do(row: Any, id_: str) -> str:
    if row["code"] or row["link"]:
        return t(
            "Donnez le code au client, ou ouvrez vous-même le lien : le relais ne l'ouvre jamais.",
            "Give the code to the client, or open the link yourself: the relay never does.",
        )
    return t(f"Lisez le courriel : queue body {id_}", f"Read the mail: queue body {id_}")
