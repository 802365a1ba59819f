"""What DNS says of our own domain: all questions at once, and the policy file of MTA-STS from its web server.

Knows alone: how the whole picture is got within seconds however little answers: what does not answer is not known.
Limits: it looks as anybody would, through [delivery] dns; a resolver may still give what stood there an hour ago.
"""

import asyncio
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay import mtasts
from relay.dns import DnsTrouble, NoDomain, Records, Resolver
from relay.trust import Trust
from rules import published
from rules.published import Absent, Answer, Question, Seen, Unknown
from rules.records import Certificate, Site

FETCH_WITHIN = 5.0  # seconds


def chain(path: str) -> tuple[Certificate, ...]:
    """The certificates of a PEM file, in its order. ValueError or OSError where there are none."""
    with open(path, "rb") as file:
        found = x509.load_pem_x509_certificates(file.read())
    return tuple(map(_facts, found))


def _facts(certificate: x509.Certificate) -> Certificate:
    public_key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Certificate(certificate.public_bytes(Encoding.DER), public_key)


async def look(site: Site, resolver: Resolver, trust: Trust) -> Seen:
    """What is published for `site`."""
    fetching = asyncio.create_task(_policy(site, resolver, trust))
    answers = await _answers(resolver, published.questions(site))
    for more in (published.reverse_questions, published.forward_questions):
        answers |= await _answers(resolver, more(site, Seen(answers)) - answers.keys())
    return Seen(answers, await fetching)


async def _answers(resolver: Resolver, questions: Iterable[Question]) -> dict[Question, Answer]:
    asked = list(questions)
    found = await asyncio.gather(*(resolver.records(name, kind) for name, kind in asked))
    return dict(zip(asked, map(_answer, found), strict=True))


def _answer(found: Records | NoDomain | DnsTrouble) -> Answer:
    if isinstance(found, DnsTrouble):
        return Unknown(found.text)
    if isinstance(found, NoDomain):
        return ()
    texts = found.texts()
    if texts:
        return tuple(text.decode("utf-8", "backslashreplace") for text in texts)
    return tuple(record.to_text() for record in found.data)


async def _policy(site: Site, resolver: Resolver, trust: Trust) -> str | Absent | Unknown:
    """As those who write to us are given it."""
    domain = site.domain.lower()
    text = await mtasts.served(domain, resolver, trust, within=FETCH_WITHIN)
    if isinstance(text, str):
        return text
    return Unknown(f"mta-sts.{domain}: {text.why}") if text.passing else Absent(text.why)
