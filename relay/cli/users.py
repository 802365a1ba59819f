"""`users`: who may hand in mail over `[smtp] submission`. A password is asked for, or read from stdin: never an argument,
which every process of the machine can see."""

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
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
)
from relay.cli.output import emit, fail

if TYPE_CHECKING:
    from relay.store.users import User

NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")


@click.group(help=t("Qui dépose du courrier avec un mot de passe.", "Who hands in mail with a password."))
def users() -> None:
    pass


@users.command("list", help=t("Les utilisateurs et leurs règles.", "The users and their rules."))
@json_option
@short_filters
@click.pass_context
def list_(ctx: click.Context, wanted: Any, as_json: bool) -> None:
    from relay.store import users as store

    with reading(settings(ctx)) as db:
        rows = [
            {"name": u.name, "rules": list(u.rules), "created_at": u.created_at, "state": u.state}
            for u in store.users(db)
        ]
    emit(narrowed(rows, wanted, key="name"), ("name", "rules", "created_at", "state"), as_json=as_json)


@users.command(help=t("Ajoute un utilisateur ; le mot de passe est demandé.", "Adds a user; asks for the password."))
@click.argument("name")
@click.option("--rule", "names", multiple=True, metavar="RULE", help=t("cette règle seule", "this rule alone"))
@reason_option
@click.pass_context
def add(ctx: click.Context, name: str, names: tuple[str, ...], reason: str) -> None:
    from relay.passwords import hashed
    from relay.store.users import User

    if not NAME.fullmatch(name.lower()):
        raise fail(t(f"« {name} » : lettres, chiffres et . _ @ -, 64 au plus", f"{name}: letters, digits, . _ @ -"), 2)
    config = settings(ctx)
    known = [rule.name for rule in rules(config).rules]
    for rule in names:
        if rule not in known:
            raise fail(t(f"règle inconnue : {rule} ({', '.join(known)})", f"no rule {rule} ({', '.join(known)})"), 2)
    with changing(config) as db:
        if name.lower() in _active(db):
            raise fail(t(f"{name} existe déjà : users passwd", f"{name} exists already: users passwd"), 1)
        new = User(name.lower(), hashed(_password()), names, clock.stamp(clock.now()), "active")
        _put(db, new, "user-added", {"rules": list(names), "why": reason})
    click.echo(f"{new.name} → {', '.join(names) or t('toutes les règles', 'every rule')}")


@users.command(help=t("Un autre mot de passe.", "Another password."))
@click.argument("name")
@reason_option
@click.pass_context
def passwd(ctx: click.Context, name: str, reason: str) -> None:
    from relay.passwords import hashed

    with changing(settings(ctx)) as db:
        user = _existing(db, name)
        _put(db, replace(user, hash=hashed(_password())), "user-changed", {"why": reason})
    click.echo(user.name)


@users.command(help=t("Retire un utilisateur : refusé à partir de maintenant.", "Removes a user: refused from now on."))
@click.argument("name")
@reason_option
@click.pass_context
def remove(ctx: click.Context, name: str, reason: str) -> None:
    with changing(settings(ctx)) as db:
        user = _existing(db, name)
        _put(db, replace(user, hash="", state="removed"), "user-removed", {"why": reason})
    click.echo(user.name)


def _active(db: Any) -> "dict[str, User]":
    from relay.store.users import active

    return active(db)


def _existing(db: Any, name: str) -> "User":
    user = _active(db).get(name.lower())
    if user is None:
        raise fail(t(f"pas d'utilisateur {name}", f"no user {name}"), 1)
    return user


def _put(db: Any, user: "User", event: str, detail: Mapping[str, Any]) -> None:
    from relay.store import directory
    from relay.store import users as store
    from relay.store.database import transaction
    from relay.store.events import Event, write

    with transaction(db):
        store.put(db, user)
        directory.touch(db)
        write(db, clock.stamp(clock.now()), actor(), [Event(event, detail={"user": user.name, **detail})])


def _password() -> str:
    """Typed twice at a terminal; else the first line of stdin."""
    from relay.passwords import LEAST, prepared

    if sys.stdin.isatty():
        typed = click.prompt(t("Mot de passe", "Password"), hide_input=True, confirmation_prompt=True, err=True)
    else:
        typed = sys.stdin.readline().rstrip("\r\n")
    password = prepared(typed)
    if password is None or len(password) < LEAST:
        least = f"{LEAST} caractères imprimables au moins", f"at least {LEAST} printable characters"
        raise fail(t(f"mot de passe : {least[0]}", f"password: {least[1]}"), 2)
    return password
