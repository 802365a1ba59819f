"""The results of SPF, DKIM and DMARC in writing: kept, in a line for people, in a field for the next host."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rules import authentication
from rules.authentication import Authentication, Dmarc, Signature, Spf

SOME = Authentication(
    Spf("softfail", "cabinet.example"),
    (Signature("pass", "cabinet.example", "s1"), Signature("fail", "esp.example", "k2", "body hash")),
    Dmarc("pass", "cabinet.example", "reject"),
)


@pytest.mark.parametrize(
    ("known", "sender", "value"),
    [
        (
            SOME,
            "compta@cabinet.example",
            "mx.welyb.fr;\r\n\tspf=softfail smtp.mailfrom=cabinet.example;\r\n\tdkim=pass header.d=cabinet.example"
            " header.s=s1;\r\n\tdkim=fail header.d=esp.example header.s=k2;\r\n\tdmarc=pass (p=reject)"
            " header.from=cabinet.example",
        ),
        (
            Authentication(Spf("pass", "mx.cabinet.example")),
            "",
            "mx.welyb.fr;\r\n\tspf=pass smtp.helo=mx.cabinet.example;\r\n\tdkim=none;\r\n\tdmarc=none (p=none)",
        ),
    ],
)
def test_the_field(known: Authentication, sender: str, value: str) -> None:
    assert authentication.results(known, "mx.welyb.fr", sender) == value


@pytest.mark.parametrize(
    "hostile",
    ["x;\r\n\tdmarc=pass", "x dkim=pass", "x)(", 'x"', "[192.0.2.1]", "é.example", "a" * 300, "-x", "x.\n", ""],
)
def test_a_value_that_is_no_name_is_left_out(hostile: str) -> None:
    known = Authentication(
        Spf("fail", hostile), (Signature("fail", hostile, hostile, hostile),), Dmarc("fail", hostile)
    )
    value = authentication.results(known, "mx.welyb.fr", hostile)
    assert value == "mx.welyb.fr;\r\n\tspf=fail;\r\n\tdkim=fail;\r\n\tdmarc=fail (p=none)"


@given(st.text(), st.text(), st.text())
def test_nothing_breaks_out_of_the_field(domain: str, selector: str, author: str) -> None:
    known = Authentication(
        Spf("pass", domain), (Signature("pass", domain, selector, author),), Dmarc("pass", author, "reject")
    )
    value = authentication.results(known, "mx.welyb.fr", domain)
    assert value.isascii()
    assert re.fullmatch(
        r"mx\.welyb\.fr;\r\n\tspf=pass( [a-z.]+=[\w.-]+)?;\r\n\tdkim=pass( [a-z.]+=[\w.-]+){0,2};"
        r"\r\n\tdmarc=pass \(p=reject\)( [a-z.]+=[\w.-]+)?",
        value,
    )


@pytest.mark.parametrize("known", [SOME, Authentication()])
def test_what_is_kept_comes_back(known: Authentication) -> None:
    kept = json.dumps(authentication.facts(known))
    assert authentication.of_facts(json.loads(kept)) == known


def test_in_a_line() -> None:
    assert authentication.told(SOME) == (
        "spf=softfail cabinet.example, dkim=pass cabinet.example, dkim=fail esp.example (body hash),"
        " dmarc=pass cabinet.example (reject)"
    )
    assert authentication.told(Authentication()) == "spf=none, dkim=none, dmarc=none (none)"
