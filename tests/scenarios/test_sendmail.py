"""The relay behind a real sendmail, with the lines of deploy/sendmail as they stand."""

import re
import smtplib
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from rules import replies
from tests.support import documents as made
from tests.support.behind import INVOICE, OTHERS, SENDER, THEIRS, Behind, until
from tests.support.clients import mail
from tests.support.collector import Collector, Received
from tests.support.partner import DOMAINS
from tests.support.program import free_port
from tests.support.relay import Relay
from tests.support.sendmail import Neighbours, Sendmail

STRANGER = "127.0.0.7"  # not among the trusted networks here


@dataclass(frozen=True, slots=True)
class Site(Behind):
    """The mail server in front, the relay behind it, and the collector far away, which has the mail of OTHERS too."""

    server: Sendmail

    @contextmanager
    def session(self, peer: str = "") -> Iterator[smtplib.SMTP]:
        with smtplib.SMTP("127.0.0.1", self.server.port, timeout=60, source_address=(peer or "127.0.0.1", 0)) as client:
            client.ehlo("cabinet.example")
            yield client

    def arrived(self, *names: str) -> list[Received]:
        """What came for these, whatever their domain."""
        return [each for each in self.collector.messages() if each.envelope_recipient.partition("@")[0] in names]


def start(folder: Path, mode: str, authority: trustme.CA) -> Iterator[Site]:
    port = free_port()
    collector = Collector.start(folder, domains=(*DOMAINS, OTHERS))
    relay = Relay(
        folder,
        {
            "smtp": {"trusted_networks": ["127.0.0.1/32"]},
            "milter": {"listen": [f"inet:127.0.0.1:{port}"], "mode": mode},
            "delivery": {"routes": dict.fromkeys(DOMAINS, collector.destination)},
        },
    )
    server = Sendmail(folder / "server", Neighbours(port, relay.port, collector.destination), authority)
    try:
        for name in ("Dupont", "Durand"):
            relay.client(name)
        relay.start()
        server.start()
        yield Site(relay, collector, server)
    finally:
        for part in (server, relay, collector):
            part.stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[Site]:
    yield from start(tmp_path_factory.mktemp("take"), "take", authority)


# --- mode "take" ------------------------------------------------------------------------------------------------------


def test_a_mail_for_the_collector_leaves_with_the_run_as_it_came(site: Site) -> None:
    letter = site.send("meg+story@welyb.fr")
    assert site.states("meg+story@welyb.fr") == ["waiting"]
    site.relay.cli("runs", "now")
    (arrived,) = site.arrived("story")
    assert arrived.transmitted.endswith(letter)
    assert arrived.envelope_sender.startswith("retours+")
    assert site.states("meg+story@welyb.fr") == ["sent"]
    assert "meg+story@welyb.fr" not in site.server.waiting()


def test_a_mail_for_the_sales_folder_is_filed_whoever_sends_it(site: Site) -> None:
    site.send("ventes+dupont@welyb.fr", peer=STRANGER)
    until(lambda: site.filed("Dupont"))
    (path,) = site.filed("Dupont")
    assert path.read_bytes() == INVOICE[2]


def test_zips_are_refused_at_the_end_in_our_words(site: Site) -> None:
    """Line by line; a percent sign is one."""
    archives = [(name, "application/zip", made.zip_of({"a.pdf": made.pdf()})) for name in ("100%.zip", "releve.zip")]
    with site.session() as client, pytest.raises(smtplib.SMTPDataError) as refused:
        client.sendmail(SENDER, ["meg+zip@welyb.fr", THEIRS], mail(SENDER, THEIRS, *archives))
    words = "archive ZIP non prise en charge, joignez les documents separement (ZIP refused)"
    assert refused.value.smtp_code == 554
    assert refused.value.smtp_error.decode() == f"5.6.1 100%.zip : {words}\n5.6.1 releve.zip : {words}"
    assert not site.states("meg+zip@welyb.fr")
    assert THEIRS not in site.server.waiting()


def test_ours_and_theirs_in_one_mail(site: Site) -> None:
    """The log has the mail server's own id, where its log has the other half of the story."""
    letter = site.send("meg+mixed@welyb.fr", THEIRS, "ventes+durand@welyb.fr")
    until(lambda: site.filed("Durand") and site.arrived("paul"))
    assert site.states("meg+mixed@welyb.fr") == ["waiting"]
    (kept,) = site.arrived("paul")
    assert (kept.envelope_recipient, kept.envelope_sender) == (THEIRS, SENDER)
    assert kept.transmitted.endswith(letter)
    trace = re.match(rb"Received: [^;]* id (\w+)", kept.transmitted)
    assert trace and f"queue={trace[1].decode()} others=1" in site.relay.program.err.read_text()


