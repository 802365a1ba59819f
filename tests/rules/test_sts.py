"""RFC 8461: records and policies as they are found, and the hosts they allow."""

import pytest

from rules.sts import MOST_AGE, Mode, StsPolicy, allows, announced, parse

GOOD = b"v=STSv1; id=20160831085700Z;"


@pytest.mark.parametrize(
    ("texts", "id_"),
    [
        ([GOOD], "20160831085700Z"),
        ([b"v=STSv1;id=1"], "1"),
        ([b"v=STSv1 ; id = a1 ; more=x.y:z ;"], "a1"),
        ([b"v=STSv1; id=first; id=second"], "first"),
        ([b"v=spf1 -all", GOOD], "20160831085700Z"),
        ([], None),
        ([b"v=spf1 -all"], None),
        ([GOOD, b"v=STSv1; id=2"], None),  # §3.1: not exactly one
        ([GOOD, b"v=STSv1; broken"], None),
        ([GOOD, b"v=STSv1"], "20160831085700Z"),  # §3.1: discarded, for it does not begin with "v=STSv1;"
        ([b"v=STSv1"], None),
        ([b"v=STSv1; id="], None),
        ([b"v=STSv1; id=a-b"], None),
        ([b"v=STSv1; id=" + b"a" * 33], None),
        ([b"v=STSv1; id=1; what"], None),
        ([b"v=STSv12; id=1"], None),
        ([b"id=1; v=STSv1"], None),
        ([b" v=STSv1; id=1"], None),
        ([b"v=STSv1; id=\xff"], None),
    ],
)
def test_the_record(texts: list[bytes], id_: str | None) -> None:
    assert announced(texts) == id_


MX = ("mail.example.com", "*.example.net", "backupmx.example.com")
EXAMPLE = "\r\n".join(["version: STSv1", "mode: enforce", *(f"mx: {name}" for name in MX), "max_age: 604800", ""])


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        (EXAMPLE, StsPolicy(Mode.ENFORCE, 604800, MX)),
        (EXAMPLE.replace("\r\n", "\n").rstrip(), StsPolicy(Mode.ENFORCE, 604800, MX)),
        ("mx:A.Example \nmode:testing\nmax_age:0\nversion:STSv1", StsPolicy(Mode.TESTING, 0, ("a.example",))),
        (
            EXAMPLE.replace(".net", ".net.").replace("mail.example.com", "mail.example.com."),
            StsPolicy(Mode.ENFORCE, 604800, MX),
        ),
        ("version: STSv1\nmode: none\nmax_age: 86400", StsPolicy(Mode.NONE, 86400, ())),
        ("version: STSv1\nmode: none\nmode: enforce\nmax_age: 1\nmax_age: x", StsPolicy(Mode.NONE, 1, ())),
        ("version: STSv1\nmode: none\nmax_age: 9999999999", StsPolicy(Mode.NONE, MOST_AGE, ())),
        ("version: STSv1\nmode: none\nmax_age: 1\nfuture: é: y", StsPolicy(Mode.NONE, 1, ())),
    ],
)
def test_a_policy(text: str, policy: StsPolicy) -> None:
    assert parse(text) == policy


@pytest.mark.parametrize(
    ("was", "is_now"),
    [
        ("version: STSv1", "version: STSv2"),
        ("version: STSv1\r\n", ""),
        ("mode: enforce", "mode: Enforce"),
        ("mode: enforce\r\n", ""),
        ("max_age: 604800", "max_age: 6 days"),
        ("max_age: 604800", "max_age: -1"),
        ("max_age: 604800", "max_age: 12345678901"),
        ("max_age: 604800", ""),
        ("mx: mail.example.com", "mx: mail..example.com"),
        ("mx: mail.example.com", "mx: a*.example.com"),
        ("mx: mail.example.com", "mx: mail.*.example.com"),
        ("mx: mail.example.com", "mx:"),
        ("mx: mail.example.com", "mx: ."),
        ("mx: mail.example.com", "mx: mail.example.com.."),
        ("mx: mail.example.com", "mx mail.example.com"),
        ("mx: mail.example.com\r\nmx: *.example.net\r\nmx: backupmx.example.com\r\n", ""),
        (EXAMPLE, ""),
        (EXAMPLE, "<html>not found</html>"),
    ],
)
def test_no_policy(was: str, is_now: str) -> None:
    assert was in EXAMPLE
    assert parse(EXAMPLE.replace(was, is_now)) is None


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("mail.example.com", True),
        ("MAIL.Example.com.", True),
        ("mx1.example.net", True),
        ("example.net", False),
        ("a.mx1.example.net", False),  # one label only
        ("mail.example.com.evil.test", False),
        ("xmail.example.com", False),
        ("net", False),
        ("", False),
    ],
)
def test_the_hosts_of_a_policy(host: str, allowed: bool) -> None:
    assert allows(StsPolicy(Mode.ENFORCE, 1, MX), host) is allowed
