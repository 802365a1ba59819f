"""SPF (RFC 7208) by pyspf, with our resolver in place of its own.

Knows alone: how pyspf is fed. It is synchronous and finds its DNS in a global of its module, so it runs in a thread of
ours, and what it asks is asked on the event loop. Limits: no Received-SPF, no explanation (exp=) to anyone.
"""

import asyncio
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

from relay.dns import DnsTrouble, Records
from relay.lookups import Answer, Ask
from rules.authentication import Spf, SpfResult
from rules.author import a_labels

THREADS = 16  # each waits most of its time
LONGEST = 20.0  # seconds (RFC 7208 §4.6.4); `ask` answers much sooner, unless its loop is gone

_RESULTS: dict[str, SpfResult] = {
    "none": "none",
    "neutral": "neutral",
    "pass": "pass",
    "fail": "fail",
    "softfail": "softfail",
    "temperror": "temperror",
    "permerror": "permerror",
}


class Spfs:
    """One per process."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="spf")

    async def check(self, peer: str, *, helo: str, sender: str, ask: Ask) -> Spf:
        """May a host with this address send in the name of `sender`, or, where that is null, of `helo` (§2.4)?"""
        local, at, domain = sender.rpartition("@")
        domain = a_labels(helo if not sender else domain if at else "")
        if not domain:
            return Spf()
        loop = asyncio.get_running_loop()

        def lookup(name: str, kind: str) -> Answer:
            return asyncio.run_coroutine_threadsafe(ask(name, kind), loop).result(LONGEST)

        # pyspf takes the first @ for the one that counts.
        identity = f"{local.replace('@', '=') or 'postmaster'}@{domain}"
        return Spf(await loop.run_in_executor(self._threads, _result, lookup, peer, helo, identity), domain)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


Lookup = Callable[[str, str], Answer]
_thread = threading.local()  # `lookup`: that of the check the thread is busy with


def _result(lookup: Lookup, peer: str, helo: str, identity: str) -> SpfResult:
    _thread.lookup = lookup
    try:
        result, _, _ = _query()(i=peer.partition("%")[0], s=identity, h=helo, querytime=LONGEST).check()
    except Exception:  # its parser has no list of what it raises
        return "permerror"
    return _RESULTS[result]


@cache
def _pyspf() -> Any:  # it has no types
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its source has escapes that Python does not know
        import spf
    spf.DNSLookup = _bridge
    return spf


@cache
def _query() -> Any:
    spf = _pyspf()

    class Query(spf.query):  # type: ignore[misc, name-defined]
        def validated_ptrs(self) -> list[str]:
            """RFC 7208 §5.5: where the DNS fails, `ptr` does not match; a name that fails is passed over."""
            return [name for name in self._pointers()[: spf.MAX_PTR] if self._leads_back(name)]

        def _pointers(self) -> list[str]:
            try:
                return list(self.dns_ptr(self.i))
            except spf.TempError:
                return []

        def _leads_back(self, name: str) -> bool:
            try:
                return bool(self.cidrmatch(self.dns_a(name, self.A), self.cidrmax))
            except spf.TempError:
                return False

    return Query


def _bridge(name: str, kind: str, *_: object) -> list[tuple[tuple[str, str], Any]]:
    """Stands for pyspf's DNSLookup; a name without records has none, and one that does not exist neither."""
    try:
        answer = _thread.lookup(name, kind)
    except TimeoutError:
        answer = DnsTrouble("no answer")
    if isinstance(answer, DnsTrouble):
        raise _pyspf().TempError(answer.text)
    return [((name, kind), _value(kind, data)) for data in answer.data] if isinstance(answer, Records) else []


def _value(kind: str, data: Any) -> Any:
    """A record as pyspf wants it."""
    match kind:
        case "TXT":
            return data.strings
        case "MX":
            return data.preference, data.exchange.to_text(omit_final_dot=True)
        case "PTR":
            return data.target.to_text(omit_final_dot=True)
        case _:
            return data.address
