"""The settings file: what it means, and that a mistake in it stops the start and names file, line, key and remedy.

`bad_settings` holds one mistake a file; the comment that is its first line is what must be told.
"""

import re
from datetime import timedelta
from pathlib import Path

import pytest

from relay.config import (
    ENVIRONMENT,
    Antivirus,
    Authentication,
    Config,
    ConfigError,
    Delivery,
    endpoint,
    find,
    load,
    load_rules,
    parse,
    parse_duration,
    submission_endpoint,
)
from rules.ruleset import RuleError

BAD = sorted(Path(__file__).with_name("bad_settings").glob("*.toml"))


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_what_is_wrong_is_told_with_its_place_and_remedy(path: Path) -> None:
    told = path.read_text("utf-8").splitlines()[0].removeprefix("# ")
    with pytest.raises(ConfigError) as error:
        load(path)
    message = str(error.value)
    assert message.startswith(f"{path}:")
    assert told in message
    assert re.search(r"Remedy: .+\.$", message)


def test_an_empty_file_is_the_defaults() -> None:
    assert parse("", "t.toml") == Config(source="t.toml")


def test_every_key_has_its_place(tmp_path: Path) -> None:
    (tmp_path / "relay.toml").write_text(
        """
        [relay]
        hostname = "mx.cabinet.example"
        domain = "cabinet.example"
        data = "data"
        language = "en"
        rules = "rules.toml"
        timezone = "UTC"
        postmaster = "root@cabinet.example"
        warn_after = "2 hours"
        keep_bodies = "1 day"
        [smtp]
        listen = ["127.0.0.1:0", "[::1]:0"]
        trusted_networks = []
        max_message_size = "1 MiB"
        bare_newlines = "normalise"
        certificate = "chain.pem"
        key = "/etc/key.pem"
        submission = ["127.0.0.1:587", "[::1]:465 tls"]
        proxy = ["10.0.0.0/8"]
        [authentication]
        verify = "strangers"
        forwarders = ["192.0.2.0/24", "lists.example.org"]
        [run]
        every = "5 min"
        settle = "1 s"
        [delivery]
        sender = "a@cabinet.example"
        sender_name = "Cabinet"
        connections_per_destination = 1
        give_up_after = "1 day"
        dns = ["127.0.0.1:53"]
        routes = { "Far.Test" = "[::1]:25" }
        tls = { "far.test" = "required" }
        [dkim]
        selector = "s1"
        [ged]
        root = "ged"
        [antivirus]
        clamd = "tcp:[::1]:3310"
        timeout = "5 s"
        """
    )
    config = load(tmp_path / "relay.toml")
    assert (config.relay.data, config.ged.root) == (tmp_path / "data", tmp_path / "ged")
    assert (config.relay.rules, config.smtp.certificate) == (str(tmp_path / "rules.toml"), str(tmp_path / "chain.pem"))
    assert config.smtp.key == "/etc/key.pem"
    assert [*map(submission_endpoint, config.smtp.submission)] == [("127.0.0.1", 587, False), ("::1", 465, True)]
    assert config.smtp.proxy == ("10.0.0.0/8",)
    assert config.database == tmp_path / "data/relay.db"
    assert (config.relay.warn_after, config.run.every) == (timedelta(hours=2), timedelta(minutes=5))
    assert config.smtp.max_message_size == 1_048_576
    assert config.authentication == Authentication("strangers", ("192.0.2.0/24", "lists.example.org"))
    assert config.delivery == Delivery(
        sender="a@cabinet.example",
        sender_name="Cabinet",
        connections_per_destination=1,
        give_up_after=timedelta(days=1),
        dns=("127.0.0.1:53",),
        routes={"far.test": "[::1]:25"},
        tls={"far.test": "required"},
    )
    assert config.antivirus == Antivirus("tcp:[::1]:3310", timedelta(seconds=5))
    assert str(config.zone) == "UTC"


