"""What leaves for the collectors, by mail and by deposit, and what anyone outside can see of it."""

import asyncio
import re
import signal
from collections.abc import Iterator
from email import message_from_bytes
from email.policy import default
from pathlib import Path

import pytest

from tests.support import documents as made
from tests.support.clients import Dialogue, mail
from tests.support.collector import Received
from tests.support.farside import HANG_UP, Far, listening
from tests.support.firm import Firm, digest, documents_of

pytestmark = pytest.mark.debian("postfix")

SENDER = "compta@cabinet.example"
NOT_THERE = "550 5.1.1 <parti@factures-meg.fr>: MEG ne connait pas ce dossier (factures-meg.fr)"


@pytest.fixture(scope="module")
def firm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Firm]:
    behaviour = {
        "reject": ["refuse@achats.factures-meg.fr"],
        "defer": ["occupe@achats.factures-meg.fr"],
        "refuse_header": "^Subject: =?.*non-conforme",
    }
    firm = Firm.start(tmp_path_factory.mktemp("firm"), **behaviour)
    yield firm
    firm.stop()


@pytest.fixture
def own_firm(tmp_path: Path) -> Iterator[Firm]:
    """For what is everybody's: the daemon's settings, the collector's manners."""
    firm = Firm.start(tmp_path, replies={"parti@factures-meg.fr": NOT_THERE})
    yield firm
    firm.stop()


def arrived_for(firm: Firm, recipient: str) -> list[Received]:
    return [each for each in firm.collector.messages() if each.envelope_recipient == recipient]


def invoice(name: str) -> tuple[str, str, bytes]:
    return f"{name}.pdf", "application/pdf", made.pdf(name)


# --- a mail ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "collector"),
    [
        ("meg+macon-dupont@welyb.fr", "macon-dupont@factures-meg.fr"),
        ("meg+achats+macon-dupont@welyb.fr", "macon-dupont@achats.factures-meg.fr"),
        ("MEG+Achats+Leroy@Welyb.FR", "leroy@achats.factures-meg.fr"),
        ("meg+achatsdupont@welyb.fr", "achatsdupont@factures-meg.fr"),
    ],
    ids=["S11", "S12", "case", "achats is a word only between pluses"],
)
def test_S11_S12_a_mail_is_relayed_as_it_came_at_the_next_run(firm: Firm, typed: str, collector: str) -> None:
    message = mail(SENDER, typed, invoice("Facture n° 9"), text="Bonjour,\n.\n..\nFrom moi\n\n")
    assert firm.mail(typed, message).accepted
    assert arrived_for(firm, collector) == [], "nothing leaves between runs (S5, S17)"
    firm.run()
    (received,) = arrived_for(firm, collector)
    assert received.transmitted.endswith(message)
    ours = received.transmitted.removesuffix(message).decode()
    assert re.fullmatch(r"Received: from .*(?:\r\n\t.*)*\r\nX-Welyb-Relay: welyb\.fr\r\n", ours)
    assert re.fullmatch(r"retours\+[a-z2-7]{24}@welyb\.fr", received.envelope_sender)
    (document,) = documents_of(received)
    assert (document.name, document.sha256) == ("Facture n° 9.pdf", digest(made.pdf("Facture n° 9")))


def test_S8_both_generations_from_one_mail(firm: Firm) -> None:
    recipients = ["meg+ancien@welyb.fr", "meg+achats+nouveau@welyb.fr"]
    message = mail(SENDER, recipients, invoice("commune"))
    assert firm.mail(recipients, message).accepted
    firm.run()
    (old,), (new,) = (
        arrived_for(firm, "ancien@factures-meg.fr"),
        arrived_for(firm, "nouveau@achats.factures-meg.fr"),
    )
    assert old.transmitted.endswith(message) and new.transmitted.endswith(message)


def test_the_null_sender_stays_null(firm: Firm) -> None:
    assert firm.mail("meg+rapport@welyb.fr", mail(SENDER, "x@y.example", invoice("rapport")), sender="").accepted
    firm.run()
    (received,) = arrived_for(firm, "rapport@factures-meg.fr")
    assert received.envelope_sender == ""


