"""Listening sockets that systemd opened for us (socket activation, sd_listen_fds(3)): no privilege is needed for port 25.

Knows alone: which descriptors are ours to take, and which of them can be used. FileDescriptorName=submission (STARTTLS) or
submissions (TLS first) makes one a door for users; any other name says nothing to us. Limits: a Unix socket is refused,
since who speaks there has no address that trust could be asked of, and so is a connection already made (Accept=yes).
"""

import errno
import os
import socket

from relay.smtp.door import Door, Kind

FIRST = 3  # SD_LISTEN_FDS_START
_REMEDY = "Remedy: ListenStream=ADDRESS:PORT and Accept=no in the .socket unit"


def inherited() -> list[Door]:
    """What was handed to this very process, at most once: its children are not to believe it is theirs.

    Raises OSError for what cannot be used: half of the doors open is not what the administrator asked for.
    """
    count, pid = os.environ.pop("LISTEN_FDS", ""), os.environ.pop("LISTEN_PID", "")
    names = os.environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()):
        return []
    if not (count.isascii() and count.isdigit()):
        raise OSError(errno.EINVAL, f"LISTEN_FDS={count!r} is not a number. {_REMEDY}")
    kinds = [Kind(name) if name in set(Kind) else Kind.SMTP for name in names]
    kinds += [Kind.SMTP] * int(count)  # where there are no names
    return [Door(_listening(FIRST + at), kinds[at]) for at in range(int(count))]


def _listening(number: int) -> socket.socket:
    try:
        os.set_inheritable(number, False)
        sock = socket.socket(fileno=number)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise OSError(error.errno, f"inherited descriptor {number}: {error.strerror}. {_REMEDY}") from None
    if sock.type != socket.SOCK_STREAM or sock.family not in (socket.AF_INET, socket.AF_INET6) or not listens:
        raise OSError(errno.EINVAL, f"inherited descriptor {number} is no listening TCP socket. {_REMEDY}")
    return sock
