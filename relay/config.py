"""TOML → frozen Config. An unknown key or a bad value refuses to start, and names file, line, key and remedy.

Knows alone: the settings, their defaults and their units. Relative paths are relative to the file. Over 400 lines because
every table is here, and what is wrong with a bad one beside it.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints
from zoneinfo import ZoneInfo

from rules import toml, units
from rules.peer import forwarders, networks
from rules.units import Limit

if TYPE_CHECKING:
    from rules.ruleset import RuleSet

ENVIRONMENT = "WELYB_RELAY_CONFIG"
SYSTEM_FILE = Path("/etc/welyb-relay/relay.toml")


class ConfigError(ValueError):
    """Settings that cannot be used: the message is for the postmaster, whole."""


class Size(int):
    """Bytes, written "50 MB"."""


_50_MB = Size(50_000_000)
# At the end of a month an application mails the sales of 500 clients, some 20 each, within an hour, from one address.
_10_000_AN_HOUR, _2_000_AN_HOUR, _20_AN_HOUR = (units.parse_limit(f"{count} / hour") for count in (10_000, 2_000, 20))


@dataclass(frozen=True, slots=True)
class Relay:
    hostname: str = "mx.welyb.fr"
    domain: str = "welyb.fr"
    data: Path = Path("var")
    language: Literal["fr", "en"] = "fr"
    rules: str = ""
    timezone: str = "Europe/Paris"
    postmaster: str = ""
    warn_after: timedelta = timedelta(hours=4)
    keep_bodies: timedelta = timedelta(days=30)
    log: Literal["text", "json"] = "text"


@dataclass(frozen=True, slots=True)
class Smtp:
    listen: tuple[str, ...] = ("127.0.0.1:2525",)
    trusted_networks: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    max_message_size: Size = _50_MB
    bare_newlines: Literal["refuse", "normalise"] = "refuse"
    certificate: str = ""
    key: str = ""
    processes: int = 1
    submission: tuple[str, ...] = ()
    proxy: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Authentication:
    verify: Literal["all", "strangers", "none"] = "all"
    forwarders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Throttle:
    peer: Limit = _10_000_AN_HOUR
    sender_domain: Limit = _10_000_AN_HOUR
    client: Limit = _2_000_AN_HOUR
    unknown: Limit = _20_AN_HOUR
    passwords: Limit = _20_AN_HOUR


@dataclass(frozen=True, slots=True)
class Milter:
    listen: tuple[str, ...] = ()
    mode: Literal["take", "rewrite"] = "take"


@dataclass(frozen=True, slots=True)
class Run:
    every: timedelta = timedelta(minutes=15)
    settle: timedelta = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class Delivery:
    sender: str = "automate@welyb.fr"
    sender_name: str = "Welyb"
    text: str = ""
    connections_per_destination: int = 4
    give_up_after: timedelta = timedelta(days=5)
    tls: dict[str, str] = field(default_factory=dict)
    authorities: str = ""
    dns: tuple[str, ...] = ()
    routes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Dkim:
    selector: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ged:
    root: Path = Path("var/ged")


@dataclass(frozen=True, slots=True)
class Silence:
    weeks: int = 12
    usual: int = 8
    after: timedelta = timedelta(days=10)


@dataclass(frozen=True, slots=True)
class Antivirus:
    clamd: str = ""
    timeout: timedelta = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Metrics:
    listen: str = ""


@dataclass(frozen=True, slots=True)
class Config:
    relay: Relay = Relay()
    smtp: Smtp = Smtp()
    authentication: Authentication = Authentication()
    throttle: Throttle = Throttle()
    milter: Milter = Milter()
    run: Run = Run()
    delivery: Delivery = field(default_factory=Delivery)
    dkim: Dkim = Dkim()
    ged: Ged = Ged()
    silence: Silence = Silence()
    antivirus: Antivirus = Antivirus()
    metrics: Metrics = Metrics()
    source: str = "(built-in defaults)"

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.relay.timezone)

    @property
    def database(self) -> Path:
        return self.relay.data / "relay.db"


def find(option: str | None) -> Path | None:
    """The file to read: --config, else the environment, else the system's; None means built-in defaults."""
    named = option or os.environ.get(ENVIRONMENT)
    if named:
        return Path(named)
    return SYSTEM_FILE if SYSTEM_FILE.exists() else None


