"""Does DNS say what it must for this domain? Each record needed beside what was found, with the line to paste.

Knows alone: which part of a published record matters: not its order, its case, nor what others added, but whether mail
comes here, whether what we send is believed, and whether a sender that insists on TLS still gets through.
Limits: SPF terms that lead elsewhere (include, redirect) are not followed: what they allow is told as not known.
Long because it is one kind of record after another.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Literal

from rules import records
from rules.records import Certificate, DkimKey, Record, Site

Question = tuple[str, str]  # name with its final dot, type


@dataclass(frozen=True, slots=True)
class Unknown:
    """No usable answer: nothing is concluded from it."""

    why: str


@dataclass(frozen=True, slots=True)
class Absent:
    """No policy file stands there, or none that anybody takes."""

    why: str


# MX and TLSA as a zone file has them, of TXT the joined text, of PTR a name with its final dot; empty: no such record.
Answer = tuple[str, ...] | Unknown


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found. `policy` is the policy file of MTA-STS, None where nobody looked."""

    answers: Mapping[Question, Answer]
    policy: str | Absent | Unknown | None = None

    def of(self, name: str, kind: str) -> Answer:
        return self.answers.get((name, kind), Unknown("not asked"))


Verdict = Literal["good", "advice", "gap", "unknown"]
Code = Literal[
    "published",
    "unknown",
    "missing",
    "several",
    "malformed",
    "elsewhere",
    "not-authorised",
    "not-followed",
    "open",
    "other-key",
    "revoked",
    "restricted",
    "testing",
    "lenient",
    "stale-id",
    "hosts-left-out",
    "no-tls",
    "not-enforced",
    "other-certificate",
    "optional",
    "unconfirmed",
    "other-name",
]
_ADVICE: tuple[Code, ...] = ("not-followed", "testing", "lenient", "not-enforced", "optional", "other-name")


@dataclass(frozen=True, slots=True)
class Finding:
    """Of the record `name` `type`: what is the matter, what was found, and the line that mends it."""

    name: str
    type: str
    code: Code
    found: tuple[str, ...] = ()
    line: str = ""

    @property
    def verdict(self) -> Verdict:
        if self.code in ("published", "unknown"):
            return "good" if self.code == "published" else "unknown"
        return "advice" if self.code in _ADVICE else "gap"


# ---
# What to ask


def questions(site: Site) -> frozenset[Question]:
    """What is asked first. The rest follows from the addresses found."""
    names = {(record.name, record.type) for record in records.records(site) if record.type != "PTR"}
    return frozenset(names | {(site.host, "A"), (site.host, "AAAA")})


def reverse_questions(site: Site, seen: Seen) -> frozenset[Question]:
    return frozenset((records.reverse(site, address).name, "PTR") for address in _addresses(site, seen))


def forward_questions(site: Site, seen: Seen) -> frozenset[Question]:
    """Where an address bears another name than ours: does that name lead back?"""
    answers = (seen.of(name, kind) for name, kind in reverse_questions(site, seen))
    names = {name for answer in answers if not isinstance(answer, Unknown) for name in answer[:3]} - {site.host}
    return frozenset((name, kind) for name in names for kind in ("A", "AAAA"))


MOST_ADDRESSES = 10


def _addresses(site: Site, seen: Seen) -> tuple[str, ...]:
    """Those the postmaster says, else those DNS says."""
    if site.addresses:
        return site.addresses
    answers = (seen.of(site.host, kind) for kind in ("A", "AAAA"))
    return tuple(text for answer in answers if not isinstance(answer, Unknown) for text in answer)[:MOST_ADDRESSES]


# ---
# The comparison


def compare(site: Site, seen: Seen) -> Iterator[Finding]:
    """One finding for each record, in the order of `records.records`, the policy file after the record of its id."""
    yield _mx(site, seen)
    yield from _of_addresses(site, seen)
    yield _spf(site, seen)
    if site.host != site.root:
        yield _spf_of_host(site, seen)
    yield from (_dkim(site, key, seen) for key in site.keys)
    yield _dmarc(site, seen)
    yield _sts(site, seen)
    if seen.policy is not None:
        yield _policy(site, seen, seen.policy)
    yield _tls_reports(site, seen)
    if site.chain:
        yield _tlsa(site, seen)
    yield from (_reverse(site, address, seen) for address in _addresses(site, seen))


