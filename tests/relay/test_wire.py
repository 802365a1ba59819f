"""The dots of a message. Sockets, time limits and TLS are tried by test_deliver, through whole conversations."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from relay.wire import MANY_DOTS, DotStuffer, LineDots


def stuffed(chunks: list[bytes]) -> bytes:
    dots = DotStuffer()
    return b"".join([dots.feed(chunk) for chunk in chunks]) + dots.end()


def unstuffed(wire: bytes) -> bytes:
    """As RFC 5321 §4.5.2 tells the receiver, line by line."""
    assert wire.endswith(b"\r\n.\r\n") or wire == b".\r\n"
    lines = wire.removesuffix(b".\r\n").split(b"\r\n")
    assert b"." not in lines
    return b"\r\n".join(line[1:] if line.startswith(b".") else line for line in lines)


@given(
    st.lists(st.sampled_from([b"\r\n", b".", b"\r", b"\n", b"a", b"..", b"\r\n."]), max_size=20),
    st.lists(st.integers(0, 30), max_size=6),
)
def test_dots_are_doubled_wherever_the_chunks_are_cut(pieces: list[bytes], cuts: list[int]) -> None:
    message = b"".join(pieces)
    edges = [0, *sorted(min(cut, len(message)) for cut in cuts), len(message)]
    wire = stuffed([message[start:end] for start, end in itertools.pairwise(edges)])
    assert wire == stuffed([message])
    assert unstuffed(wire) == (message if message.endswith(b"\r\n") or not message else message + b"\r\n")


@given(
    st.lists(st.sampled_from([b"\r\n", b".", b"\r", b"\n", b"a", b"..", b"\r\n."]), max_size=20),
    st.lists(st.integers(0, 30), max_size=6),
    st.sampled_from([b"\r\n", b"x\r", b"xy"]),
)
def test_the_dots_to_double_are_found_wherever_the_chunks_are_cut(
    pieces: list[bytes], cuts: list[int], before: bytes
) -> None:
    message = b"".join(pieces)
    edges = [0, *sorted(min(cut, len(message)) for cut in cuts), len(message)]
    found = LineDots(before)
    for start, end in itertools.pairwise(edges):
        found.feed(message[start:end])
    assert found.found is not None and found.last == (before + message)[-2:]
    doubled = message
    for dot in reversed(found.found):
        doubled = doubled[:dot] + b"." + doubled[dot:]
    assert stuffed([b"Z", before, message]).startswith(b"Z" + before + doubled)


def test_more_dots_than_can_be_remembered() -> None:
    found = LineDots(b"\r\n")
    found.feed(b".\r\n" * (MANY_DOTS + 1))
    assert found.found is None
