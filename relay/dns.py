"""Where mail for a domain goes, as values: MX and addresses from dnspython.

Knows alone: RFC 5321 §5.1 (order of MX, the implicit MX) and RFC 7505 (null MX), and which DNS trouble is which.
Limits: it validates nothing itself; a resolver on this machine that does is believed (DNSSEC's AD bit). We are never
among the MX of a collector's domain, so our own name is not looked for among them.
"""

import asyncio
import contextlib
import copy
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import ip_address

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.MX
import dns.resolver
from dns.rdtypes.ANY.TXT import TXT

from relay.recent import Recent

LIFETIME = 5.0  # seconds for one question, all servers and retries counted
PROBE_LIFETIME = 2.0
RESOLV_CONF = "/etc/resolv.conf"
CACHED_ANSWERS = 10_000
AT_HAND = 1_000  # of them, as values: to find one and make it a value takes ten times as long
STUBS = (
    "127.0.0.53",
    "127.0.0.54",
)  # systemd-resolved: as it comes it validates nothing, and passes on what others say
MAX_HOSTS = 10  # of one domain: a hostile zone must not make us ask for hundreds of addresses


@dataclass(frozen=True, slots=True)
class MxHost:
    preference: int
    host: str
    addresses: tuple[str, ...]  # at least one; IPv4 first: a machine without an IPv6 route is still common
    alias_of: str = ""  # the end of its chain of CNAMEs, mostly itself; "" unless `secure` as in Records

    @property
    def secure(self) -> bool:
        return bool(self.alias_of)


@dataclass(frozen=True, slots=True)
class MxHosts:
    """In the order they are to be tried; at least one. `secure` as in Records: of the MX records, or of their absence."""

    hosts: tuple[MxHost, ...]
    secure: bool = False


@dataclass(frozen=True, slots=True)
class NullMx:
    """The domain says that it takes no mail (RFC 7505)."""


@dataclass(frozen=True, slots=True)
class NoDomain:
    """NXDOMAIN: the name does not exist, as far as DNS says now; `secure` as in Records."""

    secure: bool = False


@dataclass(frozen=True, slots=True)
class DnsTrouble:
    """No usable answer: a timeout, SERVFAIL, or MX hosts none of which has an address."""

    text: str


@dataclass(frozen=True, slots=True)
class Records:
    """What a name has of one type: none, perhaps. `secure`: a validating resolver on this machine vouches for it.

    `name` is where the answer was found: the end of a chain of CNAMEs.
    """

    name: str
    data: tuple[dns.rdata.Rdata, ...]
    secure: bool

    def texts(self) -> tuple[bytes, ...]:
        """Of TXT records, each with its strings joined."""
        return tuple(b"".join(record.strings) for record in self.data if isinstance(record, TXT))


@dataclass(frozen=True, slots=True)
class _Found:
    """Addresses of one host; `alias_of` as in MxHost."""

    addresses: tuple[str, ...]
    alias_of: str


Shuffle = Callable[[list[dns.rdtypes.ANY.MX.MX]], None]


