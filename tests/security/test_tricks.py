"""What open-relay testers and spammers try at the door, and the exact answer to each: nothing is relayed, nothing stored.

Every trick is a dialogue of its own, from a stranger's address and from a trusted one: trust opens `meg+` for well-formed
addresses of ours, and opens nothing else. The testers' lists: abuse.net's 17 forms, RFC 5321's own oddities, and what a
parser in C or one that folds Unicode would fall for.
"""

import itertools
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import documents as made
from tests.support.clients import Dialogue, mail
from tests.support.relay import Relay

TRUSTED, STRANGER = "127.0.0.1", "127.0.0.2"
VICTIM = "victime@ailleurs.example"
TIMINGS = int(os.environ.get("TIMINGS", "0"))

UNREADABLE = "501 5.1.3 Adresse illisible (bad address syntax)"
MALFORMED = "553 5.1.3 Adresse de collecte mal formee (malformed address)"
UNKNOWN = "550 5.1.1 Adresse de collecte inconnue (unknown address)"
FORBIDDEN = "550 5.7.1 Envoi non autorise vers cette adresse (not permitted)"
NOT_ASCII = "553 5.6.7 Adresse non ASCII non prise en charge (non-ASCII address not supported)"
PARAMETER = "555 5.5.4 Parametre non pris en charge (parameter not recognized)"
NO_RECIPIENT = "503 5.5.1 Aucun destinataire valable (no valid recipients)"
THROTTLED = "450 4.7.1 Trop d'envois, reessayez plus tard (too much mail, try again later)"
SEQUENCE = "503 5.5.1 Commande hors sequence (bad sequence of commands)"
RECIPIENT_OK = "250 2.1.5 Destinataire accepte (recipient ok)"
SENDER_OK = "250 2.1.0 Expediteur accepte (sender ok)"