def load(path: Path | None) -> Config:
    """The settings in `path`; the defaults, with ./var under the current folder, for None. Raises ConfigError."""
    if path is None:
        return _resolved(Config(), Path.cwd())
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}. Remedy: name a readable file with --config.") from None
    return _resolved(parse(text, str(path)), path.absolute().parent)


def parse(text: str, source: str) -> Config:
    try:
        data = toml.tables(text)
    except toml.NotToml as error:
        raise ConfigError(f"{source}:{error.line}: {error}") from None
    config: Config = _build(Config, data, _Place(text, source, ""))
    _check(config, _Place(text, source, ""))
    return config


def load_rules(config: Config) -> "RuleSet":
    """The rule set named by [relay] rules, else the shipped one. Raises rules.ruleset.RuleError or ConfigError."""
    from rules import ruleset  # of the listings, none needs it

    if not config.relay.rules:
        shipped = Path(ruleset.__file__).with_name("welyb.toml")
        return ruleset.load(shipped.read_text("utf-8"), "rules/welyb.toml")
    path = Path(config.relay.rules)
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}. Remedy: mend [relay] rules in {config.source}.") from None
    return ruleset.load(text, str(path))


@dataclass(frozen=True, slots=True)
class _Place:
    text: str
    source: str
    table: str

    def error(self, key: str, problem: str, remedy: str) -> ConfigError:
        name = f"[{self.table}] {key}" if self.table else f"[{key}]"
        return ConfigError(f"{self.source}:{self._line(key)}: {name}: {problem}. Remedy: {remedy}.")

    def _line(self, key: str) -> int:
        """The line of `key` in its table; else of the table's header, or of an inline one; 1 at worst."""
        inside, found = not self.table, 0
        own = re.compile(rf"\[{re.escape(f'{self.table}.{key}'.lstrip('.'))}\b")
        for number, line in enumerate(self.text.split("\n"), 1):
            stripped = line.strip().replace('"', "")
            if own.match(stripped) or (inside and re.match(rf"{re.escape(key)}\b", stripped)):
                return number
            if stripped.startswith("["):
                inside = stripped.startswith(f"[{self.table}]")
                found = number if inside else found
        parent, dot, name = self.table.rpartition(".")
        return found or (_Place(self.text, self.source, parent)._line(name) if dot else 1)


def _build(kind: Any, table: dict[str, Any], place: _Place) -> Any:
    hints = get_type_hints(kind)
    known = {item.name for item in fields(kind)} - {"source"}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise place.error(key, "unknown key", f"one of {', '.join(sorted(known))}")
        if is_dataclass(hints[key]) and hints[key] not in _WRITTEN:
            if not isinstance(value, dict):
                raise place.error(key, "is not a table", f"write [{key}] and its keys below")
            values[key] = _build(hints[key], value, _Place(place.text, place.source, key))
        else:
            values[key] = _value(hints[key], key, value, place)
    return kind(**values) if kind is not Config else Config(**values, source=place.source)


def _value(kind: Any, key: str, value: Any, place: _Place) -> Any:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            known = " or ".join(f'"{item}"' for item in get_args(kind))
            raise place.error(key, f"« {toml.shown(value)} » is not known", known)
        return value
    if get_origin(kind) is tuple:
        if key in _ONE_OR_MORE and isinstance(value, str):
            value = [value] if value else []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise place.error(key, "must be a list of texts", f'write {key} = ["…"]')
        return tuple([_plain(item, key, place) for item in value])
    if get_origin(kind) is dict:
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise place.error(
                key, "must be a table of texts", f'write "name" = "value" lines below [{place.table}.{key}]'
            )
        return {_plain(name, key, place).lower(): _plain(item, key, place) for name, item in value.items()}
    return _scalar(kind, key, value, place)


def _scalar(kind: Any, key: str, value: Any, place: _Place) -> Any:
    if kind is int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise place.error(key, "must be a whole number above 0", f"write {key} = 4")
        return value
    if not isinstance(value, str):
        raise place.error(key, "must be a text", f'write {key} = "…"')
    if kind not in _WRITTEN:
        return kind(value if key in _OF_LINES else _plain(value, key, place))
    read, example = _WRITTEN[kind]
    try:
        return read(value)
    except ValueError as error:
        raise place.error(key, str(error), f'write {key} = "{example}"') from None


