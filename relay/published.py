"""What DNS says of our own domain: all questions at once, and the policy file of MTA-STS from its web server.

Knows alone: how the whole picture is got within seconds however little answers: what does not answer is not known.
Limits: it looks as anybody would, through [delivery] dns; a resolver may still give what stood there an hour ago.
"""

import asyncio
import contextlib
import io
import socket
import ssl
from collections.abc import Iterable
from http.client import HTTPException, HTTPResponse
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from relay.dns import DnsTrouble, NoDomain, Records, Resolver
from rules import published
from rules.published import Answer, Question, Seen, Unknown
from rules.records import Certificate, Site

FETCH_WITHIN = 5.0  # seconds
LARGEST_POLICY = 64 * 1024  # RFC 8461 §3.3, and what a web server says before it


def chain(path: str) -> tuple[Certificate, ...]:
    """The certificates of a PEM file, in its order. ValueError or OSError where there are none."""
    with open(path, "rb") as file:
        found = x509.load_pem_x509_certificates(file.read())
    return tuple(map(_facts, found))


def _facts(certificate: x509.Certificate) -> Certificate:
    public_key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Certificate(certificate.public_bytes(Encoding.DER), public_key)


async def look(site: Site, resolver: Resolver) -> Seen:
    """What is published for `site`."""
    fetching = asyncio.create_task(_policy(site, resolver))
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


# ---
# The policy file


async def _policy(site: Site, resolver: Resolver) -> str | Unknown:
    """Its text; "" where there is none. Redirections are not followed (RFC 8461 §3.3)."""
    host, _, path = site.policy_url.removeprefix("https://").partition("/")
    addresses = await resolver.addresses(host)
    if isinstance(addresses, NoDomain):
        return ""
    if isinstance(addresses, DnsTrouble):
        return Unknown(addresses.text)
    try:
        async with asyncio.timeout(FETCH_WITHIN):
            return _content(await _fetched(addresses[0], host, f"/{path}"))
    except (OSError, HTTPException, ValueError) as error:  # TimeoutError and SSLError are of OSError
        return Unknown(f"{host}: {error or type(error).__name__}")


async def _fetched(address: str, host: str, path: str) -> bytes:
    """The whole answer of the web server, for as long as it is one of a policy."""
    trusted = ssl.create_default_context()
    reader, writer = await asyncio.open_connection(address, 443, ssl=trusted, server_hostname=host)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("ascii"))
        answer = b""
        while len(answer) < LARGEST_POLICY and (more := await reader.read(LARGEST_POLICY)):
            answer += more
        return answer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


class _Socket:
    """What HTTPResponse reads from."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, *_: object) -> io.BytesIO:
        return io.BytesIO(self._content)


def _content(answer: bytes) -> str:
    response = HTTPResponse(cast(socket.socket, _Socket(answer)))
    response.begin()
    return response.read().decode("utf-8", "replace") if response.status == 200 else ""
