"""What is known of who wrote a mail: the results of SPF, DKIM and DMARC, as facts.

Knows alone: the words of RFC 8601 §2.7 for a result, and how the facts are written down. Limits: no judgement; what a
result is worth is `access`'s to say, and how it comes about is the shell's and `dmarc`'s.
"""

from dataclasses import dataclass
from typing import Literal

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
    """

    result: DmarcResult = "none"
    domain: str = ""
    policy: Policy = "none"


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
