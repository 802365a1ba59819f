"""Any text at all is a Config, or a ConfigError that names file, line and remedy; never another exception.

So is every shipped or documented file with anything done to it.
"""

import contextlib
import re
import tempfile
from pathlib import Path
from typing import get_type_hints

from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay import config
from relay.config import Config, ConfigError
from tests.support.effort import examples

HERE = Path(__file__).parents[2]
SHIPPED = [path.read_text("utf-8") for path in sorted((HERE / "deploy").glob("*.toml"))]
SHIPPED += [path.read_text("utf-8") for path in sorted((HERE / "tests/relay/bad_settings").glob("*.toml"))]
TOLD = re.compile(r"t\.toml:(\d+): .+ Remedy: .+\.", re.DOTALL)

TABLES = {name: list(get_type_hints(kind)) for name, kind in get_type_hints(Config).items() if name != "source"}
KEYS = [*TABLES, *sorted({key for keys in TABLES.values() for key in keys}), "adresse", "é", "a b", '"', "far.test"]
SAID = ["10 MB", "15 min", "0 s", "1 s", "7 min", "Europe/Paris", "UTC", "../../etc/passwd", "Europe", "127.0.0.1:25"]
SAID += ["[::1]:25", "::1", "10.0.0.0/8", "10.0.0.1/8", "a@b.fr", "a@b", "fr", "normalise", "required", "", "\0", "é\n"]
SAID += ["100 / hour", "0 / min", "5 / fortnight", "off", "9" * 400 + " / s", "٣ / hour", "1 / "]
SAID += [
    "9" * 30 + " days",
    "9" * 5000 + " s",
    "9" * 400 + " GiB",
    "1e999 MB",
    "٣ days",
    "१० MB",
    "127.0.0.1:٣",
    "x" * 300,
]
NUMBERS = ["0", "1", "-1", "4", "1.5", "inf", "nan", "true", "2026-11-24", "07:00:00", "0x" + "f" * 40, "9" * 4000]
texts = st.sampled_from(SAID) | st.text(max_size=12)


def quoted(text: str) -> str:
    return '"' + "".join(c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in text) + '"'


values: st.SearchStrategy[str] = st.recursive(
    texts.map(quoted) | st.sampled_from(NUMBERS),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(st.sampled_from(KEYS).map(quoted), inner, max_size=2).map(
            lambda items: "{" + ", ".join(f"{k} = {v}" for k, v in items.items()) + "}"
        )
    ),
    max_leaves=4,
)


@st.composite
def files(draw: st.DrawFn) -> str:
    """Tables and keys that are nearly right."""
    lines = []
    for name in draw(st.lists(st.sampled_from([*TABLES, "delivery.routes", "delivery.tls", "relais"]), unique=True)):
        lines.append(draw(st.sampled_from(["[{}]", " [ {} ] # x", "[{}]\x0c#\x85", '["{}"]'])).format(name))
        keys = TABLES.get(name, ["far.test"]) * 4 + KEYS  # those of the table, mostly
        for key, value in draw(st.dictionaries(st.sampled_from(keys), values, max_size=3)).items():
            lines.append(f"{quoted(key) if not re.fullmatch(r'[A-Za-z_]+', key) else key} = {value}")
    return "\n".join(lines)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A file that ships, or one with a known mistake, with pieces changed."""
    text = draw(st.sampled_from(SHIPPED))
    for _ in range(draw(st.integers(1, 4))):
        at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 30))
        added = draw(st.sampled_from(['"', "[", "]", "=", "\n", "#", "'''", ".", "{", "é", "\0"]) | texts | values)
        text = text[:at] + added + text[at + length :]
    return text


def outcome(text: str) -> Config | str:
    """The settings, or what the postmaster is told."""
    try:
        return config.parse(text, "t.toml")
    except ConfigError as error:
        return str(error)


def assert_told_or_usable(text: str) -> None:
    found = outcome(text)
    if isinstance(found, str):
        told = TOLD.fullmatch(found)
        assert told, found
        assert 1 <= int(told[1]) <= text.count("\n") + 1
        return
    found.zone
    assert found.source == "t.toml"
    assert config._resolved(found, Path("/etc/welyb-relay")).relay.data.is_absolute()


@given(st.text(max_size=200) | st.binary(max_size=60).map(lambda data: data.decode("latin-1")))
@example("a = " + "[" * 5000)
@example("a = " + "{a=" * 5000)
@example("a = " + "9" * 5000)
@example("[a.a" + ".a" * 5000 + "]")
@settings(max_examples=examples(200))
def test_any_text_is_settings_or_one_told_mistake(text: str) -> None:
    assert_told_or_usable(text)


@given(files())
@example('[relay]\nwarn_after = "' + "9" * 30 + ' days"')
@example('[relay]\nwarn_after = "' + "9" * 5000 + ' days"')
@example('[smtp]\nmax_message_size = "' + "9" * 400 + ' MB"')
@example('[relay]\nhostname = "mx\\r\\nX: y"')
@settings(max_examples=examples(400))
def test_any_tables_are_settings_or_one_told_mistake(text: str) -> None:
    assert_told_or_usable(text)


@given(mutated())
@settings(max_examples=examples(300))
def test_a_file_that_was_tampered_with_is_settings_or_one_told_mistake(text: str) -> None:
    assert_told_or_usable(text)


@given(st.binary(max_size=60) | mutated().map(lambda text: text.encode()))
@settings(max_examples=examples(60))
def test_a_file_of_any_bytes_is_settings_or_one_told_mistake(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "relay.toml"
        path.write_bytes(data)
        with contextlib.suppress(ConfigError):
            assert config.load(path).source == str(path)
