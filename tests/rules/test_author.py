"""Whose name a From field bears."""

import pytest

from rules import author


@pytest.mark.parametrize(
    ("field", "domain"),
    [
        ("a@fr.test", "fr.test"),
        (" A@FR.Test\r\n", "fr.test"),
        ("Jean <a@fr.test>", "fr.test"),
        ("Jean\r\n\t<a@fr.test>", "fr.test"),
        ("Dupont, Jean <a@fr.test>", "fr.test"),
        ('"Dupont, b@x.test" <a@fr.test>', "fr.test"),
        ('"\\"" <a@fr.test>', "fr.test"),
        ("b@x.test <a@fr.test>", "fr.test"),
        ("=?utf-8?q?b=40x=2Etest?= <a@fr.test>", "fr.test"),
        ("Maçon <a@fr.test>", "fr.test"),
        ("a@fr.test (b@x.test)", "fr.test"),
        ("a (b (c) <b@x.test>) @ fr . test", "fr.test"),
        ("<@relay.test,@x.test:a@fr.test>", "fr.test"),
        ('<"a@b"@fr.test>', "fr.test"),
        ("a@fr.test.", "fr.test"),
        ("a@é.test", "xn--9ca.test"),
        ("a@É.test", "xn--9ca.test"),
        ("a@xn--9ca.test", "xn--9ca.test"),
        # Several mailboxes of one domain have one author's domain; what has no domain does not count.
        ("a@fr.test, b@FR.test", "fr.test"),
        ("Les comptables: a@fr.test, b@fr.test;", "fr.test"),
        ("jean, a@fr.test,", "fr.test"),
        ("<a@fr.test", "fr.test"),
        # A quote that nothing closes hides no author.
        ('"Jean <a@fr.test>', "fr.test"),
        ('Jean "<a@fr.test>', "fr.test"),
        ('"Jean\\" <a@fr.test>', "fr.test"),
        ('"Jean" " <a@fr.test>', "fr.test"),
        ('"<b@x.test>, <a@fr.test>', author.Several()),
        # Several domains, or none, or what cannot be one: no author.
        ("a@fr.test, b@x.test", author.Several()),
        ("<a@fr.test> <b@x.test>", author.Several()),
        ("<a@fr.test>, b@x.test", author.Several()),
        ("g: a@fr.test;, b@x.test", author.Several()),
        ("a@fr.test, b@[192.0.2.1]", author.Several()),
        ("g:;", ""),
        ("a@stra\u00dfe.test", ""),  # two standards, two domains
        ("", ""),
        ("jean", ""),
        ("<>", ""),
        ("(a@fr.test)", ""),
        ("a@", ""),
        ("a@fr..test", ""),
        ("a@[192.0.2.1]", ""),
        ("a@fr/x.test", ""),
        ("a@" + "x" * 64 + ".test", ""),
        ("a@" + "x." * 127 + "test", ""),
        ("a@" + "é" * 70 + ".test", ""),
        ("a@\ufffd.test", ""),
        # What IDNA 2003 makes of these is another's name.
        ("a@STRAẞE.test", ""),
        ("a@λόγος.test", ""),
        ("a@a\u200cb.test", ""),
        ("a@a\u200db.test", ""),
        ("a@strasse.test", "strasse.test"),
    ],
)
def test_domain(field: str, domain: str | author.Several) -> None:
    assert author.domain([field.encode()]) == domain


def test_exactly_one_from_field() -> None:
    assert author.domain([]) == ""
    assert author.domain([b"a@fr.test", b"a@fr.test"]) == author.Several()
    assert author.addresses([b"Jean <a@fr.test>, b@x.test", b"c@y.test"]) == ["a@fr.test", "b@x.test", "c@y.test"]
    assert author.domain([b"Ma\xe7on <a@fr.test>"]) == "fr.test"
    assert author.domain([b"a@\xe9.test"]) == ""
    assert author.domain([b"x" * author.MAX_FIELD + b" <a@fr.test>"]) == author.Several()


def test_the_addresses_of_all_from_fields() -> None:
    froms = [b"Gmail <a@fr.test>, g: b @ x.test;", b"Jean (b@y.test), jean,", b"c@z.test\r\n"]
    assert author.addresses(froms) == ["a@fr.test", "b@x.test", "c@z.test"]
    assert author.addresses([b"a@fr.test," * 3500] * 2) == []
