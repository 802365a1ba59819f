"""Who wrote a mail: SPF, DKIM and DMARC, put together into facts.

Knows alone: which of them waits for which, and how long a mail may wait for all. Trouble of the DNS is a result
("temperror"), never an exception. Limits: no judgement (`rules.access`), no reports to the domains' owners.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from relay import verify
from relay.dns import DnsTrouble, NoDomain, Records, Resolver
from relay.lookups import Answer, Lookups, Questions
from relay.sign import Field, fields
from relay.spf import Checker, Client
from relay.verify import Claim
from rules import author, dmarc
from rules.authentication import Authentication, Dmarc, Signature
from rules.dmarc import Asked

LONGEST = 10.0  # seconds for all questions about one mail; what is missing then is trouble
PIECE = 1 << 16  # bytes: what is hashed has just been read into the nearest cache
SMALL = 1 << 20  # bytes of a body that are hashed at once: a thread costs more than it gives


@dataclass(frozen=True, slots=True)
class Mail:
    """What there is to look at. `read(offset, length)` gives the mail's bytes (`relay.spool.Incoming.read`)."""

    client: Client
    header_end: int  # where the body begins (`relay.mime.Message.header_end`)
    size: int
    read: Callable[[int, int], bytes]


class Authenticator:
    """One per process, on its event loop; `close` it at the end."""

    def __init__(self, resolver: Resolver) -> None:
        self._lookups = Lookups(resolver)
        self._checker = Checker()

    async def authenticate(self, mail: Mail) -> Authentication:
        questions = Questions(self._lookups, asyncio.get_running_loop().time() + LONGEST)
        # A task of its own only where it waits: neither may wait for the other, whose DNS may be a stranger's.
        if known := self._checker.at_once(mail.client, questions.known):
            sender, (dkim, asked) = known, await _written(mail, questions)
        else:
            check = self._checker.check(mail.client, questions)
            sender, (dkim, asked) = await asyncio.gather(check, _written(mail, questions))
        facts = Authentication(sender, dkim)
        verdict = asked if isinstance(asked, Dmarc) else await _dmarc(asked, facts, questions)
        return Authentication(sender, dkim, verdict)

    def close(self) -> None:
        """Asks nothing more."""
        self._lookups.close()


async def _written(mail: Mail, questions: Questions) -> tuple[tuple[Signature, ...], Asked | Dmarc]:
    """What the mail itself leads to: its signatures, and what its author's domain asks for."""
    block = mail.read(0, mail.header_end)
    headers = fields(block)
    claims, named = verify.claims(headers, block), _author(headers)
    keys = [claim.key_name for claim in claims if isinstance(claim, Claim)]
    answers = await questions.texts([*keys, *(_walk(named) if isinstance(named, str) else ())])
    asked = dmarc.discover(named, _records(named, answers)) if isinstance(named, str) else named
    return await _signatures(mail, headers, claims, answers), asked


# ---
# DKIM


async def _signatures(
    mail: Mail, headers: Sequence[Field], claims: Sequence[Claim | Signature], answers: Mapping[str, Answer]
) -> tuple[Signature, ...]:
    signed = verify.Headers(headers)
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


def _header(claim: Claim | Signature, headers: verify.Headers, answers: Mapping[str, Answer]) -> Signature:
    if isinstance(claim, Signature):
        return claim
    match answers[claim.key_name]:
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


def _author(headers: Sequence[Field]) -> str | Dmarc:
    """The author's domain; a Dmarc where there is not one (RFC 9989 §4.4: no mail that DMARC could speak of)."""
    domain = author.domain([value for name, value in headers if name.lower() == b"from"])
    if isinstance(domain, author.Several):
        return Dmarc("permerror", policy="reject")
    return domain or Dmarc("permerror")


async def _dmarc(asked: Asked, facts: Authentication, questions: Questions) -> Dmarc:
    domains = dmarc.unaligned(asked, facts)
    answers = await questions.texts(name for domain in domains for name in _walk(domain))
    organizations = {domain: dmarc.organization(domain, _records(domain, answers)) for domain in domains}
    exists = await _exists(asked.author, questions) if asked.depends_on_existence else True
    return dmarc.conclude(asked, facts, organizations, exists=exists)


def _walk(domain: str) -> list[str]:
    return [f"_dmarc.{name}" for name in dmarc.names(domain)]


def _records(domain: str, answers: Mapping[str, Answer]) -> dmarc.Answers:
    """What the names of a walk say."""
    return {name: _record(answers[f"_dmarc.{name}"]) for name in dmarc.names(domain)}


def _record(answer: Answer) -> dmarc.Record | dmarc.Trouble | None:
    match answer:
        case DnsTrouble():
            return dmarc.Trouble()
        case NoDomain():
            return None
        case Records() as records:
            return dmarc.record(text.decode("utf-8", "replace") for text in records.texts())


async def _exists(domain: str, questions: Questions) -> bool | None:
    """RFC 9989 §3.2.13: a name exists unless the answer is NXDOMAIN, whatever it was asked for."""
    match await questions.ask(domain, "A"):
        case DnsTrouble():
            return None
        case NoDomain():
            return False
        case Records():
            return True
