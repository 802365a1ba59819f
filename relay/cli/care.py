"""`backup`, `restore`, `erase`: the store as a whole, and what the law asks of it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import click

from relay import clock
from relay.cli.language import t
from relay.cli.options import actor, changing, confirm, json_option, reason_option, settings, yes_option
from relay.cli.output import emit, fail, printable
from relay.config import Config

WAIT = 60.0  # seconds for a run of another process to end


@contextmanager
def between_runs(config: Config) -> Iterator[None]:
    """Holds the run lock, waiting a while for a run under way: no bytes are removed meanwhile."""
    from relay import flush

    with ExitStack() as stack:
        try:
            stack.enter_context(flush.lock(config.relay.data, within=WAIT))
        except flush.RunUnderWay:
            raise fail(t("un passage est en cours", "a run is under way"), 1) from None
        yield


@click.command(
    help=t(
        "Sauvegarde dans DIR, qui ne doit pas exister, pendant que le courrier passe. La GED n'y est pas.",
        "A backup into DIR, which must not exist, while mail flows. The GED is not in it.",
    )
)
@click.argument("target", metavar="DIR", type=click.Path(path_type=Path))
@json_option
@click.pass_context
def backup(ctx: click.Context, target: Path, as_json: bool) -> None:
    from relay.backup import BackupError
    from relay.backup import backup as make

    config = settings(ctx)
    with changing(config), between_runs(config):
        try:
            made = make(config, target)
        except BackupError as error:
            raise fail(str(error), 1) from None
        except OSError as error:
            raise fail(f"{error}. {_place(data_of=config.relay.data)}", 1) from None
    row = {"backup": str(made.folder), "files": made.files, "size": made.size, "missing": len(made.missing)}
    emit([row], ("backup", "files", "size", "missing"), as_json=as_json)
    if made.missing:
        told = t(f"contenus absents du stockage : {len(made.missing)}", f"bodies not in the spool: {len(made.missing)}")
        raise fail(f"{told}. welyb-relay check --store", 1)


def _place(*, data_of: Path) -> str:
    return t(
        f"Remède : un dossier que le propriétaire de {data_of} peut lire et écrire",
        f"Remedy: a folder that the owner of {data_of} may read and write",
    )


@click.command(
    help=t(
        "Remet la sauvegarde DIR en place, le relais arrêté ; ce qui était en route est retenu.",
        "Puts the backup DIR in place, the relay stopped; what was on its way is held.",
    )
)
@click.argument("source", metavar="DIR", type=click.Path(path_type=Path))
@reason_option
@json_option
@click.pass_context
def restore(ctx: click.Context, source: Path, reason: str, as_json: bool) -> None:
    from relay.backup import BackupError, alone, put_back
    from relay.daemon import take_identity
    from relay.store.database import StoreError

    config = settings(ctx)
    data = config.relay.data
    try:
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
        take_identity(data)
        with alone(data):
            held = put_back(config, source, actor=actor(), why=reason)
    except (BackupError, StoreError) as error:
        raise fail(str(error), 1) from None
    except OSError as error:
        raise fail(f"{error}. {_place(data_of=data)}", 1) from None
    emit(({"id": id_, "state": "held", "reason_code": "restored"} for id_ in held), ("id", "state"), as_json=as_json)
    told = t(
        f"{len(held)} envois retenus : vérifiez chacun, puis queue release ou queue drop",
        f"{len(held)} deliveries held: look at each, then queue release or queue drop",
    )
    click.echo(told, err=True)


@click.command(
    help=t(
        "Efface les données personnelles d'un client ou d'un expéditeur ; l'histoire garde ce que la comptabilité exige.",
        "Erases the personal data of a client or a sender; history keeps what accounting needs.",
    )
)
@click.option("--client", default="", metavar="SLUG", help=t("tout d'un dossier client", "all of a client's"))
@click.option("--sender", default="", metavar="ADDRESS", help=t("tout d'un expéditeur", "all of a sender's"))
@reason_option
@yes_option
@click.pass_context
def erase(ctx: click.Context, client: str, sender: str, reason: str, yes: bool) -> None:
    from relay import care
    from relay.store import erasure
    from relay.store.database import transaction

    if bool(client) == bool(sender) or not reason:
        raise click.UsageError(
            t("Nommez --client ou --sender, et --reason.", "Name --client or --sender, and --reason.")
        )
    config = settings(ctx)
    asked = erasure.Asked(client, sender)
    with changing(config) as db, between_runs(config):
        if erasure.unfinished(db):  # one that was cut short
            care.erase_bytes(db, config.relay.data)
        found = erasure.scope(db, asked)
        _refuse(db, asked, found)
        confirm(found.size, t("effacer", "erase"), yes)
        db.conn.execute("PRAGMA secure_delete=ON")  # what is taken from a page does not stay in it
        at = clock.stamp(clock.now())
        with transaction(db):
            done = erasure.erase(db, asked, at=at, actor=actor(), why=reason)
        _refuse(db, asked, done)
        bodies = care.erase_bytes(db, config.relay.data)
    click.echo(
        f"erased messages={len(done.messages)} deliveries={len(done.deliveries)} documents={len(done.documents)} "
        f"refusals={len(done.refusals)} bodies={bodies}"
    )


def _refuse(db: Any, asked: Any, found: Any) -> None:
    """Exit 1 where there is nothing to erase, or where some of it is alive."""
    from relay.store import erasure

    if found.alive:
        told = t(
            f"{found.alive} envois ou connexions encore en cours : queue drop, connections remove, ou attendez",
            f"{found.alive} deliveries or connections still alive: queue drop, connections remove, or wait",
        )
        raise fail(told, 1)
    if not found.size:
        before = erasure.record_of(db, asked)
        told = t("rien à effacer", "nothing to erase")
        if before:
            told += t(f" : effacé le {before[0]} par {before[1]}", f": erased on {before[0]} by {before[1]}")
        raise fail(printable(told), 1)
