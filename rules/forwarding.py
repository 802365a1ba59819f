"""Is this mail a mailbox service's question whether mail may be forwarded to one of our addresses?

A client who sets up a forward to `meg+…` or `ventes+…` must type in a code, or follow a link, that his mailbox's service
sends there. Such a mail goes neither to a collector nor into the GED: it is kept, and shown to the postmaster.
Knows alone: which services ask so, and where in their mails code and link stand. Limits: known by its author, whose
service must have signed it, and not by its words, which come in fifty languages; nobody here follows a link.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import unescape

from rules.authentication import Authentication


@dataclass(frozen=True, slots=True)
class Service:
    """`domain`, and those below it, send and sign; `authors` write; `link` is where the answer is given."""

    name: str
    domain: str
    authors: tuple[str, ...]
    link: re.Pattern[str]
    digits: str  # how many a code has


SERVICES = (
    Service(
        "gmail",
        "google.com",
        ("forwarding-noreply@google.com",),
        # The other one in the same mail, /mail/uf-…, says no.
        re.compile(
            r"https://(?:mail-settings|mail|isolated\.mail)\.google\.com/mail/(?:[a-z0-9/.-]{0,300}/)?vf-[^\s<>\"']{1,500}"
        ),
        "6,12",
    ),
    Service(
        "outlook",
        "microsoft.com",
        ("account-security-noreply@accountprotection.microsoft.com",),
        re.compile(r"https://(?:account|login)\.(?:live|microsoft)\.com/[^\s<>\"']{1,500}"),
        "4,8",
    ),
)


@dataclass(frozen=True, slots=True)
class Verification:
    """A code, a link, or both; "" where the mail has none that we know: its text has to be read."""

    service: str
    code: str = ""
    link: str = ""


@dataclass(frozen=True, slots=True)
class Unclear:
    """Its signature could not be looked at: the DNS gave no answer."""


@dataclass(frozen=True, slots=True)
class Forged:
    """It bears the service's name and not its signature."""


def may_ask(sender: str) -> bool:
    """Does the envelope name a service? Anyone can write that: the signature decides."""
    domain = sender.rpartition("@")[2].lower()
    return any(_is_of(domain, service) for service in SERVICES)


def claimed(authors: Sequence[str]) -> Service | None:
    """The service that a mail says it comes from; `authors` are the addresses of its From fields."""
    written = {author.lower() for author in authors}
    return next((service for service in SERVICES if written & set(service.authors)), None)


def proved(service: Service, authors: Sequence[str], known: Authentication) -> Unclear | Forged | None:
    """None: it is the service's. With two authors a signature does not say which of them it is for."""
    if len(authors) == 1 and any(_is_of(domain, service) for domain in known.signers):
        return None
    unclear = any(s.result == "temperror" and _is_of(s.domain.lower(), service) for s in known.dkim)
    return Unclear() if unclear else Forged()


def read(service: Service, subject: str, text: str) -> Verification:
    """Code and link; `text` may be plain or HTML."""
    found = service.link.search(unescape(text))
    bare = re.sub(r"https?://\S+", " ", re.sub(r"<[^>]{0,2000}>", " ", unescape(text)))
    return Verification(service.name, _code(service, subject, bare), found[0] if found else "")


def _code(service: Service, subject: str, text: str) -> str:
    for where, before in ((subject, r"\(#?"), (text, r"(?i:code)[^\d\n]{0,60}"), (text, r"[:\uff1a]\s{0,5}")):
        if found := re.search(rf"{before}(\d{{{service.digits}}})(?!\w)", where):
            return found[1]
    return ""


def _is_of(domain: str, service: Service) -> bool:
    return domain == service.domain or domain.endswith("." + service.domain)