# The argument of RCPT TO: → the answer, whoever asks.
RECIPIENTS: list[tuple[str | bytes, str]] = [
    # plainly elsewhere
    ("<victime@ailleurs.example>", FORBIDDEN),
    ("victime@ailleurs.example", FORBIDDEN),
    ("<postmaster@ailleurs.example>", FORBIDDEN),
    ("<root@localhost>", FORBIDDEN),
    ("<root>", FORBIDDEN),
    ("<martin@factures-meg.fr>", FORBIDDEN),
    ("<martin@achats.factures-meg.fr>", FORBIDDEN),
    ("<meg+martin@factures-meg.fr>", FORBIDDEN),
    # the percent hack
    ("<victime%ailleurs.example@welyb.fr>", MALFORMED),
    ("<victime%ailleurs.example@[127.0.0.1]>", FORBIDDEN),
    ('<"victime%ailleurs.example">', FORBIDDEN),
    ("<meg+victime%ailleurs.example@welyb.fr>", MALFORMED),
    ("<martin%factures-meg.fr@welyb.fr>", MALFORMED),
    ("<postmaster%ailleurs.example@welyb.fr>", MALFORMED),
    ("<meg+martin=40ailleurs.example@welyb.fr>", MALFORMED),
    # the bang path
    ("<ailleurs.example!victime>", FORBIDDEN),
    ("<ailleurs.example!victime@welyb.fr>", MALFORMED),
    ("<ailleurs.example!victime@[127.0.0.1]>", FORBIDDEN),
    ("<meg+ailleurs.example!victime@welyb.fr>", MALFORMED),
    ("<victime#ailleurs.example@welyb.fr>", MALFORMED),
    # the source route: stripped, and what is left is judged
    ("<@welyb.fr:victime@ailleurs.example>", FORBIDDEN),
    ("<@welyb.fr:martin@factures-meg.fr>", FORBIDDEN),
    ("<@a.example,@b.example:victime@ailleurs.example>", FORBIDDEN),
    ("<@a,@b:x@c>", FORBIDDEN),
    ("<@[127.0.0.1]:victime@ailleurs.example>", MALFORMED),
    ("<@welyb.fr:>", MALFORMED),
    ("<@welyb.fr>", MALFORMED),
    ("<@>", MALFORMED),
    # two domains, a quoted one, a comment
    ("<victime@ailleurs.example@welyb.fr>", MALFORMED),
    ("<meg+martin@welyb.fr@ailleurs.example>", MALFORMED),
    ("<victime@ailleurs.example@[127.0.0.1]>", MALFORMED),
    ('<"victime@ailleurs.example">', FORBIDDEN),
    ('<"victime@ailleurs.example"@welyb.fr>', MALFORMED),
    ('<"meg+victime@ailleurs.example"@welyb.fr>', MALFORMED),
    (r'<"meg+victime\@ailleurs.example"@welyb.fr>', MALFORMED),
    ("<meg+martin(c)@welyb.fr>", MALFORMED),
    ("<meg+martin@welyb.fr(c)>", MALFORMED),
    # domains that look like ours
    ("<meg+martin@[127.0.0.1]>", FORBIDDEN),
    ("<meg+martin@[IPv6:::1]>", FORBIDDEN),
    ("<meg+martin@127.0.0.1>", FORBIDDEN),
    ("<meg+martin@2130706433>", FORBIDDEN),
    ("<meg+martin@welyb.fr.>", MALFORMED),
    ("<meg+martin@welyb.fr.ailleurs.example>", FORBIDDEN),
    ("<meg+martin@ailleurs.welyb.fr>", FORBIDDEN),
    ("<meg+martin@mx.welyb.fr>", FORBIDDEN),
    ("<meg+martin@welyb_fr>", FORBIDDEN),
    ("<meg+martin@welyb..fr>", MALFORMED),
    ("<meg+martin@.welyb.fr>", MALFORMED),
    ("<meg+martin@welyb.fr:25>", MALFORMED),
    ("<meg+martin@>", MALFORMED),
    ("<meg+martin@xn--wlyb-tdd.fr>", FORBIDDEN),
    ("<meg+martin@w\u0435lyb.fr>", NOT_ASCII),  # a Cyrillic e
    ("<meg+martin@welyb\u3002fr>", NOT_ASCII),  # an ideographic full stop, which IDNA maps to one
    ("<vente\u017f+martin@welyb.fr>", NOT_ASCII),  # the long s folds to s
    ("<meg+martin@welyb.fr\u200b>", NOT_ASCII),
    # bytes
    (b"<meg+martin\xe9@welyb.fr>", MALFORMED),
    (b"<vente\xbf+martin@welyb.fr>", MALFORMED),
    (b"<meg+martin\0@welyb.fr>", MALFORMED),
    (b"<victime@ailleurs.example\0@welyb.fr>", MALFORMED),
    (b"<meg+martin@welyb.fr\0.ailleurs.example>", MALFORMED),
    (b"<victime@ailleurs.example>\rRCPT TO:<meg+martin@welyb.fr>", MALFORMED),
    (b"<meg+martin@welyb.fr\t>", MALFORMED),
    # lists, brackets, parameters
    ("<>", UNREADABLE),
    ("<<victime@ailleurs.example>>", UNREADABLE),
    ("<meg+martin@welyb.fr> <victime@ailleurs.example>", UNREADABLE),
    ("<victime@ailleurs.example>@welyb.fr", UNREADABLE),
    ("<meg+martin@welyb.fr,victime@ailleurs.example>", MALFORMED),
    ("<meg+martin @welyb.fr>", MALFORMED),
    ("<meg+martin@welyb.fr> ORCPT=rfc822;victime@ailleurs.example", PARAMETER),
    # names that are a way to something else
    ("<|/bin/sh@welyb.fr>", MALFORMED),
    ("</etc/passwd@welyb.fr>", MALFORMED),
    ("<:include:/etc/passwd@welyb.fr>", MALFORMED),
    ("<smtp:victime@ailleurs.example>", MALFORMED),
    ("<automate@welyb.fr>", MALFORMED),
    ("<meg@welyb.fr>", MALFORMED),
    ("<meg+@welyb.fr>", MALFORMED),
    ("<meg+achats@welyb.fr>", MALFORMED),
    ("<meg+achats+@welyb.fr>", MALFORMED),
    ("<meg+a+b@welyb.fr>", MALFORMED),
    (f"<meg+{'a' * 65}@welyb.fr>", MALFORMED),
    (f"<{'a' * 300}@welyb.fr>", MALFORMED),
    ("<ventes+..@welyb.fr>", MALFORMED),
    ("<ventes+../../martin@welyb.fr>", MALFORMED),
    ("<ventes+quidam@welyb.fr>", UNKNOWN),
    ("<retours+aaaaaaaaaaaaaaaaaaaaaaaa@welyb.fr>", UNKNOWN),
    ("<retours+@welyb.fr>", UNKNOWN),
]

