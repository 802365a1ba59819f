"""Who is held back and who is not, with a real store and a clock of the test's own; what is told of it, and forgotten."""

import asyncio
import contextlib
import gc
import json
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from relay import care, clock, ids, throttles
from relay import config as configuration
from relay.accept import Intake
from relay.cli import cli
from relay.config import Throttle
from relay.daemon import list_clients_of, means
from relay.directory import Directory
from relay.draft import Envelope, Recipient
from relay.flush import Means
from relay.store import erasure, intake
from relay.store import throttles as store
from relay.store.database import open_for_reading, rows
from relay.throttles import Throttles
from rules import path, replies
from rules.peer import Peer
from rules.replies import Reply
from rules.throttle import Kind, Subject
from tests.support.clients import Dialogue, mail
from tests.support.documents import pdf
from tests.support.door import doors

STRANGER, OTHER = "192.0.2.1", "192.0.2.2"
SENDER, DUPONT = "a@fournisseur.fr", "ventes+dupont@welyb.fr"
FEW: dict[str, str] = {"peer": "5 / hour", "sender_domain": "off", "client": "off", "unknown": "3 / hour"}


class Site:
    """The door as the SMTP session uses it. `now` is the time of the counts, in seconds."""

    def __init__(self, folder: Path, tools: Means, reader: Any) -> None:
        self.folder, self.tools, self.reader = folder, tools, reader
        self.now = 0.0
        directory = Directory(reader, tools.writer, tools.config.ged.root)
        self.intake = Intake(
            tools.config,
            tools.ruleset,
            spool=tools.spool,
            writer=tools.writer,
            directory=directory,
            token_key=tools.token_key,
        )
        self.intake.throttles.time = lambda: self.now

    async def rcpt(self, to: str, *, ip: str = STRANGER, sender: str = SENDER) -> Recipient | Reply:
        asked, peer = path.parse(f"<{to}>".encode()), self.intake.peer(ip)
        assert isinstance(asked, path.Path)
        return self.intake.recipient(asked, peer, sender) or await self.intake.recipient_again(asked, peer, sender)

    async def mail(self, to: str = DUPONT, *, ip: str = STRANGER, sender: str = SENDER) -> bool:
        """Was it taken? Else it was told 450."""
        judged = await self.rcpt(to, ip=ip, sender=sender)
        if isinstance(judged, Reply):
            assert judged == replies.THROTTLED
            return False
        envelope = Envelope(self.intake.peer(ip), "x", "ESMTP", "", sender)
        self.intake.begin(envelope, [judged]).abort()
        self.intake.throttles.accepted(envelope, [judged])
        return True

    async def told(self) -> list[tuple[Any, ...]]:
        """(kind, subject, count, cleared) of the rows, once all that was given to the writer is written."""
        await self.tools.writer.write(lambda db, _: None)
        return rows(self.reader, "SELECT kind, subject, count, cleared FROM throttle ORDER BY id")

    def command(self, *words: str) -> Result:
        return CliRunner().invoke(cli, ["--config", str(self.folder / "relay.toml"), *words])


@contextlib.asynccontextmanager
async def opened(folder: Path, limits: dict[str, str]) -> AsyncIterator[Site]:
    (folder / "ged/Dupont").mkdir(parents=True, exist_ok=True)
    (folder / "ged/Martin").mkdir(exist_ok=True)
    lines = ["[relay]", 'data = "var"', "[ged]", 'root = "ged"', "[throttle]"]
    (folder / "relay.toml").write_text("\n".join([*lines, *(f'{key} = "{value}"' for key, value in limits.items())]))
    config = configuration.load(folder / "relay.toml")
    async with means(config, configuration.load_rules(config)) as tools:
        list_clients_of(config)
        with contextlib.closing(open_for_reading(config.database)) as reader:
            yield Site(folder, tools, reader)


@pytest.fixture
def at_door(tmp_path: Path) -> Callable[..., None]:
    """Runs a story at a door with the limits given."""

    def run(story: Callable[[Site], Awaitable[None]], **limits: str) -> None:
        async def whole() -> None:
            async with opened(tmp_path, {**FEW, **limits}) as site:
                await story(site)

        asyncio.run(whole())

    return run


