"""What many verbs share: the settings, the store, the filters of a listing, the manners of a change."""

import getpass
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from itertools import dropwhile, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from relay import clock, config
from relay.cli.language import t
from relay.cli.output import Record, fail
from rules.lifecycle import State, next_run

if TYPE_CHECKING:
    from relay.store.delivery import Order
    from relay.store.listing import Filter

F = TypeVar("F", bound=Callable[..., Any])

json_option = click.option(
    "--json", "as_json", is_flag=True, help=t("un objet JSON par ligne", "one JSON object a line")
)
reason_option = click.option("--reason", default="", metavar="TEXT", help=t("pourquoi (pour l'historique)", "why"))
yes_option = click.option("--yes", is_flag=True, help=t("ne pas demander confirmation", "do not ask"))


def settings(ctx: click.Context) -> config.Config:
    """The settings named on the command line, or exit 2 with what is wrong."""
    try:
        return config.load(config.find(ctx.obj))
    except config.ConfigError as error:
        raise fail(str(error), 2) from None


def rules(settings_: config.Config) -> Any:
    from rules.ruleset import RuleError

    try:
        return config.load_rules(settings_)
    except (RuleError, config.ConfigError) as error:
        raise fail(str(error), 2) from None


@contextmanager
def reading(settings_: config.Config) -> Iterator[Any]:
    """The store, read-only, for plain SQL; exit 3 where there is none."""
    from relay.store.database import open_for_listing

    with _opened(settings_, open_for_listing) as db:
        yield db


@contextmanager
def changing(settings_: config.Config) -> Iterator[Any]:
    """The store for a change, as the owner of the data folder; exit 3 where there is none."""
    from relay.daemon import take_identity
    from relay.store.database import open_existing

    take_identity(settings_.relay.data)
    with _opened(settings_, open_existing) as db:
        yield db


@contextmanager
def _opened(settings_: config.Config, open_: Callable[[Path], Any]) -> Iterator[Any]:
    from relay.store.database import Damaged, NoStore, StoreError

    try:
        db = open_(settings_.database)
    except StoreError as error:
        raise fail(str(error), 3 if isinstance(error, NoStore) else 1) from None
    try:
        yield db
    except Damaged as error:
        if type(error) is not Damaged:  # locked, or no room: other troubles are of its subclasses
            raise
        remedy = t("arrêtez le relais et restaurez une sauvegarde", "stop the relay and restore a backup")
        raise fail(f"{settings_.database}: {error}. Remedy: {remedy}", 1) from None
    except (UnicodeEncodeError, OverflowError) as error:  # an argument that is no UTF-8, a number of 20 digits
        raise fail(t(f"argument inutilisable : {error}", f"unusable argument: {error}"), 2) from None
    finally:
        db.close()


def filters(function: F) -> F:
    """--state --client --collector --sender --since --id --limit --after, gathered into one `wanted`."""
    return _gathered(function, _filter, ", ".join(State))


def short_filters(function: F) -> F:
    """The same for a listing that is short, and narrowed with `narrowed`: its states are its own."""
    return _gathered(function, _plain, "")


def _gathered(function: F, gather: "Callable[..., Filter]", states: str) -> F:
    @click.option("--state", "states", multiple=True, metavar="STATE", help=states or t("cet état", "this state"))
    @click.option("--client", default="", metavar="SLUG", help=t("ce dossier client", "this client"))
    @click.option("--collector", default="", metavar="ADDRESS", help=t("vers ce collecteur", "to this collector"))
    @click.option("--sender", default="", metavar="ADDRESS", help=t("de cet expéditeur", "from this sender"))
    @click.option("--since", default="", metavar="WHEN", help=t('date ISO, ou "2 hours"', 'ISO date, or "2 hours"'))
    @click.option("--id", "ids", multiple=True, metavar="ID", help=t("envoi, message ou document", "of anything"))
    @click.option(
        "--limit", type=click.IntRange(1, 1_000_000_000), metavar="N", help=t("N lignes au plus", "at most N")
    )
    @click.option("--after", default="", metavar="ID", help=t("après cette ligne", "after this row"))
    @click.pass_context
    def wrapped(ctx: click.Context, /, **given: Any) -> Any:
        names = ("states", "client", "collector", "sender", "since", "ids", "limit", "after")
        wanted = gather(**{name: given.pop(name) for name in names})
        return ctx.invoke(function, wanted=wanted, **given)

    wrapped.__name__, wrapped.__doc__ = function.__name__, function.__doc__
    wrapped.__click_params__ = [*getattr(function, "__click_params__", []), *wrapped.__click_params__]  # type: ignore[attr-defined]
    return wrapped  # type: ignore[return-value]  # as click's decorators do


