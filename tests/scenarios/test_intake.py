"""At the relay's door, through the real command: who is let in, what is taken, and every word of what is refused.

Long because it is one table after another: every verb, every address form and every refusal, with its exact reply.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import documents as made
from tests.support.clients import CLIENTS, Client, Dialogue, mail, stuffed
from tests.support.firm import Firm, digest
from tests.support.relay import Relay

pytestmark = pytest.mark.debian("postfix")

SENDER = "compta@cabinet.example"
VENTES, MEG = "ventes+macon-dupont@welyb.fr", "meg+macon-dupont@welyb.fr"
PDF = ("facture.pdf", "application/pdf", made.pdf())
STRANGER = "127.0.0.2"  # the firm trusts 127.0.0.1 alone


@pytest.fixture(scope="module")
def firm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firm]:
    settings = {"smtp": {"trusted_networks": ["127.0.0.1/32"]}}
    firm = Firm.start(tmp_path_factory.mktemp("firm"), settings)
    for name in ("Maçon & Dupont", "Martin"):
        firm.relay.client(name)
    yield firm
    firm.stop()
    told = firm.relay.program.err.read_text()
    assert "trouble" not in told and "Traceback" not in told


@pytest.fixture
def dialogue(firm: Firm) -> Iterator[Dialogue]:
    with Dialogue(firm.relay.port) as dialogue:
        dialogue.hello()
        yield dialogue


@pytest.fixture(autouse=True)
def french(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "fr_FR.UTF-8")


def offered(dialogue: Dialogue, message: bytes, *recipients: str, sender: str = SENDER) -> str:
    """The whole answer to the mail, code and all, one line for each."""
    replies = dialogue.envelope(sender, *(recipients or (VENTES,)))
    assert {reply.code for reply in replies} == {250}, replies
    reply = dialogue.data(message)
    return "\n".join(f"{reply.code} {line}" for line in reply.lines)


def accepted(reply: str) -> bool:
    return re.fullmatch(r"250 2\.0\.0 Message accepte \(accepted\) [0-9a-z]{16}", reply) is not None


def document(name: str, content: bytes) -> bytes:
    return mail(SENDER, VENTES, (name, "application/octet-stream", content))


# --- S11, S12, and whoever sends ------------------------------------------------------------------------------------


def test_S11_S12_each_address_leads_to_its_generation_of_collector(firm: Firm) -> None:
    for name, generation in (("s11", ""), ("s12", "achats+")):
        message = mail(SENDER, "quelqu.un@ailleurs.example", PDF)  # headers never decide
        assert firm.mail(f"meg+{generation}{name}@welyb.fr", message).accepted
    firm.run()
    received = {m.envelope_recipient for m in firm.collector.messages()}
    assert {"s11@factures-meg.fr", "s12@achats.factures-meg.fr"} <= received


@pytest.mark.debian("swaks", "msmtp", "curl")
@pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS.keys())
def test_whatever_program_sends_it(firm: Firm, client: Client) -> None:
    sent = client(firm.relay.port, SENDER, [VENTES], mail(SENDER, VENTES, PDF, text="Bonjour,\n.\n..\n"))
    assert accepted(f"{sent.code} {sent.text}")


@pytest.mark.debian("curl")
def test_over_tls_with_a_verified_name(
    new_relay: Callable[..., Relay], certificate: tuple[Path, Path], authority_file: Path
) -> None:
    chain, key = map(str, certificate)
    relay = new_relay({"smtp": {"certificate": chain, "key": key}}).start()
    message = mail(SENDER, MEG, PDF)
    sent = CLIENTS["curl"](relay.port, SENDER, [MEG], message, authority=authority_file)
    assert sent.accepted, sent


def test_the_250_ends_with_an_id_that_trace_knows(firm: Firm, dialogue: Dialogue) -> None:
    reply = offered(dialogue, mail(SENDER, VENTES, PDF))
    story = firm.relay.json("trace", reply.split()[-1])
    assert story[0]["event"] == "accepted" and story[0]["detail"]["sender"] == SENDER


# --- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        (b"RCPT TO:<ventes+macon-dupont@welyb.fr", "501 5.1.3 Adresse illisible (bad address syntax)"),
        (b"RCPT TO:", "501 5.1.3 Adresse illisible (bad address syntax)"),
        (b"RCPT TO:<>", "501 5.1.3 Adresse illisible (bad address syntax)"),
        (b"RCPT ventes+martin@welyb.fr", "501 5.1.3 Adresse illisible (bad address syntax)"),
        (b"RCPT TO:<meg+achats@welyb.fr>", "553 5.1.3 Adresse de collecte mal formee (malformed address)"),
        (b"RCPT TO:<meg+a+b@welyb.fr>", "553 5.1.3 Adresse de collecte mal formee (malformed address)"),
        (b'RCPT TO:<"meg+x y"@welyb.fr>', "553 5.1.3 Adresse de collecte mal formee (malformed address)"),
        (b"RCPT TO:<meg+x%y@welyb.fr>", "553 5.1.3 Adresse de collecte mal formee (malformed address)"),
        (b"RCPT TO:<meg+x\x00@welyb.fr>", "553 5.1.3 Adresse de collecte mal formee (malformed address)"),
        (b"RCPT TO:<meg+d\xe9@welyb.fr>", "553 5.1.3 Adresse de collecte mal formee (malformed address)"),
        ("RCPT TO:<meg+dépôt@welyb.fr>".encode(), "553 5.6.7 Adresse non ASCII non prise en charge (non-ASCII "),
        (b"RCPT TO:<ventes+quidam@welyb.fr>", "550 5.1.1 Adresse de collecte inconnue (unknown address)"),
        (
            b"RCPT TO:<retours+aaaaaaaaaaaaaaaaaaaaaaaa@welyb.fr>",
            "550 5.1.1 Adresse de collecte inconnue (unknown address)",
        ),
        (b"RCPT TO:<macon-dupont@factures-meg.fr>", "550 5.7.1 Envoi non autorise vers cette adresse (not permitted)"),
        (b"RCPT TO:<x@ailleurs.example>", "550 5.7.1 Envoi non autorise vers cette adresse (not permitted)"),
        (b"RCPT TO:<ventes+martin@welyb.fr> NOTIFY=NEVER", "555 5.5.4 Parametre non pris en charge"),
        (b"RCPT TO: <ventes+martin@welyb.fr>", "250 2.1.5 "),
        (b"rcpt to:ventes+martin@welyb.fr", "250 2.1.5 "),
        (b'RCPT TO:<"ventes+martin"@WELYB.fr>', "250 2.1.5 "),
        (b"RCPT TO:<@relais.example:ventes+martin@welyb.fr>", "250 2.1.5 "),
        (b"RCPT TO:<Postmaster>", "250 2.1.5 "),
        (b"RCPT TO:<abuse@welyb.fr>", "250 2.1.5 "),
    ],
)
def test_what_rcpt_is_answered(dialogue: Dialogue, line: bytes, reply: str) -> None:
    dialogue.say(f"MAIL FROM:<{SENDER}>")
    said = dialogue.say(line + b"\r\n")
    assert f"{said.code} {said.text}".startswith(reply)


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        (b"MAIL FROM:<a@b.example> SIZE=1000 BODY=8BITMIME", "250 2.1.0"),
        (b"MAIL FROM:<a@b.example> BODY=7BIT", "250 2.1.0"),
        (b"MAIL FROM:<>", "250 2.1.0"),
        (b"mail from: a@b.example", "250 2.1.0"),
        (b"MAIL FROM:<@relais.example:a@b.example>", "250 2.1.0"),
        (b'MAIL FROM:<"a b"@b.example>', "250 2.1.0"),
        (b"MAIL FROM:<a@b.example> SIZE=50000000", "250 2.1.0"),
        (b"MAIL FROM:<a@b.example> SIZE=50000001", "552 5.3.4 Message trop volumineux (message too large)"),
        (b"MAIL FROM:<a@b.example> SIZE=x", "501 5.5.4"),
        (b"MAIL FROM:<a@b.example> SIZE", "501 5.5.4"),
        (b"MAIL FROM:<a@b.example> BODY=BINARYMIME", "501 5.5.4"),
        (b"MAIL FROM:<a@b.example> SMTPUTF8", "555 5.5.4"),
        (b"MAIL FROM:<a@b.example> RET=HDRS", "555 5.5.4"),
        (b"MAIL FROM:<a@b.example", "501 5.1.3"),
        (b"MAIL TO:<a@b.example>", "501 5.1.3"),
        (b"MAIL FROM:<a@@b.example>", "553 5.1.3"),
        (b"MAIL FROM:<a\x07@b.example>", "553 5.1.3"),
    ],
)
def test_what_mail_is_answered(dialogue: Dialogue, line: bytes, reply: str) -> None:
    said = dialogue.say(line + b"\r\n")
    assert f"{said.code} {said.text}".startswith(reply)


def test_each_recipient_is_judged_alone(firm: Firm, dialogue: Dialogue) -> None:
    said = dialogue.envelope(SENDER, "meg+a@welyb.fr", "ventes+quidam@welyb.fr", VENTES, "x@ailleurs.example", VENTES)
    assert [reply.code for reply in said] == [250, 250, 550, 250, 550, 250]
    reply = dialogue.data(mail(SENDER, VENTES, PDF))
    rows = firm.relay.json("queue", "list", "--id", reply.text.split()[-1])
    assert sorted((row["kind"], row["recipient"]) for row in rows) == [("file", VENTES), ("send", "meg+a@welyb.fr")]


def test_a_stranger_files_sales_and_writes_to_people_but_collects_nothing(firm: Firm) -> None:
    with Dialogue(firm.relay.port, source=STRANGER) as stranger:
        stranger.hello()
        said = stranger.envelope("a@b.example", MEG, "meg+achats+x@welyb.fr", VENTES, "postmaster@welyb.fr", "<abuse>")
        assert [reply.code for reply in said[:5]] == [250, 550, 550, 250, 250]
        assert said[1].text == "5.7.1 Envoi non autorise vers cette adresse (not permitted)"
        assert stranger.data(mail("a@b.example", VENTES, PDF)).code == 250


def test_folders_made_later_are_clients_within_seconds_and_two_of_one_slug_are_refused_for_now(firm: Firm) -> None:
    for name in ("Société Nouvelle", "Léa Dupuis", "LEA-DUPUIS"):
        firm.relay.client(name)
    message = mail(SENDER, VENTES, PDF)
    firm.wait_until(lambda: firm.mail("ventes+societe-nouvelle@welyb.fr", message).accepted)
    sent = firm.mail("ventes+lea-dupuis@welyb.fr", message)
    assert (sent.code, sent.text) == (451, "4.3.0 Incident temporaire (temporary failure)")


def test_mail_for_people_is_kept_and_listed(firm: Firm, dialogue: Dialogue) -> None:
    reply = offered(
        dialogue, mail("a@b.example", "postmaster", ("a.zip", "application/zip", made.plain_zip())), "postmaster"
    )
    (row,) = firm.relay.json("queue", "list", "--id", reply.split()[-1])
    assert (row["state"], row["target"]) == ("held", "postmaster@welyb.fr")
    assert row["reason"].startswith("Gardé ici : aucun postmaster")


def test_vrfy_and_expn_tell_nothing(dialogue: Dialogue) -> None:
    said = dialogue.pipeline(*(f"{verb} {who}" for verb in ("VRFY", "EXPN") for who in (VENTES, "ventes+quidam", "x")))
    assert {reply.code for reply in said} == {252} and len({reply.text for reply in said}) == 1


def test_S4_nothing_said_at_the_door_names_who_is_behind(dialogue: Dialogue) -> None:
    said = [dialogue.say("EHLO x.example"), dialogue.say("HELP"), dialogue.say("VRFY meg+x@welyb.fr")]
    said += dialogue.envelope(SENDER, MEG, "meg+achats@welyb.fr", "meg+a+b@welyb.fr", "x@factures-meg.fr")
    said.append(dialogue.data(mail(SENDER, MEG, ("a.zip", "application/zip", made.plain_zip()))))
    spoken = "\n".join(reply.text for reply in (dialogue.greeting, *said)).lower()
    assert "meg" not in spoken and "rca" not in spoken and "expert en gestion" not in spoken


# --- S20 to S22: documents ------------------------------------------------------------------------------------------


def test_S20_S21_a_zip_refuses_the_mail_and_says_what_to_do(firm: Firm, dialogue: Dialogue) -> None:
    message = mail(SENDER, VENTES, PDF, ("relevé.zip", "application/pdf", made.plain_zip()))
    assert offered(dialogue, message, MEG, VENTES) == (
        "554 5.6.1 releve.zip : archive ZIP non prise en charge, joignez les documents separement (ZIP refused)"
    )
    (refused,) = firm.relay.json("trace", "relevé.zip")
    assert refused["event"] == "refused"
    assert [d["name"] for d in refused["detail"]["documents"]] == ["facture.pdf", "relevé.zip"]
    assert refused["detail"]["documents"][1]["reason"] == {"code": "zip"}


REFUSED: list[tuple[str, bytes, str]] = [
    ("releve.zip", made.plain_zip(), "554 5.6.1 releve.zip : archive ZIP non prise en charge"),
    ("facture.pdf", made.plain_zip(), "554 5.6.1 facture.pdf : archive ZIP non prise en charge"),
    ("facture.docx", made.jar(), "554 5.6.1 facture.docx : archive ZIP non prise en charge"),
    ("facture.pdf", made.pdf_zip_polyglot(), "554 5.6.1 facture.pdf : archive ZIP cachee dans un fichier "),
    ("facture.zip", made.plain_zip()[:-30], "554 5.6.1 facture.zip : archive endommagee"),
    ("facture.7z", made.seven_zip(), "554 5.6.1 facture.7z : archive 7z non prise en charge"),
    ("facture.rar", made.rar(), "554 5.6.1 facture.rar : archive rar non prise en charge"),
    ("facture.tar", made.tar(), "554 5.6.1 facture.tar : archive tar non prise en charge"),
    ("facture.pdf", made.tar_gz(), "554 5.6.1 facture.pdf : archive gz"),
    ("facture.exe", made.exe(), "554 5.6.1 facture.exe : programme non pris en charge (executable refused)"),
    ("facture.pdf", made.html(), "554 5.6.1 facture.pdf : page HTML non prise en charge, joignez un PDF, type reel "),
    ("facture.pdf", b"", "554 5.6.0 facture.pdf : document vide, 0 octet (empty document)"),
    ("facture.xml", made.entity_bomb(), "554 5.6.1 facture.xml : XML declarant des entites"),
    ("winmail.dat", made.tnef(), "554 5.6.1 winmail.dat : format Outlook winmail.dat"),
]


@pytest.mark.parametrize(("name", "content", "reply"), REFUSED, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(REFUSED)])
def test_what_is_refused_is_named_with_what_it_really_is(
    dialogue: Dialogue, name: str, content: bytes, reply: str
) -> None:
    assert offered(dialogue, document(name, content)).lower().startswith(reply.lower())


TAKEN = [
    ("encrypted.pdf", made.encrypted_pdf()),
    ("signed.pdf", made.signed_pdf()),
    ("a3.pdf", made.pdfa3_with_xlsx()),
    ("junk.pdf", made.pdf_with_junk(1000)),
    ("odd.docx", made.docx_odd_order()),
    ("old.doc", made.old_doc()),
    ("photo.heic", made.heic()),
    ("data.csv", made.csv()),
]


def test_what_is_a_document_is_taken_whatever_it_is_called(dialogue: Dialogue) -> None:
    for name, content in TAKEN:
        assert accepted(offered(dialogue, document(name, content))), name
    assert accepted(offered(dialogue, document("logo-noname.pdf", made.pdf("1"))))  # what Welyb's own mailbox ignores


def test_S22_ten_million_bytes_are_taken_and_one_more_is_not(firm: Firm, dialogue: Dialogue) -> None:
    assert accepted(offered(dialogue, document("juste.pdf", made.pdf_of_size(10_000_000))))
    assert offered(dialogue, document("scan.pdf", made.pdf_of_size(10_000_001))) == (
        "552 5.3.4 scan.pdf : document trop volumineux, 10,000001 Mo, limite 10 Mo (over 10 MB)"
    )
    assert offered(dialogue, document("scan.pdf", made.pdf_of_size(11_000_000))) == (
        "552 5.3.4 scan.pdf : document trop volumineux, 11,0 Mo, limite 10 Mo (over 10 MB)"
    )
    kept = [row["detail"]["documents"][0] for row in firm.relay.json("trace", "scan.pdf")]
    assert [(d["size"], d["reason"]["size"]) for d in kept] == [(10_000_001,) * 2, (11_000_000,) * 2]


def test_several_refusals_are_told_type_before_size_ten_and_then_a_count(dialogue: Dialogue) -> None:
    archives = [(f"n° {n} « été » \u202e.zip", "application/zip", made.zip_of({"a": bytes([n])})) for n in range(11)]
    message = mail(SENDER, VENTES, ("gros.pdf", "application/pdf", made.pdf_of_size(10_500_000)), *archives, PDF)
    lines = offered(dialogue, message).splitlines()
    assert len(lines) == 11 and {line[:9] for line in lines} == {"554 5.6.1"}
    assert all("archive ZIP" in line for line in lines[:10])
    assert lines[10] == "554 5.6.1 et 2 autres fichiers (and 2 more)"
    assert all(line.isascii() and line.isprintable() and len(line) <= 510 for line in lines)


def test_a_long_name_leaves_room_for_the_reason(dialogue: Dialogue) -> None:
    (line,) = offered(dialogue, document("é" * 400 + ".zip", made.plain_zip())).splitlines()
    assert len(line) <= 510 and line.endswith("(ZIP refused)")


def test_no_document_is_refused_where_one_is_wanted(dialogue: Dialogue) -> None:
    assert offered(dialogue, mail(SENDER, VENTES)) == "554 5.6.0 Aucun document joint (no document attached)"
    assert accepted(offered(dialogue, mail(SENDER, MEG), MEG))
    assert offered(dialogue, mail(SENDER, MEG), MEG, VENTES).startswith("554 5.6.0")


def test_a_refusal_answers_for_the_invoice_by_whatever_is_known_of_it(firm: Firm, dialogue: Dialogue) -> None:
    content = made.zip_of({"facture 77.pdf": made.pdf("77")})
    message = mail("fournisseur77@f.example", VENTES, ("lot77.zip", "application/zip", content))
    offered(dialogue, message, sender="fournisseur77@f.example")
    message_id = re.search(rb"Message-ID: (<.*>)", message)
    assert message_id is not None
    for known in ("fournisseur77@f.example", "lot77.zip", digest(content), message_id[1].decode()):
        (row,) = firm.relay.json("trace", known)
        assert row["event"] == "refused" and row["detail"]["recipients"] == [VENTES]
        assert row["detail"]["reply"].startswith("554 5.6.1 lot77.zip : archive ZIP")


# --- the shape of a message -----------------------------------------------------------------------------------------

PLAIN = mail(SENDER, VENTES, PDF)


def parts(number: int) -> bytes:
    return b"".join((b"Content-Type: multipart/mixed; boundary=b\r\n\r\n", b"--b\r\n\r\nx\r\n" * number, b"--b--\r\n"))


def nested(depth: int) -> bytes:
    return (
        b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(depth))
        + b"\r\nx\r\n"
    )


@pytest.mark.parametrize(
    ("message", "reply"),
    [
        (b"X: " + b"a " * 131_100 + b"\r\n" + PLAIN, "552 5.3.4 En-tetes trop volumineux (header block too large)"),
        (parts(201), "550 5.6.0 Trop de parties dans le message (too many parts)"),
        (nested(11), "550 5.6.0 Message trop imbrique (nested too deeply)"),
        (b"Received: x\r\n" * 51 + PLAIN, "554 5.4.6 Boucle de messagerie detectee (mail loop detected)"),
        (b"x-welyb-relay:  WELYB.fr \r\n" + PLAIN, "554 5.4.6 Boucle de messagerie detectee (mail loop detected)"),
        (b"Content-Type: message/partial; id=a; number=1\r\n\r\nx\r\n", "554 5.6.1 Message partiel ou externe"),
    ],
    ids=["header", "parts", "depth", "hops", "loop", "partial"],
)
def test_messages_that_no_sound_mailer_writes(dialogue: Dialogue, message: bytes, reply: str) -> None:
    assert offered(dialogue, message).startswith(reply)


def test_just_within_those_limits(dialogue: Dialogue) -> None:
    for message in (
        b"X: " + b"a " * 130_000 + b"\r\n" + PLAIN,
        b"Received: x\r\n" * 50 + PLAIN,
        b"X-Welyb-Relay: autre.example\r\n" + PLAIN,
        parts(200),
        b"X: " + b"a" * 70_000 + b"\r\n" + PLAIN,  # a line much longer than 998
    ):
        assert accepted(offered(dialogue, message, MEG))


ALMOST_ENDS = [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\r\r\n.\r\r\n", b"\n\n.\r\n"]


@pytest.mark.parametrize("end", ALMOST_ENDS)
def test_no_second_mail_is_smuggled_in_and_bare_line_ends_are_refused(firm: Firm, end: bytes) -> None:
    smuggled = b"MAIL FROM:<evil@x.example>\r\nRCPT TO:<meg+evil@welyb.fr>\r\nDATA\r\nSubject: x\r\n\r\nx"
    with Dialogue(firm.relay.port) as dialogue:
        dialogue.hello()
        dialogue.envelope(SENDER, MEG)
        dialogue.say("DATA")
        dialogue.send(b"Subject: a\r\n\r\na" + end + smuggled + b"\r\n.\r\nQUIT\r\n")
        said = dialogue.reply()
        assert (said.code, said.text) == (550, "5.5.2 Fin de ligne incorrecte (bare CR or LF)")
        assert dialogue.reply().code == 221


@pytest.mark.parametrize(
    "where", [b"Subject: a\nb\r\n\r\nc\r\n", b"Subject: a\r\n\r\nb\rc\r\n", b"Subject: a\r\n\r\nb\n"]
)
def test_bare_line_ends_are_refused_wherever_they_stand(dialogue: Dialogue, where: bytes) -> None:
    dialogue.envelope(SENDER, MEG)
    assert dialogue.last_chunk(where).text == "5.5.2 Fin de ligne incorrecte (bare CR or LF)"


def test_old_scanners_may_be_forgiven_their_line_ends_and_strangers_not(new_relay: Callable[..., Relay]) -> None:
    relay = new_relay({"smtp": {"bare_newlines": "normalise", "trusted_networks": ["127.0.0.1/32"]}})
    relay.client("Martin")
    relay.start()
    message = mail(SENDER, "x", PDF)
    for bare in (message.replace(b"\r\n", b"\n"), message.replace(b"\r\n", b"\r")):
        with Dialogue(relay.port) as dialogue:
            dialogue.hello()
            dialogue.envelope(SENDER, MEG)
            reply = dialogue.last_chunk(bare)
            assert reply.code == 250
        spooled = subprocess.run([*relay._command(), "queue", "body", reply.text.split()[-1]], capture_output=True)
        assert spooled.stdout == message
    with Dialogue(relay.port, source=STRANGER) as stranger:
        stranger.hello()
        stranger.envelope(SENDER, "ventes+martin@welyb.fr")
        assert stranger.last_chunk(message.replace(b"\r\n", b"\n")).code == 550


# --- the conversation -----------------------------------------------------------------------------------------------


def test_what_is_offered(dialogue: Dialogue) -> None:
    offers = dialogue.hello().lines
    assert offers[0] == "mx.welyb.fr"
    assert set(offers[1:]) == {"PIPELINING", "SIZE 50000000", "8BITMIME", "ENHANCEDSTATUSCODES", "CHUNKING"}


def test_a_whole_conversation_in_one_packet(firm: Firm) -> None:
    message = stuffed(mail(SENDER, VENTES, PDF))
    with Dialogue(firm.relay.port) as dialogue:
        dialogue.send(
            b"EHLO x.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<%b>\r\nRCPT TO:<x@y.example>\r\nDATA\r\n%b"
            b"MAIL FROM:<>\r\nRSET\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<%b>\r\nDATA\r\n%bNOOP\r\nQUIT\r\n"
            % (VENTES.encode(), message, VENTES.encode(), message)
        )
        codes = [dialogue.reply().code for _ in range(14)]
    assert codes == [250, 250, 250, 550, 354, 250, 250, 250, 250, 250, 354, 250, 250, 221]


def test_commands_out_of_their_order(firm: Firm) -> None:
    with Dialogue(firm.relay.port) as dialogue:
        codes = [dialogue.say(line).code for line in ("MAIL FROM:<a@b.example>", "RCPT TO:<x@welyb.fr>", "DATA")]
        assert codes == [503, 503, 503]
        assert [dialogue.say(line).code for line in ("EHLO", "EHLO x y", "XYZZY", "")] == [501, 501, 500, 500]
        dialogue.hello()
        assert dialogue.say("DATA").code == 503
        dialogue.say("MAIL FROM:<a@b.example>")
        assert dialogue.say("MAIL FROM:<a@b.example>").code == 503
        assert dialogue.say("DATA").text == "5.5.1 Aucun destinataire valable (no valid recipients)"
        dialogue.say(f"RCPT TO:<{VENTES}>")
        assert dialogue.say("DATA now").code == 501
        assert dialogue.say("RSET").code == 250
        assert dialogue.say("DATA").code == 503
        assert dialogue.say("HELO x.example").code == 250


def test_a_mail_in_chunks(firm: Firm, dialogue: Dialogue) -> None:
    message = mail(SENDER, VENTES, PDF)
    dialogue.envelope(SENDER, VENTES)
    assert dialogue.chunk(message[:100]).code == 250
    assert dialogue.chunk(b"").code == 250
    assert dialogue.say("DATA").code == 503  # RFC 3030 §2: not mixed
    assert dialogue.say("MAIL FROM:<a@b.example>").code == 503
    assert dialogue.say(f"RCPT TO:<{VENTES}>").code == 503
    assert dialogue.chunk(message[100:]).code == 250
    last = dialogue.last_chunk(b"")
    assert accepted(f"{last.code} {last.text}")
    (row,) = firm.relay.json("documents", "list", "--id", last.text.split()[-1])
    assert row["sha256"] == digest(PDF[2])


def test_a_dot_in_a_chunk_is_a_dot(firm: Firm, dialogue: Dialogue) -> None:
    message = b"Subject: x\r\n\r\n.\r\n..\r\n.x\r\n"
    dialogue.envelope(SENDER, MEG)
    last = dialogue.last_chunk(message)
    assert firm.relay.cli("queue", "body", last.text.split()[-1]).stdout.encode() == message.replace(b"\r\n", b"\n")


def test_chunks_that_cannot_be_taken_are_read_and_refused(dialogue: Dialogue) -> None:
    assert dialogue.chunk(b"NOOP\r\n" * 3).code == 503  # swallowed, not obeyed
    dialogue.say(f"MAIL FROM:<{SENDER}>")
    assert dialogue.last_chunk(b"QUIT\r\n").code == 503
    dialogue.say(f"RCPT TO:<{MEG}>")
    assert dialogue.chunk(b"Subject: x\r\n").code == 250
    assert dialogue.say("RSET").code == 250
    assert dialogue.say("NOOP").code == 250


@pytest.mark.parametrize("line", ["BDAT", "BDAT x", "BDAT -1 LAST", "BDAT 1 FIRST"])
def test_where_a_chunk_ends_unknown_the_conversation_is_over(dialogue: Dialogue, line: str) -> None:
    dialogue.envelope(SENDER, MEG)
    assert dialogue.say(line).code == 421
    with pytest.raises(ConnectionError):
        dialogue.say("NOOP")


@pytest.fixture
def narrow(new_relay: Callable[..., Relay]) -> Relay:
    relay: Relay = new_relay({"smtp": {"max_message_size": "100 kB"}})
    relay.client("Martin")
    return relay.start()


def test_a_message_over_the_limit_is_refused_at_its_end_and_traced(narrow: Relay) -> None:
    large = mail(SENDER, "x", PDF, text="x" * 110_000)
    with Dialogue(narrow.port) as dialogue:
        assert "SIZE 100000" in dialogue.hello().lines
        dialogue.envelope(SENDER, MEG)
        said = dialogue.data(large)
        assert (said.code, said.text) == (552, "5.3.4 Message trop volumineux (message too large)")
        dialogue.envelope(SENDER, MEG)
        assert dialogue.chunk(large[:60_000]).code == 250
        assert dialogue.chunk(large[60_000:]).code == 552
        assert dialogue.last_chunk(b"x").code == 503
        assert dialogue.say(f"MAIL FROM:<{SENDER}> SIZE=100001").code == 552
        dialogue.envelope(SENDER, MEG)
        assert dialogue.data(mail(SENDER, "x", PDF)).code == 250
    assert [row["event"] for row in narrow.json("trace", SENDER)].count("refused") == 2


# --- signals, disk, memory ------------------------------------------------------------------------------------------


def test_SIGTERM_finishes_the_mail_in_progress(new_relay: Callable[..., Relay]) -> None:
    relay: Relay = new_relay()
    relay.client("Martin")
    relay.start()
    message = stuffed(mail(SENDER, "ventes+martin@welyb.fr", PDF))
    with Dialogue(relay.port) as busy, Dialogue(relay.port) as idle:
        busy.hello()
        busy.envelope(SENDER, "ventes+martin@welyb.fr")
        busy.say("DATA")
        busy.send(message[:500])
        os.kill(relay.program.pid, signal.SIGTERM)
        assert idle.reply().code == 421
        busy.send(message[500:])
        assert busy.reply().code == 250
    assert relay.stop() == 0
    relay.start()
    filed_within(5, relay.ged, "facture.pdf")


def filed_within(seconds: float, root: Path, name: str) -> Path:
    end = time.monotonic() + seconds
    while not (found := list(root.rglob(name))):
        assert time.monotonic() < end, f"{name} was not filed"
        time.sleep(0.02)
    return found[0]


def test_SIGHUP_reads_settings_and_rules_again_and_keeps_the_old_where_they_are_bad(
    new_relay: Callable[..., Relay],
) -> None:
    relay: Relay = new_relay({"relay": {"rules": "rules.toml"}})
    rules = relay.folder / "rules.toml"
    shipped = Path(__file__).resolve().parents[2] / "rules/welyb.toml"
    rules.write_text(shipped.read_text())
    relay.start()
    dext = '\n[rule.dext]\naddress = "dext+{name}"\nrelay = "{name}+ventes@dext.cc"\n'

    def hangs_up(expected: str) -> int:
        written = relay.program.err.read_text().count(expected)
        os.kill(relay.program.pid, signal.SIGHUP)
        while relay.program.err.read_text().count(expected) == written:
            time.sleep(0.02)
        with Dialogue(relay.port) as dialogue:
            dialogue.hello()
            return dialogue.envelope(SENDER, "dext+dupont@welyb.fr")[1].code

    with Dialogue(relay.port) as dialogue:
        dialogue.hello()
        assert dialogue.envelope(SENDER, "dext+dupont@welyb.fr")[1].code == 553
        rules.write_text(shipped.read_text() + dext)
        assert hangs_up("reloaded") == 250
        rules.write_text("[rule.dext]\nadresse = 1\n")
        assert hangs_up("trouble") == 250
        rules.write_text(shipped.read_text())
        relay.configure({"relay": {"rules": "rules.toml"}, "smtp": {"certificate": "no.pem", "key": "no.key"}})
        assert hangs_up("trouble") == 250  # greeted, and by the old rules
        assert dialogue.say("NOOP").code == 250  # nobody was thrown out


@pytest.mark.debian("root")
def test_a_disk_nearly_full_is_said_at_mail_and_is_nobodys_loss(new_relay: Callable[..., Relay]) -> None:
    relay: Relay = new_relay({"relay": {"data": "small"}})
    small = relay.folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small], check=True)
    try:
        relay.start()
        assert CLIENTS["python"](relay.port, SENDER, [MEG], mail(SENDER, MEG, PDF)).accepted
        filler = small / "filler"
        room = os.statvfs(small)
        filler.write_bytes(bytes(room.f_bavail * room.f_frsize - 300_000))
        time.sleep(1.1)  # the answer is kept for a second
        sent = CLIENTS["python"](relay.port, SENDER, [MEG], mail(SENDER, MEG, PDF))
        assert (sent.code, sent.text) == (
            452,
            "4.3.1 Espace disque insuffisant, reessayez plus tard (insufficient storage)",
        )
        filler.unlink()
        time.sleep(1.1)
        assert CLIENTS["python"](relay.port, SENDER, [MEG], mail(SENDER, MEG, PDF)).accepted
        with Dialogue(relay.port) as dialogue:  # full in the middle of a mail
            dialogue.hello()
            dialogue.envelope(SENDER, MEG)
            assert dialogue.data(b"Subject: x\r\n\r\n" + (b"x" * 998 + b"\r\n") * 10_000).code == 452
        assert CLIENTS["python"](relay.port, SENDER, [MEG], mail(SENDER, MEG, PDF)).accepted
        assert len(relay.json("queue", "list")) == 3
    finally:
        relay.stop()
        subprocess.run(["umount", small], check=True)


def test_a_large_mail_costs_little_memory(new_relay: Callable[..., Relay]) -> None:
    relay: Relay = new_relay()
    relay.start()
    small, large = mail(SENDER, MEG, PDF), mail(SENDER, MEG, *(_large(n) for n in range(4)))
    assert len(large) > 40_000_000
    assert CLIENTS["python"](relay.port, SENDER, [MEG], small).accepted
    before = peak_memory(relay)
    assert CLIENTS["python"](relay.port, SENDER, [MEG], large).accepted
    assert peak_memory(relay) - before < 12_000_000


def _large(number: int) -> tuple[str, str, bytes]:
    return (f"{number}.pdf", "application/pdf", made.pdf_of_size(7_500_000 + number))


def peak_memory(relay: Relay) -> int:
    status: Any = Path(f"/proc/{relay.program.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1000  # type: ignore[index]
