"""`connections`: an application, a folder in a client's tree, and the address its documents go to."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

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
    rules,
    settings,
    short_filters,
    yes_option,
)
from relay.cli.output import Record, emit, fail, printable, reason
from relay.config import Config
from rules import address, deposit
from rules.ruleset import RuleSet

if TYPE_CHECKING:
    from relay.ged import Tree
    from relay.store.connections import Connection


@click.group(help=t("Les dossiers connectés à une application.", "Folders connected to an application."))
def connections() -> None:
    pass


COLUMNS = ("id", "application", "client", "folder", "welyb_address", "collector_address", "activated_at", "state")


def _shown(connection: Any, config: Config) -> Record:
    sentence = connection.reason or ""
    if connection.state == "error":
        sentence = reason(f'{{"code": "connection-doubt", "doubt": "{connection.reason}"}}', config.zone)[0]
    return {**{column: getattr(connection, column) for column in COLUMNS}, "reason": sentence}


@connections.command("list", help=t("Celles qui sont en place.", "Those that stand."))
@json_option
@short_filters
@click.pass_context
def list_(ctx: click.Context, wanted: Any, as_json: bool) -> None:
    from relay.store import connections as store

    config = settings(ctx)
    with reading(config) as db:
        rows = [_shown(connection, config) for connection in store.connections(db)]
    emit(narrowed(rows, wanted, key="id"), COLUMNS, as_json=as_json)


@connections.command(help=t("Une connexion et le compte de son inventaire.", "A connection and its inventory."))
@click.argument("number", type=int, metavar="ID")
@json_option
@click.pass_context
def show(ctx: click.Context, number: int, as_json: bool) -> None:
    from relay.store import connections as store

    config = settings(ctx)
    with reading(config) as db:
        found = store.connection(db, number)
        if found is None:
            raise fail(_unknown(number), 1)
        row = {**_shown(found, config), "inventory": store.counts(db, number)}
    if as_json:
        emit([row], (), as_json=True)
        return
    for key, value in row.items():
        click.echo(f"{key:18} {printable(str(value))}")


@connections.command(
    help=t(
        "Connecte un dossier : dès cet instant, ce qui y est déposé part. Ce qui y est déjà ne part pas.",
        "Connects a folder: from this instant on, what is deposited there is sent. What is there already is not.",
    )
)
@click.option("--application", required=True, metavar="RULE", help=t("la règle qui mène à elle", "the rule to it"))
@click.option("--client", "slug", required=True, metavar="SLUG", help=t("le dossier client", "the client"))
@click.option(
    "--folder", default="", metavar="PATH", help=t("sous le répertoire du client", "below the client's folder")
)
@click.option(
    "--address", "typed", required=True, metavar="ADDRESS", help=t("meg+… ou le collecteur", "meg+… or collector")
)
@click.option(
    "--force", is_flag=True, help=t("partager un collecteur entre clients", "share a collector between clients")
)
@json_option
@reason_option
@click.pass_context
def add(ctx: click.Context, /, as_json: bool, force: bool, **given: str) -> None:
    from relay.store import connections as store
    from relay.store.database import transaction

    config = settings(ctx)
    pair = _pair(given["typed"], given["application"], config, rules(config))
    folder = _folder(given["folder"])
    with changing(config) as db:
        client = _client(db, config, given["slug"])
        _check_free(db, pair, client.slug, folder, force=force)
        tree = _tree(config, client.folder, folder)
        new, baseline = _activate(tree, pair, client, folder)
        with transaction(db):
            number = store.add(db, new, baseline, actor())
        found = store.connection(db, number)
        assert found is not None
        row = {**_shown(found, config), "baseline": sum(len(entries) for _, entries in baseline)}
    if as_json:
        emit([row], (), as_json=True)
        return
    click.echo(f"{number}  {pair.welyb}  →  {pair.collector}")
    count = row["baseline"]
    click.echo(t(f"{count} documents déjà présents, jamais envoyés", f"{count} documents already there, never sent"))


def _pair(typed: str, application: str, config: Config, ruleset: RuleSet) -> address.Pair:
    """A Welyb or a collector address, understood exactly, or exit 2."""
    rule = ruleset.named(application)
    if rule is None or rule.relay is None:
        names = ", ".join(r.name for r in ruleset.rules if r.relay)
        raise fail(t(f"application inconnue : {application} ({names})", f"no application {application} ({names})"), 2)
    pair = address.pair(typed, rule, ruleset, config.relay.domain)
    if pair is None:
        form = f"{rule.address.fill('nomsociete')}@{config.relay.domain}"
        other = address.to_welyb(typed, ruleset, config.relay.domain)
        hint = t(f" Vouliez-vous dire {other} ?", f" Did you mean {other}?") if other else ""
        raise fail(t(f"Adresse incorrecte : saisissez {form}.{hint}", f"Wrong address: type {form}.{hint}"), 2)
    return pair


def _folder(text: str) -> str:
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts or text.startswith("/"):
        raise fail(t(f"« {text} » n'est pas un dossier du client", f"{text} is not a folder of the client"), 2)
    return "/".join(parts)


def _client(db: Any, config: Config, slug: str) -> Any:
    """A known client, after one more look at the GED; exit 1 else, and nothing is stored."""
    from relay.directory import list_clients
    from relay.store import directory

    list_clients(db, config.ged.root)
    client = directory.find_client(db, slug)
    if client is None or client.state in ("gone", "ambiguous"):
        raise fail(t(f"client inconnu ou ambigu : {slug}", f"unknown or ambiguous client: {slug}"), 1)
    return client


def _check_free(db: Any, pair: address.Pair, slug: str, folder: str, *, force: bool) -> None:
    from relay.store import connections as store

    shared = store.sharing(db, pair.collector, slug)
    if shared and not force:
        who = ", ".join(shared)
        why = t(
            f"{pair.collector} est déjà le collecteur de {who}", f"{pair.collector} is already the collector of {who}"
        )
        raise fail(f"{why} ({t('--force pour partager', '--force to share')})", 1)
    for other in store.connections(db, slug):
        if other.application == pair.rule.name and other.folder == folder:
            raise fail(t(f"déjà connecté : connexion {other.id}", f"already connected: connection {other.id}"), 1)


def _tree(config: Config, client_folder: str, folder: str) -> "Tree":
    from relay import ged

    return ged.Tree(config.ged.root).within(client_folder).within(folder)


Baseline = list[tuple[str, list[tuple[str, int, int, int, int, int]]]]


def _activate(tree: "Tree", pair: address.Pair, client: Any, folder: str) -> "tuple[Connection, Baseline]":
    """The instant of activation, and the inventory of what was there before it. Exit 1 where the folder is away."""
    from relay.store.connections import Connection

    root = tree.identity()
    if not isinstance(root, tuple):
        raise fail(t(f"dossier inaccessible : {folder or '.'} ({root.reason})", f"folder away: {root.reason}"), 1)
    by_tree = tree.instant_ns()
    activated_ns = by_tree if isinstance(by_tree, int) else time.time_ns()
    activated_at = clock.stamp(clock.now())
    baseline = list(_baseline(tree, activated_ns))
    collector = (pair.welyb, pair.collector)
    new = Connection(
        0, pair.rule.name, client.slug, folder, *collector, activated_at, "active", None, root, client.folder
    )
    return new, baseline


def _baseline(tree: "Tree", activated_ns: int) -> Iterator[tuple[str, list[tuple[str, int, int, int, int, int]]]]:
    from relay import ged

    for found in tree.scan():
        if isinstance(found, ged.GedAway | ged.Unreadable):
            raise fail(t(f"illisible : {found.reason}", f"unreadable: {found.reason}"), 1)
        yield found.folder, [e for e in found.entries if deposit.is_baseline(found.seen(e), activated_ns)]


@connections.command(help=t("Déconnecte ; ce qui est en file part encore.", "Disconnects; what is queued still goes."))
@click.argument("number", type=int, metavar="ID")
@reason_option
@yes_option
@click.pass_context
def remove(ctx: click.Context, number: int, reason: str, yes: bool) -> None:
    from relay.store import connections as store
    from relay.store.database import transaction

    config = settings(ctx)
    with changing(config) as db:
        found = store.connection(db, number)
        if found is None:
            raise fail(_unknown(number), 1)
        if not yes:
            _see_the_last(config, db, found)
        with transaction(db):
            store.remove(db, found, at=clock.stamp(clock.now()), actor=actor(), why=reason)
    click.echo(f"{number}")


def _see_the_last(config: Config, db: Any, found: Any) -> None:
    """What was deposited since the last run is in no queue: disconnected now, it would never leave."""
    from relay.ids import TokenKey
    from relay.scan import Scanner
    from relay.spool import Spool

    spool = Spool.existing(config.relay.data / "spool")
    scanner = Scanner(config, rules(config), db=db, spool=spool, token_key=TokenKey(b""))  # nothing is made
    unseen = scanner.unseen(found)
    if unseen:
        told = f"{unseen} dépôts depuis le dernier passage ne partiraient pas : d'abord « runs now », ou --yes"
        raise fail(t(told, f"{unseen} deposits since the last run would not leave: `runs now` first, or --yes"), 1)


@connections.command(
    help=t(
        "Dit que le dossier est bien comme il est (disque changé, fichiers supprimés) : le prochain passage le croit.",
        "Says that the folder is right as it is (another disk, files deleted): the next run believes it.",
    )
)
@click.argument("number", type=int, metavar="ID")
@reason_option
@click.pass_context
def accept(ctx: click.Context, number: int, reason: str) -> None:
    from relay.store import connections as store
    from relay.store.database import transaction

    with changing(settings(ctx)) as db, transaction(db):
        found = store.connection(db, number)
        if found is None:
            raise fail(_unknown(number), 1)
        store.accept(db, found, at=clock.stamp(clock.now()), actor=actor(), why=reason)
    click.echo(f"{number}")


@connections.command(help=t("Change l'adresse ; ce qui attend y va, rien n'est renvoyé.", "Changes the address."))
@click.argument("number", type=int, metavar="ID")
@click.option(
    "--address", "typed", required=True, metavar="ADDRESS", help=t("meg+… ou le collecteur", "meg+… or collector")
)
@click.option("--application", default="", metavar="RULE", help=t("aussi par une autre règle", "by another rule too"))
@click.option("--force", is_flag=True, help=t("partager un collecteur entre clients", "share a collector"))
@reason_option
@click.pass_context
def readdress(ctx: click.Context, number: int, typed: str, application: str, force: bool, reason: str) -> None:
    from relay.store import connections as store
    from relay.store.database import transaction

    config = settings(ctx)
    with changing(config) as db:
        found = store.connection(db, number)
        if found is None:
            raise fail(_unknown(number), 1)
        pair = _pair(typed, application or found.application, config, rules(config))
        shared = store.sharing(db, pair.collector, found.client)
        if shared and not force:
            raise fail(t(f"déjà le collecteur de {shared[0]} (--force)", f"already {shared[0]}'s (--force)"), 1)
        with transaction(db):
            at = clock.stamp(clock.now())
            moved = store.readdress(db, found, pair, at=at, actor=actor(), why=reason)
    click.echo(f"{number}  {pair.welyb}  →  {pair.collector}  ({moved} {t('en attente', 'waiting')})")


def _unknown(number: int) -> str:
    return t(f"connexion inconnue : {number}", f"no connection {number}")
