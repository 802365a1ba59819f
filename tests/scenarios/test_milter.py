"""The relay behind a real Postfix, with the settings of deploy/postfix as they stand."""

import os
import signal
import smtplib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from rules import replies
from tests.support import debian
from tests.support import documents as made
from tests.support.behind import INVOICE, SENDER, THEIRS, Behind, until
from tests.support.clients import mail
from tests.support.collector import Collector, Received
from tests.support.milterpost import mail_server
from tests.support.mta import Mta
from tests.support.partner import DOMAINS
from tests.support.program import free_port
from tests.support.relay import Relay

STRANGER = "192.0.2.7"


@dataclass(frozen=True, slots=True)
class Site(Behind):
    """The mail server in front, the relay behind it, and the collector far away."""

    server: Collector

    @contextmanager
    def session(self, peer: str = "") -> Iterator[smtplib.SMTP]:
        """A client of the mail server; at `peer`, where one is given."""
        with smtplib.SMTP("127.0.0.1", self.server.port, timeout=60) as client:
            client.ehlo("cabinet.example")
            if peer:
                assert client.docmd("XCLIENT", f"ADDR={peer} NAME=[UNAVAILABLE]")[0] == 220
                client.ehlo("cabinet.example")
            yield client


def start(folder: Path, mode: str) -> Iterator[Site]:
    port = free_port()
    collector = Collector.start(folder, domains=DOMAINS)
    relay = Relay(
        folder,
        {
            "milter": {"listen": [f"inet:127.0.0.1:{port}"], "mode": mode},
            "delivery": {"routes": dict.fromkeys(DOMAINS, collector.destination)},
        },
    )
    (folder / "server").mkdir()
    server = mail_server(folder / "server", mode, f"inet:127.0.0.1:{port}", collector.destination)
    try:
        for name in ("Dupont", "Durand"):
            relay.client(name)
        yield Site(relay.start(), collector, server)
    finally:
        for part in (relay, server, collector):
            part.stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from start(tmp_path_factory.mktemp("take"), "take")


# --- mode "take" ------------------------------------------------------------------------------------------------------


def test_a_mail_for_the_collector_leaves_with_the_run_as_it_came(site: Site) -> None:
    letter = site.send("meg+story@welyb.fr")
    assert site.states("meg+story@welyb.fr") == ["waiting"]
    site.relay.cli("runs", "now")
    (arrived,) = (each for each in site.collector.messages() if each.envelope_recipient.startswith("story@"))
    assert arrived.transmitted.endswith(letter)
    assert arrived.envelope_sender.startswith("retours+")
    assert site.states("meg+story@welyb.fr") == ["sent"]
    assert not site.server.messages()


def test_a_mail_for_the_sales_folder_is_filed_whoever_sends_it(site: Site) -> None:
    site.send("ventes+dupont@welyb.fr", peer=STRANGER)
    until(lambda: site.filed("Dupont"))
    (path,) = site.filed("Dupont")
    assert path.read_bytes() == INVOICE[2]


def test_a_zip_is_refused_at_the_end_in_our_words(site: Site) -> None:
    archive = ("releve.zip", "application/zip", made.zip_of({"a.pdf": made.pdf()}))
    with site.session() as client, pytest.raises(smtplib.SMTPDataError) as refused:
        client.sendmail(SENDER, ["meg+zip@welyb.fr", THEIRS], mail(SENDER, THEIRS, archive))
    assert (refused.value.smtp_code, refused.value.smtp_error.decode()) == (
        554,
        "5.6.1 releve.zip : archive ZIP non prise en charge, joignez les documents separement (ZIP refused)",
    )
    assert not site.states("meg+zip@welyb.fr")


def test_ours_and_theirs_in_one_mail(site: Site) -> None:
    letter = site.send("meg+mixed@welyb.fr", THEIRS, "ventes+durand@welyb.fr")
    until(lambda: site.filed("Durand"))
    assert site.states("meg+mixed@welyb.fr") == ["waiting"]
    (kept,) = site.server.wait(1)
    assert (kept.envelope_recipient, kept.envelope_sender) == (THEIRS, SENDER)
    assert kept.transmitted == letter
    site.server.forget()


