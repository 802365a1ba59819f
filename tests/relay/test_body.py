"""The end of DATA: whatever the chunks, it is what RFC 5321 §4.5.2 says of the whole, and nothing else ends it."""

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.smtp.body import DotDecoder, Normaliser
from tests.support.clients import stuffed

# Bytes in which the ends and the almost-ends are common.
tangled = st.lists(st.sampled_from([b"\r\n", b".", b"\r", b"\n", b"\r\n.\r\n", b"\0", b"a", b"--b"]), max_size=30)
wires = tangled.map(b"".join)
cuts = st.lists(st.integers(0, 80), max_size=20)


def pieces(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted(place for place in at if place < len(data)), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


def read(chunks: list[bytes]) -> tuple[bytes, bytes | None]:
    """The message as far as it came; what follows its end, None where it did not end."""
    decoder, message = DotDecoder(), b""
    for number, chunk in enumerate(chunks):
        out, rest = decoder.feed(chunk)
        message += out
        if rest is not None:
            return message, rest + b"".join(chunks[number + 1 :])
    return message, None


def by_the_book(wire: bytes) -> tuple[bytes, bytes] | None:
    """RFC 5321 §4.5.2, line by line over the whole; a line is what ends in CRLF."""
    lines = wire.split(b"\r\n")
    message = []
    for number, line in enumerate(lines[:-1]):
        if line == b".":
            return b"".join(message), b"\r\n".join(lines[number + 1 :])
        message.append(line.removeprefix(b".") + b"\r\n")
    return None


@given(wires, cuts)
@example(b".\r\nRSET\r\n", [1, 2])
@example(b"a\r\n.\r\n", [1, 2, 3, 4, 5])
@example(b"\r\n..\r\n.\r\n", [3])
@example(b"a\r\r\n.\r\r\n.\r\n", [2])
def test_any_chunks_are_read_as_the_whole_is(wire: bytes, at: list[int]) -> None:
    expected = by_the_book(wire)
    message, rest = read(pieces(wire, at))
    if expected is None:
        assert rest is None
    else:
        assert (message, rest) == expected


@given(wires, cuts)
def test_what_a_client_stuffs_comes_out_as_it_was(text: bytes, at: list[int]) -> None:
    message = re.sub(rb"\r(?!\n)|(?<!\r)\n", b"", text)
    ended = message if message.endswith(b"\r\n") or not message else message + b"\r\n"
    assert read(pieces(stuffed(message) + b"NOOP\r\n", at)) == (ended, b"NOOP\r\n")


SMUGGLED = [
    b"\n.\n",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r\r\n.\r\r\n",
    b"\r\n\0.\r\n",
    b"\r\n. \r\n",
]


@pytest.mark.parametrize("almost", SMUGGLED)
def test_nothing_else_ends_the_mail(almost: bytes) -> None:
    wire = b"a" + almost + b"MAIL FROM:<x@evil.example>\r\n"
    for size in (1, 2, 3, len(wire)):
        chunks = [wire[start : start + size] for start in range(0, len(wire), size)]
        assert read(chunks)[1] is None


@given(wires, cuts)
@example(b"a\r\nb\rc\nd\r", [2, 5])
def test_normalising_leaves_only_whole_line_ends_however_the_bytes_come(text: bytes, at: list[int]) -> None:
    normaliser = Normaliser()
    out = b"".join(map(normaliser.feed, pieces(text, at))) + normaliser.close()
    assert out == re.sub(rb"\r\n|\r|\n", b"\r\n", text)
