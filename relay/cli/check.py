"""`check`: what is wrong or unwise, each finding with its remedy; exit 1 if anything is wrong."""

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from relay import clock
from relay.cli.language import t
from relay.cli.options import changing, json_option, reason_option, rules, settings
from relay.cli.output import WIDEST_LAST, emit, printable
from relay.config import Config
from rules.peer import is_trusted, networks
from rules.ruleset import RuleSet

LEAST_FREE = 0.05
EXPIRES_SOON = 14  # days


@dataclass(frozen=True, slots=True)
class Finding:
    """`ok` is false for what must be mended; a finding that is ok may still carry advice."""

    subject: str
    ok: bool
    finding: str
    remedy: str = ""


@click.command(help=t("Vérifie l'installation ; chaque constat a son remède.", "Checks the installation."))
@click.option("--store", is_flag=True, help=t("lignes et octets se répondent-ils ?", "do rows and bytes agree?"))
@click.option("--deep", is_flag=True, help=t("avec --store : chaque SHA-256", "with --store: every SHA-256"))
@click.option("--mend", is_flag=True, help=t("avec --store : répare ce qui est sûr", "with --store: mend what is sure"))
@click.option(
    "--health", is_flag=True, help=t("pour une sonde : sert-il, en ce moment ?", "for a probe: does it serve?")
)
@reason_option
@json_option
@click.pass_context
def check(ctx: click.Context, store: bool, deep: bool, mend: bool, health: bool, reason: str, as_json: bool) -> None:
    from relay.daemon import take_identity

    config = settings(ctx)
    if health:
        _tell(ctx, list(_alive(config)), as_json=as_json)
        return
    if (deep or mend) and not store:
        raise click.UsageError(t("--deep et --mend vont avec --store.", "--deep and --mend go with --store."))
    take_identity(config.relay.data)  # what root may read, the daemon may not
    findings = _look(config, deep=deep, mend=mend, why=reason) if store else list(_findings(config, rules(config)))
    _tell(ctx, findings, as_json=as_json)


def _alive(config: Config) -> Iterator[Finding]:
    from relay.cli import health

    return health.findings(config)


def _tell(ctx: click.Context, findings: list[Finding], *, as_json: bool) -> None:
    rows = [{"subject": f.subject, "ok": f.ok, "finding": f.finding, "remedy": f.remedy} for f in findings]
    emit(rows, ("subject", "ok", "finding", "remedy"), as_json=as_json)
    if not as_json:
        _whole(findings)
    if not all(finding.ok for finding in findings):
        ctx.exit(1)


def _whole(findings: list[Finding]) -> None:
    """The remedies that a table cuts: a line to paste is of use as a whole only."""
    for finding in findings:
        if len(finding.remedy) > WIDEST_LAST:
            click.echo(f"\n{printable(finding.subject)} :\n" + "\n".join(map(printable, finding.remedy.splitlines())))


def _look(config: Config, *, deep: bool, mend: bool, why: str) -> list[Finding]:
    from relay.cli import audit
    from relay.store.database import Damaged

    with changing(config) as db:
        orders = audit.Orders(deep, mend, why)
        try:
            return [Finding(*found) for found in audit.findings(config, rules(config), db, orders)]
        except Damaged as error:
            remedy = t("arrêtez le relais et restaurez une sauvegarde", "stop the relay and restore a backup")
            return [Finding("damaged relay.db", False, str(error), remedy)]


def _findings(config: Config, ruleset: RuleSet) -> Iterator[Finding]:
    yield Finding("settings", True, config.source)
    yield Finding("rules", True, ", ".join(rule.name for rule in ruleset.rules))
    yield from _authentication(config, ruleset)
    yield from _data(config)
    yield from _sqlite()
    yield from _libmagic()
    yield from _ged(config)
    yield from _certificate(config)
    yield from _antivirus(config)
    yield from _proxy(config)
    yield from _milter(config)
    yield from _dkim(config)
    yield from _store(config, ruleset)
    yield from _destinations(config, ruleset)
    yield from _published(config)


