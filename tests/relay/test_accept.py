"""From the last byte of a mail to its 250: what is stored, what is refused, what a repeat adds (nothing)."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from relay import clock, directory, ids
from relay.spool import SMALL
from relay.store import intake
from rules import replies
from rules.replies import Reply
from tests.support.clients import mail
from tests.support.documents import jpeg, pdf, plain_zip, png
from tests.support.inside import SENDER, Inside, inside

VENTES, MEG, ACHATS = "ventes+dupont@welyb.fr", "meg+dupont@welyb.fr", "meg+achats+dupont@welyb.fr"
INVOICE = ("facture.pdf", "application/pdf", pdf())
RECEIPT = ("ticket.jpg", "image/jpeg", jpeg(3000))
ARCHIVE = ("releve.zip", "application/zip", plain_zip())

RELIST_EVERY = 0.1  # seconds between two listings of the GED


@pytest.fixture
def relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Inside]:
    monkeypatch.setattr(directory, "RELIST_EVERY", RELIST_EVERY)
    with inside(tmp_path, clients=("Dupont", "Martin")) as relay:
        yield relay


def message_of(reply: Reply) -> str:
    assert reply.code == 250, reply
    return reply.text().split()[-1]


# --- what one mail adds ----------------------------------------------------------------------------------------------


def test_one_sending_for_a_collector_and_one_filing_for_each_document_of_a_client(relay: Inside) -> None:
    message = message_of(relay.take(mail(SENDER, MEG, INVOICE, RECEIPT), MEG, VENTES))
    assert relay.rows("SELECT id, kind, route, target, state FROM delivery ORDER BY id") == [
        (f"{message}-1", "send", "meg", "dupont@factures-meg.fr", "waiting"),
        (f"{message}-2", "file", "ventes", VENTES, "waiting"),
        (f"{message}-3", "file", "ventes", VENTES, "waiting"),
    ]
    carried = relay.rows("SELECT delivery, document FROM delivery_document ORDER BY delivery, document")
    assert [(d[-1], f[-1]) for d, f in carried] == [("1", "1"), ("1", "2"), ("2", "1"), ("3", "2")]
    assert relay.column("SELECT name FROM document ORDER BY id") == ["facture.pdf", "ticket.jpg"]


def test_the_same_recipient_twice_is_stored_once(relay: Inside) -> None:
    relay.take(mail(SENDER, MEG, INVOICE), MEG, "MEG+Dupont@welyb.fr", '"meg+dupont"@welyb.fr', VENTES, VENTES)
    assert relay.column("SELECT target FROM delivery ORDER BY id") == ["dupont@factures-meg.fr", VENTES]
    assert relay.rows("SELECT address, typed FROM recipient ORDER BY address") == [(MEG, MEG), (VENTES, VENTES)]


def test_a_return_path_of_its_own_for_each_mail_and_the_null_sender_stays_null(relay: Inside) -> None:
    relay.take(mail(SENDER, MEG, INVOICE), MEG, ACHATS)
    relay.take(mail(SENDER, MEG, RECEIPT), MEG)
    relay.take(mail(SENDER, MEG), MEG, sender="")
    first, second, third, null = relay.column("SELECT sender FROM delivery ORDER BY id")
    assert first == second != third and null == ""
    for sender in (first, third):
        local, _, domain = sender.partition("@")
        assert domain == "welyb.fr" and local == local.lower()
        token, week = local.removeprefix("retours+"), timedelta(days=7)
        assert ids.is_token(relay.tools.token_key, token, now=clock.now(), give_up_after=week)
        assert relay.take(mail("", sender), sender, sender="").code == 250
    assert relay.take(mail("", "x"), f"retours+{'a' * 24}@welyb.fr", sender="") == replies.UNKNOWN


def test_a_small_mail_and_a_large_one_are_spooled_as_they_came(relay: Inside) -> None:
    small, large = (mail(SENDER, MEG, INVOICE, text="x" * length) for length in (10, SMALL))
    for message in (small, large):
        relay.take(message, MEG)
    kept = []
    for key in relay.column("SELECT spool FROM message ORDER BY id"):
        with relay.tools.spool.open(key) as body:
            kept.append(b"".join(body.pieces()))
    assert kept == [small, large]
    assert len(relay.spooled()) == 1


def test_mail_for_the_postmaster_is_taken_whatever_it_holds_and_kept(relay: Inside) -> None:
    assert relay.take(mail(SENDER, "postmaster", ARCHIVE), "postmaster", peer="192.0.2.1").code == 250
    assert relay.take(mail(SENDER, "abuse", ARCHIVE), "Abuse@welyb.fr", peer="192.0.2.1").code == 250
    listed = relay.rows("SELECT target, state, reason FROM delivery ORDER BY id")
    assert [(target, state) for target, state, _ in listed] == [
        ("postmaster@welyb.fr", "held"),
        ("abuse@welyb.fr", "held"),
    ]
    assert {json.loads(reason)["code"] for _, _, reason in listed} == {"kept"}


def test_mail_for_the_postmaster_is_sent_where_one_is_configured(tmp_path: Path) -> None:
    with inside(tmp_path, 'postmaster = "chef@cabinet.example"') as relay:
        relay.take(mail(SENDER, "postmaster"), "postmaster", "abuse@welyb.fr")
        assert relay.rows("SELECT target, state FROM delivery") == [("chef@cabinet.example", "waiting")]


# --- what is refused -------------------------------------------------------------------------------------------------


def test_one_refused_document_refuses_the_mail_for_every_recipient(relay: Inside) -> None:
    message = mail(SENDER, MEG, INVOICE, ARCHIVE, text="x" * SMALL)
    assert relay.take(message, MEG, VENTES).code == 554
    assert relay.column("SELECT count(*) FROM message") == relay.column("SELECT count(*) FROM delivery") == [0]
    assert relay.spooled() == []


def test_the_strictest_of_the_rules_in_play_decides(relay: Inside) -> None:
    nothing = mail(SENDER, MEG)
    assert relay.take(nothing, MEG).code == 250
    assert relay.take(nothing, VENTES) == replies.NO_DOCUMENT
    assert relay.take(nothing, MEG, VENTES) == replies.NO_DOCUMENT
    assert relay.take(nothing, "postmaster", VENTES) == replies.NO_DOCUMENT


def test_a_refusal_keeps_envelope_names_hashes_and_reason(relay: Inside) -> None:
    relay.take(mail(SENDER, MEG, ARCHIVE, INVOICE), MEG, VENTES)
    ((sender, recipients, documents, reply),) = relay.rows("SELECT sender, recipients, documents, reply FROM refusal")
    assert sender == SENDER and json.loads(recipients) == [MEG, VENTES]
    assert reply.startswith("554 5.6.1 releve.zip : archive ZIP")
    kept = json.loads(documents)
    assert [(d["name"], d["reason"].get("code")) for d in kept] == [("releve.zip", "zip"), ("facture.pdf", None)]
    assert all(len(d["sha256"]) == 64 for d in kept)


def test_a_mail_refused_for_its_structure_leaves_a_trace_too(relay: Inside) -> None:
    assert relay.take(b"X-Welyb-Relay: welyb.fr\r\n" + mail(SENDER, MEG, INVOICE), MEG) == replies.LOOP
    assert relay.column("SELECT sender FROM refusal") == [SENDER]


def test_refusals_are_kept_for_ninety_days(relay: Inside) -> None:
    for days in (91, 89):
        relay.take(mail(SENDER, MEG, ARCHIVE), MEG)
        past = datetime.now(UTC) - timedelta(days=days)
        newest = "UPDATE refusal SET at = ?, id = ? WHERE at = (SELECT max(at) FROM refusal)"
        relay.change(newest, clock.stamp(past), ids.new(past))
    relay.take(mail(SENDER, MEG, ARCHIVE), MEG)
    relay.do(lambda db: intake.forget_refusals(db, clock.stamp(datetime.now(UTC)), 500))  # as after each run
    assert len(relay.rows("SELECT id FROM refusal")) == 2


def test_a_stranger_may_file_sales_and_nothing_else(relay: Inside) -> None:
    stranger = "192.0.2.1"
    assert relay.take(mail(SENDER, MEG, INVOICE), MEG, peer=stranger) == replies.NOT_ALLOWED
    assert relay.take(mail(SENDER, MEG, INVOICE), VENTES, peer=stranger).code == 250


def test_an_unknown_client_is_unknown_and_a_new_folder_a_client(relay: Inside) -> None:
    assert relay.take(mail(SENDER, VENTES, INVOICE), "ventes+nouveau@welyb.fr") == replies.UNKNOWN
    (relay.root / "Nouveau").mkdir()
    time.sleep(RELIST_EVERY)
    assert relay.take(mail(SENDER, VENTES, INVOICE), "ventes+nouveau@welyb.fr").code == 250


def test_two_folders_of_one_name_are_refused_for_now_until_one_is_renamed(relay: Inside) -> None:
    (relay.root / "DUPONT").mkdir()
    assert relay.take(mail(SENDER, VENTES, INVOICE), "ventes+autre@welyb.fr") == replies.UNKNOWN  # lists again
    assert relay.take(mail(SENDER, VENTES, INVOICE), VENTES) == replies.TROUBLE
    assert relay.take(mail(SENDER, VENTES, INVOICE), "ventes+martin@welyb.fr").code == 250
    (relay.root / "DUPONT").rename(relay.root / "Dupont et fils")
    time.sleep(RELIST_EVERY)
    assert relay.take(mail(SENDER, VENTES, INVOICE), VENTES).code == 250


def test_a_ged_never_seen_is_our_trouble(tmp_path: Path) -> None:
    with inside(tmp_path, clients=()) as relay:
        assert relay.take(mail(SENDER, VENTES, INVOICE), VENTES) == replies.TROUBLE
        assert relay.take(mail(SENDER, MEG, INVOICE), MEG).code == 250


# --- the same again --------------------------------------------------------------------------------------------------


def test_a_mail_whose_250_was_lost_comes_again_and_adds_nothing(relay: Inside) -> None:
    message = mail(SENDER, MEG, INVOICE)
    first = relay.take(message, MEG, VENTES)
    again = relay.take(b"Received: from a by b;\r\n\tTue, 24 Nov 2026 10:00:00 +0100\r\n" + message, MEG, VENTES)
    assert again == first
    assert relay.column("SELECT count(*) FROM message") == [1]
    assert relay.column("SELECT message FROM event WHERE event = 'repeated'") == [message_of(first)] * 2


def test_a_repeat_is_judged_for_each_recipient(relay: Inside) -> None:
    message = mail(SENDER, MEG, INVOICE)
    first = relay.take(message, MEG)
    second = relay.take(message, MEG, ACHATS)
    assert second != first
    assert relay.column("SELECT target FROM delivery ORDER BY id") == [
        "dupont@factures-meg.fr",
        "dupont@achats.factures-meg.fr",
    ]


def test_without_a_message_id_nothing_is_a_repeat(relay: Inside) -> None:
    message = mail(SENDER, MEG, INVOICE).replace(b"Message-ID:", b"X-Was-Message-ID:")
    assert relay.take(message, MEG) != relay.take(message, MEG)
    assert len(relay.rows("SELECT id FROM delivery")) == 2


@pytest.mark.parametrize(
    ("sender", "changed"),
    [("autre@cabinet.example", b"Bonjour,"), (SENDER, b"Bonsoir,")],
    ids=["sender", "content"],
)
def test_another_sender_or_other_words_are_another_mail(relay: Inside, sender: str, changed: bytes) -> None:
    message = mail(SENDER, MEG, INVOICE)
    assert relay.take(message, MEG) != relay.take(message.replace(b"Bonjour,", changed), MEG, sender=sender)


@pytest.mark.parametrize("state", ["refused", "failed", "dropped", "bounced"])
def test_a_repeat_of_what_came_to_nothing_is_a_mail(relay: Inside, state: str) -> None:
    message = mail(SENDER, MEG, INVOICE)
    relay.take(message, MEG)
    relay.change("UPDATE delivery SET state = ?", state)
    relay.take(message, MEG)
    assert relay.column("SELECT state FROM delivery ORDER BY id") == [state, "waiting"]


def test_after_a_week_it_is_no_repeat(relay: Inside) -> None:
    message = mail(SENDER, MEG, INVOICE)
    relay.take(message, MEG)
    relay.change("UPDATE message SET received_at = ?", clock.stamp(datetime.now(UTC) - timedelta(days=7, minutes=1)))
    relay.take(message, MEG)
    assert len(relay.rows("SELECT id FROM delivery")) == 2


def test_who_mails_a_document_again_means_it_and_it_is_flagged(relay: Inside) -> None:
    relay.take(mail(SENDER, MEG, INVOICE), MEG)
    second = message_of(relay.take(mail(SENDER, MEG, INVOICE), MEG))
    (twin,) = relay.column("SELECT id FROM delivery WHERE id <> ?", f"{second}-1")
    ((delivery, detail),) = relay.rows("SELECT delivery, detail FROM event WHERE event = 'again'")
    assert delivery == f"{second}-1" and json.loads(detail) == {"twin": twin}
    assert relay.column("SELECT state FROM delivery") == ["waiting", "waiting"]


# --- the loop MEG → ventes+ → GED → MEG ------------------------------------------------------------------------------


def test_what_came_from_the_application_is_filed_and_never_goes_back(relay: Inside) -> None:
    relay.take(mail("noreply@factures-meg.fr", VENTES, INVOICE), VENTES)
    relay.take(mail(SENDER, VENTES, RECEIPT), VENTES, sender="bounce@Achats.factures-meg.fr")
    assert relay.column("SELECT origin FROM document ORDER BY id") == ["factures-meg.fr", "achats.factures-meg.fr"]
    relay.take(mail(SENDER, MEG, INVOICE), MEG)  # a copy of it, from someone else
    relay.take(mail(SENDER, MEG, ("autre.png", "image/png", png())), MEG)
    states = relay.rows("SELECT kind, state, json_extract(reason, '$.code') FROM delivery ORDER BY id")
    assert states == [
        ("file", "waiting", None),
        ("file", "waiting", None),
        ("send", "held", "origin"),
        ("send", "waiting", None),
    ]
