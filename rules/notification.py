"""Do we tell the sender that it failed? (domain.md §4 "Who is told".)

Knows alone: whom a delivery status notification (RFC 3464) must never go to, and how often a person bears one. An answer
to a machine makes two machines talk (RFC 3834 §2), and one to a stranger may be one to the wrong person.
Limits: what a mail says of itself is believed; a robot that says nothing gets one notification a day.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

AT_MOST_EVERY = timedelta(days=1)
_DAEMONS = ("mailer-daemon",)
_LISTS = re.compile(r"owner-.*|.*-(?:owner|request|bounces|admin)")  # RFC 3834 §2, RFC 2142 §6


@dataclass(frozen=True, slots=True)
class Failed:
    """A mail of which a delivery finally failed. `automatic` is what `automatic` said of it, `domain` ours."""

    sender: str  # of the envelope, "" the null one
    trusted: bool  # came by a trusted network, or from a user who proved to be one
    automatic: str
    domain: str
    told_at: datetime | None  # when this sender was last told of a failure


@dataclass(frozen=True, slots=True)
class Tell:
    pass


@dataclass(frozen=True, slots=True)
class Silent:
    """Nobody is told; `why` is a word for the history."""

    why: str


def decide(failed: Failed, now: datetime) -> Tell | Silent:
    local, _, domain = failed.sender.lower().rpartition("@")
    if not failed.sender:
        return Silent("null-sender")
    if not failed.trusted:
        return Silent("untrusted")
    if failed.automatic:
        return Silent(failed.automatic)
    if domain == failed.domain.lower():
        return Silent("own-domain")  # our addresses are machines, and postmaster@ is told anyway
    if local in _DAEMONS:
        return Silent("daemon")
    if _LISTS.fullmatch(local):
        return Silent("list")
    if failed.told_at is not None and now - failed.told_at < AT_MOST_EVERY:
        return Silent("told-today")
    return Tell()


def automatic(fields: Iterable[tuple[str, bytes]]) -> str:
    """What the header of a mail says of who wrote it: a word where that was no person for us alone, else "".

    `fields` have lower-case names.
    """
    for name, value in fields:
        if name == "auto-submitted" and _word(value) != "no":  # RFC 3834 §5: any other is automatic, unknown ones too
            return "auto-submitted"
        if name.startswith("list-"):  # RFC 2369, RFC 2919
            return "list"
        if name == "precedence" and _word(value) in ("bulk", "list", "junk"):
            return "bulk"
        if name == "content-type" and _word(value) == "multipart/report":
            return "report"  # another's DSN or MDN, whatever its envelope says
    return ""


def _word(value: bytes) -> str:
    """The first word of a field, without comments and parameters."""
    text = re.sub(r"\([^()]*\)", " ", value[:500].decode("latin-1"))
    return text.partition(";")[0].strip().lower()
