"""`keys` and `dns`: the DKIM keys, and the records to publish."""

from pathlib import Path

import click

from relay import clock
from relay.cli.language import t
from relay.cli.options import json_option, reason_option, settings
from relay.cli.output import Record, emit, fail
from relay.config import Config


@click.group(help=t("Les clés DKIM.", "The DKIM keys."))
def keys() -> None:
    pass


kind_option = click.option(
    "--kind", type=click.Choice(["rsa", "ed25519"]), default="rsa", show_default=True, help=t("algorithme", "algorithm")
)


@keys.command(help=t("Crée une clé et dit l'enregistrement à publier.", "Makes a key and tells the record to publish."))
@click.argument("selector")
@kind_option
@reason_option
@click.pass_context
def create(ctx: click.Context, selector: str, kind: str, reason: str) -> None:
    config = settings(ctx)
    _create(config, selector, kind)
    _next_steps(config, selector)


@keys.command(
    help=t("Une nouvelle clé sous un nouveau sélecteur ; l'ancienne reste publiée.", "A new key beside the old.")
)
@click.argument("selector", default="")
@kind_option
@reason_option
@click.pass_context
def rotate(ctx: click.Context, selector: str, kind: str, reason: str) -> None:
    config = settings(ctx)
    selector = selector or clock.now().strftime("k%Y%m%d")
    _create(config, selector, kind)
    _next_steps(config, selector)
    if config.dkim.selector:
        old = f"{config.dkim.selector}._domainkey.{config.relay.domain}"
        click.echo(t(f"Gardez {old} publié une semaine encore.", f"Keep {old} published for another week."))


def _create(config: Config, selector: str, kind: str) -> None:
    import re

    from relay import sign
    from relay.daemon import key_path, take_identity

    if not re.fullmatch(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", selector):
        raise fail(
            t(f"« {selector} » n'est pas un sélecteur : lettres, chiffres, tirets", f"{selector}: no selector"), 2
        )
    take_identity(config.relay.data)
    path = key_path(config, selector)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        sign.create(str(path), "ed25519" if kind == "ed25519" else "rsa")
    except FileExistsError:
        raise fail(t(f"la clé {selector} existe déjà", f"key {selector} exists already"), 1) from None


def _next_steps(config: Config, selector: str) -> None:
    click.echo(t("1. Publiez cet enregistrement :", "1. Publish this record:"))
    click.echo("   {name}  {type}  {value}".format(**_dkim_record(config, selector)))
    click.echo(
        t(f'2. Puis [dkim] selector = "{selector}", et rechargez (SIGHUP).', f'2. Then [dkim] selector = "{selector}".')
    )


@keys.command("list", help=t("Les clés et leurs enregistrements.", "The keys and their records."))
@json_option
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    config = settings(ctx)
    rows = [
        {"selector": s, "active": s == config.dkim.selector, "record": _dkim_record(config, s)["value"]}
        for s in _selectors(config)
    ]
    emit(rows, ("selector", "active", "record"), as_json=as_json)


def _selectors(config: Config) -> list[str]:
    return sorted(path.stem for path in Path(config.relay.data / "dkim").glob("*.pem"))


def _dkim_record(config: Config, selector: str) -> Record:
    from relay import sign
    from relay.daemon import key_path

    try:
        text = sign.dns_record(sign.load(str(key_path(config, selector))))
    except (OSError, sign.KeyProblem) as error:
        raise fail(str(error), 1) from None
    # A TXT string holds 255 octets; longer texts are several, joined by whoever reads (RFC 6376 §3.6.2.2).
    strings = " ".join(f'"{text[at : at + 255]}"' for at in range(0, len(text), 255))
    return {"name": f"{selector}._domainkey.{config.relay.domain}.", "type": "TXT", "value": strings}


@click.command(help=t("Les enregistrements DNS à publier pour ce domaine.", "The DNS records to publish."))
@json_option
@click.pass_context
def dns(ctx: click.Context, as_json: bool) -> None:
    config = settings(ctx)
    domain, host = config.relay.domain, config.relay.hostname
    rows: list[Record] = [
        {"name": f"{domain}.", "type": "MX", "value": f"10 {host}."},
        {"name": f"{domain}.", "type": "TXT", "value": '"v=spf1 mx -all"'},
        *(_dkim_record(config, selector) for selector in _selectors(config)),
        {"name": f"_dmarc.{domain}.", "type": "TXT", "value": f'"v=DMARC1; p=reject; rua=mailto:postmaster@{domain}"'},
    ]
    if as_json:
        emit(rows, (), as_json=True)
        return
    for row in rows:
        click.echo(f"{row['name']}\t3600\tIN\t{row['type']}\t{row['value']}")
