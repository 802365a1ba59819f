"""`explain` and `examine`: what the running rules say of an address, of a mail, of a file. No side effect."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from relay.cli.language import current, t
from relay.cli.options import json_option, rules, settings
from relay.cli.output import Record, emit, fail
from relay.config import Config
from rules import access, address, attachment, path
from rules.peer import Peer, is_trusted, networks
from rules.replies import Reason, history
from rules.ruleset import Rule, RuleSet


@click.command(help=t("Où irait un courriel pour ADDRESS, et quelle règle le dit.", "Where mail for ADDRESS would go."))
@click.argument("address_", metavar="ADDRESS")
@click.option("--sender", default="", metavar="ADDRESS", help=t("l'expéditeur d'enveloppe", "the envelope sender"))
@click.option("--peer", default="", metavar="IP", help=t("qui se connecte", "who connects"))
@json_option
@click.pass_context
def explain(ctx: click.Context, address_: str, sender: str, peer: str, as_json: bool) -> None:
    config = settings(ctx)
    row = _explained(address_, config, rules(config), peer=peer, sender=sender)
    if sender and isinstance(path.parse(f"<{sender}>".encode("utf-8", "surrogateescape")), path.Problem):
        row |= {"decision": "refuse", "reason": t(f"expéditeur illisible : {sender}", f"unreadable sender: {sender}")}
    emit([row], ("address", "decision", "rule", "target", "reason"), as_json=as_json)


def _explained(text: str, config: Config, ruleset: RuleSet, *, peer: str, sender: str) -> dict[str, Any]:
    row: dict[str, Any] = {"address": text, "decision": "refuse", "rule": "", "target": "", "reason": ""}
    found = path.parse(f"<{text}>".encode("utf-8", "surrogateescape"))
    if isinstance(found, path.Problem):
        return row | {"reason": _words(path.REPLIES[found])}
    registered, client_of = _known(config)
    route = address.route(found, ruleset, config.relay.domain, registered)
    if isinstance(route, address.Refuse):
        return row | {"reason": _words(route.reply)}
    if isinstance(route, address.Relay | address.File):
        row["rule"] = route.rule.name
    condition = ""
    if peer:
        trusted = is_trusted(peer, networks(config.smtp.trusted_networks))
        allowed = access.may_send(route, Peer(peer, trusted), sender)
        if isinstance(allowed, access.Refuse):
            return row | {"reason": _words(allowed.reply)}
        if isinstance(allowed, access.AllowIf):
            condition = _condition(allowed)
    row |= _led(route, config, client_of)
    if condition and row["decision"] != "refuse":
        row["reason"] = f"{row['reason']} ; {condition}"
    return row


def _condition(allowed: access.AllowIf) -> str:
    """What is asked of the mail itself, at its end."""
    domains = ", ".join(sorted(allowed.domains))
    if domains:
        return t(f"oui si DMARC passe pour {domains}", f"yes if DMARC passes for {domains}")
    return t("seulement pour la confirmation d'un transfert", "only for the confirmation of a forward")


def _led(
    route: address.Relay | address.File | address.Postmaster | address.Bounce, config: Config, client_of: Any
) -> Record:
    match route:
        case address.Relay(collector=collector, client=client):
            why = t(f"connexion du client {client}", f"connection of client {client}") if client else t("forme", "form")
            return {"decision": "relay", "target": collector, "reason": why}
        case address.File(rule=rule, client=slug):
            known = client_of(slug)
            why = t("dossier client connu", "known client") if known else t("client inconnu", "unknown client")
            if known is False:
                return {"decision": "refuse", "reason": why}
            return {"decision": "file", "target": f"{known or slug}/{rule.file}", "reason": why}
        case address.Postmaster():
            kept = t("(gardé ici)", "(kept here)")
            return {"decision": "postmaster", "target": config.relay.postmaster or kept, "reason": "RFC 5321 §4.5.1"}
        case address.Bounce():
            return {"decision": "bounce", "target": "", "reason": t("retour d'un envoi", "report on a delivery")}


def _known(config: Config) -> tuple[dict[str, address.Registered], Any]:
    """(registered addresses, slug → folder, False where unknown); nothing is known while there is no store."""
    if not config.database.exists():
        return {}, lambda slug: None
    from relay.store import directory
    from relay.store.database import open_for_reading

    db = open_for_reading(config.database)

    def folder(slug: str) -> str | bool:
        client = directory.find_client(db, slug)
        return client.folder if client else False

    return directory.registered(db), folder


def _words(reply: Any) -> str:
    return f"{reply.code} {reply.enhanced} {reply.text()}"


@click.command(help=t("Le verdict sur chaque document d'un courriel ou d'un fichier.", "The verdict on each document."))
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False), metavar="FILE…")
@click.option("--rule", "rule_name", default="", metavar="NAME", help=t("la règle appliquée", "the rule applied"))
@json_option
@click.pass_context
def examine(ctx: click.Context, files: tuple[str, ...], rule_name: str, as_json: bool) -> None:
    config = settings(ctx)
    ruleset = rules(config)
    rule = ruleset.named(rule_name) if rule_name else next((r for r in ruleset.rules if r.relay), ruleset.rules[0])
    if rule is None:
        names = ", ".join(r.name for r in ruleset.rules)
        raise fail(t(f"règle inconnue : {rule_name} ({names})", f"no rule {rule_name} ({names})"), 2)
    rows = (row for file in files for row in _examined(Path(file), rule))
    emit(rows, ("file", "part", "name", "type", "size", "verdict", "reason"), as_json=as_json)


def _examined(file: Path, rule: Rule) -> Iterator[Record]:
    from relay.examine import examine_file

    with file.open("rb") as opened:
        if _is_mail(opened.read(2000)):
            yield from _parts(file, rule)
            return
        opened.seek(0)
        content = examine_file(opened)
    verdict = attachment.judge(content, rule)
    yield _row(file, "", file.name, content, verdict)


def _is_mail(start: bytes) -> bool:
    """Does it begin with header fields, one of them known? (Many a text file has a colon in its first line.)"""
    fields = re.match(rb"(?:[!-9;-~]+[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*)+", start)
    known = rb"(?im)^(from|received|return-path|message-id|mime-version|content-type|date|subject)[ \t]*:"
    return fields is not None and re.search(known, fields[0]) is not None


def _parts(file: Path, rule: Rule) -> Iterator[Record]:
    """As the intake sees them, but for the CRLF that files on disk often lack."""
    import io

    from relay import examine as examining
    from relay import mime

    raw = re.sub(rb"\r?\n", b"\r\n", file.read_bytes())
    scanner = mime.Scanner()
    scanner.feed(raw)
    message = scanner.close()
    for part in message.parts:
        content = examining.examine(
            size=part.size,
            sha256=part.sha256,
            head=part.head,
            tail=part.tail,
            reopen=lambda spans=part.spans: io.BytesIO(  # type: ignore[misc]  # a default binds the loop's value
                b"".join(mime.decoded(lambda offset, length: raw[offset : offset + length], spans))
            ),
        )
        verdict = attachment.judge(content, rule, leaf=part.leaf, cids=message.cids)
        yield _row(file, part.leaf.path, part.leaf.name or "", content, verdict)


def _row(file: Path, part: str, name: str, content: attachment.Content, verdict: attachment.Verdict) -> Record:
    reason: Reason | None = None if isinstance(verdict, attachment.Document) else verdict.reason
    text = reason or (Reason("skip-text") if isinstance(verdict, attachment.Skip) else None)
    return {
        "file": str(file),
        "part": part,
        "name": name,
        "type": content.type,
        "size": content.size,
        "verdict": type(verdict).__name__.lower(),
        "reason": history(text, current()) if text else "",
        "reason_code": reason.code if reason else None,
        "sha256": content.sha256,
        "flags": list(verdict.flags) if isinstance(verdict, attachment.Document) else [],
    }