def test_ours_is_deleted_however_it_was_written(site: Site) -> None:
    """What is left to sendmail would go no further."""
    ways = ["<meg+ways@welyb.fr>", "<Meg+Ways@WELYB.FR>", '<"meg+ways"@welyb.fr>', "<@mx.example:meg+ways@welyb.fr>"]
    others = f"pauline@{OTHERS}"
    with site.session() as client:
        client.mail(SENDER)
        for way in [*ways, "meg+bare@welyb.fr", f"<{others}>"]:
            assert client.docmd(f"RCPT TO:{way}")[0] == 250, way
        assert client.data(mail(SENDER, others, INVOICE))[0] == 250
    until(lambda: site.arrived("pauline"))
    assert site.states("meg+ways@welyb.fr") == site.states("meg+bare@welyb.fr") == ["waiting"]
    until(lambda: others not in site.server.waiting())
    assert not [left for left in site.server.waiting() if "welyb.fr" in left and "%" not in left]


@pytest.mark.parametrize(
    ("recipient", "peer", "reply"),
    [
        ("meg+achats@welyb.fr", "127.0.0.1", replies.MALFORMED),
        ("meg+dupont@welyb.fr (Paul)", "127.0.0.1", replies.MALFORMED),  # an address to sendmail
        ("ventes+personne@welyb.fr", "127.0.0.1", replies.UNKNOWN),
        ("meg+dupont@welyb.fr", STRANGER, replies.NOT_ALLOWED),
    ],
)
def test_an_address_is_refused_at_rcpt_in_our_words(
    site: Site, recipient: str, peer: str, reply: replies.Reply
) -> None:
    """sendmail says again which address it was."""
    with site.session(peer) as client:
        client.mail(SENDER)
        code, text = client.docmd(f"RCPT TO:<{recipient}>")
        assert (code, text.decode()) == (reply.code, f"{reply.enhanced} <{recipient}>... {reply.text()}")
        assert client.rcpt("ventes+dupont@welyb.fr")[0] == 250


def test_whom_sendmail_authenticated_may_write_to_the_collector(site: Site, authority: trustme.CA) -> None:
    """By a client certificate. The history says who it was, as sendmail writes it; our Received, that it was over TLS."""
    to, context = "meg+known@welyb.fr", ssl.create_default_context()
    authority.configure_trust(context)
    authority.issue_cert(SENDER, common_name="scanner").configure_cert(context)
    with site.session(STRANGER) as client:
        client.starttls(context=context)
        client.ehlo("cabinet.example")
        assert client.docmd("AUTH", "EXTERNAL =")[0] == 235
        assert client.sendmail(SENDER, [to], mail(SENDER, to, INVOICE)) == {}
    (accepted,) = (row["detail"] for row in site.relay.json("trace", SENDER) if to in str(row["detail"]))
    assert accepted["user"].endswith("/CN+3Dscanner")
    site.relay.cli("runs", "now")
    (arrived,) = site.arrived("known")
    assert b" with ESMTPSA " in arrived.transmitted


def test_ten_mails_in_one_session(site: Site) -> None:
    """Whatever became of the one before."""
    to = "meg+ten@welyb.fr"
    with site.session() as client:
        for _ in range(10):
            assert client.sendmail(SENDER, [to], mail(SENDER, to, INVOICE)) == {}
            with pytest.raises(smtplib.SMTPDataError):
                client.sendmail(SENDER, [to], mail(SENDER, to, ("vide.pdf", "application/pdf", b"")))
    assert site.states(to) == ["waiting"] * 10


def test_what_we_send_is_what_the_client_sent(site: Site) -> None:
    """But for a blank before a colon. sendmail's own copies are folded anew, and cut at 990 octets."""
    letter = (
        b"From: <compta@cabinet.example>\r\nMessage-ID: <bytes@cabinet.example>\r\nSubject:sans espace\r\n"
        b"X-Two:  deux\r\nX-Before : colon\r\nX-Empty:\r\nX-Eight: \xc3\xa9 \xe9\r\nX-Fold: a\r\n\tb\r\n  c\r\n"
        b"To: meg+bytes@welyb.fr,\r\n  Paul   <paul@dupont.example>\r\nX-End: blank \r\n"
        b"X-Long: " + b"x" * 5000 + b"\r\n\r\n..dot\r\n" + b"y" * 5000 + b"\r\n\xe9\r\n \r\n\r\n"
    )
    site.send("meg+bytes@welyb.fr", message=letter)
    site.relay.cli("runs", "now")
    (arrived,) = site.arrived("bytes")
    assert arrived.transmitted.endswith(b"\r\n" + letter.replace(b"X-Before :", b"X-Before:"))