def _found(record: Record, seen: Seen, *, begins: str = "") -> tuple[str, ...] | Finding:
    """The answer for `record`, of TXT those that begin so; or what there is to say without looking closer."""
    answer = seen.of(record.name, record.type)
    if isinstance(answer, Unknown):
        return Finding(record.name, record.type, "unknown", (answer.why,))
    # "v=spf1" is a word: v=spf10 is another record (RFC 7208 §4.5).
    wanted = re.compile(rf"\s*{begins}(?:[\s;]|\Z)" if begins else "", re.I)
    found = tuple(text for text in answer if wanted.match(text))
    return found or Finding(record.name, record.type, "missing", (), str(record))


def _told(record: Record, code: Code, found: tuple[str, ...]) -> Finding:
    """A finding whose remedy, where it needs one, is the record as it should be."""
    return Finding(record.name, record.type, code, found, "" if code == "published" else str(record))


def _mx(site: Site, seen: Seen) -> Finding:
    record = records.mx(site)
    found = _found(record, seen)
    if isinstance(found, Finding):
        return found
    return _told(record, "published" if site.host in map(_exchange, found) else "elsewhere", found)


def _exchange(text: str) -> str:
    """ "10 mx.welyb.fr." → "mx.welyb.fr." """
    return text.split()[-1].lower()


def _of_addresses(site: Site, seen: Seen) -> Iterator[Finding]:
    for record in (records.of_address(site, address) for address in site.addresses):
        found = _found(record, seen)
        if not isinstance(found, Finding):
            same = ip_address(record.value) in map(ip_address, found)
            found = _told(record, "published" if same else "elsewhere", found)
        yield found
    if not site.addresses:
        yield _any_address(site, seen)


def _any_address(site: Site, seen: Seen) -> Finding:
    found = _addresses(site, seen)
    if found:
        return Finding(site.host, "A", "published", found)
    trouble = next((a for kind in ("A", "AAAA") if isinstance(a := seen.of(site.host, kind), Unknown)), None)
    if trouble:
        return Finding(site.host, "A", "unknown", (trouble.why,))
    return Finding(site.host, "A", "missing", (), str(Record(site.host, "A", "(IP)")))


# ---
# SPF


def _spf(site: Site, seen: Seen) -> Finding:
    record = records.spf(site)
    found = _found(record, seen, begins="v=spf1")
    if isinstance(found, Finding):
        return found
    ours = ("mx", f"mx:{site.root}", f"a:{site.host}", *(("a",) if site.host == site.root else ()))
    code = _spf_code(found, _addresses(site, seen), ours)
    return _told(Record(record.name, "TXT", records.quoted(_mended(found, "mx"))), code, found)


def _spf_of_host(site: Site, seen: Seen) -> Finding:
    record = records.spf_of_host(site)
    found = _found(record, seen, begins="v=spf1")
    if isinstance(found, Finding):
        return found
    code = _spf_code(found, _addresses(site, seen), ("a", f"a:{site.host}", f"mx:{site.root}"))
    return _told(Record(record.name, "TXT", records.quoted(_mended(found, "a"))), code, found)


_ALL = re.compile(r"[-+~?]?all", re.I)
_ELSEWHERE = re.compile(r"\+?(?:include|exists|ptr|a|mx)\b|redirect=", re.I)


def _spf_code(found: tuple[str, ...], addresses: tuple[str, ...], ours: tuple[str, ...]) -> Code:
    if len(found) > 1:
        return "several"  # permerror for every mail (RFC 7208 §4.5)
    terms = [term.lower() for term in found[0].split()[1:]]
    end = next((at for at, term in enumerate(terms) if _ALL.fullmatch(term)), len(terms))
    follows = any(term.startswith("redirect=") for term in terms)
    last = terms[end] if end < len(terms) else ""
    if not last.startswith(("-", "~")) and (last or not follows):
        return "open"  # nobody is refused: a record in name only
    plain = [term.removeprefix("+") for term in terms[:end]]
    if any(term in ours or f"{term}." in ours for term in plain) or _covered(addresses, plain):
        return "published"
    return "not-followed" if any(map(_ELSEWHERE.match, plain)) or follows else "not-authorised"


