"""The mail server's end of the milter protocol, octet by octet: for what no mail server would say.

Knows alone: that each packet is answered once or not at all, as agreed; an answer that is not awaited fails the test.
"""

import socket
from collections.abc import Sequence
from typing import Self

Answer = tuple[bytes, bytes]  # its letter, what follows

ALL_ACTIONS, ALL_STEPS = 0x1FF, 0x1FFFFF
TALKATIVE = 0x100000  # every packet is answered; only the leading space is kept
VERDICTS = (b"a", b"c", b"d", b"y", b"t", b"r")
_QUIET = {b"L": 0x80, b"C": 0x1000, b"H": 0x2000, b"M": 0x4000, b"N": 0x40000, b"B": 0x80000}
TIMEOUT = 30


class Mta:
    """One connection to the milter at `place`: a port of 127.0.0.1, or the path of a socket."""

    def __init__(self, place: int | str, *, actions: int = ALL_ACTIONS, steps: int = ALL_STEPS, step: int = 0) -> None:
        family = socket.AF_INET if isinstance(place, int) else socket.AF_UNIX
        self._socket = socket.socket(family)
        self._socket.settimeout(TIMEOUT)
        if family == socket.AF_INET:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.connect(("127.0.0.1", place) if isinstance(place, int) else place)
        self._waiting = b""
        self._step = step
        self.progress = 0
        self.steps = 0
        try:
            self._negotiate(actions, steps)
        except BaseException:
            self._socket.close()
            raise

    def _negotiate(self, actions: int, steps: int) -> None:
        offer = b"".join(number.to_bytes(4) for number in (6, actions, steps))
        self.send(b"O", offer)
        letter, agreed = self.answer()
        assert letter == b"O"
        self.steps = int.from_bytes(agreed[8:12])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    # --- packets ------------------------------------------------------------------------------------------------------

    def send(self, letter: bytes, data: bytes = b"") -> None:
        """In pieces of `step` octets, where one was given."""
        octets = (len(data) + 1).to_bytes(4) + letter + data
        step = self._step or len(octets)
        for at in range(0, len(octets), step):
            self._socket.sendall(octets[at : at + step])

    def answer(self) -> Answer:
        """The next one; what only says that it is at work is counted."""
        while True:
            size = int.from_bytes(self._exactly(4))
            data = self._exactly(size)
            if data[:1] != b"p":
                return data[:1], data[1:]
            self.progress += 1

    def _exactly(self, size: int) -> bytes:
        while len(self._waiting) < size:
            data = self._socket.recv(65536)
            if not data:
                raise ConnectionError("the milter closed the connection")
            self._waiting += data
        taken, self._waiting = self._waiting[:size], self._waiting[size:]
        return taken

    def ask(self, letter: bytes, data: bytes = b"") -> Answer | None:
        """Its answer; None where none is awaited."""
        self.send(letter, data)
        return None if self.steps & _QUIET.get(letter, 0) else self.answer()

    def macros(self, of: bytes, **values: str) -> None:
        """`i` stands for itself, a longer name for {name}."""
        pairs = [(name if len(name) == 1 else f"{{{name}}}", value) for name, value in values.items()]
        self.send(b"D", of + b"".join(f"{name}\0{value}\0".encode() for name, value in pairs))

    # --- what they add up to ----------------------------------------------------------------------------------------------

    def client(self, address: str = "192.0.2.7", helo: str = "mail.dupont.example") -> Self:
        family = b"6" if ":" in address else b"4"
        self.ask(b"C", helo.encode() + b"\0" + family + (2525).to_bytes(2) + address.encode() + b"\0")
        self.ask(b"H", helo.encode() + b"\0")
        return self

    def mail(self, sender: str, *parameters: str) -> Answer | None:
        return self.ask(b"M", b"".join(f"{word}\0".encode() for word in (f"<{sender}>", *parameters)))

    def rcpt(self, recipient: str) -> Answer:
        answer = self.ask(b"R", f"<{recipient}>\0".encode())
        assert answer is not None
        return answer

    def content(self, message: bytes) -> None:
        """Header fields and body of `message`, as an MTA shows them."""
        head, _, body = message.partition(b"\r\n\r\n")
        for field in head.replace(b"\r\n ", b"\n ").replace(b"\r\n\t", b"\n\t").split(b"\r\n"):
            name, _, value = field.partition(b":")
            self.ask(b"L", name + b"\0" + value + b"\0")
        self.ask(b"N")
        for at in range(0, len(body), 65535):
            if self.ask(b"B", body[at : at + 65535]) == (b"s", b""):
                break

    def end(self) -> list[Answer]:
        """The edits, and the verdict last."""
        self.send(b"E")
        answers = [self.answer()]
        while answers[-1][0] not in VERDICTS:
            answers.append(self.answer())
        return answers

    def post(self, sender: str, recipients: Sequence[str], message: bytes) -> list[Answer]:
        """A whole mail; every recipient must be let in."""
        self.mail(sender)
        for recipient in recipients:
            assert self.rcpt(recipient) == (b"c", b""), recipient
        self.ask(b"T")
        self.content(message)
        return self.end()