@pytest.mark.parametrize(
    ("recipient", "peer", "reply"),
    [
        ("meg+achats@welyb.fr", "", replies.MALFORMED),
        ("contact@welyb.fr", "", replies.MALFORMED),
        ("ventes+personne@welyb.fr", "", replies.UNKNOWN),
        ("meg+dupont@welyb.fr", STRANGER, replies.NOT_ALLOWED),
    ],
)
def test_an_address_is_refused_at_rcpt_in_our_words(
    site: Site, recipient: str, peer: str, reply: replies.Reply
) -> None:
    with site.session(peer) as client:
        client.mail(SENDER)
        code, text = client.rcpt(recipient)
        assert (code, text.decode()) == (reply.code, f"{reply.enhanced} {reply.text()}")
        assert client.rcpt("ventes+dupont@welyb.fr")[0] == 250


def test_ten_mails_in_one_session(site: Site) -> None:
    with site.session() as client:
        for _ in range(10):
            to = "meg+ten@welyb.fr"
            assert client.sendmail(SENDER, [to], mail(SENDER, to, INVOICE)) == {}
    assert site.states("meg+ten@welyb.fr") == ["waiting"] * 10


def test_the_bytes_are_those_the_mail_server_would_have_sent(site: Site) -> None:
    """Ours, by the milter, and theirs, in the same mail: what Postfix mends in it, it mends for both."""
    letter = (
        b"From: <compta@cabinet.example>\r\nMessage-ID: <bytes@cabinet.example>\r\nSubject:sans espace\r\n"
        b"X-Two:  deux\r\nX-Before : colon\r\nX-Empty:\r\nX-Eight: \xc3\xa9 \xe9\r\nX-Fold: a\r\n\tb\r\n  c\r\n"
        b"X-Long: " + b"x" * 5000 + b"\r\n\r\n..dot\r\n" + b"y" * 5000 + b"\r\n\xe9\r\n \r\n\r\n"
    )
    site.send("meg+bytes@welyb.fr", THEIRS, message=letter)
    site.relay.cli("runs", "now")
    (arrived,) = (each for each in site.collector.messages() if each.envelope_recipient.startswith("bytes@"))
    (kept,) = site.server.wait(1)
    site.server.forget()
    assert kept.transmitted == letter.replace(b"X-Before :", b"X-Before:")
    assert arrived.transmitted.endswith(kept.transmitted)


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


def test_beside_workers_and_through_a_reload(new_relay: Callable[..., Relay], tmp_path: Path) -> None:
    """The daemon itself is the milter; the mode is read again on SIGHUP; the socket goes with it."""
    path, to = tmp_path / "milter.sock", "meg+workers@welyb.fr"
    relay = new_relay({"smtp": {"processes": 2}, "milter": {"listen": [f"unix:{path}"]}}).start()
    with Mta(str(path)) as mta:
        assert mta.client("127.0.0.1").post(SENDER, [to], mail(SENDER, to, INVOICE)) == [(b"d", b"")]
        relay.configure({"milter": {"mode": "rewrite"}})
        os.kill(relay.program.pid, signal.SIGHUP)
        until(lambda: "reloaded" in relay.program.err.read_text())
        edits = mta.post(SENDER, [to], mail(SENDER, to, INVOICE))
    assert [letter for letter, _ in edits] == [b"-", b"+", b"h", b"e", b"c"]
    assert sorted(row["state"] for row in relay.json("queue", "list")) == ["handed", "waiting"]
    assert relay.stop() == 0
    assert not path.exists()


# --- another mail server's idea of the protocol -----------------------------------------------------------------------

SCRIPT = """
conn = mt.connect("inet:%d@127.0.0.1")
assert(mt.conninfo(conn, "mail.dupont.example", "127.0.0.1") == nil)
assert(mt.helo(conn, "mail.dupont.example") == nil)
assert(mt.mailfrom(conn, "<compta@cabinet.example>") == nil)
mt.rcptto(conn, "<meg+@welyb.fr>")
assert(mt.getreply(conn) == SMFIR_REPLYCODE)
mt.rcptto(conn, "<meg+lua@welyb.fr>")
assert(mt.getreply(conn) == SMFIR_CONTINUE)
mt.data(conn)
mt.header(conn, "Subject", " Facture")
mt.eoh(conn)
mt.bodystring(conn, "corps\\r\\n")
mt.eom(conn)
assert(mt.getreply(conn) == SMFIR_DISCARD)
mt.disconnect(conn)
"""


