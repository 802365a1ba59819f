"""A whole story through the real command, then a search of all that was said: no key anywhere, no name in the log.

Keys are looked for in every guise they may be printed in; names, subjects and addresses by the words they are made of.
"""

import base64
import contextlib
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from relay.store.database import open_for_listing, rows
from tests.security.processes import until
from tests.support import documents as made
from tests.support.clients import CLIENTS, Dialogue, Document, Sent, encoded, mail
from tests.support.desk import Desk
from tests.support.firm import Firm
from tests.support.program import free_port
from tests.support.relay import Relay

pytestmark = pytest.mark.debian("postfix")

# Words that nothing of ours contains.
CLIENT, SLUG = "Zéphyrine & Xylo", "zephyrine-xylo"
VENTES, MEG = f"ventes+{SLUG}@welyb.fr", "meg+achats+pangolin@welyb.fr"
PANGOLIN = "pangolin@achats.factures-meg.fr"
SENDER = "armelle.quetzal@cabinet.example"
PDF: Document = ("facture-ornithorynque.pdf", "application/pdf", made.pdf("ornithorynque"))
BIG: Document = ("plan-narval.pdf", "application/pdf", made.pdf_of_size(300_000))
ZIP: Document = ("relevé-okapi.zip", "application/zip", made.plain_zip())
DEPOSIT = "dépôt-tamanoir.pdf"
VICTIM = "dugong@ailleurs.example"
USERS = ("potamochere", "fennec")
PASSWORDS = ("un vieux daguet 1789", "trois jeunes hermines")
WORDS = (
    *("phyrine", "xylo", "armelle", "quetzal", "wapiti", "ornithorynque", "narval", "okapi", "tamanoir", "pangolin"),
    *("potamochere", "fennec", "daguet", "hermine"),
    *("axolotl", "dugong", "cachalot", "lamantin", "ouistiti"),
    *("@welyb.fr", "@cabinet", "@ailleurs", "@factures", "@achats", "retours+", "meg+", "ventes+"),
)