def _filter(**given: Any) -> "Filter":
    from relay.store.listing import STATUS

    plain = _plain(**given)
    for name in plain.states:
        if name not in {*State, *STATUS.values(), "modified", "baseline"}:
            raise click.BadParameter(t(f"état inconnu : {name}", f"no such state: {name}"), param_hint="--state")
    return replace(plain, states=tuple(state for name in plain.states for state in _states(name)))


def _plain(**given: Any) -> "Filter":
    from relay.store.listing import Filter

    states = tuple(name for text in given["states"] for name in text.split(",") if name)
    return Filter(**{**given, "states": states, "since": _since(given["since"]), "ids": tuple(given["ids"])})


def narrowed(rows: Iterable[Record], wanted: "Filter", *, key: str) -> list[Record]:
    """A short listing through its filters; a row that has no such field is not meant by it."""

    def meant(row: Record) -> bool:
        began = str(row.get("activated_at") or row.get("started_at") or "")
        return (
            (not wanted.states or row.get("state") in wanted.states)
            and (not wanted.client or wanted.client in (row.get("client"), row.get("slug")))
            and (not wanted.collector or row.get("collector_address") == wanted.collector)
            and not wanted.sender
            and (not wanted.since or began >= wanted.since)
            and (not wanted.ids or str(row[key]) in wanted.ids)
        )

    rows = iter(rows)
    if wanted.after:
        rows = islice(dropwhile(lambda row: str(row[key]) != wanted.after, rows), 1, None)
    return list(islice(filter(meant, rows), wanted.limit))


def _states(name: str) -> Sequence[str]:
    """The states behind a name: a state, or a status as the firm sees it."""
    from relay.store.listing import STATUS

    return [name, *(state for state, status in STATUS.items() if status == name and state != name)]


def _since(text: str) -> str:
    if not text:
        return ""
    try:
        return clock.stamp(clock.now() - config.parse_duration(text))
    except ValueError:
        pass
    try:
        instant = clock.instant(text)
        return clock.stamp(instant if instant.tzinfo else instant.astimezone())
    except (ValueError, OverflowError):  # the first day of all is none everywhere
        raise click.BadParameter(t(f"date illisible : {text}", f"no date: {text}"), param_hint="--since") from None


def actor() -> str:
    """Who gives an order, for the history."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def order(settings_: config.Config, why: str) -> "Order":
    from relay.store.delivery import Order

    now = clock.now()
    return Order(
        actor(),
        why,
        clock.stamp(now),
        due_at=clock.stamp(min(next_run(now, settings_.run.every), now + timedelta(days=1))),
        expires_at=clock.stamp(now + settings_.delivery.give_up_after),
    )


def confirm(count: int, what: str, yes: bool) -> None:
    """Asks before anything that touches more than one; without a terminal and without --yes: exit 2."""
    if count <= 1 or yes:
        return
    question = t(f"{count} envois : {what} ?", f"{count} deliveries: {what}?")
    if not sys.stdin.isatty():
        raise fail(f"{question} {t('Confirmez avec --yes.', 'Confirm with --yes.')}", 2)
    if not click.confirm(question):
        raise click.exceptions.Exit(1)