def test_the_miltertest_of_opendkim(site: Site, tmp_path: Path) -> None:
    """It counts on one answer to each packet, in its place."""
    debian.require("miltertest")
    place = site.relay.settings["milter"]["listen"][0]
    (tmp_path / "mail.lua").write_text(SCRIPT % int(place.rpartition(":")[2]))
    program = debian.root_of("miltertest") / "usr/bin/miltertest"
    environment = {"LD_LIBRARY_PATH": debian.library_path("miltertest")}
    done = subprocess.run([program, "-s", tmp_path / "mail.lua"], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert site.states("meg+lua@welyb.fr") == ["waiting"]


# --- mode "rewrite" ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rewriting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from start(tmp_path_factory.mktemp("rewrite"), "rewrite")


def stories(site: Site) -> list[Received]:
    """What came to the collector for the two of the first test."""
    return [each for each in site.collector.messages() if each.envelope_recipient.startswith(("story@", "other@"))]


def test_the_mail_server_sends_on_what_is_for_a_collector(rewriting: Site) -> None:
    site = rewriting
    letter = site.send("meg+story@welyb.fr", "meg+achats+other@welyb.fr", "ventes+dupont@welyb.fr")
    until(lambda: len(stories(site)) == 2)
    arrived = stories(site)
    assert {each.envelope_recipient for each in arrived} == {"story@factures-meg.fr", "other@achats.factures-meg.fr"}
    (sender,) = {each.envelope_sender for each in arrived}
    assert sender.startswith("retours+") and sender.endswith("@welyb.fr")
    assert all(
        letter.replace(b"\r\n\r\n", b"\r\nX-Welyb-Relay: welyb.fr\r\n\r\n", 1) in each.transmitted for each in arrived
    )
    assert site.states("meg+story@welyb.fr") == ["handed"]
    until(lambda: site.filed("Dupont"))
    site.relay.cli("runs", "now")
    assert len(stories(site)) == 2, "it has left once"


def test_a_failure_finds_what_was_handed_on(rewriting: Site) -> None:
    """The report is the mail server's own, and names the collector: it comes to us and goes no further."""
    site = rewriting
    site.collector.change(reject=["gone@factures-meg.fr"])
    try:
        site.send("meg+gone@welyb.fr")
        until(lambda: site.states("meg+gone@welyb.fr") == ["bounced"])
    finally:
        site.collector.change(reject=[])


def test_what_is_refused_is_refused_in_either_mode(rewriting: Site) -> None:
    archive = ("releve.zip", "application/zip", made.zip_of({"a.pdf": made.pdf()}))
    with rewriting.session() as client, pytest.raises(smtplib.SMTPDataError, match=r"releve\.zip : archive ZIP"):
        client.sendmail(SENDER, ["meg+zip@welyb.fr"], mail(SENDER, "meg+zip@welyb.fr", archive))
    assert not rewriting.states("meg+zip@welyb.fr")


def test_among_others_it_is_taken(rewriting: Site) -> None:
    """Another sender would be theirs too."""
    letter = rewriting.send("meg+among@welyb.fr", THEIRS)
    (kept,) = rewriting.server.wait(1)
    assert (kept.envelope_sender, kept.transmitted) == (SENDER, letter)
    assert rewriting.states("meg+among@welyb.fr") == ["waiting"]


def test_a_document_of_the_application_is_not_sent_back_to_it(rewriting: Site) -> None:
    to = "meg+origin@welyb.fr"
    rewriting.send(to, message=mail("factures@factures-meg.fr", to, ("m.pdf", "application/pdf", made.pdf("meg"))))
    assert rewriting.states(to) == ["held"]
    rewriting.relay.cli("runs", "now")
    assert not [each for each in rewriting.collector.messages() if each.envelope_recipient.startswith("origin@")]