def test_a_document_mailed_again_is_sent_again_and_flagged(firm: Firm) -> None:
    for _ in range(2):
        assert firm.mail("meg+encore@welyb.fr", mail(SENDER, "meg+encore@welyb.fr", invoice("encore"))).accepted
        firm.run()
    assert len(arrived_for(firm, "encore@factures-meg.fr")) == 2
    events = [row["event"] for row in firm.relay.json("trace", digest(made.pdf("encore")))]
    assert events.count("again") == 1 and events.count("sent") == 2


# --- S18 ------------------------------------------------------------------------------------------------------------


def test_S18_validated_if_and_only_if_the_next_hop_accepted_it(firm: Firm) -> None:
    taken, refused, busy = firm.client(), firm.client("refuse"), firm.client("occupe")
    for client in (taken, refused, busy):
        client.connect()
        client.put("Achats/facture.pdf", made.pdf(client.slug))
    taken.put("Achats/non-conforme.pdf", made.pdf("non-conforme"))  # refused after the dot, by its subject
    assert firm.mail("meg+achats+occupe@welyb.fr", mail(SENDER, "x@y.example", invoice("par mail"))).accepted
    firm.run()
    assert taken.statuses() == {"facture.pdf": "validated", "non-conforme.pdf": "failed"}
    assert refused.statuses() == {"facture.pdf": "failed"}
    assert busy.statuses() == {"facture.pdf": "pending", "par mail.pdf": "pending"}
    validated = [row for client in (taken, refused, busy) for row in client.documents() if row["validated_at"]]
    assert [row["client"] for row in validated] == [taken.slug]
    assert "550 5.1.1" in refused.document("facture.pdf")["reason"]
    story = firm.relay.json("trace", taken.document("facture.pdf")["id"])
    assert [row["event"] for row in story] == ["deposited", "attempted", "sent"]
    assert story[-1]["detail"]["reply"].startswith("250")
    firm.collector.change(defer=[])
    firm.run()
    assert busy.statuses() == {"facture.pdf": "validated", "par mail.pdf": "validated"}
    assert refused.statuses() == {"facture.pdf": "failed"}, "final is final"


@pytest.mark.parametrize(
    ("script", "uncertain"),
    [
        ({"DOT": HANG_UP}, True),
        ({"DATA": HANG_UP}, False),
        ({"RCPT": b"552 5.2.2 mailbox full\r\n"}, False),
        ({"MAIL": b"550 5.7.1 we do not like you\r\n"}, False),
        ({"BANNER": b"554 no\r\n"}, False),
    ],
    ids=["line dropped after the dot", "line dropped before", "552 is full, not final", "5xx to MAIL", "5xx banner"],
)
def test_S18_not_validated_when_the_answer_never_came(firm: Firm, script: dict[str, bytes], uncertain: bool) -> None:
    client = firm.client()
    client.connect()
    client.put("Achats/facture.pdf", made.pdf(client.slug))
    far = Far(script)

    async def run_against_it() -> None:
        async with listening(far) as where:
            route = {"achats.factures-meg.fr": f"{where.address}:{where.port}"}
            with firm.set_to({"delivery": {"routes": route}}):
                await asyncio.to_thread(firm.run)

    asyncio.run(run_against_it())
    (row,) = client.documents()
    assert (row["status"], row["validated_at"], row["uncertain"]) == ("pending", None, uncertain)
    firm.run()
    (row,) = client.documents()
    assert row["status"] == "validated"
    (received,) = arrived_for(firm, client.collector_address)
    ids = [re.search(rb"(?m)^Message-ID: (.*)\r$", sent) for sent in (*far.messages, received.transmitted)]
    assert len({found[1] for found in ids if found}) == 1, "every attempt bears one Message-ID"


# --- S4 -------------------------------------------------------------------------------------------------------------


def names_the_partner(text: str) -> list[str]:
    """Where `text` names MEG or a collector. The meg+ address is the one its sender typed: no news to them."""
    without_typed = re.sub(r"(?i)\bmeg\+[\w.+-]+@welyb\.fr", "", text)
    return re.findall(r"(?i)\bMEG\b.{0,30}|.{0,30}factures-meg.{0,10}|mon expert|\bRCA\b", without_typed)


def every_text_of(message: bytes) -> str:
    """The octets, and what each encoded field and part says in clear."""
    texts = [message.decode("latin-1")]
    for part in message_from_bytes(message, policy=default).walk():
        texts += [f"{name}: {value}" for name, value in part.items()]
        if part.get_content_maintype() in ("text", "message") and not part.is_multipart():
            texts.append(str(part.get_content()))
    return "\n".join(texts)


