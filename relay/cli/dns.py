"""`dns`: the records to publish, as a zone file takes them; with `--verify`, whether live DNS has them.

Knows alone: how the records are laid out: what belongs to another's zone (PTR) is a comment there, so that all of it can
be pasted into the zone of the domain.
"""

import asyncio
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import click

from relay.cli.language import t
from relay.cli.options import json_option, settings
from relay.cli.output import Record, emit, fail, printable
from relay.config import Config

if TYPE_CHECKING:
    from rules.published import Finding
    from rules.records import Certificate, DkimKey, Site

SILENT = t(
    "le DNS ne répond à rien, donc rien n'est comparé. Remedy: vérifiez le résolveur, ou nommez-en un : [delivery] dns.",
    "the DNS answers nothing, so nothing is compared. Remedy: see to the resolver, or name one: [delivery] dns.",
)
TOLD = {
    "published": t("publié", "published"),
    "unknown": t("inconnu", "not known"),
    "missing": t("absent", "missing"),
    "several": t("plusieurs, là où un seul est permis", "several, where one is allowed"),
    "malformed": t("illisible", "malformed"),
    "elsewhere": t("mène ailleurs qu'ici", "leads elsewhere"),
    "not-authorised": t("n'autorise pas cette machine", "does not allow this host"),
    "not-followed": t(
        "s'en remet à d'autres domaines, non vérifiés", "relies on other domains, which were not looked at"
    ),
    "open": t("n'exclut personne : terminez-le par -all", "excludes nobody: end it with -all"),
    "other-key": t("une autre clé y est publiée", "another key is published there"),
    "revoked": t("la clé y est révoquée (p= vide)", "the key is revoked there (empty p=)"),
    "restricted": t("interdit SHA-256 ou le courrier (h=, s=)", "forbids SHA-256 or mail (h=, s=)"),
    "testing": t("à l'essai (t=y) : nos signatures peuvent être ignorées", "testing (t=y): signatures may be ignored"),
    "lenient": t("p=none n'arrête aucun faux", "p=none stops no forgery"),
    "stale-id": t("la politique a changé, pas son id", "the policy has changed, and its id has not"),
    "hosts-left-out": t("un MX n'est pas dans la politique", "an MX is not in the policy"),
    "no-tls": t("« enforce » sans [smtp] certificate : rien n'arriverait", "enforce without a certificate: no mail"),
    "not-enforced": t("pas encore « enforce »", "not enforced yet"),
    "other-certificate": t("ne correspond pas à [smtp] certificate", "does not match [smtp] certificate"),
    "optional": t("absent ; n'a de sens que dans une zone signée (DNSSEC)", "missing; of use in a signed zone only"),
    "unconfirmed": t("ce nom ne ramène pas à l'adresse", "that name does not lead back to the address"),
    "other-name": t("un autre nom que le nôtre, qui ramène à l'adresse", "another name than ours, which leads back"),
}


@click.command(help=t("Les enregistrements DNS à publier pour ce domaine.", "The DNS records to publish."))
@click.option("--address", "addresses", multiple=True, metavar="IP", help=t("de cette machine", "of this machine"))
@click.option(
    "--sts",
    type=click.Choice(["testing", "enforce"]),
    default="testing",
    show_default=True,
    help=t("ce que demande la politique MTA-STS", "what the MTA-STS policy asks for"),
)
@click.option("--verify", is_flag=True, help=t("compare avec le DNS", "compare with live DNS"))
@json_option
@click.pass_context
def dns(ctx: click.Context, addresses: tuple[str, ...], sts: str, verify: bool, as_json: bool) -> None:
    config = settings(ctx)
    site = site_of(config, tuple(map(_address, addresses)))
    if sts == "enforce":
        site = _enforcing(site)
    if not verify:
        _publish(site, as_json=as_json)
        return
    findings = verified(config, site)
    _show(findings, as_json=as_json)
    verdicts = {finding.verdict for finding in findings}
    if verdicts == {"unknown"}:  # which is not what "no gap" means
        raise fail(SILENT, 1)
    if "gap" in verdicts:
        ctx.exit(1)


def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise fail(t(f"« {text} » n'est pas une adresse IP", f"{text}: not an IP address"), 2) from None


def _enforcing(site: "Site") -> "Site":
    from dataclasses import replace

    if not site.chain:
        why = t(
            "« enforce » sans [smtp] certificate : qui suit la politique n'écrirait plus. Remedy: réglez-le d'abord.",
            "enforce without [smtp] certificate: whoever follows the policy would not write any more. Remedy: set it.",
        )
        raise fail(why, 2)
    return replace(site, mode="enforce")


