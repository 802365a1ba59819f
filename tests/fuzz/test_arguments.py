"""Whatever the arguments, a verb ends with 0, 1, 2 or 3 and, but for 0, says why; never with a traceback.

And whatever names, senders and reasons the store holds, nothing that is shown holds a control, a bidi override or a
broken character. The bytes that `queue body` gives are a mail's own. Not tried: `serve` and `demo`, which do not end at
once, and `restore`, which would put another store in the place of this one.
"""

import contextlib
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.cli import cli
from tests.support import documents as d
from tests.support.effort import examples
from tests.support.inside import inside

UNTRIED = {"serve", "demo", "restore"}
RAW = {"body", "dns"}  # a mail's own bytes; a zone file, which has tabs
NAMES = ["facture\x1b[31m\x07.pdf", "a\u202efdp.exe.pdf", "\u2066\u200f\ufeff.pdf", "x\r\ny\x00.pdf", "\x9b2J.pdf"]
SENDERS = ["a@cabinet.example", '"\\\x7f"@x.fr', ""]
# A byte that is no UTF-8 as Python has it, more than a store can count, a day before which there is none.
BEYOND = ["\udce9", "9" * 20, "0001-01-01"]
TEXTS = ["", "-", "--", "x", "é", "1", "-1", "0", "2 hours", "9" * 30 + " days", "2026-11-24"]
TEXTS += [
    "0001-01-01",
    "9999-12-31",
    "2026-11-24T25:00",
    "dupont",
    "Dupont",
    "Achats",
    "..x",
    "meg",
    "meg-achats",
    "ventes",
]
TEXTS += [
    "meg+dupont@welyb.fr",
    "dupont@factures-meg.fr",
    "a@b",
    "%",
    "_",
    "'",
    "';--",
    "waiting",
    "held,sent",
    "validated",
]
TEXTS += ["127.0.0.1", "::1", "::ffff:1.2.3.4", "x" * 5000, "\u202e", "\x1b[31m", "a\nb", "\x00"]


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if name in UNTRIED:
            continue
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


VERBS = list(commands(cli))
texts = st.sampled_from(TEXTS) | st.text(max_size=8)


@st.composite
def arguments(draw: st.DrawFn, stored: st.SearchStrategy[str]) -> list[str]:
    """A verb with options it has and values for them, mostly."""
    path, command = draw(st.sampled_from(VERBS))
    given = list(path)
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            given += draw(st.lists(stored | texts, min_size=int(draw(st.integers(0, 9)) > 0), max_size=2))
        elif draw(st.integers(0, 2)) == 0:
            given.append(parameter.opts[-1])
            if not getattr(parameter, "is_flag", False):
                given.append(draw(stored | texts))
    if draw(st.integers(0, 5)) == 0:
        given.insert(draw(st.integers(0, len(given))), draw(texts))
    return given


class Desk:
    """A store that strangers have filled, and the command before it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ids: list[str] = []

    def give(self, arguments: list[str], environment: Mapping[str, str] | None = None) -> Result:
        with contextlib.chdir(self.folder / "elsewhere"):
            return CliRunner(charset="utf-8").invoke(
                cli, ["--config", str(self.folder / "relay.toml"), *arguments], env=environment
            )


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    desk = Desk(tmp_path_factory.mktemp("desk"))
    (desk.folder / "elsewhere").mkdir()
    mails = [_mail(n, name) for n, name in enumerate(NAMES)]
    with inside(desk.folder, clients=["Dupont", "Maçon \u202e\x1b[1m"]) as relay:
        for message in mails:
            for sender in SENDERS:
                relay.take(message, "meg+dupont@welyb.fr", "ventes+dupont@welyb.fr", sender=sender)
        relay.take(_mail(99, "a.zip", d.plain_zip()), "ventes+dupont@welyb.fr")
        relay.file()
        for table in ("message", "document", "delivery"):
            desk.ids += relay.column(f"SELECT id FROM {table} LIMIT 20")
    routes = ", ".join(f'"{domain}" = "127.0.0.1:1"' for domain in ("factures-meg.fr", "achats.factures-meg.fr"))
    nowhere = f'[delivery]\ndns = ["127.0.0.1:1"]\nroutes = {{ {routes} }}\n'  # nobody is asked, nobody answers
    with (desk.folder / "relay.toml").open("a") as file:
        file.write(nowhere)
    return desk


def _mail(number: int, name: str, content: bytes = b"") -> bytes:
    written = "".join(f"%{byte:02X}" for byte in name.encode())
    head = f"From: \x1b[31m <a@x>\r\nSubject: \x9b\r\nMessage-ID: <{number}\x1b[7m@x>\r\n"
    head += f"Content-Type: application/pdf\r\nContent-Disposition: attachment; filename*=utf-8''{written}\r\n\r\n"
    return head.encode() + (content or d.pdf(f"F{number}").replace(b"\n", b"\r\n"))


def assert_ended(result: Result, arguments: list[str]) -> None:
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(arguments) from result.exception
    assert result.exit_code in (0, 1, 2, 3)
    assert result.exit_code == 0 or result.output.strip(), arguments
    assert "Traceback" not in result.output


def hostile(shown: str) -> set[str]:
    return {c for c in shown if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


@given(st.data())
@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_arguments_end_with_a_code_and_a_word(desk: Desk, data: st.DataObject) -> None:
    given_ = data.draw(arguments(st.sampled_from(desk.ids)))
    result = desk.give(given_, {"LC_ALL": data.draw(st.sampled_from(["C.UTF-8", "fr_FR.UTF-8", "C"]))})
    assert_ended(result, given_)
    ours = not any(hostile(text) for text in given_) and not RAW & set(given_)
    assert not ours or not hostile(result.output), given_


@given(st.lists(texts | st.sampled_from(BEYOND), max_size=4))
@settings(max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_junk_is_a_usage_error(desk: Desk, junk: list[str]) -> None:
    assert_ended(desk.give(junk), junk)


@pytest.mark.parametrize("odd", BEYOND, ids=["no text", "a large number", "the first day"])
def test_an_argument_beyond_what_the_store_takes_ends_as_any_other(desk: Desk, odd: str) -> None:
    for path, command in VERBS:
        for parameter in command.params:
            given_ = list(path)
            for other in command.params:
                value = odd if other is parameter else desk.ids[0]
                if isinstance(other, click.Argument):
                    given_.append(value)
                elif (other.required or other is parameter) and not getattr(other, "is_flag", False):
                    given_ += [other.opts[-1], value]
            assert_ended(desk.give(given_), given_)


def test_every_listing_of_hostile_names_is_escaped(desk: Desk) -> None:
    listings = [
        ["queue", "list"],
        ["documents", "list"],
        ["clients", "list"],
        ["connections", "list"],
        ["runs", "list"],
    ]
    listings += [["queue", "show", id_] for id_ in desk.ids] + [["trace", id_] for id_ in desk.ids]
    for listing in listings:
        for form in ([], ["--json"]):
            result = desk.give([*listing, *form])
            assert_ended(result, listing)
            assert not hostile(result.output), (listing, result.output)


def test_a_file_of_any_name_is_examined(desk: Desk) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("\x1b[31m.pdf", "\udce9.pdf", "a\nb.eml"):
            path = Path(folder) / name
            path.write_bytes(d.pdf())
            result = desk.give(["examine", str(path)])
            assert_ended(result, [name])
            assert not hostile(result.output)