Door = Callable[..., None]
OFF = {"peer": "off"}


# --- probing ----------------------------------------------------------------------------------------------------------


def test_a_prober_is_told_450_for_every_address_until_its_time_has_passed(at_door: Door) -> None:
    async def story(site: Site) -> None:
        for number in range(3):
            assert await site.rcpt(f"ventes+quidam{number}@welyb.fr") == replies.UNKNOWN
        for asked in ("ventes+quidam9@welyb.fr", DUPONT, "meg+x@welyb.fr", "ventes+a+b@welyb.fr", "x@ailleurs.example"):
            assert await site.rcpt(asked) == replies.THROTTLED, asked
        assert isinstance(await site.rcpt(DUPONT, ip=OTHER), Recipient), "others go on"
        site.now += 1199
        assert await site.rcpt(DUPONT) == replies.THROTTLED
        site.now += 1
        assert isinstance(await site.rcpt(DUPONT), Recipient)
        assert await site.rcpt("ventes+quidam8@welyb.fr") == replies.UNKNOWN
        assert await site.rcpt("ventes+quidam7@welyb.fr") == replies.THROTTLED

    at_door(story)


def test_nothing_is_looked_up_for_whoever_is_held_back(at_door: Door) -> None:
    """Or the time it takes would tell what the answer does not."""

    async def story(site: Site) -> None:
        for number in range(3):
            await site.rcpt(f"ventes+quidam{number}@welyb.fr")
        asked = path.parse(b"<ventes+quidam9@welyb.fr>")
        assert isinstance(asked, path.Path)
        statements: list[str] = []
        site.reader.conn.set_trace_callback(statements.append)
        for local in ("ventes+quidam9", "ventes+dupont"):
            asked = path.Path(local, "welyb.fr", {})
            assert site.intake.throttles.held(asked, site.intake.peer(STRANGER), SENDER) == replies.THROTTLED
        assert len(statements) == 2 and statements[0] == statements[1]

    at_door(story)


def test_the_same_unknown_address_again_is_no_probing(at_door: Door) -> None:
    """An application goes on mailing for a client that left the firm."""

    async def story(site: Site) -> None:
        for _ in range(50):
            assert await site.rcpt("ventes+parti@welyb.fr") == replies.UNKNOWN
            assert await site.rcpt('"VENTES+parti"@Welyb.fr') == replies.UNKNOWN
        assert isinstance(await site.rcpt(DUPONT), Recipient)

    at_door(story)


def test_what_is_no_client_can_be_asked_without_end(at_door: Door) -> None:
    """Neither a form that is none nor what the peer may not use says who is a client."""

    async def story(site: Site) -> None:
        for number in range(50):
            assert await site.rcpt(f"ventes+a+{number}@welyb.fr") == replies.MALFORMED
            assert await site.rcpt(f"meg+x{number}@welyb.fr") == replies.NOT_ALLOWED
        assert isinstance(await site.rcpt(DUPONT), Recipient)

    at_door(story)


# --- mails ------------------------------------------------------------------------------------------------------------


def test_a_peer_has_so_many_mails_whatever_its_domains(at_door: Door) -> None:
    async def story(site: Site) -> None:
        got = [await site.mail(sender=f"a@d{number}.example") for number in range(7)]
        assert got == [True] * 5 + [False] * 2
        assert not await site.mail(sender=""), "reports of failure too: they come again"
        assert await site.mail(ip=OTHER)
        site.now += 720  # a fifth of an hour
        assert [await site.mail(), await site.mail()] == [True, False]

    at_door(story)


def test_an_ipv6_peer_is_its_64(at_door: Door) -> None:
    async def story(site: Site) -> None:
        got = [await site.mail(ip=f"2001:db8::{number}") for number in range(7)]
        assert got == [True] * 5 + [False] * 2
        assert await site.mail(ip="2001:db8:0:1::1")

    at_door(story)


