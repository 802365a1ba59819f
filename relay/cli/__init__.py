"""The command `welyb-relay`. Each verb is a module, imported only when it is asked for, so that a listing starts fast."""

import importlib
import sys

import click

from relay.cli.language import t
from relay.cli.output import fail

_VERBS = {
    "serve": ("serve", t("sert : SMTP, classement, passages", "serve: SMTP, filing, runs")),
    "check": ("check", t("vérifie réglages, règles, disque, clés, GED", "check settings, rules, disk, keys, GED")),
    "dns": (
        "dns",
        t("les enregistrements DNS à publier ; le sont-ils ?", "the DNS records to publish; are they?"),
    ),
    "explain": ("explain", t("où irait une adresse, et par quelle règle", "where an address leads, and by which rule")),
    "examine": ("explain", t("le verdict sur un courriel ou un fichier", "the verdict on a mail or a file")),
    "queue": ("queue", t("la file : lister, montrer, retenir, libérer…", "the queue: list, show, hold, release…")),
    "trace": ("trace", t("toute l'histoire d'un document", "a document's whole story")),
    "forwarding": (
        "forwarding",
        t("les demandes de confirmation de transfert", "requests to confirm a forward"),
    ),
    "clients": ("clients", t("les dossiers clients", "the clients")),
    "connections": (
        "connections",
        t("les dossiers connectés à une application", "folders connected to an application"),
    ),
    "documents": ("trace", t("les documents, comme le cabinet les voit", "the documents, as the firm sees them")),
    "runs": ("runs", t("les passages de l'automate", "the runs")),
    "throttles": ("throttles", t("qui a dû attendre, et le laisser passer", "who was held back, and lets one through")),
    "keys": ("keys", t("les clés DKIM", "the DKIM keys")),
    "users": ("users", t("qui dépose du courrier avec un mot de passe", "who hands in mail with a password")),
    "backup": ("care", t("sauvegarde, pendant que le courrier passe", "a backup, while mail flows")),
    "restore": ("care", t("remet une sauvegarde en place", "puts a backup back")),
    "erase": ("care", t("efface les données d'un client ou d'un expéditeur", "erases a client's or sender's data")),
    "demo": ("demo", t("toute l'histoire sur cette machine, en quelques secondes", "the whole story on this machine")),
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _VERBS:
            return None
        module = importlib.import_module(f"relay.cli.{_VERBS[name][0]}")
        command: click.Command = getattr(module, name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section(t("Verbes", "Verbs")):
            formatter.write_dl([(name, text) for name, (_, text) in _VERBS.items()])


@click.command(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--config", "config_file", metavar="FILE", help=t("le fichier de réglages", "the settings file"))
@click.version_option(package_name="welyb-relay", prog_name="welyb-relay")
@click.pass_context
def cli(ctx: click.Context, config_file: str | None) -> None:
    ctx.obj = config_file


cli.help = t("La porte courrier de Welyb.", "The mail door of Welyb.")


def main() -> None:
    """Exit codes: 0 done, 1 a change matched nothing or a check failed, 2 usage or settings, 3 no store."""
    try:
        cli(prog_name="welyb-relay")
    except PermissionError as error:  # the data folder is its owner's alone, and any verb may be the first to meet that
        remedy = t(
            "lancez-la en root, ou comme le propriétaire des données", "run it as root, or as the owner of the data"
        )
        refusal = fail(f"{error.filename}: {error.strerror}. Remedy: {remedy}.", 1)
        refusal.show()
        sys.exit(refusal.exit_code)
