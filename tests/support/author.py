"""Who writes a mail, with a domain of its own: its DNS records, and mails that it signs.

Knows alone: what a domain publishes so that SPF, DKIM and DMARC pass. Signed by dkimpy, which the product does not sign
with.
"""

from dataclasses import dataclass, field

import dkim
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key

from relay import sign
from tests.support.clients import Document, mail

SELECTOR = "a1"
KEY = generate_private_key(65537, 2048)


@dataclass(frozen=True, slots=True)
class Author:
    """`policy` is its p=; "" publishes no DMARC record. `spf` is what follows v=spf1."""

    domain: str
    policy: str = "reject"
    spf: str = "-all"
    key: RSAPrivateKey = field(default=KEY, repr=False)

    @property
    def address(self) -> str:
        return f"compta@{self.domain}"

    @property
    def zone(self) -> str:
        """What it publishes, as zone text with whole names."""
        record = sign.dns_record(self.key)
        strings = " ".join(f'"{record[at : at + 250]}"' for at in range(0, len(record), 250))
        lines = [f'{self.domain}. 300 IN TXT "v=spf1 {self.spf}"']
        lines.append(f"{SELECTOR}._domainkey.{self.domain}. 300 IN TXT {strings}")
        if self.policy:
            lines.append(f'_dmarc.{self.domain}. 300 IN TXT "v=DMARC1; p={self.policy}"')
        return "\n".join([*lines, ""])

    def mail(self, to: str, *documents: Document, subject: str = "Facture") -> bytes:
        return mail(self.address, to, *documents, subject=subject)

    def signed(self, message: bytes) -> bytes:
        pem = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        field_: bytes = dkim.sign(message, SELECTOR.encode(), self.domain.encode(), pem, canonicalize=(b"relaxed",) * 2)
        return field_ + message