def test_a_domain_has_so_many_mails_whatever_its_peers(at_door: Door) -> None:
    async def story(site: Site) -> None:
        got = [await site.mail(ip=f"192.0.2.{number}") for number in range(7)]
        assert got == [True] * 5 + [False] * 2
        assert await site.mail(sender="a@autre.fr")
        assert all([await site.mail(sender="") for _ in range(20)]), "the null sender is nobody's"

    at_door(story, sender_domain="5 / hour", **OFF)


def test_a_client_has_so_many_mails_whoever_sends(at_door: Door) -> None:
    async def story(site: Site) -> None:
        got = [await site.mail(ip=f"192.0.2.{number}", sender=f"a@d{number}.example") for number in range(7)]
        assert got == [True] * 5 + [False] * 2
        assert await site.mail("ventes+martin@welyb.fr")
        assert await site.mail(ip="127.0.0.1"), "a scanner of the firm"

    at_door(story, client="5 / hour", **OFF)


def test_a_mail_for_many_counts_once_for_each(at_door: Door) -> None:
    async def story(site: Site) -> None:
        both = [await site.rcpt(DUPONT), await site.rcpt("ventes+martin@welyb.fr")]
        envelope = Envelope(site.intake.peer(STRANGER), "x", "ESMTP", "", SENDER)
        for _ in range(5):
            found = [recipient for recipient in both if isinstance(recipient, Recipient)] * 10
            site.intake.throttles.accepted(envelope, found)
        assert not await site.mail()
        site.now += 720
        assert await site.mail()

    at_door(story, client="5 / hour")


def test_what_is_refused_takes_nothing_from_a_client_or_a_domain(tmp_path: Path) -> None:
    few = ("trusted_networks = []", "[throttle]", 'client = "3 / hour"', 'sender_domain = "3 / hour"')
    with doors(tmp_path) as open_, Dialogue(open_(*few).port) as dialogue:
        dialogue.hello()
        for _ in range(9):
            assert [reply.code for reply in dialogue.envelope(SENDER, DUPONT)] == [250, 250]
            assert dialogue.last_chunk(b"Subject: x\r\n\r\nx\r\n").code == 554  # no document
        for number in range(5):
            assert dialogue.envelope(SENDER, DUPONT)[1].code == (250 if number < 3 else 450)
            attached = mail(SENDER, DUPONT, ("f.pdf", "application/pdf", pdf(str(number))))
            assert dialogue.last_chunk(attached).code == (250 if number < 3 else 503)
            dialogue.say("RSET")


def test_what_is_in_flight_at_once_is_owed_afterwards(at_door: Door) -> None:
    async def story(site: Site) -> None:
        envelope = Envelope(site.intake.peer(STRANGER), "x", "ESMTP", "", SENDER)
        judged = [found for _ in range(8) if isinstance(found := await site.rcpt(DUPONT), Recipient)]
        for each in judged:
            site.intake.throttles.accepted(envelope, [each])
        assert len(judged) == 8 and not await site.mail()
        site.now += 3 * 720
        assert not await site.mail()
        site.now += 720
        assert [await site.mail(), await site.mail()] == [True, False]

    at_door(story, client="5 / hour", **OFF)


def test_people_can_be_reached_short_of_abuse(at_door: Door) -> None:
    async def story(site: Site) -> None:
        for number in range(3):
            await site.rcpt(f"ventes+quidam{number}@welyb.fr")
        got = [await site.mail("postmaster@welyb.fr") for _ in range(12)]
        assert got == [True] * 10 + [False] * 2
        assert await site.rcpt("abuse@welyb.fr") == replies.THROTTLED

    at_door(story)


def test_whom_we_trust_is_never_held_back_nor_counted(at_door: Door) -> None:
    async def story(site: Site) -> None:
        for number in range(30):
            assert await site.rcpt(f"ventes+quidam{number}@welyb.fr", ip="127.0.0.1") == replies.UNKNOWN
            assert await site.mail(ip="127.0.0.1")
        assert await site.mail(), "their mail takes nothing from others"
        assert await site.told() == []

    at_door(story, client="5 / hour", sender_domain="5 / hour")