def _authentication(config: Config, ruleset: RuleSet) -> Iterator[Finding]:
    """A rule that lists domains asks for what nobody looks at."""
    verify = config.authentication.verify
    shut = [rule.name for rule in ruleset.rules if isinstance(rule.senders, frozenset)] if verify == "none" else []
    finding = t(f"{', '.join(shut)} : personne n'entre", f"{', '.join(shut)}: lets nobody in") if shut else verify
    yield Finding("authentication", not shut, finding, '[authentication] verify = "strangers"' if shut else "")


def _data(config: Config) -> Iterator[Finding]:
    data = config.relay.data
    if not data.exists():
        yield Finding("data", True, t(f"{data} sera créé au démarrage", f"{data} will be made at start"))
        return
    if os.geteuid() == 0:
        user = t("créez un utilisateur et donnez-lui les données", "make a user, and give it the data")
        remedy = f"{user} : useradd --system welyb-relay; chown -R welyb-relay {data}"
        yield Finding("identity", True, t("le relais sert en root", "the relay serves as root"), remedy)
    mode = stat.S_IMODE(data.stat().st_mode)
    loose = bool(mode & 0o077)
    yield Finding("data", not loose, f"{data} {mode:04o}", f"chmod 700 {data}" if loose else "")
    yield disk(data)


def disk(data: Path) -> Finding:
    usage = shutil.disk_usage(data)
    free = usage.free / usage.total
    remedy = t("libérez de la place : le courrier est refusé (452) en dessous de 5 %", "free some space: 452 under 5 %")
    return Finding(
        "disk", free >= LEAST_FREE, f"{free:.0%} {t('libres', 'free')}", "" if free >= LEAST_FREE else remedy
    )


def _sqlite() -> Iterator[Finding]:
    from relay.store.database import MINIMUM_SQLITE, SQLITE

    ok = SQLITE >= MINIMUM_SQLITE
    yield Finding("sqlite", ok, ".".join(map(str, SQLITE)), "" if ok else "pip install 'pysqlite3>=0.6.1'")


def _libmagic() -> Iterator[Finding]:
    try:
        import magic

        version = magic.version()  # type: ignore[no-untyped-call]
        yield Finding("libmagic", True, str(version))
    except (ImportError, OSError, AttributeError) as error:
        yield Finding("libmagic", False, str(error), "apt-get install libmagic1")


def _ged(config: Config) -> Iterator[Finding]:
    from relay import ged

    names = ged.Tree(config.ged.root).clients()
    if isinstance(names, ged.GedAway):
        remedy = t("montez-la, ou corrigez [ged] root ; le courrier attend", "mount it, or mend [ged] root")
        yield Finding("ged", False, f"{config.ged.root}: {names.reason}", remedy)
        return
    writable = os.access(config.ged.root, os.W_OK)
    yield Finding("ged", True, f"{config.ged.root}: {len(names)} {t('dossiers clients', 'client folders')}")
    if not writable and os.geteuid() != 0:
        yield Finding(
            "ged", False, t("non inscriptible par cet utilisateur", "not writable by this user"), "chown, chmod"
        )
    yield from _ambiguous(names)


def _ambiguous(names: tuple[str, ...]) -> Iterator[Finding]:
    from rules.filing import slug

    by_slug: dict[str, list[str]] = {}
    for name in names:
        by_slug.setdefault(slug(name), []).append(name)
    for found, folders in by_slug.items():
        if len(folders) > 1:
            remedy = t(f"renommez l'un d'eux : {found} est répondu 451", f"rename one: {found} is answered 451")
            yield Finding("clients", False, " = ".join(folders), remedy)
        if not found:
            yield Finding(
                "clients", True, t(f"« {folders[0]} » n'a pas de nom utilisable", f"{folders[0]} has no slug")
            )