def _covered(addresses: tuple[str, ...], terms: list[str]) -> bool:
    networks = []
    for term in terms:
        kind, _, network = term.partition(":")
        if kind in ("ip4", "ip6"):
            try:
                networks.append(ip_network(network, strict=False))
            except ValueError:
                continue  # no network: it allows nobody
    return bool(addresses) and all(any(ip_address(a) in network for network in networks) for a in addresses)


def _mended(found: tuple[str, ...], ours: str) -> str:
    """One record of all that was found, and us; the strictness of the first is kept."""
    terms = dict.fromkeys(term for text in found for term in text.split()[1:])
    ends = [term for term in terms if _ALL.fullmatch(term)]
    soft = bool(ends) and ends[0].startswith("~")
    others = [term for term in terms if not _ALL.fullmatch(term) and term.lower() not in (ours, f"+{ours}")]
    return " ".join(("v=spf1", ours, *others, "~all" if soft else "-all"))


# ---
# DKIM and DMARC


def _dkim(site: Site, key: DkimKey, seen: Seen) -> Finding:
    record = records.dkim(site, key)
    found = _found(record, seen)
    if isinstance(found, Finding):
        return found
    return _told(record, "several" if len(found) > 1 else _dkim_code(_tags(found[0]), _tags(key.text)), found)


def _dkim_code(there: Mapping[str, str], ours: Mapping[str, str]) -> Code:
    """RFC 6376 §3.6.1."""
    if there.get("v", "DKIM1") != "DKIM1" or "p" not in there:
        return "malformed"
    if not there["p"]:
        return "revoked"
    if (there["p"], there.get("k", "rsa").lower()) != (ours["p"], ours["k"]):
        return "other-key"
    hashes, services = there.get("h", "sha256").lower().split(":"), there.get("s", "*").lower().split(":")
    if "sha256" not in hashes or not {"*", "email"} & set(services):
        return "restricted"
    return "testing" if "y" in there.get("t", "").split(":") else "published"


def _tags(text: str) -> dict[str, str]:
    """RFC 6376 §3.2. Blanks never matter in those compared here."""
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip().lower(): re.sub(r"\s+", "", value) for name, equals, value in pairs if equals}


def _dmarc(site: Site, seen: Seen) -> Finding:
    record = records.dmarc(site)
    found = _found(record, seen, begins=r"v\s*=\s*DMARC1")
    if isinstance(found, Finding):
        return found
    if len(found) > 1:
        return _told(record, "several", found)  # then it has none (RFC 9989)
    policy = _tags(found[0]).get("p", "").lower()
    codes: dict[str, Code] = {"reject": "published", "quarantine": "published", "none": "lenient"}
    return _told(record, codes.get(policy, "malformed"), found)


# ---
# TLS of those who write to us


def _sts(site: Site, seen: Seen) -> Finding:
    record = _sts_record(site, seen)
    found = _found(record, seen, begins="v=STSv1")
    if isinstance(found, Finding):
        return found
    if len(found) > 1:
        return _told(record, "several", found)
    own = _tags(found[0]).get("id", "")
    if not re.fullmatch(r"[A-Za-z0-9]{1,32}", own):
        return _told(record, "malformed", found)
    # An id of the postmaster's own making is theirs to change; one of ours tells which text it was made for.
    served = seen.policy if isinstance(seen.policy, str) else ""
    stale = served and own in _ids(site) - {records.policy_id(served)}
    return _told(record, "stale-id" if stale else "published", found)


def _sts_record(site: Site, seen: Seen) -> Record:
    """With the id that belongs to the policy file as it stands."""
    if not seen.policy or not isinstance(seen.policy, str):
        return records.mta_sts(site)
    text = f"v=STSv1; id={records.policy_id(seen.policy)};"
    return Record(records.mta_sts(site).name, "TXT", records.quoted(text))


def _ids(site: Site) -> set[str]:
    sites = (Site(site.domain, site.hostname, mode=mode) for mode in ("testing", "enforce"))
    return {records.policy_id(records.policy(each)) for each in sites}


