"""May this peer send there? (domain.md §4 "Addresses and who may use them".)

Knows alone: what trust is needed for which address form, and what the results of SPF, DKIM and DMARC are worth. Asked
twice: at RCPT with what the envelope says, at the end of DATA with what is known of the author by then. Limits: it judges
the peer it is given (`rules.peer`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from rules import forwarding, replies
from rules.address import Bounce, File, Postmaster, Relay
from rules.authentication import Authentication, Spf
from rules.peer import Forwarders, Peer, is_trusted
from rules.replies import NOT_ALLOWED, Reply

Route = Relay | File | Postmaster | Bounce


@dataclass(frozen=True, slots=True)
class Allow:
    pass


@dataclass(frozen=True, slots=True)
class AllowIf:
    """Yes for now; `at_end` has the last word. `domains` are those of authors whose mail is taken if it passes DMARC.

    None: the sender may be a mailbox service that asks for a forward to be confirmed (`rules.forwarding`).
    """

    domains: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Refuse:
    reply: Reply


def may_send(route: Route, peer: Peer, sender: str = "") -> Allow | AllowIf | Refuse:
    """At RCPT. `sender` is the envelope's."""
    match route:
        case Relay(rule=rule) | File(rule=rule):
            if rule.senders == "anyone" or peer.is_trusted_for(rule.name):
                return Allow()
            if isinstance(rule.senders, frozenset):
                return AllowIf(rule.senders)
            return AllowIf() if forwarding.may_ask(sender) else Refuse(NOT_ALLOWED)
        case Postmaster() | Bounce():
            return Allow()  # RFC 5321 §4.5.1; a bounce carries its own proof, the token
        case _:
            assert_never(route)


# --- at the end of DATA ---------------------------------------------------------------------------------------------


def is_forwarder(peer: Peer, spf: Spf, trusted: Forwarders) -> bool:
    """By its address, or by its domain where SPF proves that the envelope is that domain's."""
    vouched = spf.result == "pass" and spf.domain.lower() in trusted.domains
    return vouched or is_trusted(peer.ip, trusted.networks)


def at_end(
    routes: Sequence[Route], peer: Peer, *, sender: str, known: Authentication, trusted: Forwarders
) -> Allow | Refuse:
    """The last word on a mail for all of `routes`, each of which `may_send` let through. SMTP has one answer.

    A peer that is trusted is believed whatever its mail says; a mail for people, or a report, is not judged by its author.
    """
    judged = [route for route in routes if isinstance(route, Relay | File)]
    if judged and known.dmarc.policy == "reject" and not peer.trusted and not is_forwarder(peer, known.spf, trusted):
        match known.dmarc.result:
            case "fail":
                return Refuse(replies.unauthenticated(known.dmarc.domain, _why(known)))
            case "permerror":
                return Refuse(replies.SEVERAL_AUTHORS)
    for route in judged:
        condition = may_send(route, peer, sender)
        if isinstance(condition, AllowIf) and (refused := _unproved(condition, known)):
            return Refuse(refused)
    return Allow()


def _unproved(condition: AllowIf, known: Authentication) -> Reply | None:
    if known.dmarc.result == "temperror" and condition.domains:
        return replies.UNVERIFIED  # unclear: it comes again when the DNS answers
    passed = known.dmarc.result == "pass" and known.dmarc.domain.lower() in condition.domains
    return None if passed else NOT_ALLOWED


def _why(known: Authentication) -> str:
    signatures = {signature.result for signature in known.dkim}
    dkim = next((result for result in ("pass", "temperror", "fail") if result in signatures), "none")
    return f"SPF {known.spf.result}, DKIM {dkim}"
