"""`demo`: the whole story on this machine in seconds, against a stand-in collector that speaks real SMTP.

Everything is real but the collector's books: the relay is the command itself, in a process of its own, with a GED, a store
and a spool in a folder that is left for whoever wants to look around.
"""

import contextlib
import io
import os
import smtplib
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path
from typing import Any

import click

from relay.cli.language import t
from relay.cli.output import fail

SETTINGS = """
[relay]
data = "var"
[smtp]
listen = ["127.0.0.1:0"]
[authentication]
verify = "none"
[run]
every = "24 hours"
settle = "0 s"
[ged]
root = "ged"
[delivery.routes]
"factures-meg.fr" = "127.0.0.1:{port}"
"achats.factures-meg.fr" = "127.0.0.1:{port}"
"""
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n% "
PATIENCE = 20.0  # seconds


@click.command(help=t("Toute l'histoire sur cette machine, en quelques secondes.", "The whole story on this machine."))
@click.pass_context
def demo(ctx: click.Context) -> None:
    folder = Path(tempfile.mkdtemp(prefix="welyb-relay-demo-"))
    with _collector() as (port, received):
        (folder / "relay.toml").write_text(SETTINGS.format(port=port))
        _make_ged(folder / "ged")
        with _relay(folder) as smtp_port:
            _connect(folder)
            _mail(smtp_port)
            _deposit(folder / "ged")
            _wait_filed(folder)
            _title(t("Un passage de l'automate", "A run"))
            _command(folder, "runs", "now")
    _title(t(f"Le collecteur a reçu {len(received)} messages", f"The collector received {len(received)} messages"))
    for recipient, size in received:
        click.echo(f"  {recipient}  {size}")
    _title(t("La file", "The queue"))
    _command(folder, "queue", "list")
    _title(t("Les documents", "The documents"))
    _command(folder, "documents", "list")
    _title(t("Où est la facture EDF ?", "Where is the EDF invoice?"))
    _command(folder, "trace", "facture-edf.pdf")
    _title(t("À regarder", "To look at"))
    typed = sys.argv[0] if Path(sys.argv[0]).name == "welyb-relay" else "welyb-relay"  # `make demo`: it is in no PATH
    command = f"{typed} --config {folder}/relay.toml"
    click.echo(
        f"  find {folder}/ged -type f\n  {command} queue summary\n  {command} trace releve.zip\n  {command} runs list"
    )


def _title(text: str) -> None:
    click.echo(f"\n— {text} " + "—" * max(0, 74 - len(text)))


@contextlib.contextmanager
def _collector() -> Iterator[tuple[int, list[tuple[str, int]]]]:
    """A receiving server for the collector's addresses: its port, and what it has taken so far."""
    from aiosmtpd.controller import Controller

    received: list[tuple[str, int]] = []

    class Collector:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            received.extend((recipient, len(envelope.content)) for recipient in envelope.rcpt_tos)
            return "250 2.0.0 Ok"

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    controller = Controller(Collector(), hostname="127.0.0.1", port=port)
    controller.start()
    try:
        yield port, received
    finally:
        controller.stop()


def _make_ged(root: Path) -> None:
    purchases = root / "Maçon & Dupont" / "Achats"
    purchases.mkdir(parents=True)
    (purchases / "deja-la.pdf").write_bytes(PDF + b"before")


def _start(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "relay.cli", "--config", str(folder / "relay.toml"), *arguments]


@contextlib.contextmanager
def _relay(folder: Path) -> Iterator[int]:
    """`serve` in its own process, until the block ends; the port it listens on."""
    with (folder / "relay.log").open("wb") as log:
        process = subprocess.Popen(_start(folder, "serve"), stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith("ready"):
            raise fail((folder / "relay.log").read_text(), 1)
        yield int(line.rpartition(":")[2])
    finally:
        process.terminate()
        process.wait()


def _command(folder: Path, *arguments: str) -> None:
    click.echo(f"$ welyb-relay {' '.join(arguments)}")
    sys.stdout.flush()
    subprocess.run(_start(folder, *arguments), check=True)


def _connect(folder: Path) -> None:
    _title(t("Un dossier connecté à une application", "A folder connected to an application"))
    where = ("--application", "meg-achats", "--client", "macon-dupont", "--folder", "Achats")
    _command(folder, "connections", "add", *where, "--address", "meg+achats+macon-dupont@welyb.fr")


def _mail(port: int) -> None:
    _title(t("Des courriels", "Mails"))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("releve.pdf", PDF)
    big = PDF + b"0" * (11_000_000 - len(PDF))
    mails = (
        ("meg+achats+macon-dupont@welyb.fr", "facture-edf.pdf", PDF + b"EDF"),
        ("meg+macon-dupont@welyb.fr", "facture-papeterie.pdf", PDF + b"papeterie"),
        ("ventes+macon-dupont@welyb.fr", "vente-0042.pdf", PDF + b"vente"),
        ("meg+macon-dupont@welyb.fr", "releve.zip", archive.getvalue()),
        ("meg+macon-dupont@welyb.fr", "scan.pdf", big),
    )
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.ehlo()
        for number, (recipient, name, content) in enumerate(mails, 1):
            code, text = _send(client, recipient, _letter(number, name, content))
            click.echo(f"{name} → {recipient}\n    {code} {text}")


def _letter(number: int, name: str, content: bytes) -> bytes:
    letter = EmailMessage(policy=SMTP)
    letter["From"], letter["To"] = "Client <client@example.fr>", "Cabinet <cabinet@example.fr>"
    letter["Subject"], letter["Message-ID"] = name, f"<demo-{number}-{os.getpid()}@example.fr>"
    letter.set_content("Bonjour,\n\nVoir la pièce jointe.\n")
    letter.add_attachment(content, maintype="application", subtype="octet-stream", filename=name)
    return letter.as_bytes()


def _send(client: smtplib.SMTP, recipient: str, message: bytes) -> tuple[int, str]:
    client.mail("client@example.fr")
    client.rcpt(recipient)
    try:
        code, text = client.data(message)
    except smtplib.SMTPDataError as error:
        code, text = error.smtp_code, error.smtp_error if isinstance(error.smtp_error, bytes) else b""
    return code, text.decode("ascii").replace("\n", "\n    ")


def _deposit(root: Path) -> None:
    _title(t("Un dépôt dans le dossier connecté", "A deposit in the connected folder"))
    path = root / "Maçon & Dupont" / "Achats" / "facture-loyer.pdf"
    path.write_bytes(PDF + b"loyer")
    click.echo(str(path))


def _wait_filed(folder: Path) -> None:
    """The sales document is filed at once; the run is not."""
    end = time.monotonic() + PATIENCE
    while not list((folder / "ged").rglob("vente-0042.pdf")):
        if time.monotonic() > end:
            raise fail(t("le document de vente n'est pas classé", "the sales document was not filed"), 1)
        time.sleep(0.1)
