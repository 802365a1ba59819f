"""TLSA records: which count for SMTP (RFC 7672 §3.1), and what each of them names."""

import hashlib

import pytest

from rules.dane import Certificate, Tlsa, anchors, matches, usable, vouches

LEAF = Certificate(b"leaf", b"leaf key")
MIDDLE = Certificate(b"middle", b"middle key")
ROOT = Certificate(b"root", b"root key")


def record(usage: int, selector: int, matching: int, of: Certificate = LEAF) -> Tlsa:
    octets = of.key if selector == 1 else of.der
    digests = {1: hashlib.sha256(octets).digest(), 2: hashlib.sha512(octets).digest()}
    return Tlsa(usage, selector, matching, digests.get(matching, octets))


EVERY = [(selector, matching) for selector in (0, 1) for matching in (0, 1, 2)]


@pytest.mark.parametrize("usage", [2, 3])
@pytest.mark.parametrize(("selector", "matching"), EVERY)
def test_usable_records_name_one_certificate(usage: int, selector: int, matching: int) -> None:
    one = record(usage, selector, matching)
    assert usable([one]) == (one,)
    assert matches(one, LEAF) and not matches(one, ROOT)


@pytest.mark.parametrize(
    "one",
    [
        record(0, 0, 1),  # PKIX-TA
        record(1, 1, 1),  # PKIX-EE
        record(4, 1, 1),
        record(255, 0, 1),
        Tlsa(3, 2, 1, b"x" * 32),
        Tlsa(3, 1, 3, b"x" * 32),
        Tlsa(3, 1, 1, b"x" * 31),
        Tlsa(3, 1, 2, b"x" * 32),
        Tlsa(3, 1, 0, b""),
    ],
)
def test_the_others_do_not_count(one: Tlsa) -> None:
    good = record(3, 1, 1)
    assert usable([one, good]) == (good,)


@pytest.mark.parametrize(("selector", "matching"), EVERY)
def test_the_host_s_own_certificate(selector: int, matching: int) -> None:
    assert vouches([record(3, selector, matching, ROOT), record(3, selector, matching)], LEAF)
    assert not vouches([record(3, selector, matching, ROOT)], LEAF)
    assert not vouches([record(2, selector, matching)], LEAF)  # an anchor is above it


@pytest.mark.parametrize(("selector", "matching"), EVERY)
def test_anchors_among_what_was_sent(selector: int, matching: int) -> None:
    assert anchors([record(2, selector, matching, ROOT)], [MIDDLE, ROOT]) == (b"root",)
    assert anchors([record(3, selector, matching, ROOT)], [MIDDLE, ROOT]) == ()
    both = [record(2, selector, matching, ROOT), record(2, selector, matching, MIDDLE)]
    assert set(anchors(both, [MIDDLE, ROOT])) == {b"middle", b"root"}


def test_only_a_whole_certificate_need_not_be_sent() -> None:
    assert anchors([record(2, 0, 0, ROOT)], []) == (b"root",)
    assert anchors([record(2, 1, 0, ROOT), record(2, 0, 1, ROOT), record(2, 1, 2, ROOT)], [MIDDLE]) == ()
