"""MTA-STS policies of other domains: found in the DNS, fetched over HTTPS, kept in the store (RFC 8461 §3, §5.1).

Knows alone: when a policy is fetched again, and that one which was once fetched holds until it expires, whatever becomes
of the record and the server that gave it: who can silence both must not be able to switch it off.
Limits: a domain whose policy was never had, because its DNS or its server failed, is one without (§3.1, §3.3). Policies
are looked at when mail is due, not in between: one may run out while nothing is sent. No TLS-RPT reports (RFC 8460) are
sent. One request a policy, of HTTP/1.1 without redirects (§3.3). An answer that does not say how long it is (no
Content-Length, not chunked) is not taken: asyncio does not tell its end from a line that was cut, and half a policy may
read like a whole one.
"""

import asyncio
import io
import ssl
from dataclasses import dataclass
from datetime import datetime, timedelta
from http.client import HTTPException, HTTPResponse
from typing import Any

from pysqlite3.dbapi2 import OperationalError
from sqlite_utils import Database

from relay import clock, log
from relay.commit import Commits
from relay.dns import DnsTrouble, NoDomain, Records, Resolver
from relay.store import sts as store
from relay.store.sts import Kept
from relay.trust import Trust
from rules import sts
from rules.sts import StsPolicy

HTTPS_PORT = 443
LIMIT = 60.0  # seconds for a policy (§3.3 suggests it)
CONNECT = 10.0  # of these, for one address
MAX_POLICY = 64 * 1024  # octets (§3.3 suggests it)
MAX_HEAD = 16 * 1024
_PASSING = (408, 425, 429)  # Request Timeout, Too Early, Too Many Requests; and what is the server's own fault
REFRESH = timedelta(days=1)  # §10.2: a policy that did not change is fetched again, so that it does not run out


@dataclass(frozen=True, slots=True)
class Unfetched:
    """There is no policy to be had there now; `why` is for the log. `passing`: it may be another minute, by itself."""

    why: str
    passing: bool = True


class Policies:
    """For one run: what each domain asks, from the store where that is fresh enough."""

    def __init__(self, db: Database, writer: Commits, resolver: Resolver, trust: Trust) -> None:
        self._db = db
        self._writer = writer
        self._resolver = resolver
        self._trust = trust

    async def of(self, domain: str) -> StsPolicy | None:
        now = clock.now()
        kept = store.kept(self._db, domain, clock.stamp(now))
        id_ = await announced(domain, self._resolver)
        if id_ is not None and (kept is None or _is_stale(kept, id_, now)):
            kept = await self._renewed(domain, id_) or kept
        return sts.parse(kept.policy) if kept else None

    async def _renewed(self, domain: str, id_: str) -> Kept | None:
        text = await fetched(domain, self._resolver, self._trust)
        if isinstance(text, Unfetched):
            log.sts_unfetched(f"mta-sts.{domain}", text.why)
            return None
        policy = sts.parse(text)
        assert policy is not None  # `fetched` gives no other
        now = clock.now()
        new = Kept(domain, id_, text, clock.stamp(now), clock.stamp(now + timedelta(seconds=policy.max_age)))
        try:
            await self._writer.write(lambda db, _: store.keep(db, new))
        except OperationalError as error:
            log.trouble("sts", error)  # locked, or no room: it holds for this run, and is fetched again by the next
        return new


def _is_stale(kept: Kept, id_: str, now: datetime) -> bool:
    return kept.id != id_ or clock.instant(kept.fetched_at) + REFRESH <= now


async def announced(domain: str, resolver: Resolver) -> str | None:
    """The id of the policy that the DNS announces now, if it does."""
    answer = await resolver.records(f"_mta-sts.{domain}", "TXT")
    return sts.announced(answer.texts()) if isinstance(answer, Records) else None


async def fetched(domain: str, resolver: Resolver, trust: Trust) -> str | Unfetched:
    """The text of a valid policy."""
    text = await served(domain, resolver, trust, within=LIMIT)
    if isinstance(text, Unfetched):
        return text
    return text if sts.parse(text) else Unfetched("not a policy", passing=False)


async def served(domain: str, resolver: Resolver, trust: Trust, *, within: float) -> str | Unfetched:
    """The text that stands where a policy should, had in `within` seconds."""
    host = f"mta-sts.{domain}"
    try:
        async with asyncio.timeout(within):
            addresses = await resolver.addresses(host)
            if isinstance(addresses, DnsTrouble):
                return Unfetched(addresses.text)
            if isinstance(addresses, NoDomain):
                return Unfetched("no address", passing=False)
            answer = await _asked(host, addresses, trust.verifying)
    except TimeoutError:
        return Unfetched("too slow")
    except (OSError, ValueError, EOFError) as error:  # ValueError: of a name that is none
        return Unfetched(_said(error))
    return _text(answer) if isinstance(answer, bytes) else answer


async def _asked(host: str, addresses: tuple[str, ...], context: ssl.SSLContext) -> bytes | Unfetched:
    """Everything that the server says to one request, which it then closes."""
    for address in addresses:
        try:
            async with asyncio.timeout(CONNECT):
                reader, writer = await asyncio.open_connection(
                    address, HTTPS_PORT, ssl=context, server_hostname=host, limit=MAX_POLICY
                )
            break
        except (OSError, TimeoutError) as error:
            failed = error
    else:
        return Unfetched(_said(failed))
    try:
        writer.write(f"GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        answer = bytearray()
        while chunk := await reader.read(MAX_POLICY):
            answer += chunk
            if len(answer) > MAX_HEAD + MAX_POLICY:
                return Unfetched("too long", passing=False)
        return bytes(answer)
    finally:
        writer.transport.abort()


class _Arrived:
    """What `http.client` takes for a socket: octets that are all there."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets

    def makefile(self, *_: Any) -> io.BytesIO:
        return io.BytesIO(self._octets)


def _text(answer: bytes) -> str | Unfetched:
    response = HTTPResponse(_Arrived(answer))  # type: ignore[arg-type]
    try:
        response.begin()
        body = response.read() if response.chunked or response.length is not None else None
    except (HTTPException, ValueError) as error:
        return Unfetched(f"not HTTP: {type(error).__name__}")
    if response.status != 200:
        return Unfetched(f"status {response.status}", passing=response.status in _PASSING or response.status >= 500)
    # Not what somebody may have put up on a host of pages: the type is asked for by §3.2.
    if (response.getheader("Content-Type") or "").partition(";")[0].strip().lower() != "text/plain":
        return Unfetched("not text/plain", passing=False)
    if body is None:
        return Unfetched("no Content-Length", passing=False)
    return body.decode("utf-8", "replace") if len(body) <= MAX_POLICY else Unfetched("too long", passing=False)


def _said(error: Exception) -> str:
    return " ".join((getattr(error, "verify_message", "") or str(error) or type(error).__name__).split())[:200]
