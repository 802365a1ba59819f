"""SPF (RFC 7208) by pyspf, with our resolver in place of its own.

Knows alone: how pyspf is fed. It is synchronous and finds its DNS in a global of its module: it is run with the answers
there are, stops at the first that is missing, and begins anew when that has come. A run takes a fraction of a
millisecond, which is less than a thread that waits for the DNS costs. What it found is said again of the same peer and
domain while the DNS says the same. Limits: no Received-SPF, and exp= is not read.
"""

import warnings
from dataclasses import dataclass
from functools import cache
from time import thread_time
from typing import Any

from relay.dns import DnsTrouble, NoDomain, Records
from relay.lookups import Answer, Known, Questions
from relay.recent import Recent
from rules.authentication import Spf, SpfResult
from rules.author import a_labels

MAX_QUESTIONS = 150  # of one check; RFC 7208 §4.6.4 allows ten terms, each of ten names at most
MAX_RECORD, MAX_TERM = 4096, 300  # bytes: pyspf takes quadratic time on some terms
MAX_CPU = 0.5  # seconds, of all runs of one check
MOST = 500  # results kept
MAX_KEPT = 12  # answers that one of them rests on

_RESULTS: dict[str, SpfResult] = {
    "none": "none",
    "neutral": "neutral",
    "pass": "pass",
    "fail": "fail",
    "softfail": "softfail",
    "temperror": "temperror",
    "permerror": "permerror",
}


@dataclass(frozen=True, slots=True)
class Client:
    """Who hands in a mail, as SMTP tells it. `sender` is of the envelope; "" is the null sender."""

    peer: str  # its IP address
    helo: str
    sender: str

    @property
    def domain(self) -> str:
        """In whose name it speaks: that of the sender, or, where that is null, of HELO (RFC 7208 §2.4); "" if none."""
        _, at, domain = self.sender.rpartition("@")
        return a_labels(self.helo if not self.sender else domain if at else "")

    def identity(self, domain: str) -> str:
        # pyspf takes the first @ for the one that counts.
        return f"{self.sender.rpartition('@')[0].replace('@', '=') or 'postmaster'}@{domain}"


class Checker:
    """May a host with this address send in the name of this domain? One per process: it remembers."""

    def __init__(self) -> None:
        self._kept = Recent[tuple[str, str], _Kept](MOST)

    def at_once(self, client: Client, known: Known) -> Spf | None:
        """The result, if all that it takes is known; None where `check` would have to ask."""
        domain = client.domain
        if not domain:
            return Spf()
        kept = self._kept.get((client.peer, domain))
        if kept is not None and kept.stands(known):
            return kept.result
        try:
            return self._run(client, domain, _Answers(known))
        except _MissingError:
            return None

    async def check(self, client: Client, questions: Questions) -> Spf:
        """The same, however long it takes."""
        domain = client.domain
        if not domain:
            return Spf()
        answers, spent = _Answers(questions.known), 0.0
        while True:
            began = thread_time()
            try:
                return self._run(client, domain, answers)
            except _MissingError as missing:
                question = missing.question
            spent += thread_time() - began
            if spent > MAX_CPU:
                return Spf("temperror", domain)  # RFC 7208 §4.6.4
            answers.given[question] = await questions.ask(*question)

    def _run(self, client: Client, domain: str, answers: "_Answers") -> Spf:
        found = Spf(_run(client, domain, answers), domain)
        key = (client.peer, domain)
        self._kept.pop(key, None)
        if answers.are_all():
            self._kept.keep(key, _Kept(found, answers.given))
        return found


_Question = tuple[str, str]  # name and type


class _MissingError(BaseException):
    """pyspf needs an answer that has to be asked for. Not an Exception, so that it catches it nowhere."""

    def __init__(self, question: _Question) -> None:
        super().__init__(question)
        self.question = question


class _TooManyError(BaseException):
    """pyspf has more questions than it may."""


class _Answers:
    """What the DNS has said so far in one check: the same to the end of it, even where it changes meanwhile."""

    def __init__(self, known: Known) -> None:
        self.given: dict[_Question, Answer] = {}
        self._known = known

    def get(self, question: _Question) -> Answer:
        answer = self.given.get(question)
        if answer is None:
            if len(self.given) >= MAX_QUESTIONS:
                raise _TooManyError
            answer = self._known(*question)
            if answer is None:
                raise _MissingError(question)
            self.given[question] = answer
        return answer

    def are_all(self) -> bool:
        """Does a result rest on these alone, and the peer's address, and no trouble? A macro may tell of more."""
        said = self.given.values()
        return len(said) <= MAX_KEPT and not any(
            isinstance(answer, DnsTrouble) or _has_macro(answer) for answer in said
        )


def _has_macro(answer: Answer) -> bool:
    return isinstance(answer, Records) and any(b"%" in text for text in answer.texts())


@dataclass(frozen=True, slots=True)
class _Kept:
    result: Spf
    answers: dict[_Question, Answer]

    def stands(self, known: Known) -> bool:
        """Each answer is still known, which is for as long as its TTL says, and is the same."""
        return all(known(*question) == answer for question, answer in self.answers.items())


_answers = _Answers(lambda _name, _kind: None)  # those of the run under way


def _run(client: Client, domain: str, answers: _Answers) -> SpfResult:
    global _answers
    _answers = answers
    try:
        query = _query()(i=client.peer.partition("%")[0], s=client.identity(domain), h=client.helo)
        result, _, _ = query.check()
        return _RESULTS[result]
    except (_TooManyError, Exception):  # pyspf has no list of what it raises
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
