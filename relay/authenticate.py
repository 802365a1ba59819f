"""Who wrote a mail: SPF, DKIM and DMARC, put together into facts.

Knows alone: which of them waits for which, and how long a mail may wait for all. Trouble of the DNS is a result
("temperror"), never an exception. Limits: no judgement (`rules.access`), no reports to the domains' owners.
"""

from collections.abc import Callable
from dataclasses import dataclass

from relay.dns import Resolver
from rules.authentication import Authentication


@dataclass(frozen=True, slots=True)
class Mail:
    """What there is to look at. `read(offset, length)` gives the mail's bytes (`relay.spool.Incoming.read`)."""

    peer: str  # its IP address
    helo: str
    sender: str  # of the envelope; "" is the null sender
    header_end: int  # where the body begins (`relay.mime.Message.header_end`)
    size: int
    read: Callable[[int, int], bytes]


class Authenticator:
    """One per process, on its event loop; `close` it at the end."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver

    async def authenticate(self, mail: Mail) -> Authentication:
        return Authentication()

    def close(self) -> None:
        """Lets go of its threads."""
