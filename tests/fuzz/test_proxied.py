"""Whatever octets come, a PROXY header is read without an exception, in bounded space, the same however it is cut; and
whom it names is whom aiosmtpd's reader names."""

import asyncio
from ipaddress import ip_address

from aiosmtpd.proxy_protocol import get_proxy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.smtp import proxied
from relay.smtp.proxied import Client, Malformed, More, Nobody
from tests.support.effort import examples

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
ports = st.integers(0, 65535)
families = st.sampled_from([4, 6])


@st.composite
def version_1(draw: st.DrawFn) -> bytes:
    version = draw(families)
    there, here = (str(draw(st.ip_addresses(v=version))) for _ in range(2))
    line = f"PROXY TCP{version} {there} {here} {draw(ports)} {draw(ports)}"
    return draw(st.sampled_from([line, line, "PROXY UNKNOWN", f"PROXY UNKNOWN {there} x"])).encode() + b"\r\n"


@st.composite
def version_2(draw: st.DrawFn) -> bytes:
    command = draw(st.sampled_from([b"\x21"] * 5 + [b"\x20"]))
    version = draw(st.sampled_from([4, 6, 0, 1]))
    if version in (4, 6):
        packed = b"".join(draw(st.ip_addresses(v=version)).packed for _ in range(2))
        family, place = (b"\x11" if version == 4 else b"\x21"), packed + draw(st.binary(min_size=4, max_size=4))
    else:
        family, place = (b"\0", b"") if version == 0 else (b"\x31", bytes(216))
    values = draw(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40)), max_size=3))
    place += b"".join(bytes([kind]) + len(value).to_bytes(2, "big") + value for kind, value in values)
    return SIGNATURE + command + family + len(place).to_bytes(2, "big") + place


headers = version_1() | version_2()


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(headers))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2) | st.sampled_from([b" ", b"\r\n", b"0"]))
    return bytes(data)


def theirs(data: bytes) -> object:
    """Who it is, None where aiosmtpd takes it for none."""

    async def read() -> object:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        found = await get_proxy(reader)
        return found.src_addr if found.valid else None

    return asyncio.run(read())


@given(headers, st.binary(max_size=50))
@settings(max_examples=examples(100))
def test_a_header_is_read_at_its_last_octet_and_no_further(header: bytes, rest: bytes) -> None:
    assert all(isinstance(proxied.parse(header[:end]), More) for end in range(len(header)))
    source, length = proxied.parse(header + rest)  # type: ignore[misc]  # it is whole
    assert length == len(header)
    told = theirs(header)
    if isinstance(source, Client):
        assert ip_address(source.ip) == told
    else:
        assert isinstance(source, Nobody)


@given(spoiled() | st.binary(max_size=300), st.binary(max_size=5))
@settings(max_examples=examples(300))
@example(b"PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n", b"")
@example(b"PROXY TCP4 1.2.3.4 1.2.3.4 01 1\r\n", b"")
@example(b"PROXY TCP4 ::1 ::1 1 1\r\n", b"")
@example(b"PROXY TCP6 fe80::1%eth0 ::1 1 1\r\n", b"")
@example(b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1 \r\n", b"")
@example(b"PROXY TCP4  1.2.3.4 1.2.3.4 1 1\r\n", b"")
@example(b"PROXY TCP4 1.2.3.4 1.2.3.4 1 1\n", b"")
@example(b"PROXY UNKNOWNX\r\n", b"")
@example(b"proxy UNKNOWN\r\n", b"")
@example(SIGNATURE + b"\x21\x12\0\x0c" + bytes(12), b"")  # UDP
@example(SIGNATURE + b"\x22\x11\0\x0c" + bytes(12), b"")
@example(SIGNATURE + b"\x11\x11\0\x0c" + bytes(12), b"")
def test_what_is_no_header_is_none_to_anybody(data: bytes, rest: bytes) -> None:
    found = proxied.parse(data + rest)
    if isinstance(found, More):
        assert len(data + rest) < proxied.MAX_V2
        return
    source, length = found
    assert length <= len(data + rest)
    if isinstance(source, Client):
        assert ip_address(source.ip) == theirs(data[:length] if length <= len(data) else data + rest)
    elif isinstance(source, Malformed):
        assert length == 0


def test_none_is_waited_for_that_is_too_long() -> None:
    assert proxied.parse(b"PROXY TCP4 " + b"1" * 200) == (Malformed(), 0)
    assert proxied.parse(b"PROXY UNKNOWN " + b"x" * 200) == (Malformed(), 0)
    assert proxied.parse(SIGNATURE + b"\x21\x11\xff\xff") == (Malformed(), 0)
