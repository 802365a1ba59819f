"""What MAIL FROM: and RCPT TO: may be given, and what each form is read as."""

import pytest

from rules import path
from rules.path import Path, Problem


def read(argument: bytes) -> tuple[str, str]:
    found = path.parse(argument)
    assert isinstance(found, Path), found
    return found.local, found.domain


@pytest.mark.parametrize(
    ("argument", "local", "domain"),
    [
        (b"<meg+dupont@welyb.fr>", "meg+dupont", "welyb.fr"),
        (b" <meg+dupont@welyb.fr>", "meg+dupont", "welyb.fr"),  # a space after the colon: common
        (b"meg+dupont@welyb.fr", "meg+dupont", "welyb.fr"),  # no brackets: common
        (b"<Meg+Dupont@WELYB.fr>", "Meg+Dupont", "WELYB.fr"),  # as typed
        (b"<postmaster>", "postmaster", ""),
        (b"<>", "", ""),
        (b'<"meg+dupont"@welyb.fr>', "meg+dupont", "welyb.fr"),
        (b'<"meg\\+dup\\ont"@welyb.fr>', "meg+dupont", "welyb.fr"),
        (b'<"meg+x y"@welyb.fr>', "meg+x y", "welyb.fr"),
        (b'<"meg+x@evil.example"@welyb.fr>', "meg+x@evil.example", "welyb.fr"),
        (b'<"a>b"@welyb.fr>', "a>b", "welyb.fr"),
        (b"<@a.example,@b.example:meg+dupont@welyb.fr>", "meg+dupont", "welyb.fr"),  # RFC 5321 appendix C
        (b"<@a.example:postmaster>", "postmaster", ""),
        (b"<a@[192.0.2.1]>", "a", "[192.0.2.1]"),
        (b"<a@[IPv6:2001:db8::1]>", "a", "[IPv6:2001:db8::1]"),
        (b"<a..b.@x.example>", "a..b.", "x.example"),  # seen on the wire; no rule takes it
        (b"<meg+x%evil.example@welyb.fr>", "meg+x%evil.example", "welyb.fr"),
        (b"<meg+x!y@welyb.fr>", "meg+x!y", "welyb.fr"),
        (b"<meg+achats+" + b"a" * 64 + b"@welyb.fr>", "meg+achats+" + "a" * 64, "welyb.fr"),
    ],
)
def test_a_path_is_read(argument: bytes, local: str, domain: str) -> None:
    assert read(argument) == (local, domain)


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        (b"", Problem.SYNTAX),
        (b" ", Problem.SYNTAX),
        (b"<", Problem.SYNTAX),
        (b"<meg+dupont@welyb.fr", Problem.SYNTAX),
        (b"meg+dupont@welyb.fr>", Problem.SYNTAX),
        (b"<<meg+dupont@welyb.fr>>", Problem.SYNTAX),
        (b"<a@b.example>x", Problem.SYNTAX),
        (b'<"a"b@welyb.fr>', Problem.SYNTAX),
        (b"a@b.example,c@d.example", Problem.SYNTAX),
        (b"Dupont <a@b.example>", Problem.SYNTAX),
        (b"<a@b.example> SIZE=", Problem.SYNTAX),
        (b"<a@b.example> SIZE=1 size=2", Problem.SYNTAX),
        (b"<a@b.example> =1", Problem.SYNTAX),
        (b"<meg+x@evil.example@welyb.fr>", Problem.MALFORMED),
        (b"<@welyb.fr>", Problem.MALFORMED),
        (b"<meg+dupont@>", Problem.MALFORMED),
        (b"<meg+dupont@welyb.fr.>", Problem.MALFORMED),
        (b"<meg+dupont@-welyb.fr>", Problem.MALFORMED),
        (b"<meg+du pont@welyb.fr>", Problem.MALFORMED),
        (b"<meg+(x)dupont@welyb.fr>", Problem.MALFORMED),
        (b"<meg+dupont\x00@welyb.fr>", Problem.MALFORMED),
        (b"<meg+dupont\x7f@welyb.fr>", Problem.MALFORMED),
        (b"<meg+dup\tont@welyb.fr>", Problem.MALFORMED),
        (b"<meg+dup\ront@welyb.fr>", Problem.MALFORMED),
        (b"<meg+d\xe9p\xf4t@welyb.fr>", Problem.MALFORMED),  # Latin-1: no text in any charset we were told of
        ("<meg+dépôt@welyb.fr>".encode(), Problem.NOT_ASCII),
        ("<meg+ſmith@welyb.fr>".encode(), Problem.NOT_ASCII),  # ſ folds to s
        (b"<" + b"a" * 129 + b"@welyb.fr>", Problem.MALFORMED),
        (b"<a@" + b"a" * 256 + b">", Problem.MALFORMED),
        (b'<"' + b"\\a" * 128 + b'"@welyb.fr>', Problem.MALFORMED),
        (b'<""@welyb.fr>', Problem.MALFORMED),
        (b'<"a@welyb.fr>', Problem.MALFORMED),
    ],
)
def test_what_is_not_exactly_a_path_is_a_problem(argument: bytes, problem: Problem) -> None:
    assert path.parse(argument) is problem


def test_parameters_are_upper_case_keywords_with_their_values() -> None:
    found = path.parse(b"<a@b.example> SIZE=1000 body=8BITMIME x-flag")
    assert isinstance(found, Path)
    assert found.parameters == {"SIZE": "1000", "BODY": "8BITMIME", "X-FLAG": ""}


@pytest.mark.parametrize(
    ("argument", "address"),
    [
        (b"<meg+dupont@welyb.fr>", "meg+dupont@welyb.fr"),
        (b'<"meg+dupont"@welyb.fr>', "meg+dupont@welyb.fr"),
        (b'<"a \\"b\\\\"@welyb.fr>', '"a \\"b\\\\"@welyb.fr'),
        (b"<postmaster>", "postmaster"),
        (b"<>", ""),
    ],
)
def test_an_address_is_quoted_where_it_must_be(argument: bytes, address: str) -> None:
    found = path.parse(argument)
    assert isinstance(found, Path)
    assert found.address == address