def _policy(site: Site, seen: Seen, text: str | Absent | Unknown) -> Finding:
    if isinstance(text, Unknown):
        return Finding(site.policy_url, "FILE", "unknown", (text.why,))
    if isinstance(text, Absent):
        return Finding(site.policy_url, "FILE", "missing", (text.why,), records.policy(site))
    lines = tuple(line for line in text.splitlines() if line.strip())
    code = _policy_code(site, seen, lines) if lines else "missing"
    better = replace(site, mode="enforce") if code == "not-enforced" else site
    return Finding(site.policy_url, "FILE", code, lines, "" if code == "published" else records.policy(better))


def _policy_code(site: Site, seen: Seen, lines: tuple[str, ...]) -> Code:
    pairs = [(name.strip(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    values = dict(reversed(pairs))  # of one said twice the first counts
    mode, patterns = values.get("mode", ""), [value.lower() for name, value in pairs if name == "mx"]
    known = mode in ("enforce", "testing", "none")
    if values.get("version") != "STSv1" or not known or not re.fullmatch(r"[0-9]{1,10}", values.get("max_age", "")):
        return "malformed"
    answer = seen.of(site.root, "MX")
    hosts = {site.host, *(() if isinstance(answer, Unknown) else map(_exchange, answer))}
    left_out = not all(any(_matches(host.rstrip("."), pattern) for pattern in patterns) for host in hosts)
    if mode != "none" and left_out:
        return "hosts-left-out"  # mail for them waits at whoever enforces the policy
    if not site.chain:
        return "no-tls" if mode == "enforce" else "published"
    return "published" if mode == "enforce" else "not-enforced"


def _matches(host: str, pattern: str) -> bool:
    """RFC 8461 §4.1: a star stands for the first label."""
    return host == pattern or (pattern.startswith("*.") and host.partition(".")[2] == pattern[2:])


def _tls_reports(site: Site, seen: Seen) -> Finding:
    record = records.tls_reports(site)
    found = _found(record, seen, begins="v=TLSRPTv1")
    if isinstance(found, Finding):
        return found
    if len(found) > 1:
        return _told(record, "several", found)
    sound = re.match(r"(?i)mailto:[^@]+@|https:", _tags(found[0]).get("rua", ""))
    return _told(record, "published" if sound else "malformed", found)


def _tlsa(site: Site, seen: Seen) -> Finding:
    """One that fits is enough: the next key's may stand beside it. None at all is sound too (RFC 7672 §2.2)."""
    record = records.tlsa(site)
    found = _found(record, seen)
    if isinstance(found, Finding):
        return _told(record, "optional", ()) if found.code == "missing" else found
    return _told(record, "published" if any(_fits(site.chain, text) for text in found) else "other-certificate", found)


def _fits(chain: tuple[Certificate, ...], text: str) -> bool:
    """RFC 7672 §3.1: 3 is our own certificate, 2 one that stands behind it; nothing else is looked at."""
    usage, selector, matching, *data = text.lower().split()
    among = {"3": chain[:1], "2": chain[1:]}.get(usage, ())
    return any("".join(data) == _association(each, selector, matching) for each in among)


def _association(certificate: Certificate, selector: str, matching: str) -> str | None:
    of = {"0": certificate.whole, "1": certificate.public_key}.get(selector)
    if of is None or matching not in ("0", "1", "2"):
        return None
    hashed = {"1": hashlib.sha256, "2": hashlib.sha512}.get(matching)
    return hashed(of).hexdigest() if hashed else of.hex()


# ---
# The name behind an address


def _reverse(site: Site, address: str, seen: Seen) -> Finding:
    """Many servers take no mail from an address whose name does not lead back to it."""
    record = records.reverse(site, address)
    found = _found(record, seen)
    if isinstance(found, Finding):
        return found
    if site.host in map(str.lower, found):
        return _told(record, "published", found)
    kind = "AAAA" if ip_address(address).version == 6 else "A"
    answers = [seen.of(name, kind) for name in found]
    if any(address in answer for answer in answers if not isinstance(answer, Unknown)):
        return _told(record, "other-name", found)
    trouble = next((answer for answer in answers if isinstance(answer, Unknown)), None)
    return Finding(record.name, "PTR", "unknown", (trouble.why,)) if trouble else _told(record, "unconfirmed", found)