# The argument of MAIL FROM: → the answer. No sender opens anything: what follows is refused as for any other.
SENDERS: list[tuple[str | bytes, str]] = [
    ("<automate@welyb.fr>", SENDER_OK),
    ("<postmaster@welyb.fr>", SENDER_OK),
    ("<ventes+martin@welyb.fr>", SENDER_OK),
    ("<meg+martin@welyb.fr>", SENDER_OK),
    ("<retours+aaaaaaaaaaaaaaaaaaaaaaaa@welyb.fr>", SENDER_OK),
    ("<martin@factures-meg.fr>", SENDER_OK),
    ("<>", SENDER_OK),
    ("<spam>", SENDER_OK),
    ("<spam@localhost>", SENDER_OK),
    ("<spam@[127.0.0.1]>", SENDER_OK),
    ("<@welyb.fr:spam@ailleurs.example>", SENDER_OK),
    ("<spam%ailleurs.example@welyb.fr>", SENDER_OK),
    ('<"spam@ailleurs.example"@welyb.fr>', SENDER_OK),
    ("<spam@ailleurs.example@welyb.fr>", MALFORMED),
    ("<spam@ailleurs.example.>", MALFORMED),
    (b"<spam\0@ailleurs.example>", MALFORMED),
    (b"<spam@ailleurs.example\r>", MALFORMED),
    (b"<spam\xe9@ailleurs.example>", MALFORMED),
    ("<spam\u00e9@ailleurs.example>", NOT_ASCII),
    ("<spam@ailleurs.example> AUTH=<automate@welyb.fr>", PARAMETER),
]


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relay]:
    relay = Relay(tmp_path_factory.mktemp("tricks"), {"smtp": {"trusted_networks": [f"{TRUSTED}/32"]}})
    relay.client("martin")
    relay.start()
    yield relay
    relay.stop()


@pytest.fixture(autouse=True)
def nothing_is_stored(relay: Relay) -> Iterator[None]:
    yield
    assert [path.name for path in (relay.folder / "var/spool").rglob("*") if path.is_file()] == []
    assert [path.name for path in relay.ged.rglob("*")] == ["martin"]


def said(dialogue: Dialogue, line: str | bytes) -> str:
    reply = dialogue.say((line.encode() if isinstance(line, str) else line) + b"\r\n")
    return f"{reply.code} {reply.text}"


def tried(relay: Relay, source: str, sender: str | bytes, *recipients: str | bytes) -> list[str]:
    """What is said to MAIL, to each RCPT, and to DATA."""
    with Dialogue(relay.port, source=source) as dialogue:
        dialogue.hello()
        lines = [(b"MAIL FROM:", sender), *((b"RCPT TO:", recipient) for recipient in recipients)]
        answers = [said(dialogue, verb + (text.encode() if isinstance(text, str) else text)) for verb, text in lines]
        return [*answers, said(dialogue, "DATA")]


