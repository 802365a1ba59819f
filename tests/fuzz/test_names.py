"""One invariant sentence per maker of names, for any text at all."""

import unicodedata
from datetime import date

from hypothesis import example, given
from hypothesis import strategies as st

from rules import filing
from rules.filing import IGNORED, SLUG, is_ignored, numbered, safe_name, slug

DAY = date(2026, 11, 24)

# Text in which the awkward things are common: separators, devices, dots, bidi, accents apart, ignored endings.
PIECES = ["..", "/", "\\", ".", "~$", "CON", "nul", "LPT9", ":", "*", ".pdf", ".part", ".tmp", "e", "desktop.ini"]
PIECES += [" ", "\x00", "\u0301", "\u202e", "\u200d", "\u2028", "\ufeff", "\u00a0", "\U0001f9fe", "\u00e9" * 130]
awkward = st.lists(st.text(st.characters(), max_size=8) | st.sampled_from(PIECES), max_size=12).map("".join)
types = st.sampled_from(["application/pdf", "image/jpeg", "text/plain", "x/y", ""])


@given(awkward | st.none(), types, st.integers(1, 10_000))
@example("CON. .pdf", "application/pdf", 1)
@example("x. .part", "application/pdf", 1)
def test_a_safe_name_is_one_visible_component_that_every_system_takes(name: str | None, type: str, serial: int) -> None:
    safe = safe_name(name, type=type, serial=serial, date=DAY)
    assert 0 < len(safe.encode("utf-8")) <= 240
    assert unicodedata.is_normalized("NFC", safe)
    assert not set(safe) & set('<>:"/\\|?*')
    assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in safe)
    assert safe == safe.strip() and safe[0] != "." and safe[-1] != "."
    assert not is_ignored(safe) and IGNORED.match(safe) is None
    stem, dot, extension = safe.rpartition(".")
    assert stem and dot and extension.isascii() and extension.isalnum() and len(extension) <= 5
    devices = {"CON", "PRN", "AUX", "NUL", *(f"{d}{n}" for d in ("COM", "LPT") for n in range(10))}
    assert safe.partition(".")[0].rstrip(" ").upper() not in devices


def test_no_character_that_is_printed_is_dropped_but_the_invisible_ones() -> None:
    printed = [chr(point) for point in range(0x110000) if chr(point).isprintable()]
    assert {character for character in printed if filing._is_dropped(character)} == filing._INVISIBLE


@given(awkward | st.none(), types)
def test_a_safe_name_is_left_as_it_is(name: str | None, type: str) -> None:
    safe = safe_name(name, type=type, serial=1, date=DAY)
    assert safe_name(safe, type=type, serial=2, date=DAY) == safe


@given(awkward, types, st.integers(2, 999))
def test_a_numbered_name_is_another_safe_name_of_the_same_extension(name: str, type: str, number: int) -> None:
    safe = safe_name(name, type=type, serial=1, date=DAY)
    other = numbered(safe, number)
    assert other != safe and len(other.encode()) <= 255 and not is_ignored(other)
    assert other.rpartition(".")[2] == safe.rpartition(".")[2]


@given(awkward)
def test_a_slug_is_empty_or_what_an_address_can_hold_and_its_own_slug(name: str) -> None:
    made = slug(name)
    assert made == "" or len(made) > 64 or SLUG.fullmatch(made)
    assert slug(made) == made
