"""deploy/zone.example as what DNS says: its records, with the keys and addresses of this installation.

Knows alone: that the example's keys are nobody's and its addresses documentation's (RFC 5737), so that they are exchanged,
and nothing else.
"""

import re

import dns.name
import dns.rdatatype
import dns.zone

from tests.deploy.page import PROJECT
from tests.support.desk import Desk

EXAMPLE = PROJECT / "deploy/zone.example"
HERE = "127.0.0.253"  # no web server is there

Found = dict[tuple[str, str], set[str]]


def text() -> str:
    return EXAMPLE.read_text("utf-8")


def example() -> Found:
    """(name, type) → values, as zone files have them."""
    zone = dns.zone.from_text(text(), relativize=False)
    return {
        (str(name), dns.rdatatype.to_text(rdataset.rdtype)): {record.to_text() for record in rdataset}
        for name, rdataset in zone.iterate_rdatasets()
    }


def reverse() -> Found:
    """The PTR that its last lines speak of."""
    return {(name, "PTR"): {host} for name, host in re.findall(r"(?m)^; (\S+\.arpa\.) +PTR +(\S+)$", text())}


def as_published(desk: Desk, *without: str) -> str:
    """What a name server is given: all of it but the types `without`."""
    keys = {f"{row['selector']}._domainkey.welyb.fr.": row["record"] for row in desk.json("keys", "list")}
    left = {"SOA", "NS", "AAAA", *without}  # the server is no zone's, and these tests have one address
    found = {key: values for key, values in example().items() if "._domainkey." not in key[0]}
    found |= {(name, "TXT"): {value} for name, value in keys.items()}
    found |= {key: {HERE} for key in found if key[1] == "A"}
    found[dns.name.from_text(".".join(reversed(HERE.split("."))) + ".in-addr.arpa").to_text(), "PTR"] = {"mx.welyb.fr."}
    lines = [f"{name} 5 IN {kind} {v}" for (name, kind), values in found.items() if kind not in left for v in values]
    return "\n".join(lines)
