"""TOML text → the rule set: which address forms exist, where they lead, who may use them, which documents they take.

Knows alone: the keys of a rule and what is wrong with a bad one. Errors name file, line, key and remedy.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

from rules import toml
from rules.units import parse_size

Senders = Literal["trusted", "anyone"] | frozenset[str]  # or domains that must pass DMARC
KINDS = ("zip", "archive", "executable", "html", "empty")


class RuleError(ValueError):
    """A rule set that cannot be used: the message is for the postmaster, whole."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """An address with at most one placeholder: `before` + value + `after`; `field` is "name", "client" or ""."""

    before: str
    field: str
    after: str

    def fill(self, value: str) -> str:
        return self.before + (value if self.field else "") + self.after

    def match(self, text: str) -> str | None:
        """The value for which `fill` gives `text` (case aside for the fixed parts), "" if verbatim, else None.

        The value never holds a `+`: an address has an exact number of parts (domain.md §4).
        """
        if not self.field:
            return "" if text.lower() == self.before.lower() else None
        head, tail = len(self.before), len(self.after)
        if len(text) < head + tail or text[:head].lower() != self.before.lower():
            return None
        if tail and text[-tail:].lower() != self.after.lower():
            return None
        return text[head : len(text) - tail]


@dataclass(frozen=True, slots=True)
class Rule:
    """One address form. Either `relay`, the collector's address, or `file`, the folder template, is set."""

    name: str
    address: Pattern  # of the local part
    relay: Pattern | None = None
    file: str | None = None
    senders: Senders = "trusted"
    names: Literal["any", "registered"] = "any"
    documents: Literal["required", "optional"] = "optional"
    max_document_size: int = 10_000_000  # decoded bytes, inclusive
    refuse: frozenset[str] = frozenset(KINDS)
    accept: frozenset[str] = frozenset()  # MIME types; empty = every type not refused
    case: Literal["lower", "preserve"] = "lower"
    origins: frozenset[str] = frozenset()  # domains whose documents are never sent back
    small_image: int = 20_000  # bytes below which a referenced image is layout
    sender: str = ""  # the identity a collector insists on for messages of ours; empty = [delivery] sender
    relay_as: Literal["received", "new", "auto"] = "auto"


@dataclass(frozen=True, slots=True)
class RuleSet:
    """Rules in order of precedence: the longer fixed beginning first, so `meg+achats+` is asked before `meg+`."""

    rules: tuple[Rule, ...]

    def named(self, name: str) -> Rule | None:
        return next((rule for rule in self.rules if rule.name == name), None)


def load(text: str, source: str) -> RuleSet:
    """The rule set in `text`; `source` names the file in messages. RuleError tells the first fault and its remedy."""
    try:
        data = toml.tables(text)
    except toml.NotToml as error:
        raise RuleError(f"{source}:{error.line}: {error}") from None
    extra = set(data) - {"rule"}
    if extra:
        key = sorted(extra)[0]
        raise RuleError(
            f"{source}:{_line(text, key)}: unknown key « {key} ». Remedy: rules stand in [rule.NAME] tables."
        )
    tables = data.get("rule", {})
    if not isinstance(tables, dict) or not tables:
        raise RuleError(
            f"{source}:1: no rule. Remedy: add a [rule.NAME] table; the shipped rules/welyb.toml is a start."
        )
    rules = [_rule(name, table, _Where(text, source, name)) for name, table in tables.items()]
    _check_distinct(rules, text, source)
    rules.sort(key=lambda rule: (-rule.address.before.count("+"), -len(rule.address.before)))
    return RuleSet(tuple(rules))


@dataclass(frozen=True, slots=True)
class _Where:
    text: str
    source: str
    rule: str

    def error(self, key: str, problem: str, remedy: str) -> RuleError:
        line = _line(self.text, key, self.rule)
        return RuleError(f"{self.source}:{line}: [rule.{self.rule}] {key}: {problem}. Remedy: {remedy}.")


def _line(text: str, key: str, rule: str = "") -> int:
    """The line of `key` in table [rule.`rule`], for messages; the table's own line if the key is absent; 1 at worst.

    Without a rule, that of the top-level key or table.
    """
    inside, found = not rule, 1
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip().replace('"', "")
        if stripped.startswith("["):
            inside = stripped.startswith(f"[rule.{rule}]" if rule else f"[{key}")
            found = number if inside else found
        elif inside and re.match(rf"{re.escape(key)}\b", stripped):
            return number
    return found


_SENDERS = ("trusted", "anyone")
_CHOICES: dict[str, tuple[str, ...]] = {
    "names": ("any", "registered"),
    "documents": ("required", "optional"),
    "case": ("lower", "preserve"),
    "relay_as": ("received", "new", "auto"),
}
_LISTS = ("refuse", "accept", "origins")
_SIZES = ("max_document_size", "small_image")
_TEXTS = ("address", "relay", "file", "sender")


