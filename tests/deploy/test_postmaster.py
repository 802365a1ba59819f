"""Every command of deploy/postmaster.md, chapter by chapter, in a story where it is what one would type.

Knows alone: what happens between the blocks of a page. How a block is done is page.py's.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.deploy.page import PROJECT, Chapter, chapters, looked_up
from tests.deploy.published import as_published
from tests.support import documents as made
from tests.support.clients import CLIENTS, mail
from tests.support.collector import Collector
from tests.support.desk import Desk
from tests.support.firm import AT_ONCE, COLLECTORS, SENDERS
from tests.support.nameserver import NameServer
from tests.support.program import LOOK_EVERY, free_port
from tests.support.relay import Relay

PAGE = PROJECT / "deploy/postmaster.md"
CHAPTERS = chapters(PAGE.read_text("utf-8"))
SENDER, CLIENT, GONE = f"compta@{SENDERS}", "macon-dupont", "parti@factures-meg.fr"
NAME = CLIENT
ADDRESS = f"{NAME}@achats.factures-meg.fr"

pytestmark = pytest.mark.debian("postfix")
Open = Callable[..., AbstractContextManager[Chapter]]


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    collector = Collector.start(tmp_path_factory.mktemp("collector"), domains=(*COLLECTORS, SENDERS), reject=[GONE])
    yield collector
    collector.stop()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, since columns are cut."""
    with tempfile.TemporaryDirectory(prefix="pm-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture
def new_relay(folder: Path, collector: Collector, server: NameServer) -> Iterator[Callable[[str], Relay]]:
    found: list[Relay] = []

    def make(name: str) -> Relay:
        found.append(Relay(folder / name if name else folder, AT_ONCE))
        found[-1].configure({"delivery": {"routes": dict.fromkeys((*COLLECTORS, SENDERS), collector.destination)}})
        found[-1].configure({"delivery": {"dns": [server.address]}})
        found[-1].configure({"relay": {"keep_bodies": "30 days", "language": "en"}})
        return found[-1]

    yield make
    for relay in found:
        relay.stop()


@pytest.fixture
def relay(new_relay: Callable[[str], Relay]) -> Relay:
    """One client, whose folder Achats has one document in it; not yet serving."""
    relay = new_relay("")
    (relay.client(CLIENT) / "Achats").mkdir()
    put(relay, "ancien.pdf")
    return relay


@pytest.fixture
def server() -> Iterator[NameServer]:
    """What DNS says of us: nothing yet."""
    with NameServer() as server:
        yield server


@pytest.fixture
def open_chapter(folder: Path) -> Open:
    """A chapter by its title; it must be done to its end."""

    @contextmanager
    def open_(title: str, machines: Relay | Mapping[str, Relay]) -> Iterator[Chapter]:
        of = {"": machines} if isinstance(machines, Relay) else machines
        words = {"CLIENT": CLIENT, "NAME": NAME, "ADDRESS": ADDRESS, "DIR": str(folder / "copy")}
        chapter = Chapter(folder, list(CHAPTERS[title]), of, words)
        yield chapter
        chapter.end()

    return open_


def put(relay: Relay, name: str, content: bytes = b"") -> Path:
    path = relay.ged / CLIENT / "Achats" / name
    path.write_bytes(content or made.pdf(name))
    return path


def connected(relay: Relay) -> str:
    """Served, and the client's folder connected: the connection's number."""
    relay.start()
    words = ("--application", "meg-achats", "--client", CLIENT, "--folder", "Achats", "--address", ADDRESS)
    (row,) = Desk(relay).json("connections", "add", *words)
    return str(row["id"])


def send(relay: Relay, to: str, name: str) -> str:
    """A mail with one document; its id."""
    document = (name, "application/pdf", made.pdf(name))
    sent = CLIENTS["python"](relay.port, SENDER, [to], mail(SENDER, to, document))
    assert sent.accepted, sent
    return sent.text.rsplit(maxsplit=1)[-1]


def filed(relay: Relay, name: str) -> None:
    import time

    end = time.monotonic() + 60
    while not list((relay.ged / CLIENT).rglob(name)):
        assert time.monotonic() < end, relay.program.told()
        time.sleep(LOOK_EVERY)
    while not Desk(relay).json("queue", "list", "--state", "filed"):
        assert time.monotonic() < end, relay.program.told()


def received(collector: Collector) -> int:
    return len([one for one in collector.messages() if one.envelope_recipient == ADDRESS])


def test_at_night(relay: Relay, server: NameServer, open_chapter: Open) -> None:
    connected(relay)
    server.publish(as_published(Desk(relay)))
    Desk(relay).here("runs", "now")
    with open_chapter("At night, first", relay) as chapter:
        chapter.do()
        chapter.do()


def test_the_first_hour(relay: Relay, server: NameServer, open_chapter: Open) -> None:
    with open_chapter("The first hour", relay) as chapter:
        chapter.do(VERSION="0.1.0")
        told = chapter.settings()
        assert told["ged"]["root"] == "/srv/ged" and told["relay"]["data"] == "/var/lib/welyb-relay"
        socket = (PROJECT / "deploy/systemd/welyb-relay.socket").read_text()
        (listen,) = told["smtp"]["listen"]
        assert f"\nListenStream={listen.rpartition(':')[2]}\n" in socket
        relay.configure({"relay": {"postmaster": told["relay"]["postmaster"]}})
        chapter.do()
        relay.configure(chapter.settings())
        chapter.do()
        assert Desk(relay).json("keys", "list")[0]["active"]
        chapter.do()
        send(relay, f"ventes+{CLIENT}@welyb.fr", "vente.pdf")
        filed(relay, "vente.pdf")
        put(relay, "depot.pdf")
        chapter.do()
        server.publish(as_published(Desk(relay)))
        chapter.do()


def test_day_to_day(relay: Relay, open_chapter: Open, folder: Path) -> None:
    number = connected(relay)
    put(relay, "lot.zip", made.plain_zip())
    put(relay, "facture.pdf")
    Desk(relay).here("runs", "now")
    with open_chapter("Day to day", relay) as chapter:
        chapter.do()
        chapter.do()
        assert (folder / "copy/manifest.json").exists()
        chapter.do(NUMBER=number, NAME="nouveau")
        (folder / "password").write_text("correct horse battery staple\n")
        chapter.do(PASSWORD=str(folder / "password"))


def test_where_an_invoice_is(relay: Relay, collector: Collector, open_chapter: Open, folder: Path) -> None:
    connected(relay)
    before = received(collector)
    message = send(relay, f"meg+achats+{NAME}@welyb.fr", "facture-edf.pdf")
    Desk(relay).here("runs", "now")
    (folder / "releve.zip").write_bytes(made.plain_zip())
    with open_chapter("A firm asks where an invoice is", relay) as chapter:
        words = {"FILE": "facture-edf.pdf", "MESSAGE": message, "ID": f"{message}-1", "ID2": f"{message}-2"}
        chapter.do(**words)
        chapter.do()
        chapter.do()
        told = PAGE.read_text("utf-8")
        assert "Until the next run `welyb-relay queue drop ID2` takes that back." in told
        Desk(relay).here("queue", "drop", words["ID2"], "--reason", "found")
        Desk(relay).here("runs", "now")
        assert received(collector) == before + 1


def test_a_queue_that_does_not_move(relay: Relay, collector: Collector, open_chapter: Open) -> None:
    number = connected(relay)
    relay.configure({"delivery": {"routes": dict.fromkeys(COLLECTORS, f"127.0.0.1:{free_port()}")}})
    one = send(relay, f"meg+achats+{NAME}@welyb.fr", "attend.pdf") + "-1"
    Desk(relay).here("runs", "now")
    with open_chapter("The queue does not move", relay) as chapter:
        chapter.do(ID=one)
        chapter.do()
        chapter.do()
        assert {row["id"]: row["state"] for row in Desk(relay).json("queue", "list")}[one] == "waiting"
        relay.configure({"delivery": {"routes": dict.fromkeys(COLLECTORS, collector.destination)}})
        failed = send(relay, "meg+parti@welyb.fr", "refuse.pdf") + "-1"
        Desk(relay).here("runs", "now")
        collector.change(reject=[])
        chapter.do(FAILED=failed)
        Desk(relay).here("runs", "now")
        states = {row["id"]: row["state"] for row in Desk(relay).json("queue", "list")}
        assert states[one] == states[failed] == "sent"
        put(relay, "nouveau.pdf")
        (relay.ged / CLIENT / "Achats").rename(relay.ged / "away")
        shutil.copytree(relay.ged / "away", relay.ged / CLIENT / "Achats")
        Desk(relay).here("runs", "now")
        chapter.do(NUMBER=number)
        chapter.do()


def test_a_full_disk(relay: Relay, open_chapter: Open) -> None:
    relay.start()
    send(relay, f"meg+achats+{NAME}@welyb.fr", "facture.pdf")
    with open_chapter("The disk is full", relay) as chapter:
        chapter.do()
        relay.configure(chapter.settings())
        chapter.do()


def test_keys(relay: Relay, server: NameServer, open_chapter: Open) -> None:
    relay.start()
    Desk(relay).here("keys", "create", "k1", "--kind", "both")
    relay.configure({"dkim": {"selector": ["k1", "k1-ed"]}})
    server.publish(as_published(Desk(relay)))
    relay.stop()
    relay.start()
    with open_chapter("Keys", relay) as chapter:
        chapter.do()
        server.publish(as_published(Desk(relay)))
        chapter.do()
        relay.configure(chapter.settings())
        chapter.do()
        chapter.do()


@pytest.mark.debian("rsync")
def test_another_machine(
    new_relay: Callable[[str], Relay], relay: Relay, collector: Collector, open_chapter: Open
) -> None:
    """What was sent is not sent again, what was there before is not sent, what waits is, once."""
    before = received(collector)
    number = connected(relay)
    put(relay, "avant.pdf")
    new = new_relay("n")
    with open_chapter("Another machine", {"old": relay, "new": new}) as chapter:
        chapter.do(VERSION="0.1.0", NUMBER=number)
        stop = relay.stop

        def deposit_meanwhile() -> int:
            code = stop()
            put(relay, "pendant.pdf")
            return code

        relay.stop = deposit_meanwhile  # type: ignore[method-assign]
        chapter.do()
        relay.stop = stop  # type: ignore[method-assign]
        chapter.do()
        chapter.do()
        assert received(collector) == before + 2
        statuses = {row["name"]: row["status"] for row in Desk(new).json("documents", "list")}
        assert statuses == {"ancien.pdf": "baseline", "avant.pdf": "validated", "pendant.pdf": "validated"}


def test_restoring(relay: Relay, collector: Collector, open_chapter: Open, folder: Path) -> None:
    """Nothing that may have left leaves again without a word."""
    before = received(collector)
    connected(relay)
    waits = send(relay, f"meg+achats+{NAME}@welyb.fr", "attend.pdf") + "-1"
    Desk(relay).here("backup", str(folder / "copy"))
    put(relay, "depuis.pdf")
    Desk(relay).here("runs", "now")
    assert received(collector) == before + 2
    with open_chapter("Restoring", relay) as chapter:
        chapter.do(ID=waits)
        chapter.do()
        held = {row["id"] for row in Desk(relay).json("queue", "list", "--state", "held")} - {waits}
        assert received(collector) == before + 2
        (other,) = held
        chapter.do(OTHER=other)


def test_a_new_release(relay: Relay, open_chapter: Open) -> None:
    relay.start()
    send(relay, f"meg+achats+{NAME}@welyb.fr", "facture.pdf")
    with open_chapter("A new release", relay) as chapter:
        chapter.do(VERSION="0.2.0")


def test_removing_it(relay: Relay, open_chapter: Open) -> None:
    number = connected(relay)
    put(relay, "dernier.pdf")
    with open_chapter("Removing it", relay) as chapter:
        chapter.do(NUMBER=number)
        chapter.do()
        assert not relay.program.running


def test_every_chapter_with_a_block_is_done_by_a_test() -> None:
    text = Path(__file__).read_text("utf-8")
    assert [title for title, blocks in CHAPTERS.items() if blocks and f'"{title}"' not in text] == []


def test_what_it_calls_in_its_prose_exists() -> None:
    """`welyb-relay …` in backticks is a command; a chapter named in italics is one."""

    from tests.test_documents import COMMANDS

    text = PAGE.read_text("utf-8")
    known = {path.removeprefix("welyb-relay ") for path in COMMANDS} | {path.split()[1] for path in COMMANDS}
    called = re.findall(r"`welyb-relay ((?:[a-z]+ ?)+)", text)
    assert called and all(" ".join(words.split()[:2]) in known or words.split()[0] in known for words in called)
    named = {" ".join(words.split()) for words in re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", text)}
    assert named <= set(CHAPTERS)


def test_what_must_come_first_does() -> None:
    """The three that cannot be undone: both machines, sent again, let go after a restoration."""
    text = PAGE.read_text("utf-8")
    assert text.index("**Never two relays on one store.**") < text.index("\n## ")
    lines = [one for blocks in CHAPTERS.values() for block in blocks for one in block.text.splitlines()]
    assert not [line for line in lines if re.search(r"\brm\b", line)], "nothing is removed by hand"
    for title, first, then in (
        ("Restoring", "systemctl disable --now", "welyb-relay restore"),
        ("Restoring", "**For each, ask the collector**", "$ welyb-relay queue release"),
        ("Restoring", "check --store --deep", "systemctl enable"),
        ("Another machine", "systemctl disable --now", "rsync -aH"),
        ("Another machine", "runs now --dry-run", "systemctl enable"),
        ("A firm asks where an invoice is", "If, and only if, MEG says", "queue resend"),
        ("Removing it", "runs now", "connections remove"),
    ):
        chapter = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        assert 0 <= chapter.index(first) < chapter.index(then), title


@pytest.mark.parametrize(
    "line",
    [
        "systemctl stop welyb-relay.service",
        "systemctl disable --now welyb-relay.socket welyb-relay.service",
        "systemctl start postfix.service",
        "apt-get install ./other_1.deb",
        "journalctl --vacuum-size=1M",
    ],
)
def test_a_line_that_is_only_looked_up_is_looked_at(line: str) -> None:
    with pytest.raises(AssertionError):
        looked_up(line)