def test_the_end_of_the_month_passes_the_defaults(at_door: Door) -> None:
    """One application, one address, one domain: the sales of 500 clients within an hour, and somebody's long since left."""

    async def story(site: Site) -> None:
        limits, peer = site.intake.throttles, Peer(STRANGER, trusted=False)
        limits.limits = Throttle()
        judged = await site.rcpt(DUPONT)
        assert isinstance(judged, Recipient)
        asked, gone = path.Path("ventes+dupont", "welyb.fr", {}), path.Path("ventes+parti", "welyb.fr", {})
        envelope = Envelope(peer, "x", "ESMTP", "", SENDER)
        for number in range(500 * 20):
            site.now = number * 3600 / 10_000
            assert limits.held(asked, peer, SENDER) is None
            assert limits.judged(asked, peer, judged) == judged or number % 500 >= 20
            limits.judged(gone, peer, replies.UNKNOWN)
            limits.begun(envelope)
            limits.accepted(envelope, [judged] if number % 20 == 0 else [])

    at_door(story)


def test_new_settings_are_in_force_at_once(at_door: Door) -> None:
    async def story(site: Site) -> None:
        assert [await site.mail() for _ in range(6)] == [True] * 5 + [False]
        settings = site.folder / "relay.toml"
        settings.write_text(settings.read_text().replace('peer = "5', 'peer = "50'))
        site.intake.adopt(configuration.load(settings), site.tools.ruleset)
        site.now += 72
        assert await site.mail()

    at_door(story)


# --- memory -----------------------------------------------------------------------------------------------------------


def weight(*things: object) -> int:
    """Bytes of these and of all they hold."""
    seen: set[int] = set()
    found, total = list(things), 0
    while found:
        thing = found.pop()
        if id(thing) not in seen and not isinstance(thing, type):
            seen.add(id(thing))
            total += sys.getsizeof(thing)
            found += gc.get_referents(thing)
    return total


def test_a_hundred_thousand_peers_take_no_more_memory_than_some(at_door: Door) -> None:
    async def story(site: Site) -> None:
        limits = site.intake.throttles
        limits.limits = Throttle()
        asked = path.Path("ventes+x", "welyb.fr", {})
        for number in range(100_000):
            peer = Peer(f"2001:db8:{number >> 8:x}:{number & 255:x}::1", trusted=False)
            limits.judged(asked, peer, replies.UNKNOWN)
            limits.begun(Envelope(peer, "x", "ESMTP", "", f"a@d{number}.example"))
            limits.accepted(Envelope(peer, "x", "ESMTP", "", f"a@d{number}.example"), [])
        assert 1_000_000 < weight(limits._accounts, limits._asked, limits._untold, limits._told) < 15_000_000

    at_door(story)


def test_whoever_is_held_back_is_not_forgotten_before_those_who_are_not(
    at_door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttles, "MOST", 10)

    async def story(site: Site) -> None:
        for _ in range(5):
            assert await site.mail()
        for number in range(50):
            assert not await site.mail()
            assert await site.mail(ip=f"198.51.100.{number}")

    at_door(story)


# --- what is told -----------------------------------------------------------------------------------------------------


def test_it_is_told_at_once_and_then_once_a_minute(at_door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttles, "TELL_EVERY", 0.2)

    async def story(site: Site) -> None:
        limits = site.intake.throttles
        loop = asyncio.get_running_loop()
        limits.time = loop.time
        for _ in range(5):
            await site.mail()
        for _ in range(40):
            assert not await site.mail()
        assert await site.told() == [("peer", STRANGER, 1, 0)]
        async with asyncio.timeout(20):
            while (await site.told())[0][2] < 40:
                await asyncio.sleep(0.02)
            assert await site.told() == [("peer", STRANGER, 40, 0)]
            while limits._timer is not None:  # nothing more to tell: it does not tick for ever
                await asyncio.sleep(0.02)

    at_door(story)


