"""Ids: 16 characters, the first ten from the clock, so that they sort by age and read well over a telephone.

A message `k3…` has documents `k3….1`, `k3….2` and deliveries `k3…-1`, `k3…-2`; a deposit's are named alike.
"""

import hashlib
import hmac
import secrets
from base64 import b32decode, b32encode
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: no i, l, o, u


def new(now: datetime) -> str:
    """Milliseconds since 1970 (50 bits), then 30 random bits."""
    return _written(int(now.timestamp() * 1000) << 30 | secrets.randbits(30))


def _written(number: int) -> str:
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(75, -1, -5))


def least(now: datetime) -> str:
    """No id made from then on is below it."""
    return _written(int(now.timestamp() * 1000) << 30)


@dataclass(frozen=True, slots=True)
class TokenKey:
    """The secret that tokens are made with, and those they were made with before: these still verify."""

    current: bytes
    former: tuple[bytes, ...] = ()


LATE = timedelta(days=30)  # how long after the last attempt a far side may still send a report
_DAY = timedelta(days=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def token(key: TokenKey, now: datetime) -> str:
    """A token for `retours+TOKEN@`: the day (16 bits), 40 random bits and 64 bits of their HMAC, in base32."""
    made = ((now - _EPOCH) // _DAY).to_bytes(2) + secrets.token_bytes(5)
    return b32encode(made + _mac(key.current, made)).decode("ascii").lower()


def is_token(key: TokenKey, text: str, *, now: datetime, give_up_after: timedelta) -> bool:
    """Is `text`, 24 characters of lower-case base32, a token we made, and not too long ago?

    It lives as long as its mail may be tried, and LATE. The store is not asked: a stranger's guesses cost a hash.
    """
    raw = b32decode(text.upper())
    made, mac = raw[:7], raw[7:]
    ours = [hmac.compare_digest(mac, _mac(each, made)) for each in (key.current, *key.former)]
    return any(ours) and now < _day(made) + _DAY + give_up_after + LATE


def is_ageing(text: str, *, now: datetime, give_up_after: timedelta) -> bool:
    """Would a report on a mail that leaves today under this token of ours come too late for LATE?"""
    return now >= _day(b32decode(text.upper())) + _DAY + give_up_after


def _day(raw: bytes) -> datetime:
    return _EPOCH + int.from_bytes(raw[:2]) * _DAY


def _mac(key: bytes, made: bytes) -> bytes:
    return hmac.digest(key, b"retours" + made, hashlib.sha256)[:8]
