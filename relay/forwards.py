"""What `rules.forwarding` must know of a mail, found in it: who says that he wrote it, and what it says.

Limits: the words of the first 64 KiB of each text, taken for UTF-8: what is looked for in them is ASCII.
"""

from relay.mime import Message
from rules import author, forwarding
from rules.forwarding import Service, Verification

MAX_FROM = 1024  # bytes of all From fields; a service's own takes under 200
_TEXTS = ("text/plain", "text/html")


def authors(message: Message) -> list[str]:
    """The addresses of all From fields; none where they are longer than a service's."""
    written = [value for name, value in message.headers if name == "from"]
    return author.addresses(written) if sum(map(len, written)) <= MAX_FROM else []


def read(service: Service, message: Message) -> Verification:
    """Code and link of a request."""
    words = "\n".join(part.head.decode(errors="replace") for part in message.parts if part.leaf.type in _TEXTS)
    return forwarding.read(service, message.header("subject") or "", words)
