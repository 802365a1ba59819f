"""An SMTP reply of the far side, or a fault on the way there → what becomes of the delivery, and of how much else.

Knows alone: which trouble is final, which waits, and whether it is about this session, the whole host, this message or
this recipient (the policy of Postfix's smtp_trouble.c, narrowed by domain.md §4 "Outcomes"). Only a 5xx to RCPT, or
after DATA or its dot, ends a delivery: an earlier one says more about the two machines than about the document, and a
document lost to a misconfigured banner is worse than one that is late.
Limits: it knows one answer at a time. When to try again and when to give up is `lifecycle.reschedule`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from rules.address import unproved
from rules.replies import Reason

Stage = Literal["connect", "ehlo", "starttls", "mail", "rcpt", "data", "dot"]


class Scope(StrEnum):
    """How much else the answer is about: what the caller should not try again in this run."""

    SESSION = "session"  # this connection is of no more use; another may be
    HOST = "host"  # nothing else for this host now
    MESSAGE = "message"
    RECIPIENT = "recipient"


class Result(StrEnum):
    DONE = "done"  # the far side took the message and answers for it
    LATER = "later"
    NEVER = "never"


class Certainty(StrEnum):
    CERTAIN = "certain"
    UNCERTAIN = "uncertain"  # the final dot went out and no answer came: « peut-être reçu deux fois » if retried


class Fault(StrEnum):
    """What can go wrong without an SMTP reply to show for it."""

    TIMEOUT = "timeout"
    REFUSED = "refused"  # no connection: refused, unreachable, no route
    LOST = "lost"  # the line went down
    PROTOCOL = "protocol"  # something answered, and it is not SMTP
    NXDOMAIN = "dns-nxdomain"
    DNS = "dns-trouble"
    NULL_MX = "null-mx"
    TLS = "tls"  # required, and not to be had
    TOO_BIG = "too-big"  # over the SIZE announced
    EIGHT_BIT = "eight-bit"  # 8-bit content for a host without 8BITMIME


@dataclass(frozen=True, slots=True)
class Outcome:
    """`code` is 0 for a fault. `size` and `limit` are set for TOO_BIG. `mx` and `tls` are for who held the line."""

    scope: Scope
    result: Result
    stage: Stage
    code: int = 0
    enhanced: str = ""  # RFC 3463; the far side's own, or ours for a fault
    text: str = ""
    fault: Fault | None = None
    certainty: Certainty = Certainty.CERTAIN
    size: int = 0
    limit: int = 0
    mx: str = ""  # host [address]:port
    tls: str = ""  # "TLSv1.3", or "" in clear

    @property
    def reply(self) -> str:
        """One line for the history: "550 5.1.1 User unknown", or the fault."""
        words = [str(self.code)] if self.code else [self.fault or ""]
        return " ".join(word for word in (*words, self.enhanced, self.text) if word)

    @property
    def warns(self) -> bool:
        """It waits, but waiting alone will not mend it: the postmaster should look."""
        return self.result is Result.LATER and (self.fault is Fault.TLS or (self.code >= 500 and self.stage != "rcpt"))


# stage → (scope of a 4xx, scope of a 5xx, what a 5xx means)
_POLICY: dict[Stage, tuple[Scope, Scope, Result]] = {
    "connect": (Scope.HOST, Scope.HOST, Result.LATER),
    "ehlo": (Scope.HOST, Scope.HOST, Result.LATER),
    "starttls": (Scope.HOST, Scope.HOST, Result.LATER),
    "mail": (Scope.MESSAGE, Scope.HOST, Result.LATER),
    "rcpt": (Scope.RECIPIENT, Scope.RECIPIENT, Result.NEVER),
    "data": (Scope.MESSAGE, Scope.MESSAGE, Result.NEVER),
    "dot": (Scope.MESSAGE, Scope.MESSAGE, Result.NEVER),
}


def of_reply(stage: Stage, code: int, lines: Sequence[str]) -> Outcome:
    """The outcome of a reply that ends the attempt: any refusal, or the 2xx after the dot. `lines` are without code."""
    enhanced, text = _status(code, lines)
    scope, result = _meaning(stage, code, enhanced)
    return Outcome(scope, result, stage, code, enhanced, text)


def status_of(reply: str) -> str:
    """The RFC 3463 code of an `Outcome.reply` that was written down, "" where it has none."""
    found = re.match(r"[\w-]+ ([245]\.\d{1,3}\.\d{1,3})(?=\s|$)", reply)
    return found[1] if found else ""


def _meaning(stage: Stage, code: int, enhanced: str) -> tuple[Scope, Result]:
    soft, hard, meaning = _POLICY[stage]
    if code == 421:  # RFC 5321 §3.8: the host is closing this channel, whatever was asked
        return Scope.SESSION, Result.LATER
    if stage == "dot" and code // 100 == 2:
        return Scope.MESSAGE, Result.DONE
    if stage == "rcpt" and code == 552:  # RFC 5321 §4.5.3.1.10: treat it as 452, too many recipients
        return soft, Result.LATER
    if stage == "mail" and (code == 552 or enhanced == "5.3.4"):
        # RFC 1870 §6.1: about the SIZE= of this one. It waits like any 5xx to MAIL, but must not stop the others.
        return Scope.MESSAGE, Result.LATER
    if code // 100 == 4:
        return soft, Result.LATER
    if code // 100 == 5:
        return hard, meaning
    return Scope.SESSION, Result.LATER  # an answer out of place: this session has lost the thread


_ENHANCED = re.compile(r"([245])\.\d{1,3}\.\d{1,3}(?=\s|$)")


def _status(code: int, lines: Sequence[str]) -> tuple[str, str]:
    """The enhanced code of the reply (RFC 2034 §4: on every line) and its text without it."""
    first = _ENHANCED.match(lines[0]) if lines else None
    enhanced = first[0] if first and int(first[1]) == code // 100 else ""
    shown = (line.removeprefix(enhanced).strip() for line in lines)
    return enhanced, unproved(" / ".join(line for line in shown if line))


_ENHANCED_OF: dict[Fault, str] = {
    Fault.TIMEOUT: "4.4.2",
    Fault.REFUSED: "4.4.1",
    Fault.LOST: "4.4.2",
    Fault.PROTOCOL: "4.5.0",
    Fault.NXDOMAIN: "4.1.2",
    Fault.DNS: "4.4.3",
    Fault.NULL_MX: "5.1.10",  # RFC 7505 §4.1
    Fault.TLS: "4.7.5",
    Fault.TOO_BIG: "5.3.4",
    Fault.EIGHT_BIT: "5.6.3",
}


def of_fault(stage: Stage, fault: Fault, text: str = "") -> Outcome:
    """The outcome of trouble at `stage`; `text` is what the system said of it."""
    enhanced = _ENHANCED_OF[fault]
    if fault in (Fault.TOO_BIG, Fault.EIGHT_BIT):
        return Outcome(Scope.MESSAGE, Result.NEVER, stage, enhanced=enhanced, text=text, fault=fault)
    if fault is Fault.NULL_MX:
        return Outcome(Scope.HOST, Result.NEVER, stage, enhanced=enhanced, text=text, fault=fault)
    # Before MAIL no message was named yet, so the trouble is the host's.
    scope = Scope.HOST if stage in ("connect", "ehlo", "starttls") else Scope.SESSION
    # Whatever ends the wait for the answer to the dot, the message may have been taken.
    certainty = Certainty.UNCERTAIN if stage == "dot" else Certainty.CERTAIN
    return Outcome(scope, Result.LATER, stage, enhanced=enhanced, text=text, fault=fault, certainty=certainty)


def too_big(size: int, limit: int) -> Outcome:
    """The message has `size` octets, the far side announced `limit` (RFC 1870)."""
    return Outcome(
        Scope.MESSAGE,
        Result.NEVER,
        "mail",
        enhanced=_ENHANCED_OF[Fault.TOO_BIG],
        text=f"{size} octets, SIZE {limit}",
        fault=Fault.TOO_BIG,
        size=size,
        limit=limit,
    )


def reason(outcome: Outcome, at: str = "?") -> Reason:
    """What the history says of an outcome that is not DONE; `at` is when the next attempt is due."""
    if outcome.result is Result.LATER:
        return Reason("deferred", {"reply": outcome.reply, "at": at})
    match outcome.fault:
        case Fault.TOO_BIG:
            return Reason("far-size", {"size": outcome.size, "limit": outcome.limit})
        case Fault.EIGHT_BIT:
            return Reason("far-8bit")
        case Fault.NULL_MX:
            return Reason("null-mx")
        case _:
            return Reason("failed", {"reply": outcome.reply})
