"""What a proxy says before its client is heard: the PROXY header, version 1 or 2 (haproxy's proxy-protocol.txt). No I/O.

Knows alone: what a header says, and that one that is not exactly right is none. Limits: TCP only; of version 2 what
follows the addresses (TLVs) is skipped; 4 KiB at most.
"""

import re
from dataclasses import dataclass
from ipaddress import ip_address

MAX_V1 = 107  # with its CRLF
MAX_V2 = 4096
_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_HEAD = 16
_PORT = r"(?:0|[1-9][0-9]{0,4})"
_LINE = re.compile(rf"PROXY TCP([46]) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) ({_PORT}) ({_PORT})")


@dataclass(frozen=True, slots=True)
class Client:
    """Whom the proxy speaks for."""

    ip: str


@dataclass(frozen=True, slots=True)
class Nobody:
    """The proxy itself (LOCAL: a health check), or somebody whose address it does not know (UNKNOWN, a Unix socket)."""


@dataclass(frozen=True, slots=True)
class Malformed:
    pass


@dataclass(frozen=True, slots=True)
class More:
    """So far it may become one."""


Source = Client | Nobody | Malformed


def parse(data: bytes) -> tuple[Source, int] | More:
    """What the header at the beginning of `data` says, and how long it is."""
    if data.startswith(b"PROXY "):
        return _version_1(data)
    if data.startswith(_SIGNATURE):
        return _version_2(data)
    if b"PROXY ".startswith(data) or _SIGNATURE.startswith(data):
        return More()
    return Malformed(), 0


def _version_1(data: bytes) -> tuple[Source, int] | More:
    end = data.find(b"\r\n", 0, MAX_V1)
    if end < 0:
        return (Malformed(), 0) if len(data) >= MAX_V1 else More()
    line = data[:end].decode("latin-1")
    if line == "PROXY UNKNOWN" or line.startswith("PROXY UNKNOWN "):
        return Nobody(), end + 2
    found = _LINE.fullmatch(line)
    if found is None or max(int(found[4]), int(found[5])) > 65535:
        return Malformed(), 0
    try:
        source, destination = ip_address(found[2]), ip_address(found[3])
    except ValueError:
        return Malformed(), 0
    if not source.version == destination.version == int(found[1]):
        return Malformed(), 0
    return Client(str(source)), end + 2


_FAMILIES = {0x11: 4, 0x21: 16}  # address family and TCP (§2.2) → the octets of an address
_WITHOUT_ADDRESS = {0x00: 0, 0x31: 216}  # unspecified; a Unix socket


def _version_2(data: bytes) -> tuple[Source, int] | More:
    if len(data) < _HEAD:
        return More()
    command, family, size = data[12], data[13], _HEAD + int.from_bytes(data[14:16], "big")
    if command not in (0x20, 0x21) or size > MAX_V2:
        return Malformed(), 0
    if len(data) < size:
        return More()
    if command == 0x20:
        return Nobody(), size
    if family in _WITHOUT_ADDRESS and size - _HEAD >= _WITHOUT_ADDRESS[family]:
        return Nobody(), size
    if family not in _FAMILIES:
        return Malformed(), 0
    length = _FAMILIES[family]
    if size - _HEAD < 2 * length + 4:
        return Malformed(), 0
    return Client(str(ip_address(data[_HEAD : _HEAD + length]))), size