class Resolver:
    """Asks `servers` ("10.0.0.1", "127.0.0.1:5353", "[::1]:53"), or the system's where none is given. Answers are
    cached for their TTL. `shuffle` orders hosts of equal preference at random; tests give another."""

    def __init__(self, servers: Sequence[str] = (), *, shuffle: Shuffle = random.shuffle) -> None:
        self._resolver = dns.asyncresolver.Resolver(configure=False)
        if servers:
            places = (endpoint(server, 53) for server in servers)
            self._resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in places]
        else:
            # A machine without resolv.conf starts all the same: fixed routes need no DNS.
            with contextlib.suppress(dns.resolver.NoResolverConfiguration):
                self._resolver.read_resolv_conf(RESOLV_CONF)
        self._resolver.lifetime = LIFETIME
        self._resolver.flags = dns.flags.RD | dns.flags.AD  # RFC 6840 §5.7: who asks so is told what was validated
        self._local = all(map(_is_loopback, self._resolver.nameservers))
        self._resolver.cache = dns.resolver.LRUCache(CACHED_ANSWERS)
        self._at_hand = Recent[tuple[str, str], tuple[float, Records | NoDomain]](AT_HAND)  # until when each is true
        self._shuffle = shuffle

    async def mx(self, domain: str) -> MxHosts | NullMx | NoDomain | DnsTrouble:
        answer = await self._ask(domain, dns.rdatatype.MX)
        if not isinstance(answer, dns.resolver.Answer):
            return answer
        records = [record for record in answer if isinstance(record, dns.rdtypes.ANY.MX.MX)]
        if not records:
            return await self._implicit(domain, answer)
        # RFC 7505 §3: a null MX beside others is an error of theirs, and then it names no host.
        named = [record for record in records if record.exchange != dns.name.root]
        if not named:
            return NullMx()
        self._shuffle(named)
        named.sort(key=lambda record: record.preference)  # stable: the shuffle stays within a preference
        found = await self._with_addresses(domain, named[:MAX_HOSTS])
        return replace(found, secure=self._secure(answer.response)) if isinstance(found, MxHosts) else found

    async def addresses(self, host: str) -> tuple[str, ...] | NoDomain | DnsTrouble:
        """The addresses of `host`, at least one; an address is its own answer."""
        if _is_address(host):
            return (host,)
        if host.lower().rstrip(".") == "localhost":  # RFC 6761 §6.3: never asked of DNS
            return ("127.0.0.1", "::1")
        found = await self._lookup(host)
        return found.addresses if isinstance(found, _Found) else found

    async def records(self, name: str, kind: str) -> Records | NoDomain | DnsTrouble:
        """All records of `kind` ("TXT", "TLSA", …) at `name`, CNAMEs followed."""
        answer = await self._ask(name, dns.rdatatype.from_text(kind))
        return self._records(answer) if isinstance(answer, dns.resolver.Answer) else answer

    def cached(self, name: str, kind: str) -> Records | NoDomain | None:
        """What `records` would say without asking anybody; None where it would have to ask. ValueError for no name."""
        key = (name, kind)
        until, found = self._at_hand.get(key, (0.0, None))
        if found is not None and time.time() < until:
            return found
        answer = self._cached(absolute(name), dns.rdatatype.from_text(kind))
        if answer is None:
            return None
        absent = answer.response.rcode() == dns.rcode.NXDOMAIN
        found = NoDomain(self._secure(answer.response)) if absent else self._records(answer)
        self._at_hand.keep(key, (answer.expiration, found))
        return found

    def _cached(self, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> dns.resolver.Answer | None:
        cache = self._resolver.cache
        if cache is None:
            return None
        answer: dns.resolver.Answer | None = cache.get((name, kind, dns.rdataclass.IN))
        # An empty one is false, and dnspython keeps an NXDOMAIN as an answer of any type.
        return cache.get((name, dns.rdatatype.ANY, dns.rdataclass.IN)) if answer is None else answer

    def _records(self, answer: dns.resolver.Answer) -> Records:
        return Records(_name(answer.canonical_name), tuple(answer), self._secure(answer.response))

    async def answers(self) -> bool:
        """Does any of the servers answer at all? Asked anew each time, of what every resolver knows by heart."""
        uncached = copy.copy(self._resolver)
        uncached.cache, uncached.lifetime = None, PROBE_LIFETIME
        try:
            await uncached.resolve(dns.name.root, dns.rdatatype.NS, raise_on_no_answer=False, search=False)
        except dns.resolver.LifetimeTimeout:
            return False
        except (dns.exception.DNSException, OSError):
            return True  # a refusal, or a rude answer, is one
        return True

    async def _lookup(self, host: str) -> _Found | NoDomain | DnsTrouble:
        kinds = (dns.rdatatype.A, dns.rdatatype.AAAA)
        answers = await asyncio.gather(*(self._ask(host, kind) for kind in kinds))
        given = [answer for answer in answers if isinstance(answer, dns.resolver.Answer) and len(answer)]
        if given:
            # RFC 7672 §2.2.2: a name has TLSA records worth looking for only where its addresses are signed.
            secure = all(self._secure(answer.response) for answer in given)
            addresses = tuple(record.address for answer in given for record in answer)
            return _Found(addresses, _name(given[0].canonical_name) if secure else "")
        failed = [answer for answer in answers if not isinstance(answer, dns.resolver.Answer)]
        trouble = next((answer for answer in failed if isinstance(answer, DnsTrouble)), None)
        return trouble or (failed[0] if failed else DnsTrouble(f"{host}: no address"))

    async def _implicit(self, domain: str, absent: dns.resolver.Answer) -> MxHosts | NoDomain | DnsTrouble:
        found = await self._lookup(domain)
        if not isinstance(found, _Found):
            return found
        host = MxHost(0, domain.lower(), found.addresses, found.alias_of)
        return MxHosts((host,), self._secure(absent.response))

    async def _with_addresses(self, domain: str, records: list[dns.rdtypes.ANY.MX.MX]) -> MxHosts | DnsTrouble:
        names = [_name(record.exchange) for record in records]
        # Looked up even if it reads as an address or localhost: a zone must not point us at ourselves by name.
        answers = await asyncio.gather(*(self._lookup(name) for name in names))
        hosts = tuple(
            MxHost(record.preference, name, found.addresses, found.alias_of)
            for record, name, found in zip(records, names, answers, strict=True)
            if isinstance(found, _Found)
        )
        if hosts:
            return MxHosts(hosts)
        texts = [answer.text for answer in answers if isinstance(answer, DnsTrouble)]
        return DnsTrouble(texts[0] if texts else f"{domain}: no MX host has an address")

    async def _ask(self, name: str, kind: dns.rdatatype.RdataType) -> dns.resolver.Answer | NoDomain | DnsTrouble:
        """An empty answer is an answer."""
        try:
            return await self._resolver.resolve(absolute(name), kind, raise_on_no_answer=False, search=False)
        except dns.resolver.NXDOMAIN as error:
            responses: dict[dns.name.Name, dns.message.Message] = error.responses()  # type: ignore[no-untyped-call]
            return NoDomain(all(self._secure(response) for response in responses.values()))
        except (dns.exception.DNSException, OSError, ValueError) as error:  # ValueError: of a name that is none
            return DnsTrouble(f"{name}/{dns.rdatatype.to_text(kind)}: {_said(error)}")

    def _secure(self, response: dns.message.Message) -> bool:
        """The AD bit is believed only where nobody on the way could have set it (RFC 6698 §A.3)."""
        return self._local and bool(response.flags & dns.flags.AD)


@lru_cache(CACHED_ANSWERS)  # takes longer than to find the answer
def absolute(name: str) -> dns.name.Name:
    """The name, parsed. Raises DNSException or ValueError where it is none."""
    return dns.name.from_text(name)


def _name(name: dns.name.Name) -> str:
    return name.to_text(omit_final_dot=True).lower()


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _is_loopback(server: "str | dns.nameserver.Nameserver") -> bool:
    address = server.address if isinstance(server, dns.nameserver.AddressAndPortNameserver) else str(server)
    return _is_address(address) and ip_address(address).is_loopback and address not in STUBS


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def endpoint(text: str, port: int) -> tuple[str, int]:
    """ "host:25", "10.0.0.1", "[::1]:53" or "::1" → host and port, `port` where none is written. ValueError."""
    if _is_address(text):
        return text, port
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not _is_address(host) or (rest and not rest.startswith(":")):
            raise ValueError(f"« {text} » is not an address: write [::1]:53")
        number = rest[1:] if rest else str(port)
    else:
        host, colon, number = text.partition(":")
        number = number if colon else str(port)
    if not host or not (number.isascii() and number.isdecimal()) or int(number) > 65535:
        raise ValueError(f"« {text} » is not a host and port: write host:25")
    return host, int(number)