@pytest.mark.parametrize(
    ("written", "selectors"),
    [('""', ()), ('"s1"', ("s1",)), ("[]", ()), ('["k1", "k1-ed"]', ("k1", "k1-ed"))],
)
def test_one_key_or_several(written: str, selectors: tuple[str, ...]) -> None:
    assert parse(f"[dkim]\nselector = {written}\n", "x").dkim.selector == selectors


def test_without_a_file_all_is_below_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(None)
    assert (config.relay.data, config.ged.root) == (tmp_path / "var", tmp_path / "var/ged")
    assert config.source.startswith("(")


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "/from/environment.toml")
    assert find("/from/option.toml") == Path("/from/option.toml")
    assert find(None) == Path("/from/environment.toml")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"], ids=["missing", "no text"])
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "relay.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"relay\.toml: cannot be read: .*Remedy: name a readable file"):
        load(path)


def test_the_rules_file_is_read_beside_the_settings(tmp_path: Path) -> None:
    settings = tmp_path / "relay.toml"
    settings.write_text('[relay]\nrules = "mine.toml"\n')
    with pytest.raises(ConfigError, match=r"mine\.toml: cannot be read: .*Remedy: mend \[relay\] rules in "):
        load_rules(load(settings))
    (tmp_path / "mine.toml").write_text('[rule.x]\naddress = "x"\nrelai = "a@b.fr"\n')
    with pytest.raises(RuleError, match=r"mine\.toml:3: \[rule\.x\] relai: unknown key"):
        load_rules(load(settings))
    (tmp_path / "mine.toml").write_text('[rule.x]\naddress = "x"\nrelay = "a@b.fr"\n')
    assert [rule.name for rule in load_rules(load(settings)).rules] == ["x"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("5 s", 5), ("1 second", 1), ("90 seconds", 90), ("15 min", 900), ("15 minutes", 900), ("4 hours", 14_400)),
        *(("1 h", 3_600), ("1 hour", 3_600), ("5 days", 432_000), ("5d", 432_000), (" 30  days ", 2_592_000)),
    ],
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "1.5 hours", "-1 s", "5 s 3 s", "5 S", "PT5S", "5 minss"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "place"),
    [("127.0.0.1:25", ("127.0.0.1", 25)), ("[::1]:2525", ("::1", 2525)), ("mx.far.test:25", ("mx.far.test", 25))],
)
def test_endpoints(text: str, place: tuple[str, int]) -> None:
    assert endpoint(text) == place


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (
            'submission = ["127.0.0.1:587"]',
            r"\[smtp\] submission: needs a certificate\. Remedy: set certificate and key",
        ),
        (
            'submission = ["127.0.0.1:465 ssl"]',
            r'submission: « 127\.0\.0\.1:465 ssl » .*"192\.0\.2\.1:465 tls" where TLS',
        ),
        ('proxy = ["10.0.0.1/8"]', r'\[smtp\] proxy: 10\.0\.0\.1/8 .*Remedy: write networks like "192\.0\.2\.0/24"'),
    ],
)
def test_doors_for_users_and_proxies_that_cannot_be(lines: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=rf"t\.toml:2: .*{problem}"):
        parse(f"[smtp]\n{lines}\n", "t.toml")


def test_the_port_of_a_resolver_or_a_route_goes_without_saying() -> None:
    text = '[delivery]\ndns = ["127.0.0.1", "[::1]"]\nroutes = { "far.test" = "mx.far.test" }\n'
    assert parse(text, "t").delivery.dns == ("127.0.0.1", "[::1]")
    assert endpoint("mx.far.test", 25) == ("mx.far.test", 25)


@pytest.mark.parametrize("text", ["", ":25", "a:b", "[::1", "[x]:25", "::1", "a:25:26", "a b:25", "a:65536", "a"])
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError):  # it says nothing more: the caller knows the key
        endpoint(text)
