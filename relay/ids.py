"""Ids: 16 characters, the first ten from the clock, so that they sort by age and read well over a telephone.

A message `k3…` has documents `k3….1`, `k3….2` and deliveries `k3…-1`, `k3…-2`; a deposit's are named alike.
"""

import hashlib
import hmac
import secrets
from base64 import b32decode, b32encode
from datetime import datetime

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: no i, l, o, u


def new(now: datetime) -> str:
    """Milliseconds since 1970 (50 bits), then 30 random bits."""
    return _written(int(now.timestamp() * 1000) << 30 | secrets.randbits(30))


def _written(number: int) -> str:
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(75, -1, -5))


def least(now: datetime) -> str:
    """No id made from then on is below it."""
    return _written(int(now.timestamp() * 1000) << 30)


def token(key: bytes) -> str:
    """A token for `retours+TOKEN@`: 40 random bits and 40 bits of their HMAC, in 16 characters of base32."""
    dice = secrets.token_bytes(5)
    return _base32(dice + _mac(key, dice))


def is_token(key: bytes, text: str) -> bool:
    """Is `text`, 16 characters of lower-case base32, a token we made?"""
    raw = b32decode(text.upper())
    return hmac.compare_digest(raw[5:], _mac(key, raw[:5]))


def _mac(key: bytes, dice: bytes) -> bytes:
    return hmac.digest(key, b"retours" + dice, hashlib.sha256)[:5]


def _base32(raw: bytes) -> str:
    return b32encode(raw).decode("ascii").lower()
