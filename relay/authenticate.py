"""Who wrote a mail: SPF, DKIM and DMARC, put together into facts.

Knows alone: which of them waits for which, and how long a mail may wait for all. Trouble of the DNS is a result
("temperror"), never an exception. Limits: no judgement (`rules.access`), no reports to the domains' owners.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from relay import spf, verify
from relay.dns import DnsTrouble, NoDomain, Records, Resolver
from relay.lookups import Answer, Ask, Lookups
from relay.sign import Field, fields
from relay.verify import Claim
from rules import author, dmarc
from rules.authentication import Authentication, Dmarc, Signature
from rules.dmarc import Asked

LONGEST = 10.0  # seconds for all questions about one mail; what is missing then is trouble
PIECE = 1 << 18
SMALL = 1 << 20  # bytes of a body that are hashed at once: a thread costs more than it gives


@dataclass(frozen=True, slots=True)
class Mail:
    """What there is to look at. `read(offset, length)` gives the mail's bytes (`relay.spool.Incoming.read`)."""

    peer: str  # its IP address
    helo: str
    sender: str  # of the envelope; "" is the null sender
    header_end: int  # where the body begins (`relay.mime.Message.header_end`)
    size: int
    read: Callable[[int, int], bytes]


class Authenticator:
    """One per process, on its event loop; `close` it at the end."""

    def __init__(self, resolver: Resolver) -> None:
        self._lookups = Lookups(resolver)

    async def authenticate(self, mail: Mail) -> Authentication:
        ask = self._lookups.until(asyncio.get_running_loop().time() + LONGEST)
        block = mail.read(0, mail.header_end)
        headers = fields(block)
        sender, dkim, asked = await asyncio.gather(
            spf.check(mail.peer, helo=mail.helo, sender=mail.sender, ask=ask),
            _signatures(mail, block, headers, ask),
            _asked(headers, ask),
        )
        facts = Authentication(sender, dkim)
        verdict = asked if isinstance(asked, Dmarc) else await _dmarc(asked, facts, ask)
        return Authentication(sender, dkim, verdict)

    def close(self) -> None:
        """Asks nothing more."""
        self._lookups.close()


# ---
# DKIM


async def _signatures(mail: Mail, block: bytes, headers: Sequence[Field], ask: Ask) -> tuple[Signature, ...]:
    claims = verify.claims(headers, block)
    keys = await asyncio.gather(*(ask(claim.key_name, "TXT") for claim in claims if isinstance(claim, Claim)))
    answers, signed = iter(keys), verify.Headers(headers)
    found = [(claim, _header(claim, signed, answers)) for claim in claims]
    ways = {claim.body for claim, verdict in found if isinstance(claim, Claim) and verdict.result == "pass"}
    hashed: dict[verify.Canonical, bytes] = {}
    if ways and mail.size - mail.header_end <= SMALL:
        hashed = verify.hash_body(_body(mail), ways)
    elif ways:
        hashed = await asyncio.to_thread(verify.hash_body, _body(mail), ways)
    return tuple(
        verify.with_body(verdict, claim, hashed) if isinstance(claim, Claim) and verdict.result == "pass" else verdict
        for claim, verdict in found
    )


def _header(claim: Claim | Signature, headers: verify.Headers, answers: Iterator[Answer]) -> Signature:
    if isinstance(claim, Signature):
        return claim
    match next(answers):
        case DnsTrouble():
            return Signature("temperror", claim.domain, claim.selector, "DNS")
        case NoDomain():
            return headers.verify(claim, ())
        case Records() as records:
            return headers.verify(claim, records.texts())


def _body(mail: Mail) -> Iterator[bytes]:
    offset = mail.header_end
    while offset < mail.size:
        piece = mail.read(offset, min(PIECE, mail.size - offset))
        if not piece:
            raise OSError("the mail is shorter than it was")
        offset += len(piece)
        yield piece


# ---
# DMARC


async def _asked(headers: Sequence[Field], ask: Ask) -> Asked | Dmarc:
    domain = author.domain([value for name, value in headers if name.lower() == b"from"])
    # RFC 9989 §4.4: a mail without one author is no mail that DMARC could speak of.
    if isinstance(domain, author.Several):
        return Dmarc("permerror", policy="reject")
    return dmarc.discover(domain, await _answers(domain, ask)) if domain else Dmarc("permerror")


async def _dmarc(asked: Asked, facts: Authentication, ask: Ask) -> Dmarc:
    domains = list(dmarc.unaligned(asked, facts))
    walks = await asyncio.gather(*(_answers(domain, ask) for domain in domains))
    organizations = {domain: dmarc.organization(domain, walk) for domain, walk in zip(domains, walks, strict=True)}
    exists = await _exists(asked.author, ask) if asked.depends_on_existence else True
    return dmarc.conclude(asked, facts, organizations, exists=exists)


async def _answers(domain: str, ask: Ask) -> dmarc.Answers:
    """What the names of a walk say, asked all at once."""
    names = dmarc.names(domain)
    answers = await asyncio.gather(*(ask(f"_dmarc.{name}", "TXT") for name in names))
    return {name: _record(answer) for name, answer in zip(names, answers, strict=True)}


def _record(answer: Answer) -> dmarc.Record | dmarc.Trouble | None:
    match answer:
        case DnsTrouble():
            return dmarc.Trouble()
        case NoDomain():
            return None
        case Records() as records:
            return dmarc.record(text.decode("utf-8", "replace") for text in records.texts())


async def _exists(domain: str, ask: Ask) -> bool | None:
    """RFC 9989 §3.2.13: a name exists unless the answer is NXDOMAIN, whatever it was asked for."""
    match await ask(domain, "A"):
        case DnsTrouble():
            return None
        case NoDomain():
            return False
        case Records():
            return True
