"""A listening socket and what is spoken there.

Knows alone: the kinds of doors and their names, which are those of the ports (RFC 6335) and of systemd's descriptors.
"""

import socket
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    SMTP = "smtp"  # for everybody: the MX
    SUBMISSION = "submission"  # for users, STARTTLS first (RFC 6409)
    SUBMISSIONS = "submissions"  # for users, TLS from the first byte (RFC 8314)

    @property
    def is_for_users(self) -> bool:
        return self is not Kind.SMTP


@dataclass(frozen=True, slots=True)
class Door:
    socket: socket.socket
    kind: Kind = Kind.SMTP

    def dup(self) -> "Door":
        return Door(self.socket.dup(), self.kind)
