"""`keys`: the DKIM keys, and how one follows another without a mail that nobody can verify.

Knows alone: the steps of a rotation. A new key signs nothing before its record is seen; an old one stays published for as
long as a mail it signed may be under way. The settings are the postmaster's: what to write there is told, not written.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal

import click

from relay import clock
from relay.cli.dns import public_key, selectors, site_of
from relay.cli.language import t
from relay.cli.options import actor, changing, json_option, reason_option, settings
from relay.cli.output import Record, emit, fail
from relay.config import Config

if TYPE_CHECKING:
    from rules.records import DkimKey

Kind = Literal["rsa", "ed25519"]


@click.group(help=t("Les clés DKIM.", "The DKIM keys."))
def keys() -> None:
    pass


KINDS: tuple[Kind, ...] = ("rsa", "ed25519")
kind_choice = click.Choice([*KINDS, "both"])


@keys.command(help=t("Crée une clé et dit l'enregistrement à publier.", "Makes a key and tells the record to publish."))
@click.argument("selector")
@click.option("--kind", type=kind_choice, default="rsa", show_default=True, help=t("algorithme", "algorithm"))
@reason_option
@click.pass_context
def create(ctx: click.Context, selector: str, kind: str, reason: str) -> None:
    _make(settings(ctx), selector, _kinds(kind), reason)


@keys.command(
    help=t(
        "Une nouvelle clé de chaque sorte en usage ; les anciennes restent publiées.",
        "A new key of each kind in use; the old ones stay published.",
    )
)
@click.argument("selector", default="")
@click.option("--kind", type=kind_choice, default=None, help=t("au lieu de celles en usage", "instead of those in use"))
@reason_option
@click.pass_context
def rotate(ctx: click.Context, selector: str, kind: str | None, reason: str) -> None:
    config = settings(ctx)
    used = _used(config).values()
    kinds = _kinds(kind) if kind else [each for each in KINDS if each in used] or ["rsa"]
    _make(config, selector or clock.now().strftime("k%Y%m%d"), kinds, reason)


def _kinds(kind: str) -> list[Kind]:
    return [each for each in KINDS if kind in (each, "both")]


def _kind(key: "DkimKey") -> Kind:
    return "ed25519" if "k=ed25519;" in key.text else "rsa"


def _used(config: Config) -> dict[str, Kind]:
    """What mail is signed with: one that cannot be read signs nothing."""
    used: dict[str, Kind] = {}
    for selector in config.dkim.selector:
        with suppress(click.ClickException):
            used[selector] = _kind(public_key(config, selector))
    return used


def _make(config: Config, selector: str, kinds: Sequence[Kind], why: str) -> None:
    """A key of each kind, all or none; and what is to be done before they sign in place of those of their kinds."""
    from relay import sign
    from relay.daemon import key_path, take_identity

    made = {selector if at == 0 else f"{selector}-ed": kind for at, kind in enumerate(kinds)}
    for name in made:
        if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", name):
            raise fail(t(f"« {name} » n'est pas un sélecteur : lettres, chiffres, tirets", f"{name}: no selector"), 2)
    take_identity(config.relay.data)
    for name in made:
        if key_path(config, name).exists():
            raise fail(t(f"la clé {name} existe déjà", f"key {name} exists already"), 1)
    with _told(config, "key-created", list(made), why):
        for name, kind in made.items():
            path = key_path(config, name)
            for folder in (config.relay.data, path.parent):  # with parents=True the mode is the last one's alone
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            sign.create(str(path), kind)
    _next_steps(config, made)


def _next_steps(config: Config, made: Mapping[str, Kind]) -> None:
    from rules import records

    site = records.Site(config.relay.domain, config.relay.hostname)
    lines = [str(records.dkim(site, public_key(config, name))) for name in made]
    used = {name: kind for name, kind in _used(config).items() if name not in made}
    old = [name for name, kind in used.items() if kind in made.values()]
    then = [*(name for name in used if name not in old), *made]
    setting = f"[dkim] selector = {json.dumps(then[0] if len(then) == 1 else then)}"
    click.echo("\n   ".join((t("1. Publiez :", "1. Publish:"), *lines)))
    click.echo(
        t(
            "2. Attendez que `welyb-relay dns --verify` le dise publié.",
            "2. Wait until `welyb-relay dns --verify` says that it is published.",
        )
    )
    click.echo(t(f"3. Puis {setting}, et rechargez (SIGHUP).", f"3. Then {setting}, and reload (SIGHUP)."))
    if old:
        names = ", ".join(f"{each}._domainkey.{config.relay.domain}" for each in old)
        click.echo(
            t(
                f"4. Gardez publié : {names}. `keys list` dit jusqu'à quand ; puis `keys remove`.",
                f"4. Keep published: {names}. `keys list` says until when; then `keys remove`.",
            )
        )


@keys.command(
    help=t(
        "Supprime une clé dont plus aucun courrier en route ne dépend.",
        "Removes a key that no mail under way depends on.",
    )
)
@click.argument("selector")
@click.option("--force", is_flag=True, help=t("avant la date : la clé est compromise", "too early: it is compromised"))
@reason_option
@click.pass_context
def remove(ctx: click.Context, selector: str, force: bool, reason: str) -> None:
    from relay.daemon import key_path, take_identity

    config = settings(ctx)
    take_identity(config.relay.data)
    if selector not in selectors(config):
        raise fail(t(f"pas de clé {selector}", f"no key {selector}"), 1)
    if selector in config.dkim.selector:
        raise fail(t(f"{selector} est en usage ([dkim] selector)", f"{selector} is in use ([dkim] selector)"), 1)
    until = _needed_until(_last_signed(config).get(selector))
    if until and until > clock.stamp(clock.now()) and not force:
        told = t(
            f"{selector} a signé du courrier qui peut être en route jusqu'au {until} (--force si elle est compromise)",
            f"{selector} signed mail that may be under way until {until} (--force if it is compromised)",
        )
        raise fail(told, 1)
    with _told(config, "key-removed", [selector], reason):
        key_path(config, selector).unlink()
    name = f"{selector}._domainkey.{config.relay.domain}"
    click.echo(t(f"{selector} : retirez maintenant {name} du DNS.", f"{selector}: now take {name} out of DNS."))


@keys.command("list", help=t("Les clés, et jusqu'à quand les publier.", "The keys, and until when to publish them."))
@json_option
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    from rules import records

    config = settings(ctx)
    site, last = site_of(config), _last_signed(config)
    rows: list[Record] = [
        {
            "selector": key.selector,
            "kind": _kind(key),
            "active": key.selector in config.dkim.selector,
            "last_signed_at": last.get(key.selector),
            "needed_until": None if key.selector in config.dkim.selector else _needed_until(last.get(key.selector)),
            "record": records.dkim(site, key).value,
        }
        for key in site.keys
    ]
    emit(rows, ("selector", "kind", "active", "last_signed_at", "needed_until", "record"), as_json=as_json)


def _needed_until(last: str | None) -> str | None:
    from rules.records import needed_until

    until = needed_until(clock.instant(last) if last else None)
    return clock.stamp(until) if until else None


def _last_signed(config: Config) -> dict[str, str]:
    """Nothing where there is no store yet: then nothing was signed."""
    from relay.store.database import NoStore, StoreError, open_for_listing
    from relay.store.delivery import last_signed

    try:
        db = open_for_listing(config.database)
    except NoStore:
        return {}
    except StoreError as error:
        raise fail(str(error), 1) from None
    try:
        return last_signed(db)
    finally:
        db.close()


@contextmanager
def _told(config: Config, event: str, made: Sequence[str], why: str) -> Iterator[None]:
    """For the length of a change: it goes into the history where there is one. A key may be made before any start."""
    from relay.store.database import transaction
    from relay.store.events import Event, write

    if not config.database.exists():
        yield
        return
    with changing(config) as db, transaction(db):
        write(db, clock.stamp(clock.now()), actor(), [Event(event, detail={"selectors": made, "why": why})])
        yield
