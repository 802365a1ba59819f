"""What `rules.forwarding` must know of a mail, found in it: who says that he wrote it, and what it says.

Limits: the words of the first 64 KiB of each text, taken for UTF-8: what is looked for in them is ASCII.
"""

from email.utils import getaddresses

from relay.mime import Message
from rules import forwarding
from rules.forwarding import Service, Verification
from rules.names import text

_TEXTS = ("text/plain", "text/html")


def authors(message: Message) -> list[str]:
    """The addresses of all From fields; none where they need not be known, for no service is among them."""
    written = [text(value) for name, value in message.headers if name == "from"]
    if not forwarding.is_named(" ".join(written)):
        return []
    try:
        return [found for _, found in getaddresses(written) if found]
    except RecursionError:  # groups within groups are no service's
        return []


def read(service: Service, message: Message) -> Verification:
    """Code and link of a request."""
    words = "\n".join(part.head.decode(errors="replace") for part in message.parts if part.leaf.type in _TEXTS)
    return forwarding.read(service, message.header("subject") or "", words)
