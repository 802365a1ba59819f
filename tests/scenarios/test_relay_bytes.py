"""A mail for `meg+` leaves as it came: what the collector's Postfix received, byte for byte, below our own fields."""

import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from relay import sign
from tests.support import documents as made
from tests.support.clients import Dialogue, mail
from tests.support.collector import Received
from tests.support.firm import COLLECTORS, Firm

pytestmark = pytest.mark.debian("postfix")

SENDER = "Jean Dupont <compta@cabinet.example>"
ENVELOPE = "compta@cabinet.example"
PDF = ("facture n° 12.pdf", "application/pdf", made.pdf())

NUMBERS = itertools.count()  # a recipient of its own for each, so that none is a repeat of another test's


def signing(folder: Path, kind: str) -> Iterator[Firm]:
    """A firm that signs with a key of that kind."""
    firm = Firm.start(folder)
    try:
        firm.relay.cli("keys", "create", "s1", "--kind", kind)
        firm.relay.stop()
        firm.relay.configure({"dkim": {"selector": "s1"}})
        firm.relay.start()
        yield firm
    finally:
        firm.stop()


@pytest.fixture(scope="module")
def firm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firm]:
    yield from signing(tmp_path_factory.mktemp("rsa"), "rsa")


@pytest.fixture(scope="module")
def modern_firm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firm]:
    yield from signing(tmp_path_factory.mktemp("ed25519"), "ed25519")


@pytest.fixture(params=["firm", "modern_firm"], ids=["rsa", "ed25519"])
def either_firm(request: pytest.FixtureRequest) -> Firm:
    firm: Firm = request.getfixturevalue(request.param)
    return firm


def taken(firm: Firm, *messages: bytes, sender: str = ENVELOPE) -> list[str]:
    """Each to a collector of its own: their addresses. By BDAT, so that nothing is added on the way in."""
    names = [f"n{next(NUMBERS)}" for _ in messages]
    with Dialogue(firm.relay.port) as dialogue:
        dialogue.hello()
        for name, message in zip(names, messages, strict=True):
            dialogue.envelope(sender, f"meg+{name}@welyb.fr")
            reply = dialogue.last_chunk(message)
            assert reply.code == 250, reply
    return [f"{name}@factures-meg.fr" for name in names]


def arrived(firm: Firm, addresses: list[str]) -> list[Received]:
    """What a run brings to these collectors, in their order."""
    firm.run()
    received = {message.envelope_recipient: message for message in firm.collector.messages()}
    return [received[address] for address in addresses if address in received]


def transferred(firm: Firm, *messages: bytes, sender: str = ENVELOPE) -> list[Received]:
    received = arrived(firm, taken(firm, *messages, sender=sender))
    assert len(received) == len(messages)
    return received