def test_it_takes_what_we_take(site: Site) -> None:
    with site.session() as client, smtplib.SMTP("127.0.0.1", site.relay.port) as ours:
        ours.ehlo("cabinet.example")
        assert int(client.esmtp_features["size"]) >= int(ours.esmtp_features["size"]) > 0


def test_what_came_in_past_the_filter_waits(site: Site) -> None:
    """The filter is shown an address of the mail server's own, which leads to us only then."""
    roundabout = "meg+past%welyb.fr@mail.dupont.example"
    site.send(roundabout)
    until(lambda: "Connection refused" in site.server.waiting().get(roundabout, ""))
    assert not site.arrived("past")


def test_without_the_relay_the_client_comes_back_later(site: Site) -> None:
    letter = mail(SENDER, "meg+later@welyb.fr", INVOICE)
    site.relay.stop()
    try:
        with site.session() as client, pytest.raises(smtplib.SMTPSenderRefused) as refused:
            client.sendmail(SENDER, ["meg+later@welyb.fr"], letter)
        assert refused.value.smtp_code == 451
    finally:
        site.relay.start()
    site.send("meg+later@welyb.fr", message=letter)
    assert site.states("meg+later@welyb.fr") == ["waiting"]


# --- mode "rewrite" ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rewriting(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Iterator[Site]:
    yield from start(tmp_path_factory.mktemp("rewrite"), "rewrite", authority)


def test_the_mail_server_sends_on_what_is_for_a_collector(rewriting: Site) -> None:
    site = rewriting
    letter = site.send("meg+story@welyb.fr", "meg+achats+other@welyb.fr", "ventes+dupont@welyb.fr")
    until(lambda: len(site.arrived("story", "other")) == 2)
    arrived = site.arrived("story", "other")
    assert {each.envelope_recipient for each in arrived} == {"story@factures-meg.fr", "other@achats.factures-meg.fr"}
    (sender,) = {each.envelope_sender for each in arrived}
    assert sender.startswith("retours+") and sender.endswith("@welyb.fr")
    marked = letter.replace(b"\r\n\r\n", b"\r\nX-Welyb-Relay: welyb.fr\r\n\r\n", 1)
    assert all(each.transmitted.endswith(marked) for each in arrived)
    assert site.states("meg+story@welyb.fr") == ["handed"]
    until(lambda: site.filed("Dupont"))
    site.relay.cli("runs", "now")
    assert len(site.arrived("story", "other")) == 2, "it has left once"


def test_a_failure_finds_what_was_handed_on(rewriting: Site) -> None:
    """The report is the mail server's own, shown to no filter: it comes to us by SMTP, and goes no further."""
    site = rewriting
    site.collector.change(reject=["gone@factures-meg.fr"])
    try:
        site.send("meg+gone@welyb.fr")
        until(lambda: site.states("meg+gone@welyb.fr") == ["bounced"])
    finally:
        site.collector.change(reject=[])
    until(lambda: not site.server.waiting())


def test_what_is_refused_is_refused_in_either_mode(rewriting: Site) -> None:
    archive = ("releve.zip", "application/zip", made.zip_of({"a.pdf": made.pdf()}))
    with rewriting.session() as client, pytest.raises(smtplib.SMTPDataError, match=r"releve\.zip : archive ZIP"):
        client.sendmail(SENDER, ["meg+zip@welyb.fr"], mail(SENDER, "meg+zip@welyb.fr", archive))
    assert not rewriting.states("meg+zip@welyb.fr")


def test_among_others_it_is_taken(rewriting: Site) -> None:
    """Another sender would be theirs too."""
    letter = rewriting.send("meg+among@welyb.fr", THEIRS)
    until(lambda: rewriting.arrived("paul"))
    (kept,) = rewriting.arrived("paul")
    assert kept.envelope_sender == SENDER and kept.transmitted.endswith(letter)
    assert rewriting.states("meg+among@welyb.fr") == ["waiting"]