def _certificate(config: Config) -> Iterator[Finding]:
    if not config.smtp.certificate:
        yield Finding("certificate", True, t("aucun : STARTTLS n'est pas proposé", "none: STARTTLS is not offered"))
        return
    from cryptography import x509

    from relay.smtp import certificate

    try:
        certificate.load(config.smtp)
        ends = x509.load_pem_x509_certificates(Path(config.smtp.certificate).read_bytes())[0].not_valid_after_utc
    except (OSError, ValueError) as error:
        remedy = t("corrigez [smtp] certificate et key", "mend [smtp] certificate and key")
        yield Finding("certificate", False, str(error), remedy)
        return
    left = (ends - clock.now()).days
    until = t(f"jusqu'au {ends:%Y-%m-%d}", f"until {ends:%Y-%m-%d}")
    remedy = t("renouvelez-le, puis installez-le ici", "renew it, then install it here") if left < EXPIRES_SOON else ""
    yield Finding("certificate", left >= 0, f"{config.smtp.certificate}, {until}", remedy)


def _proxy(config: Config) -> Iterator[Finding]:
    proxies, trusted = networks(config.smtp.proxy), networks(config.smtp.trusted_networks)
    for network in proxies:
        if any(network.version == other.version and network.overlaps(other) for other in trusted):
            told = t(f"{network} est aussi dans trusted_networks", f"{network} is in trusted_networks too")
            remedy = t(
                "retirez-le : la confiance va au client que le proxy nomme",
                "take it out: trust is in the client that the proxy names",
            )
            yield Finding("proxy", True, told, remedy)


def _antivirus(config: Config) -> Iterator[Finding]:
    """Is it there, and does it take the largest mail we take? A smaller StreamMaxLength would mean 451 for ever."""
    if not config.antivirus.clamd:
        yield Finding("antivirus", True, t("aucun : le courrier n'est pas analysé", "none: mail is not scanned"))
        return
    import asyncio

    from relay.antivirus import Away, Clamd

    async def look() -> Any:
        clamd = Clamd(config.antivirus)
        version = await clamd.version()
        if isinstance(version, Away):
            return version
        largest = await clamd.scan(config.smtp.max_message_size, lambda _, length: bytes(length))
        return largest if isinstance(largest, Away) else version

    found = asyncio.run(look())
    away = isinstance(found, Away)
    finding = f"{config.antivirus.clamd}: {found.why if away else found}"
    yield Finding("antivirus", not away, finding, found.remedy if away else "")


def _milter(config: Config) -> Iterator[Finding]:
    """Whoever can connect there is believed: it says which client it speaks for, and that it is trusted."""
    from relay.config import milter_place

    loopback = networks(("127.0.0.0/8", "::1/128"))
    for text in config.milter.listen:
        place, remedy = milter_place(text), ""
        if isinstance(place, Path):
            if not place.parent.is_dir():
                remedy = f"install -d -m 750 {place.parent}"
        elif not is_trusted(place[0], loopback):
            remedy = t(
                "écoutez sur 127.0.0.1 ou unix: : qui s'y connecte parle pour n'importe quel client",
                "listen on 127.0.0.1 or unix: : who connects there speaks for any client",
            )
        yield Finding("milter", not remedy, f"{text} ({config.milter.mode})", remedy)


def _dkim(config: Config) -> Iterator[Finding]:
    from relay.daemon import StartError, key_path, signers
    from relay.sign import KeyProblem

    if not config.dkim.selector:
        remedy = "welyb-relay keys create SELECTOR --kind both"
        yield Finding("dkim", True, t("le courrier part sans signature", "mail leaves unsigned"), remedy)
        return
    try:
        signers(config)
    except (StartError, KeyProblem, OSError) as error:
        yield Finding("dkim", False, str(error), "welyb-relay keys create SELECTOR")
        return
    for path in (key_path(config, selector) for selector in config.dkim.selector):
        loose = bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
        yield Finding("dkim", not loose, str(path), f"chmod 600 {path}" if loose else "")