def taken_apart(transmitted: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """(DKIM-Signature, Received, loop field, all that stands below)."""
    fields = re.match(
        rb"(DKIM-Signature:.*?\r\n(?![ \t]))(Received:.*?\r\n(?![ \t]))(X-Welyb-Relay:[^\r\n]*\r\n)(.*)",
        transmitted,
        re.S,
    )
    assert fields is not None, transmitted[:2000]
    return fields[1], fields[2], fields[3], fields[4]


def below(received: Received) -> bytes:
    return taken_apart(received.transmitted)[3]


HEAD = b"From: Jean Dupont <compta@cabinet.example>\r\nTo: x@welyb.fr\r\nSubject: Facture\r\n"
UNTOUCHED: Mapping[str, bytes] = {
    "ordinary": mail(SENDER, "quelqu.un@ailleurs.example", PDF),
    "dots": HEAD + b"\r\n.\r\n..\r\n.debut\r\n...\r\nFrom moi\r\n",
    "blanks": HEAD + b"\r\n \t \r\nfin \t\r\n\r\n\r\n\r\n",
    "folded": HEAD + b"X-Plie: un\r\n\tdeux\r\n   trois  \r\nX-vide:\r\n\r\nx\r\n",
    "case and order": b"sUbJeCt:Facture\r\nFROM:a@cabinet.example\r\nsubject:  encore\r\n\r\nx\r\n",
    "no body": HEAD + b"\r\n",
    "raw 8-bit": HEAD.replace(b"Facture", "Facturé".encode()) + "\r\nétait l\xe0".encode("latin-1") + b"\r\n",
    "a long line": HEAD + b"\r\n" + b"x" * 5000 + b"\r\n",
    "odd MIME": HEAD
    + b"Content-Type: multipart/mixed; boundary=b\r\n\r\npreambule\r\n--b \r\n\r\nx\r\n--b--\r\nepilogue",
    "large": mail(SENDER, "x@welyb.fr", ("gros.pdf", "application/pdf", made.pdf_of_size(2_000_000))),
    "trace": b"Received: from a by b; x\r\nReturn-Path: <x@y.example>\r\n" + mail(SENDER, "x@welyb.fr", PDF),
}


def test_what_leaves_is_what_came_below_our_fields(firm: Firm) -> None:
    received = transferred(firm, *UNTOUCHED.values())
    for (name, message), came in zip(UNTOUCHED.items(), received, strict=True):
        wanted = message if message.endswith(b"\r\n") else message + b"\r\n"
        assert below(came) == wanted, name


def test_our_fields_say_where_it_came_from_and_not_where_it_goes(firm: Firm) -> None:
    (received,) = transferred(firm, UNTOUCHED["ordinary"])
    signature, trace, loop, _ = taken_apart(received.transmitted)
    assert re.search(rb"\sd=welyb\.fr;.*\ss=s1;", signature, re.S)
    assert re.fullmatch(
        rb"Received: from cabinet\.example \(\[127\.0\.0\.1\]\)\r\n\tby mx\.welyb\.fr with ESMTP id [0-9a-z]{16};\r\n"
        rb"\t\w{3}, \d+ \w{3} \d{4} \d\d:\d\d:\d\d \+0[12]00\r\n",
        trace,
    )
    assert loop == b"X-Welyb-Relay: welyb.fr\r\n"
    assert not any(name.encode() in signature + trace + loop for name in (*COLLECTORS, "meg"))


def test_a_missing_final_line_end_is_added_and_nothing_else(firm: Firm) -> None:
    messages = [HEAD + b"\r\nsans fin", HEAD + b"\r\nfin\r\n", HEAD.removesuffix(b"\r\n")]
    received = transferred(firm, *messages)
    assert [below(came) for came in received[:2]] == [messages[0] + b"\r\n", messages[1]]
    assert below(received[2]).startswith(HEAD)


# --- signatures -----------------------------------------------------------------------------------------------------

AUTHOR = generate_private_key(65537, 2048)


def signed_by_its_author(message: bytes, canonicalize: tuple[bytes, bytes]) -> bytes:
    pem = AUTHOR.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return dkim.sign(message, b"a1", b"cabinet.example", pem, canonicalize=canonicalize) + message


def signatures(firm: Firm, message: bytes) -> dict[str, bool]:
    """Each signature's domain, and whether it verifies."""
    ours = sign.dns_record(sign.load(str(firm.relay.folder / "var/dkim/s1.pem")))
    records = {b"s1._domainkey.welyb.fr.": ours, b"a1._domainkey.cabinet.example.": sign.dns_record(AUTHOR)}

    def published(name: bytes, timeout: int = 5) -> bytes | None:
        found = records.get(name)
        return found.encode() if found else None

    found = {}
    for number, field in enumerate(re.findall(rb"(?im)^DKIM-Signature:(?:.*\r\n)(?:[ \t].*\r\n)*", message)):
        domain = re.search(rb"\bd=([^;\s]+)", field)
        assert domain is not None
        found[domain[1].decode()] = dkim.DKIM(message).verify(idx=number, dnsfunc=published)
    return found


def test_the_authors_signature_stays_valid_and_ours_is_too(either_firm: Firm) -> None:
    forms = [(c, b) for c in (b"relaxed", b"simple") for b in (b"relaxed", b"simple")]
    messages = [
        signed_by_its_author(UNTOUCHED[name], form) for form in forms for name in ("ordinary", "dots", "blanks")
    ]
    for came in transferred(either_firm, *messages):
        assert signatures(either_firm, came.transmitted) == {"welyb.fr": True, "cabinet.example": True}


def test_ours_is_valid_on_whatever_comes(either_firm: Firm) -> None:
    for came in transferred(either_firm, *(message for message in UNTOUCHED.values() if b"From:" in message)):
        assert signatures(either_firm, came.transmitted) == {"welyb.fr": True}


def test_a_result_forged_in_our_name_is_dropped_and_no_other(firm: Firm) -> None:
    kept = b"Authentication-Results: mx.cabinet.example;\r\n\tspf=pass\r\nX-Suite: oui\r\n"
    forged = [
        b"Authentication-Results: mx.welyb.fr; dkim=pass header.d=banque.example\r\n",
        b"authentication-results:(c) WELYB.FR 1;\r\n\tdmarc=pass\r\n",
        b'Authentication-Results: "mx.welyb.fr"; dmarc=pass\r\n',
    ]
    (received,) = transferred(firm, forged[0] + kept + forged[1] + HEAD + forged[2] + b"\r\nx\r\n")
    assert below(received) == kept + HEAD + b"\r\nx\r\n"


# --- envelopes ------------------------------------------------------------------------------------------------------


def test_it_leaves_with_a_return_path_of_its_own_and_the_null_sender_stays_null(firm: Firm) -> None:
    first, second = transferred(firm, *(mail(SENDER, "x@welyb.fr", PDF) for _ in range(2)))
    for received in (first, second):
        assert re.fullmatch(r"retours\+[a-z2-7]{24}@welyb\.fr", received.envelope_sender)
    assert first.envelope_sender != second.envelope_sender
    (null,) = transferred(firm, mail(SENDER, "x@welyb.fr", PDF), sender="")
    assert null.envelope_sender == ""


def test_the_recipients_of_one_mail_each_get_theirs(firm: Firm) -> None:
    message = mail(SENDER, "cache@ailleurs.example", PDF)
    assert firm.mail(["meg+Un@welyb.fr", "meg+achats+un@welyb.fr", "meg+deux@welyb.fr"], message).accepted
    received = arrived(firm, ["un@factures-meg.fr", "un@achats.factures-meg.fr", "deux@factures-meg.fr"])
    assert [below(each) for each in received] == [message] * 3
    assert len({each.envelope_sender for each in received}) == 1


def test_after_a_failed_attempt_it_leaves_just_as_untouched(firm: Firm) -> None:
    message = UNTOUCHED["raw 8-bit"]
    addresses = taken(firm, message)
    firm.collector.change(main_cf={"smtpd_end_of_data_restrictions": "defer"})
    try:
        assert arrived(firm, addresses) == []
    finally:
        firm.collector.change(main_cf={})
    (received,) = arrived(firm, addresses)
    assert below(received) == message
    assert signatures(firm, received.transmitted) == {"welyb.fr": True}


def test_8_bit_content_is_never_changed_for_a_host_that_cannot_take_it(firm: Firm) -> None:
    addresses = taken(firm, UNTOUCHED["raw 8-bit"], UNTOUCHED["dots"])
    firm.collector.change(main_cf={"smtpd_discard_ehlo_keywords": "8bitmime"})
    try:
        came = arrived(firm, addresses)
    finally:
        firm.collector.change(main_cf={})
    assert [below(each) for each in came] == [UNTOUCHED["dots"]]
    (failed,) = firm.relay.json("queue", "list", "--collector", addresses[0])
    assert failed["state"] == "failed" and "5.6.3" in failed["reply"] + failed["reason"]
