"""`serve`."""

import asyncio

import click

from relay.cli.language import t
from relay.cli.options import rules, settings
from relay.cli.output import fail
from relay.config import Config
from rules.ruleset import RuleSet


@click.command(
    help=t("Le relais au premier plan ; SIGTERM l'arrête, SIGHUP relit les réglages.", "The relay, foreground.")
)
@click.pass_context
def serve(ctx: click.Context) -> None:
    from relay import daemon, log
    from relay.store.database import StoreError

    config = settings(ctx)
    ruleset = rules(config)
    log.set_up(config.relay.log)

    def welcome(bound: list[str]) -> None:
        if config.source.startswith("("):
            _introduce(config, ruleset, bound[0])
        daemon.say("ready " + " ".join(bound))

    try:
        asyncio.run(daemon.serve(config, reload=lambda: settings(ctx), welcome=welcome))
    except (daemon.StartError, StoreError, OSError) as error:
        raise fail(str(error), 1) from None


def _introduce(config: Config, ruleset: RuleSet, bound: str) -> None:
    """On a first try with the built-in settings: what is served, and three lines to paste."""
    domain = config.relay.domain
    click.echo(t("Adresses servies :", "Addresses served:"))
    for rule in ruleset.rules:
        leads = rule.relay.fill("{name}") if rule.relay else f"{config.ged.root}/CLIENT/{rule.file}"
        click.echo(f"  {rule.address.fill('{' + rule.address.field + '}')}@{domain}  →  {leads}")
    host, _, port = bound.rpartition(":")
    click.echo(t("Pour essayer, dans un autre terminal :", "To try it, in another terminal:"))
    mail = (
        "import smtplib as s,email.message as m;e=m.EmailMessage();e['Subject']='Facture';e.set_content('ci-joint');"
        "e.add_attachment(b'%PDF-1.4 essai',maintype='application',subtype='pdf',filename='facture.pdf');"
        f"s.SMTP('{host}',{port}).send_message(e,'client@example.fr',"
        f"['meg+macon-dupont@{domain}','ventes+macon-dupont@{domain}'])"
    )
    click.echo(f'  python3 -c "{mail}"')
    click.echo("  .venv/bin/welyb-relay queue list")
    click.echo("  .venv/bin/welyb-relay trace facture.pdf")
