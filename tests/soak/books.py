"""Everything accounted for: what clients were told, against the collectors, the GED and the store.

Knows alone: what must have become of each kind of mail, and of each deposit, once nothing waits any more.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tests.crash import audit
from tests.crash.ledger import digest, visible
from tests.crash.site import until
from tests.soak.collector import Taken
from tests.soak.site import Site
from tests.soak.traffic import Account, message_id, number_in, numbered
from tests.support.program import ProgramFailed

_NUMBERED = re.compile(r"<(\d{16})@")
SHOWN = 20


@dataclass
class Books(audit.Books):
    """`counts` are for the report; `unflagged` came twice and nobody was told that it may."""

    unflagged: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def findings(self) -> list[str]:
        named = (("lost", self.lost), ("twice, unflagged", self.unflagged), ("wrong", self.wrong))
        return [f"{name}: {text}" for name, texts in named for text in texts[:SHOWN]]


def settle(site: Site, account: Account, taken: Sequence[Taken]) -> Books:
    """Once the queue is empty and the relay has been started after the soak."""
    books = Books()
    stored = _Stored(site)
    arrived = _Arrived(taken)
    filed = _filed(site, account, books)
    _mails(books, account, stored, arrived=arrived, filed=filed)
    _deposits(books, site, arrived)
    for (name, recipient), count in arrived.copies.items():
        if count > 1 and name in stored.uncertain:
            books.doubled.append(f"{count} × {name} at {recipient}")
        elif count > 1:
            books.unflagged.append(f"{count} × {name} at {recipient}")
    books.wrong += [f"accepted twice: {name}" for name, count in stored.accepted.items() if count > 1]
    books.wrong += [f"not at its end: {row}" for row in stored.unfinished]
    with suppress(ProgramFailed):  # what is left is a finding
        until(lambda: not audit.temporaries(site.ged), "put its temporaries away", timeout=10)
    books.wrong += audit.temporaries(site.ged)
    books.wrong += audit.orphans(site.data)
    return books


class _Stored:
    """What the relay's own store says."""

    def __init__(self, site: Site) -> None:
        with audit.store(site.data) as db:
            self.accepted = Counter(row[0] for row in db.execute("SELECT message_id FROM message"))
            self.uncertain = {
                row[0] for row in db.execute("SELECT outbound_message_id FROM delivery WHERE uncertain = 1")
            }
            self.states = Counter(
                db.execute("SELECT kind || ' ' || state, count(*) FROM delivery GROUP BY 1").fetchall()
            )
            # A ZIP in a connected folder is refused, and that is its end.
            self.unfinished = db.execute(
                "SELECT id, state, reason FROM delivery WHERE state NOT IN ('sent', 'filed', 'refused')"
            ).fetchall()
            checked = [row[0] for row in db.execute("PRAGMA quick_check")]
            self.unfinished += [(line,) for line in checked if line != "ok"]


class _Arrived:
    """What the collectors say they took."""

    def __init__(self, taken: Sequence[Taken]) -> None:
        self.copies = Counter((each.message_id, each.recipient) for each in taken)
        self.digests: dict[tuple[str, str], set[str]] = {}
        self.with_document: dict[str, set[str]] = {}
        for each in taken:
            self.digests.setdefault((each.message_id, each.recipient), set()).add(each.digest)
            if each.digest.startswith("documents:"):
                for sha256 in each.digest.removeprefix("documents:").split(","):
                    self.with_document.setdefault(sha256, set()).add(each.message_id)


def _filed(site: Site, account: Account, books: Books) -> Counter[int]:
    """How many times the GED has the document of each mail, in the right client's tree, whole."""
    kinds = {number: kind for number, kind, _ in account.each()}
    known, found = site.ledger.known(), Counter[int]()
    for path in visible(site.ged):
        content = path.read_bytes()
        number = number_in(content)
        if number in kinds and content == numbered(kinds[number].document, number):
            found[number] += 1
            if path.relative_to(site.ged).parts[0] != _client(kinds[number].recipient_of(number)):
                books.wrong.append(f"in another client's tree: {path}")
        elif path not in site.archives and digest(content) not in known:
            books.wrong.append(f"half a file in the GED: {path}")
    return found


def _client(address: str) -> str:
    return address.partition("@")[0].rpartition("+")[2]


def _collector(address: str) -> str:
    return _client(address) + ("@achats.factures-meg.fr" if "+achats+" in address else "@factures-meg.fr")


def _mails(books: Books, account: Account, stored: _Stored, *, arrived: _Arrived, filed: Counter[int]) -> None:
    expected = {kind.name: hashlib.sha256(kind.data).hexdigest() for kind in account.kinds}
    mine: set[tuple[str, str]] = set()
    for number, kind, code in account.each():
        books.counts[f"{kind.name}, answered {code}"] += 1
        name, recipient = message_id(number), _collector(kind.recipient_of(number))
        copies = arrived.copies[name, recipient] if not kind.files else 0
        mine.add((name, recipient))
        there = filed[number] if kind.files else copies
        if code not in (kind.code, 0) and code // 100 != 4:
            books.wrong.append(f"{kind.name} {name}: answered {code}")
        if code == 250 and not there:
            books.lost.append(f"answered 250, never arrived: {kind.name} {name}, {stored.accepted[name]} in the store")
        if kind.files and there > 1:
            books.unflagged.append(f"{there} × {name} in the GED")
        if there and not stored.accepted[name]:
            books.wrong.append(f"arrived, never stored: {name}")
        if copies and arrived.digests[name, recipient] != {expected[kind.name]}:
            books.wrong.append(f"altered: {name}")
    books.wrong += [
        f"at a collector that is not its own: {name} {recipient}"
        for name, recipient in arrived.copies
        if _NUMBERED.match(name) and (name, recipient) not in mine
    ]


def _deposits(books: Books, site: Site, arrived: _Arrived) -> None:
    for sha256, path in site.ledger.deposits.items():
        names = arrived.with_document.get(sha256, set())
        books.counts["deposits"] += 1
        if not names:
            books.lost.append(f"deposit, never arrived: {path}")
        if len(names) > 1:
            books.unflagged.append(f"one deposit, several Message-IDs: {path} {names}")
        if not path.is_file() or digest(path.read_bytes()) != sha256:
            books.wrong.append(f"deposit altered or gone: {path}")
    books.counts["ZIP deposits"] = len(site.archives)
    for path in site.archives:
        if arrived.with_document.get(digest(path.read_bytes())):
            books.wrong.append(f"a ZIP was sent: {path}")