def _rule(name: str, table: Any, where: _Where) -> Rule:
    if not isinstance(table, dict):
        raise where.error(name, "is not a table", f"write [rule.{name}] and its keys below")
    known = {"senders", *_CHOICES, *_LISTS, *_SIZES, *_TEXTS}
    for key in table:
        if key not in known:
            raise where.error(key, "unknown key", f"one of {', '.join(sorted(known))}")
    texts = {key: _text(table, key, where) for key in _TEXTS if key in table}
    choices = {key: _choice(table, key, where) for key in _CHOICES if key in table}
    lists = {key: _list(table, key, where) for key in _LISTS if key in table}
    sizes = {key: _size(table, key, where) for key in _SIZES if key in table}
    if ("relay" in table) == ("file" in table):
        raise where.error(
            "address", "must have either relay or file", 'add relay = "{name}@…" or file = "Folder/{year}"'
        )
    address = _pattern(texts.get("address", ""), "address", where, domain=False)
    relay = _pattern(texts["relay"], "relay", where, domain=True) if "relay" in texts else None
    if relay is not None and relay.field not in ("", address.field):
        raise where.error(
            "relay", f"uses {{{relay.field}}}, which the address has not", "use the same placeholder in both"
        )
    if "file" in texts:
        _check_filing(texts["file"], choices, address, where)
    options: dict[str, Any] = {**choices, **lists, **sizes}
    if "senders" in table:
        options["senders"] = _senders(table["senders"], where)
    return Rule(name, address, relay, texts.get("file"), sender=texts.get("sender", ""), **options)


def _text(table: dict[str, Any], key: str, where: _Where) -> str:
    value = table[key]
    if not isinstance(value, str) or not value.isprintable():
        raise where.error(key, "must be a text", f'write {key} = "…"')
    return value


def _choice(table: dict[str, Any], key: str, where: _Where) -> str:
    value = table[key]
    if value not in _CHOICES[key]:
        known = "one of " + ", ".join(f'"{c}"' for c in _CHOICES[key])
        raise where.error(key, f"« {toml.shown(value)} » is not known", known)
    return str(value)


_DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})+")


def _senders(value: Any, where: _Where) -> Senders:
    remedy = 'one of "trusted", "anyone", or a list of domains that must pass DMARC: senders = ["cabinet.example"]'
    if isinstance(value, str) and value in _SENDERS:
        return "anyone" if value == "anyone" else "trusted"
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise where.error("senders", f"« {toml.shown(value)} » is not known", remedy)
    if not value:
        raise where.error("senders", "an empty list", 'write "trusted": trusted networks and users only')
    for item in value:
        if not _DOMAIN.fullmatch(item.lower()):
            raise where.error("senders", f"« {toml.shown(item)} » is not a domain", remedy)
    return frozenset(item.lower() for item in value)


def _list(table: dict[str, Any], key: str, where: _Where) -> frozenset[str]:
    value = table[key]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise where.error(key, "must be a list of texts", f'write {key} = ["…", "…"]')
    if key == "refuse":
        for item in value:
            if item not in KINDS:
                raise where.error(key, f"« {item} » is not a kind", f"some of {', '.join(KINDS)}")
    return frozenset(item.lower() for item in value)


def _size(table: dict[str, Any], key: str, where: _Where) -> int:
    value = table[key]
    try:
        return parse_size(value if isinstance(value, str) else f"{toml.shown(value)} (without unit)")
    except ValueError as error:
        raise where.error(key, str(error), 'write "10 MB" (10,000,000 bytes) or "10 MiB"') from None


_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def _pattern(text: str, key: str, where: _Where, *, domain: bool) -> Pattern:
    fields = _PLACEHOLDER.findall(text)
    if len(fields) > 1 or any(field not in ("name", "client") for field in fields):
        raise where.error(key, "takes one {name} or one {client}", f'write {key} = "meg+{{name}}" or the like')
    before, _, after = text.partition("{" + fields[0] + "}") if fields else (text, "", "")
    whole = before + ("x" if fields else "") + after
    local, at, host = whole.partition("@")
    if domain != bool(at) or not re.fullmatch(r"[A-Za-z0-9._+=~^/&*#!?$'`|-]+", local):
        form = "an address like {name}@example.org" if domain else "a local part like meg+{name}, without domain"
        raise where.error(key, f"« {text} » is not {form}", "mend it")
    if domain and (not re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", host) or (fields and "@" in before)):
        raise where.error(key, f"« {host} » is not a domain", "write the collector's full domain")
    return Pattern(before, fields[0] if fields else "", after)


def _check_filing(template: str, choices: dict[str, str], address: Pattern, where: _Where) -> None:
    _check_folder(template, where)
    if address.field != "client":
        raise where.error("address", "a filing rule needs {client}", 'write address = "ventes+{client}"')
    if "relay_as" in choices:
        raise where.error("relay_as", "a filing rule relays nothing", "remove the line")


def _check_folder(template: str, where: _Where) -> None:
    for segment in template.split("/"):
        fields = _PLACEHOLDER.findall(segment)
        if segment.strip(". ") == "" or any(field not in ("year", "month") for field in fields):
            raise where.error("file", f"« {template} » is not a folder", 'write "Ventes/{year}/{month}" or the like')


def _check_distinct(rules: list[Rule], text: str, source: str) -> None:
    seen: dict[tuple[str, str], str] = {}
    for rule in rules:
        form = (rule.address.before.lower(), rule.address.after.lower())
        if form in seen:
            raise _Where(text, source, rule.name).error("address", f"the same as [rule.{seen[form]}]'s", "change one")
        seen[form] = rule.name