@pytest.mark.parametrize("source", [TRUSTED, STRANGER])
def test_no_recipient_is_a_way_through(relay: Relay, source: str) -> None:
    for recipient, answer in RECIPIENTS:
        found = tried(relay, source, f"<{VICTIM}>", recipient)
        assert found == [SENDER_OK, answer, NO_RECIPIENT], recipient
    assert relay.json("queue", "list") == []


@pytest.mark.parametrize("source", [TRUSTED, STRANGER])
def test_no_sender_is_a_way_through(relay: Relay, source: str) -> None:
    closed = [f"<{VICTIM}>", "<martin@factures-meg.fr>", f"<@welyb.fr:{VICTIM}>"]
    if source == STRANGER:
        closed += ["<meg+martin@welyb.fr>", "<meg+achats+martin@welyb.fr>"]
    for sender, answer in SENDERS:
        taken = answer == SENDER_OK
        after = [FORBIDDEN if taken else SEQUENCE] * len(closed)
        assert tried(relay, source, sender, *closed) == [answer, *after, NO_RECIPIENT if taken else SEQUENCE], sender
    assert relay.json("queue", "list") == []


def test_a_refused_recipient_does_not_ride_with_an_accepted_one(relay: Relay) -> None:
    """The envelope alone decides who gets it; nothing is sent in this test but RSET."""
    with Dialogue(relay.port, source=STRANGER) as dialogue:
        dialogue.hello()
        replies = dialogue.envelope(VICTIM, "ventes+martin@welyb.fr", VICTIM, "meg+martin@welyb.fr")
        assert [reply.code for reply in replies] == [250, 250, 550, 550]
        assert dialogue.say("RSET").code == 250
        assert said(dialogue, "DATA") == SEQUENCE


def test_what_a_relay_is_asked_around_the_envelope(relay: Relay) -> None:
    with Dialogue(relay.port, source=STRANGER) as dialogue:
        assert said(dialogue, f"MAIL FROM:<{VICTIM}>").startswith("503 5.5.1")  # before EHLO
        dialogue.hello()
        assert said(dialogue, f"RCPT TO:<{VICTIM}>") == SEQUENCE
        for verb in ("VRFY martin", "VRFY root", "VRFY quidam", "EXPN clients", f"VRFY {VICTIM}"):
            assert said(dialogue, verb) == (
                "252 2.5.0 Verification non disponible, envoyez le message (cannot verify, send the mail)"
            )
        assert said(dialogue, "AUTH PLAIN AGEAYg==") == "502 5.5.1 Commande non disponible (command not implemented)"
        for verb in ("ETRN ailleurs.example", "TURN", f"SEND FROM:<{VICTIM}>", "XCLIENT NAME=a"):
            assert said(dialogue, verb) == "500 5.5.1 Commande inconnue (command not recognized)"


