"""The words of AUTH (RFC 4954): PLAIN (RFC 4616) and LOGIN, with and without an initial response. No I/O: lines in,
what to answer out, until there are credentials. What these are worth is not known here.

Limits: nobody speaks for another (an authorization identity is the name itself or nothing); no SCRAM, for a hash that
serves it could be used in the password's place.
"""

import base64
import binascii
from dataclasses import dataclass, field

from rules import replies
from rules.replies import Reply

_GO_ON = 334


@dataclass(frozen=True, slots=True)
class Credentials:
    """As they were given."""

    name: str = field(repr=False)
    password: str = field(repr=False)


class Exchange:
    """`begin` with what follows AUTH, then `hear` each line; it goes on while the answer's code is 334."""

    def __init__(self) -> None:
        self._plain = True
        self._name: str | None = None

    @staticmethod
    def goes_on(said: Reply | Credentials) -> bool:
        return isinstance(said, Reply) and said.code == _GO_ON

    def begin(self, argument: bytes) -> Reply | Credentials:
        mechanism, _, initial = argument.strip().partition(b" ")
        if mechanism.upper() not in (b"PLAIN", b"LOGIN"):
            return replies.AUTH_MECHANISM
        self._plain = mechanism.upper() == b"PLAIN"
        if initial:
            return self.hear(b"" if initial == b"=" else initial)  # RFC 4954 §4: "=" is an empty one
        return Reply(_GO_ON, "", ("" if self._plain else _USERNAME,))

    def hear(self, line: bytes) -> Reply | Credentials:
        if line == b"*":
            return replies.AUTH_CANCELLED
        try:
            text = base64.b64decode(line, validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            return replies.AUTH_UNREADABLE
        if self._plain:
            return _of_plain(text)
        if self._name is not None:
            return Credentials(self._name, text)
        self._name = text
        return Reply(_GO_ON, "", (_PASSWORD,))


_USERNAME, _PASSWORD = (base64.b64encode(word).decode("ascii") for word in (b"Username:", b"Password:"))


def _of_plain(text: str) -> Reply | Credentials:
    parts = text.split("\0")
    if len(parts) != 3:
        return replies.AUTH_UNREADABLE
    identity, name, password = parts
    # Whoever would speak for another has no password that counts: refused as a wrong one, after as long.
    return Credentials(name if identity in ("", name) else "", password)