def test_the_log_names_no_domain_and_no_client(at_door: Door, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("welyb-relay").propagate = True

    async def story(site: Site) -> None:
        for number in range(4):
            await site.rcpt(f"ventes+quidam{number}@welyb.fr", ip="2001:db8::1")
        for number in range(7):
            await site.mail(ip=f"192.0.2.{number}")
            await site.mail(ip=f"192.0.2.{number}", sender=f"a@d{number}.example")

    with caplog.at_level(logging.INFO, "welyb-relay"):
        at_door(story, client="6 / hour", sender_domain="3 / hour", **OFF)
    told = "\n".join(record.getMessage() for record in caplog.records)
    assert "throttled kind=unknown peer=2001:db8::/64 held=1" in told
    assert "throttled kind=sender_domain subject=" in told and "throttled kind=client subject=" in told
    assert "fournisseur" not in told and "dupont" not in told


def test_of_many_at_once_the_rest_is_held_back_and_not_told(at_door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throttles, "MOST_TOLD", 8)

    async def story(site: Site) -> None:
        for number in range(20):
            got = [await site.mail(ip=f"192.0.2.{number}") for _ in range(6)]
            assert got == [True] * 5 + [False]
        assert len(await site.told()) == 8

    at_door(story)


def test_one_time_of_being_held_back_is_one_row_whichever_process_tells_of_it(at_door: Door) -> None:
    def news(minutes: float, count: int = 1) -> store.Held:
        at = clock.now() + timedelta(minutes=minutes)
        return store.Held(Subject("peer", STRANGER), clock.stamp(at), clock.stamp(at + timedelta(seconds=1)), count)

    async def story(site: Site) -> None:
        for minutes, count in ((0, 1), (1, 10), (0.5, 5), (59, 1), (200, 1), (201, 2)):
            await site.tools.writer.write(lambda db, _, m=minutes, c=count: store.record(db, [news(m, c)]))
        assert [row[2] for row in await site.told()] == [17, 3]

    at_door(story)


# --- the postmaster ---------------------------------------------------------------------------------------------------


def test_the_postmaster_sees_them_and_lets_one_through(at_door: Door) -> None:
    async def story(site: Site) -> None:
        other = Throttles(
            site.intake.config.throttle, writer=site.tools.writer, db=site.reader, time=lambda: site.now
        )  # of another process
        envelope = Envelope(site.intake.peer("2001:db8::1"), "x", "ESMTP", "", SENDER)
        for ip in (STRANGER, "2001:db8::1"):
            for _ in range(6):
                await site.mail(ip=ip)
        for _ in range(6):
            other.begun(envelope)
        assert [row[:2] for row in await site.told()] == [("peer", STRANGER), ("peer", "2001:db8::/64")]
        listed = site.command("throttles", "list", "--json")
        assert listed.stdout.count('"state": "held"') == 2
        first = json.loads(listed.stdout.splitlines()[0])
        assert list(first) == ["id", "kind", "subject", "state", "since", "until", "count", "client"]
        assert clock.instant(first["since"]) < clock.instant(first["until"])

        done = site.command("throttles", "clear", "peer", "2001:0db8::99", "--reason", "scanner")
        assert (done.exit_code, done.stdout) == (0, "cleared peer 2001:db8::/64\n")
        asked = path.Path("ventes+dupont", "welyb.fr", {})
        assert other.held(asked, envelope.peer, SENDER) is None
        assert await site.mail(ip="2001:db8::1")
        assert not await site.mail(), "only that one"
        assert '"state": "cleared"' in site.command("throttles", "list", "--json").stdout
        again = site.command("throttles", "clear", "peer", "2001:db8::1")
        assert (again.exit_code, again.stdout) == (1, "")
        (event,) = rows(site.reader, "SELECT event, detail FROM event")
        assert event[0] == "throttle-cleared" and "scanner" in event[1] and "2001" not in event[1]

    at_door(story)


def test_the_list_is_of_the_last_day_or_since_when_one_likes(at_door: Door) -> None:
    def held(kind: Kind, subject: str, hours: float) -> store.Held:
        at = clock.stamp(clock.now() - timedelta(hours=hours))
        return store.Held(Subject(kind, subject), at, at, 1)

    async def story(site: Site) -> None:
        news = [held("peer", STRANGER, 30), held("client", "dupont", 2), held("sender_domain", "x.example", 0)]
        await site.tools.writer.write(lambda db, _: store.record(db, news))
        assert site.command("throttles", "list", "--json").stdout.count("\n") == 2
        assert site.command("throttles", "list", "--json", "--since", "2 days").stdout.count("\n") == 3
        assert site.command("throttles", "list", "--json", "--client", "dupont").stdout.count("\n") == 1
        assert site.command("throttles", "list", "--json", "--state", "past").stdout.count("\n") == 1
        assert site.command("throttles", "clear", "peer", STRANGER).exit_code == 1, "long over"
        assert site.command("throttles", "clear", "client", "Dupont").exit_code == 0
        assert site.command("throttles", "clear", "visage", "x").exit_code == 2

    at_door(story)


def test_rows_go_after_ninety_days(at_door: Door) -> None:
    async def story(site: Site) -> None:
        old, young = (clock.stamp(clock.now() - timedelta(days=days)) for days in (91, 89))
        news = [store.Held(Subject("peer", ip), at, at, 1) for ip, at in ((STRANGER, old), (OTHER, young))]
        await site.tools.writer.write(lambda db, _: store.record(db, news))
        for at in (old, young):
            id_ = ids.new(clock.instant(at))
            refusal = intake.Refusal(id_, at, STRANGER, "far.test", SENDER, (), "", (), "554 5.6.1 archive ZIP")
            await site.tools.writer.write(partial(lambda db, _, new: intake.record_refusal(db, new), new=refusal))
        until = clock.now() + timedelta(minutes=1)
        tools = site.tools
        await care.after_run(tools.config, site.reader, spool=tools.spool, writer=tools.writer, until=until)
        assert await site.told() == [("peer", OTHER, 1, 0)]
        assert rows(site.reader, "SELECT at FROM refusal") == [(young,)]

    at_door(story)


@pytest.mark.parametrize(
    ("asked", "left"),
    [
        (erasure.Asked(client="dupont"), {"x.example", "martin", STRANGER}),
        (erasure.Asked(sender="Jeanne@X.example"), {"dupont", "dupont@factures-meg.fr", "martin", STRANGER}),
    ],
)
def test_an_erasure_reaches_them(at_door: Door, asked: erasure.Asked, left: set[str]) -> None:
    async def story(site: Site) -> None:
        at = clock.stamp(clock.now())
        subjects: list[tuple[Kind, str]] = [("sender_domain", "x.example"), ("client", "dupont")]
        subjects += [("client", "dupont@factures-meg.fr"), ("client", "martin"), ("peer", STRANGER)]
        await site.tools.writer.write(
            lambda db, _: store.record(
                db, [store.Held(Subject(kind, subject), at, at, 1) for kind, subject in subjects]
            )
        )
        link = """INSERT INTO connection (application, client, folder, welyb_address, collector_address, activated_at,
          removed_at, state, root) VALUES ('meg', 'dupont', '', 'meg+dupont@welyb.fr', 'Dupont@factures-meg.fr', ?, ?,
          'removed', '')"""
        await site.tools.writer.write(lambda db, _: db.conn.execute(link, (at, at)))
        await site.tools.writer.write(lambda db, _: erasure.erase(db, asked, at=at, actor="root", why="demande"))
        assert {row[1] for row in await site.told()} == left

    at_door(story)


def test_an_erasure_reaches_the_peers_of_what_it_erases(at_door: Door) -> None:
    async def story(site: Site) -> None:
        at = clock.stamp(clock.now())
        news = [store.Held(Subject("unknown", name), at, at, 1) for name in ("2001:db8::/64", STRANGER)]
        await site.tools.writer.write(lambda db, _: store.record(db, news))
        refusal = """INSERT INTO refusal (id, at, peer, helo, sender, recipients, message_id, documents, reply)
          VALUES ('r1', ?, '2001:db8::7', '', 'jeanne@x.example', '[]', '', '[]', '')"""
        await site.tools.writer.write(lambda db, _: db.conn.execute(refusal, (at,)))
        asked = erasure.Asked(sender="jeanne@x.example")
        await site.tools.writer.write(lambda db, _: erasure.erase(db, asked, at=at, actor="root", why="demande"))
        assert [row[1] for row in await site.told()] == [STRANGER]

    at_door(story)