def verified(config: Config, site: "Site") -> "list[Finding]":
    """Each record of `site` beside what DNS says now."""
    from relay.dns import Resolver
    from relay.published import look
    from relay.trust import Trust
    from rules.published import compare

    seen = look(site, Resolver(config.delivery.dns), Trust(config.delivery.authorities))
    return list(compare(site, asyncio.run(seen)))


# ---
# What we are


def site_of(config: Config, addresses: tuple[str, ...] = ()) -> "Site":
    from rules.records import Site

    keys = tuple(public_key(config, selector) for selector in selectors(config))
    return Site(config.relay.domain, config.relay.hostname, keys, _chain(config), addresses)


def selectors(config: Config) -> list[str]:
    """Of all keys there are, in use or not."""
    return sorted(path.stem for path in Path(config.relay.data / "dkim").glob("*.pem"))


def public_key(config: Config, selector: str) -> "DkimKey":
    from relay import sign
    from relay.daemon import key_path
    from rules.records import DkimKey

    try:
        return DkimKey(selector, sign.dns_record(sign.load(str(key_path(config, selector)))))
    except (OSError, sign.KeyProblem) as error:
        raise fail(str(error), 1) from None


def _chain(config: Config) -> "tuple[Certificate, ...]":
    """None where it cannot be read: `check` says why."""
    from relay.published import chain

    try:
        return chain(config.smtp.certificate) if config.smtp.certificate else ()
    except (OSError, ValueError):
        return ()


# ---
# How it is shown


def _publish(site: "Site", *, as_json: bool) -> None:
    from rules import records

    if as_json:
        rows: list[Record] = [{"name": r.name, "type": r.type, "value": r.value} for r in records.records(site)]
        rows.append({"name": site.policy_url, "type": "FILE", "value": records.policy(site)})
        emit(rows, (), as_json=True)
        return
    for line in _zone(site):
        click.echo(line)


def _zone(site: "Site") -> Iterator[str]:
    from rules import records

    others = []
    for record in records.records(site):
        if f".{record.name}".endswith(f".{site.root}"):
            yield str(record)
        else:
            others.append(record)
    if not site.addresses:
        yield from _comment(
            t(
                f"A, AAAA, PTR : dites l'adresse de {site.host} avec --address IP",
                f"A, AAAA, PTR: say the address of {site.host} with --address IP",
            )
        )
    if others:
        yield from _comment(
            t("à publier par qui tient ces zones :", "for whoever holds these zones:"), *map(str, others)
        )
    yield from _about_tls(site)


def _about_tls(site: "Site") -> Iterator[str]:
    from rules import records

    if site.chain:
        yield from _comment(
            t(
                "TLSA ne sert que dans une zone signée (DNSSEC). Gardez la clé au renouvellement du certificat ; sinon",
                "TLSA is of use in a signed zone (DNSSEC) only. Keep the key when the certificate is renewed; otherwise",
            ),
            t(
                "publiez d'avance, à côté, l'enregistrement de la suivante.",
                "publish the record of the next key beside it beforehand.",
            ),
        )
    else:
        yield from _comment(t("TLSA : réglez d'abord [smtp] certificate", "TLSA: set [smtp] certificate first"))
    told = t("servez ce texte à", "serve this text at")
    yield from _comment(f"MTA-STS : {told} {site.policy_url}", *records.policy(site).splitlines())


def _comment(*lines: str) -> Iterator[str]:
    for line in lines:
        yield f"; {line}"


def _show(findings: "Sequence[Finding]", *, as_json: bool) -> None:
    if as_json:
        emit(map(_row, findings), (), as_json=True)
        return
    marks = {"good": "ok", "advice": "ok", "unknown": "?", "gap": t("MANQUE", "GAP")}
    for finding in findings:
        found = f" ({' | '.join(finding.found)})" if finding.found and finding.verdict != "good" else ""
        subject = f"{marks[finding.verdict]:7} {finding.type:5} {finding.name}"
        click.echo(printable(f"{subject} : {TOLD[finding.code]}{found}"))
        for line in finding.line.splitlines():
            click.echo(f"        {printable(line.replace(chr(9), chr(32)))}")


def _row(finding: "Finding") -> Record:
    return {
        "name": finding.name,
        "type": finding.type,
        "ok": {"gap": False, "unknown": None}.get(finding.verdict, True),
        "code": finding.code,
        "finding": TOLD[finding.code],
        "found": finding.found,
        "remedy": finding.line,
    }
