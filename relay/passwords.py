"""Passwords: how they are spelled, kept, and compared, whoever asks and whether or not there is such a user.

Knows alone: the cost of a comparison and the form of what is stored, `scrypt$LOG2N$R$P$SALT$KEY` (RFC 7914; OWASP's
parameters for 16 MiB, so that two at a time fit beside everything else). A user nobody knows costs the same.
Limits: NFC and no control characters, with every kind of space taken for a plain one: of SASLprep (RFC 4013) what
people's keyboards differ in.
"""

import asyncio
import base64
import hashlib
import hmac
import secrets
import unicodedata
from collections import Counter
from collections.abc import Callable

LOG2_N, R, P = 14, 8, 5  # OWASP: as strong as N=2^17, p=1, in an eighth of the memory
MOST_MEMORY = 64 << 20
LEAST, MOST = 12, 256  # characters
AT_ONCE = 2
WAITING = 50  # comparisons in line; whoever comes then is told to come again
OF_ONE = 2  # in line or under way of one network: it cannot keep the others out


class Busy(RuntimeError):
    """Too many are waiting already, of this network or of all; or whoever asked has gone."""


def prepared(password: str) -> str | None:
    """In its one spelling; None where it cannot be a password of ours."""
    spaced = "".join(" " if unicodedata.category(c) == "Zs" else c for c in password)
    spelled = unicodedata.normalize("NFC", spaced)
    if not 0 < len(spelled) <= MOST or any(unicodedata.category(c)[0] == "C" for c in spelled):
        return None
    return spelled


def hashed(password: str) -> str:
    """What is stored of a prepared password."""
    salt = secrets.token_bytes(16)
    return "$".join(("scrypt", str(LOG2_N), str(R), str(P), _text(salt), _text(_key(password, salt, LOG2_N, R, P))))


def matches(password: str, stored: str) -> bool:
    """ValueError where what is stored is no hash."""
    _, log2_n, r, p, salt, key = stored.split("$")
    found = _key(password, base64.b64decode(salt), int(log2_n), int(r), int(p))
    return hmac.compare_digest(found, base64.b64decode(key))


def _key(password: str, salt: bytes, log2_n: int, r: int, p: int) -> bytes:
    n = 1 << log2_n
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=MOST_MEMORY, dklen=32)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


_NOBODY = "$".join(("scrypt", str(LOG2_N), str(R), str(P), _text(bytes(16)), _text(bytes(32))))  # that no password has


class Comparisons:
    """Two at a time, each in a thread, for they take a core and 16 MiB. One per process."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(AT_ONCE)
        self._waiting: Counter[str] = Counter()  # by network

    async def matches(self, password: str, stored: str, *, network: str, is_there: Callable[[], bool]) -> bool:
        """`stored` is "" for a user nobody knows: false, after as long. Raises Busy."""
        if self._waiting.total() >= WAITING or self._waiting[network] >= OF_ONE:
            raise Busy
        self._waiting[network] += 1
        try:
            async with self._free:
                if not is_there():
                    raise Busy
                spelled = prepared(password)
                same = await asyncio.to_thread(matches, spelled or "", stored or _NOBODY)
        finally:
            self._waiting[network] -= 1
            self._waiting = +self._waiting  # without those who wait for nothing
        return same and spelled is not None and bool(stored)