def test_commands_behind_a_body_are_body(relay: Relay) -> None:
    """What ends a mail for another server and not for us (or the reverse) smuggles a second envelope in: refused."""
    smuggled = f"MAIL FROM:<automate@welyb.fr>\r\nRCPT TO:<{VICTIM}>\r\nDATA\r\n".encode()
    message = mail(VICTIM, "ventes+martin@welyb.fr", ("f.pdf", "application/pdf", made.pdf()))
    for end in (b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r"):
        with Dialogue(relay.port, source=STRANGER) as dialogue:
            dialogue.hello()
            dialogue.envelope(VICTIM, "ventes+martin@welyb.fr")
            assert dialogue.say("DATA").code == 354
            dialogue.send(message.rstrip(b"\r\n") + end + smuggled + message + b"\r\n.\r\n")
            reply = dialogue.reply()
            assert f"{reply.code} {reply.text}" == "550 5.5.2 Fin de ligne incorrecte (bare CR or LF)", end


# --- what a prober learns -------------------------------------------------------------------------------------------


def test_refusals_are_the_same_for_every_name(relay: Relay) -> None:
    """Which names there are is the firm's secret: a stranger is told the same of those registered and of those not."""
    add = ("connections", "add", "--application", "meg-achats", "--client", "martin")
    (link,) = relay.json(*add, "--address", "meg+achats+martin@welyb.fr")
    names = ("martin", "quidam", "dupont", "x")
    try:
        for form in ("meg+achats+{}", "meg+{}"):
            recipients = [f"<{form.format(name)}@welyb.fr>" for name in names]
            assert set(tried(relay, STRANGER, "<>", *recipients)[1:-1]) == {FORBIDDEN}
    finally:
        relay.cli("connections", "remove", str(link["id"]))
    unknown = [f"<{local}@welyb.fr>" for local in ("ventes+quidam", "ventes+x", f"ventes+{'a' * 64}", "retours+x")]
    assert set(tried(relay, STRANGER, "<>", *unknown)[1:-1]) == {UNKNOWN}


def test_refusals_are_the_same_where_only_registered_names_are_served(tmp_path: Path) -> None:
    relay = Relay(tmp_path, {"smtp": {"trusted_networks": [f"{TRUSTED}/32"]}, "relay": {"rules": "rules.toml"}})
    relay.client("martin")
    (relay.folder / "rules.toml").write_text(
        '[rule.meg]\naddress = "meg+{name}"\nrelay = "{name}@factures-meg.fr"\nnames = "registered"\n'
    )
    relay.start()
    try:
        add = ("connections", "add", "--application", "meg", "--client", "martin", "--address")
        relay.cli(*add, "meg+martin@welyb.fr")
        known, unknown = "<meg+martin@welyb.fr>", "<meg+quidam@welyb.fr>"
        answers = tried(relay, STRANGER, "<>", known, unknown)[1:-1]
        assert answers[0] == answers[1]
        assert tried(relay, TRUSTED, "<>", known, unknown)[1:-1] == [RECIPIENT_OK, UNKNOWN]
    finally:
        relay.stop()


def test_a_prober_is_shown_the_door(relay: Relay) -> None:
    """Twenty errors a connection, as Postfix has it; and twenty unknown addresses an hour."""
    with Dialogue(relay.port, source="127.0.0.9") as dialogue:  # whose hour is spoilt
        dialogue.hello()
        dialogue.say("MAIL FROM:<>")
        answers = [said(dialogue, f"RCPT TO:<ventes+quidam{number}@welyb.fr>") for number in range(21)]
        assert answers == [UNKNOWN] * 20 + [THROTTLED]
        assert dialogue.reply().code == 421
        with pytest.raises(ConnectionError):
            dialogue.say("NOOP")


@pytest.mark.skipif(not TIMINGS, reason="TIMINGS=2000 measures")
def test_unknown_takes_as_long_whatever_is_unknown(relay: Relay) -> None:
    """Medians of interleaved questions: a client nobody has, a report nobody awaits, a name of a known form."""
    kinds = {
        "client": "ventes+quidam@welyb.fr",
        "token": "retours+aaaaaaaaaaaaaaaaaaaaaaaa@welyb.fr",
        "name": "meg+x@welyb.fr",
    }
    took: dict[str, list[float]] = {kind: [] for kind in kinds}
    tried(relay, STRANGER, "<>", "<ventes+quidam@welyb.fr>")  # the one that lists the GED again, every five seconds
    for number in range(0, TIMINGS, 15):
        with Dialogue(relay.port, source=STRANGER) as dialogue:
            dialogue.hello()
            dialogue.say("MAIL FROM:<>")
            for kind, address in itertools.islice(itertools.cycle(kinds.items()), number % 3, number % 3 + 15):
                began = time.perf_counter()
                dialogue.say(f"RCPT TO:<{address}>")
                took[kind].append(time.perf_counter() - began)
    medians = {kind: statistics.median(times) * 1e6 for kind, times in took.items()}
    spread = {kind: statistics.quantiles(times, n=10)[8] * 1e6 - medians[kind] for kind, times in took.items()}
    print({kind: f"{medians[kind]:.0f} µs (p90 +{spread[kind]:.0f})" for kind in kinds})
    assert max(medians.values()) - min(medians.values()) < max(spread.values())