def test_the_search_finds_what_it_searches() -> None:
    for text in ("chez MEG", "x@achats.factures-meg.fr", "mx.factures-meg.fr", "meg+x@welyb.fr refuse par meg"):
        assert names_the_partner(text)
    assert not names_the_partner("<meg+achats+x@welyb.fr> Megane et mon omega")
    hidden = b'Content-Type: text/plain; charset="utf-8"\r\nContent-Transfer-Encoding: base64\r\n\r\nTUVH\r\n'
    assert names_the_partner(every_text_of(hidden))


def test_S4_no_reply_names_the_partner(own_firm: Firm) -> None:
    own_firm.client("macon-dupont")
    port, said = own_firm.relay.port, []
    recipients = ["meg+macon-dupont@welyb.fr", "meg+achats@welyb.fr", "meg+achats+@welyb.fr", "meg+a%b@welyb.fr"]
    recipients += ["meg+é@welyb.fr", "meg@welyb.fr", "x@factures-meg.fr", "ventes+inconnu@welyb.fr", "x@welyb.fr"]
    recipients += ["retours+aaaaaaaaaaaaaaaaaaaaaaaa@welyb.fr", "x@gmail.com", '"meg+a b"@welyb.fr']
    contents = [made.pdf(), made.plain_zip(), made.html(), made.pdf_of_size(10_000_001), b"", made.exe(), made.rar()]

    def converse() -> None:
        with Dialogue(port) as dialogue:
            said.extend([dialogue.greeting, dialogue.hello()])
            said.extend(map(dialogue.say, ("HELP", "VRFY meg+macon-dupont", "EXPN meg", "NOOP", "FROB", "STARTTLS")))
        for recipient in recipients:
            with Dialogue(port) as dialogue:
                dialogue.hello()
                said.extend(dialogue.envelope(SENDER, recipient))
                said.append(dialogue.say("QUIT"))
        for content in contents:
            with Dialogue(port) as dialogue:
                dialogue.hello()
                said.extend(dialogue.envelope(SENDER, recipients[0]))
                said.append(dialogue.data(mail(SENDER, recipients[0], ("facture.pdf", "application/pdf", content))))

    converse()
    own_firm.relay.configure({"smtp": {"trusted_networks": ["192.0.2.0/24"]}})  # now we are strangers
    assert own_firm.relay.program.process is not None
    own_firm.relay.program.process.send_signal(signal.SIGHUP)
    own_firm.wait_until(lambda: "reloaded" in own_firm.relay.program.told())
    converse()
    codes = {reply.code for reply in said}
    assert {220, 250, 550, 552, 553, 554} <= codes, "the conversation went where it should"
    assert names_the_partner("\n".join(reply.text for reply in said)) == []


def test_S4_neither_bounces_nor_headers_nor_names_do(own_firm: Firm) -> None:
    client = own_firm.client("macon-dupont")
    client.connect()
    client.put("Achats/Facture 12.pdf", made.pdf("12"))
    for name in ("macon-dupont", "parti"):
        address = f"meg+{name}@welyb.fr"
        assert own_firm.mail(address, mail(SENDER, address, invoice("relayée"))).accepted
    assert own_firm.mail("ventes+macon-dupont@welyb.fr", mail("a@b.example", "x@y.example", invoice("vente"))).accepted
    own_firm.run()  # fails for one of them
    own_firm.run()  # the report leaves
    (bounce,) = arrived_for(own_firm, SENDER)
    assert bounce.envelope_sender == ""
    assert b"Final-Recipient: rfc822; meg+parti@welyb.fr\r\n" in bounce.transmitted
    assert names_the_partner(every_text_of(bounce.transmitted)) == []
    for received in own_firm.collector.messages():
        block, _, _ = received.transmitted.partition(b"\r\n\r\n")
        if received.envelope_recipient == client.collector_address:
            block = re.sub(rb"(?m)^To: .*\r\n", b"", block)  # it goes to the collector, after all
        assert names_the_partner(every_text_of(block + b"\r\n\r\n")) == []
        assert names_the_partner(received.envelope_sender) == []
        assert [document for document in documents_of(received) if names_the_partner(document.name)] == []
    assert [path for path in client.path.rglob("*") if names_the_partner(path.name)] == []
