"""`retours+TOKEN` in the hands of the far side: how long it leads back, and through a change of the key."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import documents as made
from tests.support.clients import CLIENTS, Sent, mail
from tests.support.debian import faked_time
from tests.support.farside import Far, in_a_thread
from tests.support.relay import Relay

SENDER, MEG = "compta@cabinet.example", "meg+martin@welyb.fr"
REPORT = (
    "From: <MAILER-DAEMON@mx.meg.test>\nContent-Type: message/delivery-status\n\nReporting-MTA: dns; mx.meg.test\n\n"
    "Final-Recipient: rfc822; martin@factures-meg.fr\nAction: failed\nStatus: 5.1.1\n"
)
UNKNOWN = (550, "5.1.1 Adresse de collecte inconnue (unknown address)")


@dataclass
class Story:
    relay: Relay
    far: Far
    patch: pytest.MonkeyPatch

    def at(self, instant: str) -> None:
        """The relay, and its command, live at that time from now on."""
        self.relay.stop()
        for name, value in faked_time(f"@{instant}").items():
            self.relay.program.env[name] = value
            self.patch.setenv(name, value)
        self.relay.start()

    def sent(self) -> str:
        """The return address of a mail that was just sent on."""
        self.mail()
        self.relay.cli("runs", "now")
        return self.return_paths()[-1]

    def mail(self) -> str:
        sent = CLIENTS["python"](
            self.relay.port, SENDER, [MEG], mail(SENDER, MEG, ("a.pdf", "application/pdf", made.pdf()))
        )
        assert sent.accepted, sent
        return sent.text.rsplit(maxsplit=1)[-1] + "-1"

    def return_paths(self) -> list[str]:
        return re.findall(r"MAIL FROM:<([^>]+)>", "\n".join(self.far.commands))

    def report(self, to: str) -> Sent:
        return CLIENTS["python"](self.relay.port, "", [to], REPORT.replace("\n", "\r\n").encode())

    def states(self) -> list[str]:
        return [row["state"] for row in self.relay.json("queue", "list")]


@pytest.fixture
def story(new_relay: Callable[..., Relay], monkeypatch: pytest.MonkeyPatch) -> Iterator[Story]:
    far = Far()
    with in_a_thread([far]) as (port,):
        relay = new_relay({"delivery": {"routes": {"factures-meg.fr": f"127.0.0.1:{port}"}}})
        yield Story(relay, far, monkeypatch)


@pytest.mark.debian("faketime")
def test_a_report_is_heard_for_five_days_and_thirty_and_then_no_more(story: Story) -> None:
    story.at("2026-03-02 12:00:00")
    in_time, too_late = story.sent(), story.sent()
    story.at("2026-04-06 12:00:00")  # 35 days later
    assert story.report(in_time).accepted
    assert story.states() == ["sent", "bounced"]
    story.at("2026-04-07 12:00:00")
    refused = story.report(too_late)
    assert (refused.code, refused.text) == UNKNOWN
    assert story.states() == ["sent", "bounced"]


@pytest.mark.debian("faketime")
def test_what_was_held_for_long_leaves_under_an_address_of_its_day(story: Story) -> None:
    story.at("2026-03-02 12:00:00")
    delivery = story.mail()
    story.relay.cli("queue", "hold", delivery, "--reason", "essai")
    story.at("2026-05-04 12:00:00")
    story.relay.cli("queue", "release", delivery, "--reason", "essai")
    story.relay.cli("runs", "now")
    story.at("2026-06-02 12:00:00")
    assert story.states() == ["sent"]
    assert story.report(story.return_paths()[0]).accepted
    assert story.states() == ["bounced"]


def test_a_key_is_changed_and_what_is_on_its_way_still_comes_back(story: Story) -> None:
    story.relay.start()
    key = story.relay.folder / "var/token.key"
    before, also_before = story.sent(), story.sent()
    story.relay.stop()
    key.rename(key.with_name("token.key.old"))
    story.relay.start()
    after = story.sent()
    assert [story.report(path).code for path in (before, after)] == [250, 250]
    story.relay.stop()
    Path(f"{key}.old").unlink()
    story.relay.start()
    assert [story.report(path).code for path in (also_before, after)] == [550, 250]
