"""As what does a relayed mail leave: as it came, or as a message of ours that carries its documents?

Knows alone: when a mail would fail DMARC further on for having come through us (domain.md §4 "Sending"). SPF then passes
for our domain, which is not the author's: only the author's own signature still speaks for him.
"""

from typing import Literal

from rules.authentication import Authentication, Dmarc
from rules.ruleset import Rule

Form = Literal["received", "new"]


def form(rule: Rule, known: Authentication | None, documents: int) -> Form:
    """`known` is None where nobody looked: nothing is concluded then. Without a document there is nothing to carry."""
    if not documents or rule.relay_as == "received":
        return "received"
    if rule.relay_as == "new":
        return "new"
    return "new" if known is not None and _would_fail(known.dmarc) else "received"


def _would_fail(dmarc: Dmarc) -> bool:
    """Not where nobody asks for it, or where the DNS did not say: then as it came."""
    return dmarc.policy != "none" and dmarc.result in ("pass", "fail") and dmarc.signed is False
