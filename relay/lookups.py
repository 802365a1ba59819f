"""The DNS as the checks of a mail ask it: bounded in number and in time, and no trouble is waited for twice.

Knows alone: for how long a trouble is remembered, and when the whole DNS is taken for dead, so that a mail does not
wait for it, nor for others' slow zones. Limits: answers are cached by `relay.dns`, for their TTL; only troubles are
remembered here. Two labels are taken for a zone: those below "co.uk" share one's slots.
"""

import asyncio
from collections.abc import Callable, Iterable
from functools import lru_cache
from weakref import WeakValueDictionary

import dns.exception

from relay.dns import DnsTrouble, NoDomain, Records, Resolver, absolute
from relay.recent import Recent

Answer = Records | NoDomain | DnsTrouble
Known = Callable[[str, str], Answer | None]

AT_ONCE = 64  # lookups in flight
AT_ONCE_IN_ZONE = 8  # so that a zone that does not answer keeps no other waiting, however much mail names it
REMEMBER = 60.0  # seconds for which a trouble is
SLOW = 2.0  # seconds after which a trouble may be the resolver's own
DEAD_FOR = 15.0  # seconds without a question once it is
MOST = 10_000  # troubles remembered
MAX_NAME = 255  # characters; what is longer is not even kept as no name


class Lookups:
    """One per process. The loop's clock, which is never put back, is the one used."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._zones: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()  # while any is asked about
        self._troubles = Recent[tuple[str, str], tuple[float, DnsTrouble]](MOST)
        self._dead_until = 0.0
        self._probe: asyncio.Task[None] | None = None

    def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()

    def known(self, name: str, kind: str) -> Answer | None:
        """What `ask` would say without asking anybody; None where it would have to."""
        if not is_name(name):
            return NoDomain()
        key = (name.lower(), kind)
        until, trouble = self._troubles.get(key, (0.0, None))
        if trouble is not None and asyncio.get_running_loop().time() < until:
            return trouble
        return self._resolver.cached(*key)

    async def ask(self, name: str, kind: str) -> Answer:
        """What `name` has of `kind`; what cannot be a name does not exist."""
        if (known := self.known(name, kind)) is not None:
            return known
        async with self._zone(name.lower()), self._slots:
            return await self._ask((name.lower(), kind))

    def _zone(self, name: str) -> asyncio.Semaphore:
        zone = ".".join(name.removesuffix(".").split(".")[-2:])
        return self._zones.setdefault(zone, asyncio.Semaphore(AT_ONCE_IN_ZONE))

    async def _ask(self, key: tuple[str, str]) -> Answer:
        clock = asyncio.get_running_loop().time
        began = clock()
        if began < self._dead_until:
            return DnsTrouble(f"{key[0]}/{key[1]}: the DNS does not answer")
        answer = await self._resolver.records(*key)
        if isinstance(answer, DnsTrouble):
            self._troubles.keep(key, (clock() + REMEMBER, answer))
            if clock() - began > SLOW and (self._probe is None or self._probe.done()):
                self._probe = asyncio.get_running_loop().create_task(self._look())
        return answer

    async def _look(self) -> None:
        """Is it the resolver that is slow, or only the zone that was asked about, which may be a sender's own?"""
        if not await self._resolver.answers():
            self._dead_until = asyncio.get_running_loop().time() + DEAD_FOR


class Questions:
    """Those of one mail: what has not been answered at `deadline`, by the loop's clock, is trouble.

    What is known is told at once, without a task or a timer: they cost more than all else that is done with it.
    """

    def __init__(self, lookups: Lookups, deadline: float) -> None:
        self._lookups, self._deadline = lookups, deadline
        self.known: Known = lookups.known

    async def ask(self, name: str, kind: str) -> Answer:
        if (known := self.known(name, kind)) is not None:
            return known
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._lookups.ask(name, kind)
        except TimeoutError:
            return DnsTrouble(f"{name}/{kind}: no answer in time")

    async def texts(self, names: Iterable[str]) -> dict[str, Answer]:
        """The TXT of each of `names`, all asked for at the same time."""
        found = {name: self.known(name, "TXT") for name in names}
        missing = [name for name, answer in found.items() if answer is None]
        asked = await asyncio.gather(*(self.ask(name, "TXT") for name in missing)) if missing else ()
        answers = {name: answer for name, answer in found.items() if answer is not None}
        return answers | dict(zip(missing, asked, strict=True))


def is_name(text: str) -> bool:
    return len(text) <= MAX_NAME and _is_name(text)


@lru_cache(1024)
def _is_name(text: str) -> bool:
    try:
        absolute(text)
    except (dns.exception.DNSException, ValueError):
        return False
    return True
