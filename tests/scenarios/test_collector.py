"""The peers themselves: a scenario's finding is worth what its collector, name server and senders are worth."""

import smtplib
import socket
from pathlib import Path

import dns.resolver
import pytest

from tests.support.clients import CLIENTS, Client, Dialogue, mail
from tests.support.collector import Collector
from tests.support.partner import Partner
from tests.support.zone import Zone, zone_text

pytestmark = pytest.mark.debian("postfix", "knot", "swaks", "msmtp", "curl", "port 25")

SENDER, RECIPIENT = "compta@cabinet.example", "macon-dupont@factures-meg.fr"
PDF = ("facture n° 12.pdf", "application/pdf", b"%PDF-1.7\n.\n" + bytes(range(256)) * 400)

clients = pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS.keys())


@clients
def test_what_a_client_sends_is_kept_byte_for_byte(collector: Collector, client: Client) -> None:
    message = mail(SENDER, RECIPIENT, PDF, text="Bonjour,\n.\n..deux points\nFrom moi\n\n")
    sent = client(collector.port, SENDER, [RECIPIENT], message)
    assert sent.accepted, sent
    (received,) = collector.wait(1)
    assert received.transmitted == message
    assert (received.envelope_sender, received.envelope_recipient) == (SENDER, RECIPIENT)
    assert not received.over_tls


@clients
def test_a_client_tells_the_refusal_that_decided(collector: Collector, client: Client) -> None:
    collector.change(reject=["parti@factures-meg.fr"], defer=["occupe@factures-meg.fr"], refuse_header="^Subject: non")
    collector.change(replies={"plein@factures-meg.fr": "552 5.2.2 Boite pleine"}, size_limit=100_000)
    small, refused, large = (
        mail(SENDER, RECIPIENT, subject="oui"),
        mail(SENDER, RECIPIENT, subject="non"),
        mail(SENDER, RECIPIENT, PDF),
    )
    told = [
        client(collector.port, SENDER, [recipient], message)
        for recipient, message in (
            ("parti@factures-meg.fr", small),
            ("occupe@factures-meg.fr", small),
            ("plein@factures-meg.fr", small),
            ("quidam@ailleurs.example", small),
            (RECIPIENT, refused),
            (RECIPIENT, large),
        )
    ]
    assert [sent.code for sent in told] == [550, 450, 552, 554, 550, 552]
    assert told[2].text.endswith("Boite pleine")
    assert collector.messages() == []


@clients
def test_the_null_sender_and_several_recipients(collector: Collector, client: Client) -> None:
    recipients = [RECIPIENT, "x@achats.factures-meg.fr"]
    message = mail(SENDER, recipients)
    assert client(collector.port, "", recipients, message).accepted
    received = collector.wait(2)
    assert {each.envelope_sender for each in received} == {""}
    assert sorted(each.envelope_recipient for each in received) == sorted(recipients)
    assert {each.transmitted for each in received} == {message}


@clients
def test_starttls_with_a_verified_name(
    collector: Collector, client: Client, certificate: tuple[Path, Path], authority_file: Path
) -> None:
    collector.change(certificate=certificate)
    sent = client(collector.port, SENDER, [RECIPIENT], mail(SENDER, RECIPIENT), authority=authority_file)
    assert sent.accepted, sent
    (received,) = collector.wait(1)
    assert received.over_tls


def test_a_dialogue_with_pipelining_and_chunks(
    collector: Collector, certificate: tuple[Path, Path], authority_file: Path
) -> None:
    collector.change(certificate=certificate)
    message = mail(SENDER, RECIPIENT, PDF)
    with Dialogue(collector.port) as dialogue:
        assert dialogue.greeting.code == 220
        assert {"CHUNKING", "PIPELINING", "STARTTLS"} <= set(dialogue.hello().lines)
        assert dialogue.starttls(authority_file).code == 220
        dialogue.hello()
        said = dialogue.pipeline(f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{RECIPIENT}>", "RCPT TO:<x@ailleurs.example>")
        assert [reply.code for reply in said] == [250, 250, 554]
        assert dialogue.chunk(message[:1000]).code == 250
        assert dialogue.last_chunk(message[1000:]).code == 250
        dialogue.envelope(SENDER, RECIPIENT)
        assert dialogue.data(message).code == 250
        dialogue.envelope(SENDER, RECIPIENT)
        assert dialogue.say("DATA").code == 354
        dialogue.send(b"Subject: x\r\n\r\nfin de ligne\nincorrecte\r\n.\r\n")
        assert dialogue.reply().code in (521, 550)
    assert [received.transmitted for received in collector.messages()] == [message, message]


def test_the_collector_goes_away_and_comes_back_with_what_it_had(collector: Collector) -> None:
    message = mail(SENDER, RECIPIENT)
    assert CLIENTS["python"](collector.port, SENDER, [RECIPIENT], message).accepted
    collector.wait(1)
    collector.stop()
    with pytest.raises(ConnectionRefusedError), socket.create_connection((collector.address, collector.port)):
        pass
    collector.resume()
    assert CLIENTS["python"](collector.port, SENDER, [RECIPIENT], message).accepted
    assert len(collector.wait(2)) == 2
    collector.forget()
    assert collector.messages() == []


def test_the_mx_records_lead_to_the_collector(partner: Partner) -> None:
    message = mail(SENDER, "x@achats.factures-meg.fr")
    resolver = _resolver(partner.zone)
    exchange = next(iter(resolver.resolve("achats.factures-meg.fr", "MX"))).exchange
    address = next(iter(resolver.resolve(exchange, "A"))).address
    assert address == partner.collector.address
    with smtplib.SMTP(address, 25) as server:
        server.sendmail(SENDER, ["x@achats.factures-meg.fr"], message)
    (received,) = partner.collector.wait(1)
    assert received.transmitted == message
    with pytest.raises(dns.resolver.NXDOMAIN):
        resolver.resolve("ailleurs.example", "MX")


def test_a_zone_can_change_and_fall_silent(partner: Partner) -> None:
    resolver = _resolver(partner.zone)
    partner.zone.change({"factures-meg.fr": zone_text("@ MX 0 .")})
    assert next(iter(resolver.resolve("factures-meg.fr", "MX"))).exchange == dns.name.root
    partner.zone.stop()
    with pytest.raises(dns.resolver.LifetimeTimeout):
        resolver.resolve("factures-meg.fr", "MX")


def _resolver(zone: Zone) -> dns.resolver.Resolver:
    resolver = dns.resolver.Resolver(configure=False)
    resolver.nameservers, resolver.port, resolver.lifetime = [zone.address], zone.port, 0.5
    return resolver
