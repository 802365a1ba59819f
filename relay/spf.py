"""SPF (RFC 7208) by pyspf, with our resolver in place of its own.

Knows alone: how pyspf is fed. It is synchronous and finds its DNS in a global of its module: it is run with the answers
there are, stops at the first that is missing, and begins anew when that has come. A run takes a fraction of a
millisecond, which is less than a thread that waits for the DNS costs. Limits: no Received-SPF, and exp= is not read.
"""

import warnings
from functools import cache
from time import thread_time
from typing import Any

from relay.dns import DnsTrouble, NoDomain
from relay.lookups import Answer, Ask
from rules.authentication import Spf, SpfResult
from rules.author import a_labels

MAX_QUESTIONS = 150  # of one check; RFC 7208 §4.6.4 allows ten terms, each of ten names at most
MAX_RECORD, MAX_TERM = 4096, 300  # bytes: pyspf takes quadratic time on some terms
MAX_CPU = 0.5  # seconds, of all runs of one check

_RESULTS: dict[str, SpfResult] = {
    "none": "none",
    "neutral": "neutral",
    "pass": "pass",
    "fail": "fail",
    "softfail": "softfail",
    "temperror": "temperror",
    "permerror": "permerror",
}


async def check(peer: str, *, helo: str, sender: str, ask: Ask) -> Spf:
    """May a host with this address send in the name of `sender`, or, where that is null, of `helo` (§2.4)?"""
    local, at, domain = sender.rpartition("@")
    domain = a_labels(helo if not sender else domain if at else "")
    if not domain:
        return Spf()
    # pyspf takes the first @ for the one that counts.
    identity = f"{local.replace('@', '=') or 'postmaster'}@{domain}"
    answers: dict[_Question, Answer] = {}
    spent = 0.0
    while len(answers) <= MAX_QUESTIONS:
        began = thread_time()
        try:
            return Spf(_run(answers, peer, helo, identity), domain)
        except _MissingError as missing:
            question = missing.question
        spent += thread_time() - began
        if spent > MAX_CPU:
            return Spf("temperror", domain)  # RFC 7208 §4.6.4
        answers[question] = await ask(*question)
    return Spf("permerror", domain)


_Question = tuple[str, str]  # name and type


class _MissingError(BaseException):
    """pyspf needs an answer that has not been asked for. Not an Exception, so that it catches it nowhere."""

    def __init__(self, question: _Question) -> None:
        super().__init__(question)
        self.question = question


_answers: dict[_Question, Answer] = {}  # those of the run under way


def _run(answers: dict[_Question, Answer], peer: str, helo: str, identity: str) -> SpfResult:
    global _answers
    _answers = answers
    try:
        result, _, _ = _query()(i=peer.partition("%")[0], s=identity, h=helo).check()
        return _RESULTS[result]
    except Exception:  # pyspf has no list of what it raises
        return "permerror"


@cache
def _pyspf() -> Any:  # it has no types
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its source has escapes that Python does not know
        import spf
    spf.DNSLookup = _lookup
    return spf


@cache
def _query() -> Any:
    spf = _pyspf()

    class Query(spf.query):  # type: ignore[misc, name-defined]
        def get_explanation(self, _: object) -> None:
            """Nobody is told."""

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


def _lookup(name: str, kind: str, *_: object) -> list[tuple[_Question, Any]]:
    """Stands for pyspf's DNSLookup; a name that does not exist has no records."""
    answer = _answers.get((name, kind))
    if answer is None:
        raise _MissingError((name, kind))
    if isinstance(answer, DnsTrouble):
        raise _pyspf().TempError(answer.text)
    if isinstance(answer, NoDomain):
        return []
    if kind == "TXT" and not all(map(_is_bearable, answer.texts())):
        raise _pyspf().PermError("too long")
    return [((name, kind), _value(kind, data)) for data in answer.data]


def _is_bearable(text: bytes) -> bool:
    if not text[:6].lower().startswith(b"v=spf1"):
        return True
    return len(text) <= MAX_RECORD and max(map(len, text.split(b" "))) <= MAX_TERM


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
