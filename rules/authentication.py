"""What is known of who wrote a mail: the results of SPF, DKIM and DMARC, as facts.

Knows alone: the words of RFC 8601 §2.7 for a result, and how the facts are written down: kept, told in a line, and told
to the next host. Limits: no judgement; what a result is worth is `access`'s to say, and how it comes about is the shell's
and `dmarc`'s.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

SpfResult = Literal["none", "neutral", "pass", "fail", "softfail", "temperror", "permerror"]
DkimResult = Literal["pass", "fail", "policy", "neutral", "temperror", "permerror"]
DmarcResult = Literal["none", "pass", "fail", "temperror", "permerror"]
Policy = Literal["none", "quarantine", "reject"]


@dataclass(frozen=True, slots=True)
class Spf:
    """RFC 7208. `domain` is the one that was asked: of MAIL FROM, or of HELO where the sender is null."""

    result: SpfResult = "none"
    domain: str = ""


@dataclass(frozen=True, slots=True)
class Signature:
    """One DKIM-Signature (RFC 6376): `domain` is its d=, in lower case and as A-labels, `selector` its s=.

    `why` says in a word or two why it is no pass; of a pass only that its domain is "testing" (t=y).
    """

    result: DkimResult
    domain: str
    selector: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class Dmarc:
    """RFC 9989. `domain` is the author's (RFC 5322 From), "" where there is not exactly one.

    `policy` is what that domain asks for in case of a failure, t=y and np= taken into account; "none" without a record.
    A mail of several authors is `permerror` with the policy "reject": nobody could vouch for what readers are shown.
    `signed`: does a signature of the author's own vouch for the mail, whatever SPF says? None: the DNS did not say.
    """

    result: DmarcResult = "none"
    domain: str = ""
    policy: Policy = "none"
    signed: bool | None = False


@dataclass(frozen=True, slots=True)
class Authentication:
    """All of it. Nothing was looked at: the default."""

    spf: Spf = Spf()
    dkim: tuple[Signature, ...] = ()
    dmarc: Dmarc = Dmarc()

    @property
    def signers(self) -> frozenset[str]:
        """The domains that vouch for the mail by a signature which verified, in lower case."""
        return frozenset(signature.domain.lower() for signature in self.dkim if signature.result == "pass")


# --- written down ---------------------------------------------------------------------------------------------------


def facts(known: Authentication) -> dict[str, Any]:
    """As kept, of JSON types only."""
    return {"spf": _slots(known.spf), "dkim": [_slots(each) for each in known.dkim], "dmarc": _slots(known.dmarc)}


def _slots(record: Spf | Signature | Dmarc) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}  # asdict copies deeply, in ten times as long


def of_facts(kept: Mapping[str, Any]) -> Authentication:
    """What `facts` gave."""
    signatures = tuple(Signature(**signature) for signature in kept["dkim"])
    return Authentication(Spf(**kept["spf"]), signatures, Dmarc(**kept["dmarc"]))


def told(known: Authentication) -> str:
    """One line for people: "spf=pass cabinet.example, dkim=none, dmarc=fail banque.example (reject)"."""
    return ", ".join(
        (
            f"spf={known.spf.result} {known.spf.domain}".rstrip(),
            *(f"dkim={s.result} {s.domain}{f' ({s.why})' if s.why else ''}" for s in known.dkim),
            *(() if known.dkim else ("dkim=none",)),
            f"dmarc={known.dmarc.result} {known.dmarc.domain}".rstrip() + f" ({known.dmarc.policy})",
        )
    )


def results(known: Authentication, authserv_id: str, sender: str) -> str:
    """The value of an Authentication-Results (RFC 8601 §2.2), folded; `sender` is the envelope's.

    What stands in it was chosen by whoever wrote the mail: a value that is no plain name is left out.
    """
    return ";\r\n\t".join((authserv_id, *_entries(known, sender)))


def _entries(known: Authentication, sender: str) -> Iterator[str]:
    identity = "smtp.mailfrom" if sender else "smtp.helo"  # RFC 8601 §2.7.2
    yield f"spf={known.spf.result}{_property(identity, known.spf.domain)}"
    for signature in known.dkim:
        header = _property("header.d", signature.domain) + _property("header.s", signature.selector)
        yield f"dkim={signature.result}{header}"
    if not known.dkim:
        yield "dkim=none"
    yield f"dmarc={known.dmarc.result} (p={known.dmarc.policy}){_property('header.from', known.dmarc.domain)}"


_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?")


def _property(name: str, value: str) -> str:
    return f" {name}={value}" if _NAME.fullmatch(value) else ""