_OF_LINES = ("text",)
_ONE_OR_MORE = ("selector",)  # written as a text where it is one
_CONTROL = re.compile(r"[\0-\x1f\x7f]")


def _plain(text: str, key: str, place: _Place) -> str:
    """What goes into a header, a path or a question to the system has one line."""
    if _CONTROL.search(text):
        raise place.error(key, "holds a control character", "write one line of plain text")
    return text


_LONGEST = timedelta(days=36_500)  # more is no date any more when it is added to one
_UNITS = {"s": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "d": 86400, "day": 86400}


def parse_duration(text: str) -> timedelta:
    """ "5 s", "15 min", "4 hours", "30 days". ValueError otherwise."""
    match = re.fullmatch(r"\s*([0-9]{1,10})\s*([a-z]+)\s*", text)
    unit = match[2] if match else ""
    seconds = _UNITS.get(unit, _UNITS.get(unit.removesuffix("s"), 0))
    if not match or not seconds or int(match[1]) * seconds > _LONGEST.total_seconds():
        raise ValueError(f'« {text} » is not a duration: write "5 s", "15 min", "4 hours" or "30 days"')
    return timedelta(seconds=int(match[1]) * seconds)


# How a value that is no plain text is read, and an example of it.
_WRITTEN: dict[Any, tuple[Callable[[str], Any], str]] = {
    timedelta: (parse_duration, "15 min"),
    Size: (lambda text: Size(units.parse_size(text)), "50 MB"),
    Limit: (units.parse_limit, "100 / hour"),
}

_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")
_SELECTOR = re.compile(r"[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")  # part of a file name and of a DNS one


def _check(config: Config, top: _Place) -> None:
    """What types cannot say. The first fault is told."""

    def at(table: str) -> _Place:
        return _Place(top.text, top.source, table)

    _check_networks(config, at)
    _check_names(config, at)
    if config.relay.postmaster:
        _check_address(config.relay.postmaster, "postmaster", at("relay"))
    _check_doors(config.smtp, at("smtp"))
    for place in config.milter.listen:
        _check_milter_place(place, at("milter"))
    _check_delivery(config.delivery, at)
    _check_antivirus(config.antivirus, at("antivirus"))
    if config.metrics.listen:
        _check_endpoint(config.metrics.listen, "listen", at("metrics"))
    if not config.run.every or timedelta(days=1) % config.run.every:
        raise at("run").error("every", "does not divide the day", 'write "15 min", "5 min" or "1 hour"')
    try:
        ZoneInfo(config.relay.timezone)
    except (ValueError, OSError, KeyError):
        problem = f"« {config.relay.timezone} » is not a time zone"
        raise at("relay").error("timezone", problem, 'write "Europe/Paris" or the like') from None


def _check_networks(config: Config, at: Callable[[str], _Place]) -> None:
    for key in ("trusted_networks", "proxy"):
        try:
            networks(getattr(config.smtp, key))
        except ValueError as error:
            raise at("smtp").error(key, str(error), 'write networks like "192.0.2.0/24"') from None
    try:
        forwarders(config.authentication.forwarders)
    except ValueError as error:
        raise at("authentication").error(
            "forwarders", str(error), 'write networks like "192.0.2.0/24" or domains like "lists.example.org"'
        ) from None


def _check_doors(smtp: Smtp, place: _Place) -> None:
    for endpoint in smtp.listen:
        _check_endpoint(endpoint, "listen", place)
    if bool(smtp.certificate) != bool(smtp.key):
        raise place.error("certificate", "needs its key, and the key its certificate", "set both or neither")
    for text in smtp.submission:
        try:
            submission_endpoint(text)
        except ValueError:
            remedy = 'write "192.0.2.1:587", or "192.0.2.1:465 tls" where TLS comes first'
            raise place.error("submission", f"« {text} » is not ADDRESS:PORT", remedy) from None
    if smtp.submission and not smtp.certificate:
        remedy = "set certificate and key, for passwords are only taken inside TLS, or submission = []"
        raise place.error("submission", "needs a certificate", remedy)


def _check_names(config: Config, at: Callable[[str], _Place]) -> None:
    for key in ("hostname", "domain"):
        if not _HOST.fullmatch(getattr(config.relay, key)):
            raise at("relay").error(key, "is not a domain name", f'write {key} = "mx.example.org" or the like')
    if not all(map(_SELECTOR.fullmatch, config.dkim.selector)):
        raise at("dkim").error("selector", "is not a label", 'write selector = "s2026" or the like')
    if len(set(config.dkim.selector)) < len(config.dkim.selector):
        raise at("dkim").error("selector", "names one key twice", "name each key once")