@dataclass
class Story:
    """Everything that was said to it, and by it: where → what."""

    firm: Firm
    told: list[str] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)

    def order(self, *words: str, text: str | None = None) -> str:
        done = Desk(self.firm.relay).here(*words, text=text)
        assert done.exception is None or isinstance(done.exception, SystemExit), (words, done.exception)
        self.said[" ".join(words)] = done.output
        return str(done.stdout)

    def mail(self, to: str, *documents: Document, sender: str = SENDER) -> Sent:
        message = mail(sender, to, *documents, subject="Bordereau wapiti")
        self.told += [to, message.decode("latin-1")]
        sent = CLIENTS["python"](self.firm.relay.port, sender, [to], message)
        self.said[f"reply to {to} {len(self.said)}"] = sent.text
        return sent

    def ids(self) -> list[str]:
        return [row["id"] for row in self.firm.relay.json("queue", "list")]

    @property
    def log(self) -> str:
        return self.firm.relay.program.err.read_text(errors="backslashreplace")

    def tokens(self) -> set[str]:
        senders = [message.envelope_sender for message in self.firm.collector.messages()]
        return {token for sender in senders for token in re.findall(r"retours\+([a-z2-7]{24})@", sender)}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    # Runs by the clock, for it is the daemon's log that is searched.
    folder = tmp_path_factory.mktemp("story")
    authority, pem = trustme.CA(), str(folder / "all.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    smtp = {"trusted_networks": ["127.0.0.1/32"], "certificate": pem, "key": pem}
    smtp |= {"submission": [f"127.0.0.1:{free_port()} tls"]}
    settings = {"smtp": smtp, "run": {"every": "2 s"}}
    firm = Firm.start(folder, settings, reject=["axolotl@factures-meg.fr"])
    try:
        story = Story(firm)
        keys(story)
        users(story, folder / "authority.pem")
        good_days(story)
        bad_days(story)
        everything_is_listed(story)
        yield story
    finally:
        firm.stop()


def keys(story: Story) -> None:
    story.order("keys", "create", "s1")
    story.order("keys", "create", "s2", "--kind", "ed25519")
    story.firm.relay.configure({"dkim": {"selector": "s1"}})
    reload(story, "reloaded")


def users(story: Story, authority: Path) -> None:
    """Handed in with a password, a wrong one, one typed where the name goes; then everybody has another, and one goes."""
    for name in USERS:
        story.order("users", "add", name, "--reason", "motif cachalot", text=f"{PASSWORDS[0]}\n")
    story.told += PASSWORDS
    (place,) = story.firm.relay.settings["smtp"]["submission"]
    port = int(place.removesuffix(" tls").rpartition(":")[2])
    with Dialogue(port, authority=authority) as dialogue:
        dialogue.hello()
        tries = ((USERS[0], PASSWORDS[1]), (PASSWORDS[0], USERS[0]), (USERS[0], PASSWORDS[0]))
        replies = [dialogue.plain(name, password) for name, password in tries]
        assert [reply.code for reply in replies] == [535, 535, 235]
        story.said["auth"] = "".join(reply.text for reply in replies)
        dialogue.envelope(SENDER, MEG)
        dialogue.say(f"AUTH PLAIN {encoded(PASSWORDS[0])}")
        assert dialogue.data(mail(SENDER, MEG, PDF)).code == 250
        dialogue.say(encoded(PASSWORDS[0]))
    story.order("users", "passwd", USERS[1], text=f"{PASSWORDS[1]}\n")
    story.order("users", "passwd", USERS[1], text="court\n")
    story.order("users", "remove", USERS[1])


def reload(story: Story, word: str) -> None:
    before = story.log.count(word)
    os.kill(story.firm.relay.program.pid, signal.SIGHUP)
    until(lambda: story.log.count(word) > before)


def good_days(story: Story) -> None:
    client = story.firm.client(CLIENT)
    client.slug = SLUG
    (client.path / "Achats").mkdir()
    add = ("connections", "add", "--application", "meg-achats", "--client", SLUG, "--folder", "Achats", "--address")
    story.order(*add, MEG, "--reason", "motif cachalot")
    for document in (PDF, BIG):
        assert story.mail(VENTES, document).accepted and story.mail(MEG, document).accepted
    assert story.mail("meg+axolotl@welyb.fr", PDF).accepted
    assert not story.mail(MEG, ZIP).accepted and not story.mail(VENTES, ZIP, PDF).accepted
    client.put(f"Achats/{DEPOSIT}", made.pdf("deposit"))
    client.put("Achats/okapi.zip", made.plain_zip())
    for name in ("Lamantin", "LAMANTIN"):
        story.firm.relay.client(name)
    until(lambda: sorted(m.envelope_recipient for m in story.firm.collector.messages()) == [SENDER, *4 * [PANGOLIN]])
    story.order("runs", "now")
    back = next(m for m in story.firm.collector.messages() if m.envelope_recipient == PANGOLIN)
    report = REPORT.format(back.envelope_sender, back.envelope_recipient).replace("\n", "\r\n").encode()
    assert CLIENTS["python"](story.firm.relay.port, "", [back.envelope_sender], report).accepted


REPORT = """\
From: MAILER-DAEMON@mx.example
To: {0}
Subject: Bordereau wapiti
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary=b

--b
Content-Type: text/plain

Sorry for {0}.
--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example

Final-Recipient: rfc822; {1}
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 <{1}> from <{0}>: ouistiti

--b--
"""


def bad_days(story: Story) -> None:
    relay = story.firm.relay
    with Dialogue(relay.port, source="127.0.0.2") as stranger:
        stranger.hello()
        paths = (VICTIM, VICTIM, MEG, "ventes+ouistiti@welyb.fr", "meg+dugong%lamantin@welyb.fr")
        stranger.envelope(*paths)
        stranger.say(VICTIM * 20)
        story.told += paths
    assert story.mail("ventes+lamantin@welyb.fr", PDF).code == 451
    relay.ged.rename(relay.ged.with_name("away"))
    assert story.mail(VENTES, PDF).accepted
    until(lambda: "filing-waits" in story.log)
    relay.ged.with_name("away").rename(relay.ged)
    files = relay.folder / "var/spool/files"
    files.rename(files.with_name("away"))
    files.write_bytes(b"")
    assert story.mail(MEG, BIG).code in (451, 452)
    files.unlink()
    files.with_name("away").rename(files)
    # "554 5.7.1 <retours+TOKEN@welyb.fr>: Sender address rejected: Access denied"
    story.firm.collector.change(main_cf={"smtpd_sender_restrictions": "check_sender_access static:REJECT"})
    failed = story.log.count(" failed ")
    assert story.mail("meg+lamantin@welyb.fr", PDF).accepted
    until(lambda: story.log.count(" failed ") > failed)
    relay.configure({"relay": {"postmaster": "ouistiti lamantin@ailleurs.example"}})
    reload(story, "trouble")
    relay.configure({"relay": {"postmaster": ""}})
    nowhere = f"127.0.0.1:{free_port()}"
    relay.configure({"delivery": {"routes": {"achats.factures-meg.fr": nowhere}}})
    reload(story, "reloaded")
    assert story.mail(MEG, ("narval.pdf", "application/pdf", made.pdf("again"))).accepted
    until(lambda: " waiting delivery=" in story.log)
    hold = ("queue", "hold", "--state", "waiting", "--yes", "--reason", "motif cachalot")
    until(lambda: re.search(r"^hold \S+-1$", story.order(*hold), re.MULTILINE))  # between two runs, that is


def everything_is_listed(story: Story) -> None:
    plain = [
        *(
            "queue list",
            "queue summary",
            "documents list",
            "runs list",
            "connections list",
            "clients list",
            "users list",
            "runs next",
        ),
        *("keys list", "dns", "check", "connections show 1", "runs show 1", "runs now --dry-run", "explain " + MEG),
        *(f"trace {query}" for query in (SENDER, SLUG, PDF[0], DEPOSIT, VICTIM)),
    ]
    lines = [line.split() for line in plain]
    for id_ in story.ids():
        lines += [["trace", id_], ["queue", "show", id_]]
    for line in lines:
        story.order(*line)
        story.order(*line, "--json")


# --- keys -----------------------------------------------------------------------------------------------------------


def guises(secret: bytes) -> Iterator[str]:
    """What these bytes look like when printed: hexadecimal, base64 at each of its three phases, Python's and TOML's."""
    yield secret.hex()
    yield str(int.from_bytes(secret, "big"))
    yield repr(secret)[2:-1]
    for phase in range(3):
        text = base64.b64encode(bytes(phase) + secret).decode().rstrip("=")
        yield text[4 * (phase > 0) : len(text) - 2]
    yield base64.b32encode(secret).decode().rstrip("=").lower()


def secrets(relay: Relay) -> dict[str, bytes]:
    """The numbers that are nobody's but ours."""
    data, certificate = relay.folder / "var", Path(relay.settings["smtp"]["key"])
    served = serialization.load_pem_private_key(certificate.read_bytes(), password=None)
    assert isinstance(served, EllipticCurvePrivateKey)
    found = {
        "token.key": (data / "token.key").read_bytes(),
        "certificate": _bytes(served.private_numbers().private_value),
    }
    for path in (data / "dkim").glob("*.pem"):
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        if isinstance(key, RSAPrivateKey):
            numbers = key.private_numbers()
            found |= {f"{path.name} {n}": _bytes(getattr(numbers, n)) for n in ("d", "p", "q", "dmp1", "dmq1", "iqmp")}
        else:
            raw = serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
            found[path.name] = key.private_bytes(*raw)
    return found


def _bytes(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def outputs(story: Story) -> dict[str, str]:
    relay = story.firm.relay
    return {**story.said, "stdout": relay.program.out.read_text(errors="backslashreplace"), "log": story.log}


def test_no_key_is_ever_said(story: Story) -> None:
    found = secrets(story.firm.relay)
    assert len(found) == 1 + 1 + 6 + 1
    said = outputs(story)
    joined = {where: re.sub(r"\s+", "", text).lower() for where, text in said.items()}
    for name, secret in found.items():
        for guise in guises(secret):
            piece = guise.lower()[:40]  # a part of a key is as bad as the whole
            assert len(piece) >= 28
            assert not [where for where, text in joined.items() if piece in text], name
    assert not [where for where, text in said.items() if "PRIVATE" in text]


def test_no_key_left_with_the_mail(story: Story) -> None:
    found = secrets(story.firm.relay)
    sent = [message.raw for message in story.firm.collector.messages()]
    assert len(sent) > 3
    for secret in found.values():
        for guise in guises(secret):
            assert not any(guise[:40].encode() in raw for raw in sent)


def test_the_search_finds_a_key_where_there_is_one(story: Story) -> None:
    """Against a search that is blind."""
    pem = (story.firm.relay.folder / "var/dkim/s1.pem").read_text().replace("\n", "")
    private = secrets(story.firm.relay)["s1.pem d"]
    assert any(guise[:40] in pem for guise in guises(private))


def test_tokens_are_told_to_the_collector_alone(story: Story) -> None:
    """Whoever has one may say that a delivery failed, and « validé » is withdrawn."""
    tokens = story.tokens()
    assert len(tokens) == 4
    said = outputs(story)
    assert [where for where, text in said.items() if re.search(r"retours\+[a-z2-7]{24}@", text)] == []
    assert [where for where, text in said.items() for token in tokens if token in text] == []


def test_no_password_and_no_hash_is_ever_said(story: Story) -> None:
    with contextlib.closing(open_for_listing(story.firm.relay.folder / "var/relay.db")) as db:
        hashes = [row[0] for row in rows(db, "SELECT hash FROM user WHERE hash <> ''")]
        details = "".join(str(row[0]) for row in rows(db, "SELECT detail FROM event"))
    assert len(hashes) == 1 and hashes[0].startswith("scrypt$")
    parts = [part for text in hashes for part in text.split("$")[4:]]
    said = outputs(story) | {"history": details}
    for secret in (*PASSWORDS, *parts, *(piece for text in PASSWORDS for piece in guises(text.encode()))):
        assert [where for where, text in said.items() if secret in text] == []
    assert not any(word.encode() in m.raw for m in story.firm.collector.messages() for word in (*PASSWORDS, *USERS))


# --- names ----------------------------------------------------------------------------------------------------------


def test_the_log_names_nobody(story: Story) -> None:
    log = story.log
    for event in (
        "serving",
        "accepted",
        "refused",
        "filed",
        "authenticated",
        "not-authenticated",
        "sent",
        "failed",
        "filing-waits",
        "trouble",
        "run-started",
    ):
        assert f" {event} " in log, event
    assert "Traceback" not in log
    lines = log.lower().splitlines()
    assert [line for line in lines for word in WORDS if word in line] == []


def test_the_words_are_those_of_the_story(story: Story) -> None:
    """Against a list of words that were never said."""
    everything = "".join((*story.told, *story.said.values(), story.firm.relay.config.read_text())).lower()
    assert [word for word in WORDS if word not in everything] == []