def _published(config: Config) -> Iterator[Finding]:
    """What DNS says of us. What it does not say now is not known, and no fault."""
    from relay.cli import dns

    try:
        found = dns.verified(config, dns.site_of(config))
    except click.ClickException as error:  # a key that cannot be read
        yield Finding("published", False, error.message, t("réparez ou retirez cette clé", "mend or remove that key"))
        return
    silent = [each for each in found if each.verdict == "unknown"]
    good = sum(each.verdict == "good" for each in found)
    yield Finding("published", True, f"{good} {t('enregistrements DNS publiés', 'DNS records published')}")
    if silent:
        known = t("enregistrements dont on ne sait rien", "records of which nothing is known")
        yield Finding("published", True, f"{len(silent)} {known} : {silent[0].found[0]}", "welyb-relay dns --verify")
    for each in found:
        if each.verdict in ("advice", "gap"):
            subject = f"published {each.type} {each.name}"
            remedy = each.line.replace("\t", " ") if each.type != "FILE" else "welyb-relay dns"
            yield Finding(subject, each.verdict != "gap", dns.TOLD[each.code], remedy)


def _store(config: Config, ruleset: RuleSet) -> Iterator[Finding]:
    from relay.daemon import take_identity
    from relay.store.database import NoStore, StoreError, open_existing
    from relay.store.listing import summary

    take_identity(config.relay.data)
    try:
        db = open_existing(config.database)
    except NoStore:
        yield Finding("store", True, t("pas encore de base", "no store yet"))
        return
    except StoreError as error:
        told, _, remedy = str(error).partition(" Remedy: ")
        yield Finding("store", False, told, remedy or t("voir la sauvegarde", "look at the backup"))
        return
    try:
        count = sum(row["deliveries"] for row in summary(db))
        yield Finding("store", True, f"{config.database}: {count} {t('envois', 'deliveries')}")
        yield from _users(config, db, ruleset)
        yield from _connections(db, ruleset)
        yield from _warnings(db)
    finally:
        db.close()


def _users(config: Config, db: Any, ruleset: RuleSet) -> Iterator[Finding]:
    from relay.store import users

    known = users.active(db)
    for user in known.values():
        for rule in user.rules:
            if ruleset.named(rule) is None:
                remedy = t("remettez la règle, ou retirez l'utilisateur", "put the rule back, or remove the user")
                yield Finding(f"user {user.name}", False, t(f"règle inconnue : {rule}", f"no rule {rule}"), remedy)
    if config.smtp.submission:
        count = t(f"{len(known)} utilisateurs", f"{len(known)} users")
        yield Finding("submission", bool(known), count, "" if known else "welyb-relay users add NAME")


def _connections(db: Any, ruleset: RuleSet) -> Iterator[Finding]:
    from relay.store import connections

    for link in connections.connections(db):
        subject = f"connection {link.id}"
        if ruleset.named(link.application) is None:
            remedy = t("remettez la règle, ou retirez la connexion", "put the rule back, or remove the connection")
            yield Finding(
                subject, False, t(f"règle inconnue : {link.application}", f"no rule {link.application}"), remedy
            )
        elif link.state == "error":
            remedy = t("vérifiez que son disque est monté", "see that its disk is mounted")
            yield Finding(subject, False, str(link.reason), remedy)
        else:
            yield Finding(subject, True, f"{link.client}/{link.folder} → {link.collector_address}")


def _warnings(db: Any) -> Iterator[Finding]:
    from relay.store import directory
    from relay.store.database import rows

    seen = directory.meta(db, directory.FOREIGN)
    if seen:
        remedy = t(
            "un relais ou un proxy parle pour des étrangers : retirez-le de [smtp] trusted_networks",
            "a proxy or an MTA speaks for strangers: take it out of [smtp] trusted_networks",
        )
        yield Finding(
            "trusted",
            True,
            t(f"Received étranger d'un pair de confiance ({seen})", f"foreign Received: {seen}"),
            remedy,
        )
    late = rows(db, "SELECT count(*) FROM delivery WHERE state = 'waiting' AND warned = 1")[0][0]
    if late:
        yield Finding(
            "queue", False, t(f"{late} envois attendent depuis trop longtemps", f"{late} wait too long"), "queue list"
        )


def _destinations(config: Config, ruleset: RuleSet) -> Iterator[Finding]:
    from relay.cli import outbound

    for found in outbound.findings(config, ruleset):
        yield Finding(*found)
