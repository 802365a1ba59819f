"""The end of DATA and its transparency (RFC 5321 §4.5.2), and line ends. No I/O: bytes in, bytes out.

Knows alone: that nothing but CRLF.CRLF ends the mail data, however the bytes are cut into chunks.
"""

_END = b"\r\n.\r\n"


class DotDecoder:
    """Bytes after DATA → the message, dots unstuffed. Starts as if a CRLF had been read, so a first-line dot counts."""

    def __init__(self) -> None:
        self._held = b"\r\n"
        self._skip = 2  # bytes of the virtual CRLF still to be taken off the output

    def feed(self, data: bytes) -> tuple[bytes, bytes | None]:
        """(bytes of the message, None while it goes on; else what follows its end)."""
        data = self._held + data
        if b"." not in data:  # one memchr: the usual case inside base64
            return self._out(self._hold(data)), None
        dot = data.find(b"\r\n.")
        if dot >= 0 and data.startswith(_END, dot):  # the usual end: no dot was stuffed before it
            self._held = b""
            return self._out(data[: dot + 2]), data[dot + 5 :]
        end = data.find(_END, dot) if dot >= 0 else -1
        if end >= 0:
            self._held = b""
            return self._out(_unstuffed(data[: end + 2])), data[end + 5 :]
        return self._out(_unstuffed(self._hold(data))), None

    def _hold(self, data: bytes) -> bytes:
        """Keeps back the longest tail that may turn out to begin an end or a stuffed dot."""
        length = next((n for n in (4, 3, 2, 1) if data.endswith(_END[:n])), 0)
        self._held = data[len(data) - length :]
        return data[: len(data) - length]

    def _out(self, data: bytes) -> bytes:
        if not self._skip or not data:
            return data
        out, self._skip = data[self._skip :], max(0, self._skip - len(data))
        return out


def _unstuffed(data: bytes) -> bytes:
    return data.replace(b"\r\n.", b"\r\n")


class Normaliser:
    """Bare CR and bare LF → CRLF, for old scanners on trusted networks ([smtp] bare_newlines)."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        data = self._held + data
        self._held = b"\r" if data.endswith(b"\r") else b""
        data = data[: len(data) - len(self._held)]
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")

    def close(self) -> bytes:
        return b"\r\n" if self._held else b""