def _check_delivery(delivery: Delivery, at: Callable[[str], _Place]) -> None:
    _check_address(delivery.sender, "sender", at("delivery"))
    for endpoint in delivery.dns:
        _check_endpoint(endpoint, "dns", at("delivery"), default_port=53)
    for domain, endpoint in delivery.routes.items():
        _check_endpoint(endpoint, domain, at("delivery.routes"), default_port=25)
    for domain, policy in delivery.tls.items():
        if policy not in ("opportunistic", "required"):
            raise at("delivery.tls").error(domain, f"« {policy} » is not known", '"opportunistic" or "required"')


def _check_antivirus(antivirus: Antivirus, place: _Place) -> None:
    kind, _, where = antivirus.clamd.partition(":")
    if antivirus.clamd and not (kind == "unix" and where.startswith("/")):
        if kind != "tcp":
            remedy = 'write "unix:/run/clamav/clamd.ctl" or "tcp:127.0.0.1:3310"'
            raise place.error("clamd", f"« {antivirus.clamd} » is no socket", remedy)
        _check_endpoint(where, "clamd", place)
    if not antivirus.timeout:
        raise place.error("timeout", "leaves no time", 'write "60 s" or the like')


def _check_address(text: str, key: str, place: _Place) -> None:
    if not re.fullmatch(r"[A-Za-z0-9._+=-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*", text):
        raise place.error(key, f"« {text} » is not an address", 'write "name@example.org"')


def _check_endpoint(text: str, key: str, place: _Place, *, default_port: int | None = None) -> None:
    try:
        endpoint(text, default_port)
    except ValueError:
        raise place.error(key, f"« {text} » is not ADDRESS:PORT", 'write "127.0.0.1:25" or "[::1]:25"') from None


def _check_milter_place(text: str, place: _Place) -> None:
    try:
        milter_place(text)
    except ValueError:
        example = '"inet:127.0.0.1:8891" or "unix:/run/welyb-relay/milter.sock"'
        raise place.error("listen", f"« {text} » is not a milter's place", f"write {example}") from None


_LONGEST_SOCKET = 107  # unix(7)


def milter_place(text: str) -> tuple[str, int] | Path:
    """ "inet:127.0.0.1:8891" or "unix:/PATH". Else ValueError."""
    kind, _, where = text.partition(":")
    if kind == "inet":
        return endpoint(where)
    if kind != "unix" or not 0 < len(os.fsencode(where)) <= _LONGEST_SOCKET:
        raise ValueError(text)
    return Path(where)


def endpoint(text: str, default_port: int | None = None) -> tuple[str, int]:
    """ "127.0.0.1:25" or "[::1]:25" → (host, port); the port may be left out if there is a default. Else ValueError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:\s]+))(?::([0-9]{1,5}))?", text)
    if not match or (match[3] is None and default_port is None) or int(match[3] or 1) > 65535:
        raise ValueError(text)
    return match[1] or match[2], int(match[3]) if match[3] is not None else default_port or 0


def submission_endpoint(text: str) -> tuple[str, int, bool]:
    """ "127.0.0.1:587" or "127.0.0.1:465 tls" → (host, port, TLS from the first byte on). Else ValueError."""
    place, _, word = text.partition(" ")
    if word not in ("", "tls") or text.endswith(" "):
        raise ValueError(text)
    return *endpoint(place), word == "tls"


def _resolved(config: Config, base: Path) -> Config:
    """Paths made absolute, relative to the file's folder."""

    def at(text: str) -> str:
        return str(base / text) if text else ""

    def socket_at(text: str) -> str:
        kind, _, where = text.partition(":")
        return f"unix:{base / where}" if kind == "unix" else text

    relay = replace(config.relay, data=base / config.relay.data, rules=at(config.relay.rules))
    smtp = replace(config.smtp, certificate=at(config.smtp.certificate), key=at(config.smtp.key))
    delivery = replace(config.delivery, authorities=at(config.delivery.authorities))
    milter = replace(config.milter, listen=tuple(socket_at(text) for text in config.milter.listen))
    ged = Ged(base / config.ged.root)
    return replace(config, relay=relay, smtp=smtp, milter=milter, delivery=delivery, ged=ged)
