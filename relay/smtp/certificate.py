"""The certificate we show, read again where its files change, without a connection noticing.

Knows alone: which TLS we speak, and that a pair that cannot be used, half written or half replaced, leaves the one before
it in use. Limits: names are not looked at; a client that asks for another (SNI) gets the one there is.
"""

import os
import ssl

from relay import log
from relay.config import Smtp


def load(smtp: Smtp) -> ssl.SSLContext:
    """Raises OSError, of which ssl.SSLError is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # ciphers: OpenSSL's, and the system's policy
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(smtp.certificate, smtp.key, password=_never_asked)
    return context


def _never_asked() -> str:
    """OpenSSL would ask for the password of an encrypted key at the terminal."""
    return ""


class Certificate:
    """`context` is what a handshake that begins now is given."""

    def __init__(self) -> None:
        self._context: ssl.SSLContext | None = None
        self._used: object = None
        self._refused: object = None

    def context(self, smtp: Smtp) -> ssl.SSLContext | None:
        """None where none is set, and where the first one cannot be read: mail is then taken without TLS."""
        if not smtp.certificate:
            return None
        seen: object = smtp.certificate, smtp.key
        try:
            seen = (_stamp(smtp.certificate), _stamp(smtp.key))
            if seen != self._used:
                self._context, self._used = load(smtp), seen
        except OSError as error:
            if seen != self._refused:  # once, not with every connection until it is mended
                log.trouble("certificate", error)
            self._refused = seen
        return self._context


def _stamp(path: str) -> tuple[object, ...]:
    found = os.stat(path)
    return path, found.st_ino, found.st_size, found.st_mtime_ns
