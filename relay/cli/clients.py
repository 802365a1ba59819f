"""`clients`: the first-level folders of the GED, and those added by hand."""

import re
from typing import Any

import click

from relay import clock
from relay.cli.language import t
from relay.cli.options import (
    actor,
    changing,
    json_option,
    narrowed,
    reading,
    reason_option,
    settings,
    short_filters,
    yes_option,
)
from relay.cli.output import emit, fail, printable


@click.group(help=t("Les dossiers clients.", "The clients."))
def clients() -> None:
    pass


@clients.command("list", help=t("Les dossiers clients.", "The clients."))
@json_option
@short_filters
@click.pass_context
def list_(ctx: click.Context, wanted: Any, as_json: bool) -> None:
    from relay.store import directory

    with reading(settings(ctx)) as db:
        rows = [
            {
                "slug": c.slug,
                "folder": c.folder,
                "aliases": list(c.aliases),
                "fiscal_year_end": c.fiscal_year_end or None,
                "state": c.state,
            }
            for c in directory.clients(db)
        ]
    emit(narrowed(rows, wanted, key="slug"), ("slug", "folder", "aliases", "fiscal_year_end", "state"), as_json=as_json)


@clients.command(
    help=t("Ajoute un client, ou précise la fin de son exercice.", "Adds a client, or its fiscal year end.")
)
@click.argument("slug")
@click.option("--folder", default="", metavar="NAME", help=t("son répertoire dans la GED", "its folder in the GED"))
@click.option("--fiscal-year-end", default="", metavar="MM-DD", help=t("fin de son exercice", "end of its fiscal year"))
@reason_option
@click.pass_context
def add(ctx: click.Context, slug: str, folder: str, fiscal_year_end: str, reason: str) -> None:
    from relay.store import directory
    from relay.store.database import transaction
    from relay.store.events import Event, write
    from rules.address import is_name
    from rules.filing import is_system
    from rules.filing import slug as slug_of

    if not is_name(slug) or slug_of(slug) != slug:
        raise fail(t(f"« {slug} » n'est pas un nom de client : lettres, chiffres, tirets", f"{slug}: not a slug"), 2)
    if fiscal_year_end and not re.fullmatch(r"(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])", fiscal_year_end):
        raise fail(t("fin d'exercice : écrivez MM-JJ, par exemple 06-30", "fiscal year end: write MM-DD"), 2)
    if folder and (folder != folder.strip() or "/" in folder or is_system(folder)):
        raise fail(t(f"« {folder} » n'est pas un dossier de la GED", f"{folder}: not a folder of the GED"), 2)
    config = settings(ctx)
    with changing(config) as db, transaction(db):
        known = {client.slug: client for client in directory.clients(db)}
        taken = next((c.slug for c in known.values() if slug in c.aliases), "")
        if taken:
            raise fail(t(f"« {slug} » est un ancien nom de {taken}", f"{slug} is an alias of {taken}"), 1)
        before = known.get(slug)
        client = directory.Client(
            slug=slug,
            folder=folder or (before.folder if before else slug),
            aliases=before.aliases if before else (),
            fiscal_year_end=fiscal_year_end or (before.fiscal_year_end if before else ""),
            state=before.state if before and before.state != "gone" else "added",
            identity=before.identity if before else "",
        )
        directory.put_client(db, client)
        directory.touch(db)
        detail = {"client": slug, "folder": client.folder, "fiscal_year_end": client.fiscal_year_end, "why": reason}
        write(db, clock.stamp(clock.now()), actor(), [Event("client-added", detail=detail)])
    click.echo(f"{slug} → {printable(client.folder)}")


@clients.command(help=t("Oublie un client ajouté à la main ou disparu.", "Forgets a client added by hand, or gone."))
@click.argument("slug")
@reason_option
@yes_option
@click.pass_context
def remove(ctx: click.Context, slug: str, reason: str, yes: bool) -> None:
    from relay.store import connections, directory
    from relay.store.database import transaction
    from relay.store.events import Event, write

    with changing(settings(ctx)) as db, transaction(db):
        if connections.connections(db, slug):
            raise fail(
                t(f"{slug} a des connexions : retirez-les d'abord", f"{slug} has connections: remove them first"), 1
            )
        if not directory.remove_client(db, slug):
            why = t(f"{slug} : ni ajouté à la main, ni disparu", f"{slug}: neither added by hand nor gone")
            raise fail(why, 1)
        write(db, clock.stamp(clock.now()), actor(), [Event("client-removed", detail={"client": slug, "why": reason})])
    click.echo(slug)
