"""What rows and bytes say of each other, a store that is lost or too new, retention and erasure: with real files."""

import fcntl
import json
import os
import resource
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from relay import care, clock
from relay.cli import cli
from relay.spool import Spool
from relay.store import audit, erasure, retention
from relay.store.database import LostStore, StoreError, open_existing, open_for_listing, open_for_writing
from tests.support import documents as made
from tests.support.clients import mail
from tests.support.inside import Inside, inside

VENTES = "ventes+dupont@welyb.fr"
BIG = 300_000  # bytes: a file of its own


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Inside]:
    with inside(tmp_path) as found:
        yield found


def take(
    site: Inside, name: str = "facture", *, size: int = 0, to: str = VENTES, sender: str = "a@fournisseur.fr"
) -> str:
    content = made.pdf(name) + b"%" + os.urandom(size // 2).hex().encode()
    reply = site.take(mail(sender, to, (f"{name}.pdf", "application/pdf", content)), to, sender=sender)
    assert reply.code == 250, reply
    return reply.text().split()[-1]


def command(site: Inside, *words: str) -> Result:
    return CliRunner().invoke(cli, ["--config", str(site.data.parent / "relay.toml"), *words])


def found(site: Inside, *words: str) -> list[str]:
    """The subjects that `check --store` finds fault with."""
    done = command(site, "check", "--store", "--json", *words)
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.exit_code == (0 if all(row["ok"] for row in told) else 1), done.output
    assert all(row["remedy"] for row in told if not row["ok"])
    return [row["subject"] for row in told if not row["ok"]]


def age(path: Path, days: float) -> None:
    then = path.stat().st_mtime - days * 86400
    os.utime(path, (then, then))


# --- check --store ----------------------------------------------------------------------------------------------------


def test_a_store_at_work_is_in_order(site: Inside) -> None:
    take(site)
    take(site, "grande", size=BIG)
    take(site, "achat", to="meg+dupont@welyb.fr", sender="compta@cabinet.example")
    site.file()
    assert found(site, "--deep") == []


def test_a_file_of_its_own_that_is_gone(site: Inside) -> None:
    message = take(site, size=BIG)
    site.spooled()[0].unlink()
    assert found(site) == [f"bytes message {message}"]


def test_a_segment_that_was_cut(site: Inside) -> None:
    message = take(site)
    (segment,) = (site.data / "spool/segments").iterdir()
    os.truncate(segment, 100)
    assert found(site) == [f"bytes message {message}"]


def test_altered_bytes_are_found_by_looking_deep(site: Inside) -> None:
    message = take(site, size=BIG)
    (path,) = site.spooled()
    with path.open("r+b") as opened:
        opened.seek(BIG // 2)
        opened.write(b"QUJD" if opened.read(4) != b"QUJD" else b"REVG")
    assert found(site) == []
    assert found(site, "--deep") == [f"altered {message}.1"]


def test_a_file_without_a_row_is_removed_on_demand_alone(site: Inside) -> None:
    message = take(site, size=BIG)
    orphan = site.spooled()[0].with_name("0123456789abcdef")
    orphan.write_bytes(b"refuse")
    subject = f"file f/{orphan.parent.name}/{orphan.name}"
    assert found(site) == [subject]
    assert found(site, "--mend", "--reason", "essai") == [subject]
    assert not orphan.exists()
    assert found(site) == []
    assert site.column("SELECT id FROM message") == [message]


def test_a_file_that_may_be_a_mail_coming_in_is_left_alone(site: Inside) -> None:
    """Somebody serves: only what nobody has written to for long is told, and nothing is removed."""
    take(site, size=BIG)
    coming = site.spooled()[0].with_name("0123456789abcdef")
    coming.write_bytes(b"half a ma")
    with (site.data / "serve.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert found(site, "--mend") == []
        age(coming, 1)
        assert len(found(site, "--mend")) == 1
    assert coming.exists()


def test_what_cannot_be_sent_any_more_is_given_up_and_told(site: Inside) -> None:
    message = take(site, size=BIG)
    site.spooled()[0].unlink()
    assert found(site, "--mend", "--reason", "disque perdu") == [f"bytes message {message}"]
    assert site.rows("SELECT id, state, reason ->> 'code' FROM delivery") == [
        (f"{message}-1", "failed", "bytes-missing")
    ]
    assert site.column("SELECT detail ->> 'why' FROM event WHERE event = 'bytes-missing'") == ["disque perdu"]


@pytest.mark.parametrize(
    ("sql", "subject"),
    [
        ("INSERT INTO run (started_at, finished_at, eligible, sent) VALUES ('2026', '2026', 2, 1)", "balance run 1"),
        ("UPDATE delivery SET route = 'dext'", "rule dext"),
        ("DELETE FROM recipient", "recipient {}"),
        ("UPDATE delivery_document SET sha256 = 'x'", "document {}-1"),
        ("UPDATE delivery SET finished_at = '2026'", "finished {}-1"),
        ("UPDATE delivery SET state = 'sending'", "sending sending"),
        ("UPDATE delivery SET state = 'filing'", "filing filing"),
    ],
)
def test_rows_that_may_not_stand_together(site: Inside, sql: str, subject: str) -> None:
    message = take(site)
    site.change(sql)
    assert found(site) == [subject.format(message)]


def test_a_damaged_store_is_told(tmp_path: Path) -> None:
    with inside(tmp_path) as site:
        for number in range(20):
            take(site, f"facture-{number}")
    store = site.data / "relay.db"
    with closing(open_for_writing(store)) as db:
        (page,) = db.conn.execute("SELECT rootpage FROM sqlite_master WHERE name = 'run'").fetchone()
        db.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    with store.open("r+b") as opened:
        opened.seek((page - 1) * 4096)
        opened.write(b"\xff" * 100)
    assert found(site) == ["damaged relay.db"]


def test_bytes_that_cannot_be_read_now_are_told_and_nothing_is_given_up(site: Inside) -> None:
    take(site, size=BIG)
    spool, opened = Spool.existing(site.data / "spool"), []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with closing(open_for_writing(site.data / "relay.db")) as db:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        try:
            with pytest.raises(OSError, match="Too many"):
                while True:
                    opened.append(os.open(os.devnull, os.O_RDONLY))
            (bare,) = care.rows_without_bytes(db, spool)
        finally:
            for fd in opened:
                os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert not bare.sure
        assert list(care.rows_without_bytes(db, spool)) == []


def test_bytes_that_nobody_can_ask_for_any_more_are_forgotten(site: Inside) -> None:
    message = take(site, size=BIG)
    site.file()
    site.spooled()[0].unlink()
    assert found(site, "--mend") == [f"bytes message {message}"]
    assert found(site) == []
    assert site.column("SELECT state FROM delivery") == ["filed"]


def test_a_row_purged_meanwhile_is_no_finding(site: Inside) -> None:
    message = take(site, size=BIG)
    with closing(open_for_writing(site.data / "relay.db")) as db:
        (item,) = audit.needed(db)
        site.spooled()[0].unlink()
        site.change("UPDATE message SET purged_at = '2026'")
        assert item.id == message
        assert not audit.still_needed(db, item)


# --- a store that is lost, or too new ---------------------------------------------------------------------------------


@pytest.fixture
def lost(tmp_path: Path) -> Path:
    """A store whose spool has a mail."""
    with inside(tmp_path) as site:
        take(site)
    return site.data / "relay.db"


@pytest.mark.parametrize("kept", [None, b""])
def test_no_new_store_takes_the_place_of_a_lost_one(lost: Path, kept: bytes | None) -> None:
    for name in ("relay.db", "relay.db-wal", "relay.db-shm"):
        (lost.parent / name).unlink(missing_ok=True)
    if kept is not None:
        lost.write_bytes(kept)
    for opener in (open_for_writing, open_existing):
        with pytest.raises(LostStore, match="restore"):
            opener(lost)
    assert not lost.exists() or not lost.stat().st_size


def test_a_store_without_tables_beside_messages_is_a_lost_one(lost: Path) -> None:
    for name in ("relay.db", "relay.db-wal", "relay.db-shm"):
        (lost.parent / name).unlink(missing_ok=True)
    elsewhere = lost.parent / "elsewhere"
    elsewhere.mkdir()
    with closing(open_for_writing(elsewhere / "relay.db")) as db:
        db.conn.execute("DROP TABLE refusal")
        db.conn.execute("PRAGMA user_version = 0")
    (elsewhere / "relay.db").rename(lost)
    with pytest.raises(LostStore):
        open_for_writing(lost)


def test_a_store_of_a_newer_release_is_refused(lost: Path) -> None:
    with closing(open_for_writing(lost)) as db:
        db.conn.execute("PRAGMA user_version = 99")
    for opener in (open_for_writing, open_existing, open_for_listing):
        with pytest.raises(StoreError, match="newer release"):
            opener(lost)


# --- backup -----------------------------------------------------------------------------------------------------------


def test_a_backup_tells_what_it_could_not_take_whole(site: Inside, tmp_path: Path) -> None:
    take(site, size=BIG)
    os.truncate(site.spooled()[0], 1000)
    done = command(site, "backup", str(tmp_path / "copy"), "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout.splitlines()[0])["missing"] == 1


@pytest.mark.parametrize("target", [".", "/", "", "nowhere/copy"])
def test_a_backup_needs_a_place(site: Inside, target: str) -> None:
    done = command(site, "backup", target)
    assert done.exit_code == 1
    assert "Rem" in done.output or "Rem" in done.stderr


# --- retention --------------------------------------------------------------------------------------------------------


def test_bodies_go_after_their_retention_and_history_stays(site: Inside) -> None:
    old, held = take(site, size=BIG), take(site, "autre", size=BIG)
    site.file()
    site.change("UPDATE delivery SET state = 'held' WHERE id = ?", f"{held}-1")
    before = site.column("SELECT count(*) FROM event")
    keys: list[str] = []
    now = clock.stamp(clock.now() + timedelta(days=1))
    site.do(lambda db: keys.extend(retention.forget_bodies(db, now, now, 10)))
    assert [key.rpartition("/")[2] for key in keys] == [old], "what is held is needed"
    assert site.column("SELECT count(*) FROM event") == [before[0] + 1]
    assert site.rows("SELECT name, size > 0 FROM document WHERE message = ?", old) == [("facture.pdf", 1)]


def test_purging_gives_way_to_the_next_run(site: Inside) -> None:
    """The run lock is held meanwhile: bytes go in the time that is left, the rest after the next run."""
    take(site, size=BIG)
    site.file()
    site.change("UPDATE message SET received_at = '2020'")
    site.care(-1)
    assert len(site.spooled()) == 1
    site.care(60)
    assert site.spooled() == []


# --- erasure ----------------------------------------------------------------------------------------------------------

WHO = "jeanne.martin@fournisseur.fr"


def everything(site: Inside) -> bytes:
    """All that the relay keeps on its disk."""
    return b"".join(path.read_bytes() for path in sorted(site.data.rglob("*")) if path.is_file())


def test_a_sender_is_erased_from_rows_and_bytes(site: Inside) -> None:
    small, large = take(site, "secret-un", sender=WHO), take(site, "secret-deux", size=BIG, sender=WHO)
    other = take(site, "voisine")
    site.file()
    hashes = site.column("SELECT sha256 FROM document ORDER BY id")
    site.take(
        mail(WHO, VENTES, ("secret.zip", "application/zip", made.zip_of({"secret-trois.pdf": b"x"}))),
        VENTES,
        sender=WHO,
    )
    done = command(site, "erase", "--sender", WHO.upper(), "--reason", "demande RGPD", "--yes")
    assert done.exit_code == 0, done.output
    kept = everything(site)
    assert WHO.encode() not in kept
    assert b"secret-" not in kept
    assert b"voisine" in kept
    assert site.column("SELECT sha256 FROM document ORDER BY id") == hashes
    assert site.column("SELECT id FROM message WHERE purged_at IS NOT NULL") == sorted([small, large])
    assert site.column("SELECT count(*) FROM refusal") == [0]
    (told,) = site.column("SELECT detail FROM event WHERE event = 'erased'")
    assert json.loads(told)["messages"] == 2
    assert "jeanne" not in told.lower()
    assert found(site, "--deep") == []
    assert command(site, "queue", "body", f"{other}-1").exit_code == 0
    again = command(site, "erase", "--sender", WHO, "--reason", "encore", "--yes")
    assert again.exit_code == 1
    assert "20" in again.output, "it says when it was done"


def test_nothing_is_erased_while_some_of_it_is_alive(site: Inside) -> None:
    take(site, sender=WHO)
    done = command(site, "erase", "--sender", WHO, "--reason", "demande", "--yes")
    assert done.exit_code == 1
    assert site.column("SELECT sender FROM message") == [WHO]


def test_a_client_is_erased_without_its_neighbour(tmp_path: Path) -> None:
    with inside(tmp_path, clients=("Dupont", "Voisin")) as site:
        mine = take(site, "secret-un")
        both = mail("a@fournisseur.fr", VENTES, ("commune.pdf", "application/pdf", made.pdf("commune")))
        assert site.take(both, VENTES, "ventes+voisin@welyb.fr", sender="a@fournisseur.fr").code == 250
        site.file()
        done = command(site, "erase", "--client", "dupont", "--reason", "fin de mission", "--yes")
        assert done.exit_code == 0, done.output
        assert site.column("SELECT id FROM message WHERE purged_at IS NOT NULL") == [mine]
        assert site.column("SELECT DISTINCT client FROM delivery ORDER BY 1") == ["", "voisin"]
        assert site.column("SELECT target FROM delivery WHERE client = ''") == ["erased", "erased"]
        assert site.column("SELECT name FROM document ORDER BY id") == ["erased", "commune.pdf"]
        assert found(site) == []
        for erased in site.column("SELECT id FROM delivery WHERE client = ''"):
            assert command(site, "queue", "resend", erased, "--reason", "encore").exit_code == 1, "to nobody"
        site.change("UPDATE delivery SET state = 'failed' WHERE client = ''")
        for erased in site.column("SELECT id FROM delivery WHERE client = ''"):
            assert command(site, "queue", "retry", erased, "--reason", "encore").exit_code == 1


def test_a_refusal_that_names_others_too_stays_theirs(tmp_path: Path) -> None:
    with inside(tmp_path, clients=("Dupont", "Voisin")) as site:
        zipped = mail(WHO, VENTES, ("a.zip", "application/zip", made.zip_of({"a.pdf": b"x"})))
        site.take(zipped, VENTES, "ventes+voisin@welyb.fr", sender=WHO)
        take(site)
        site.file()
        assert command(site, "erase", "--client", "dupont", "--reason", "fin", "--yes").exit_code == 0
        (left,) = site.column("SELECT recipients FROM refusal")
        assert json.loads(left) == ["erased", "ventes+voisin@welyb.fr"]


def test_what_went_to_its_collector_before_it_was_connected_is_erased_too(site: Inside) -> None:
    take(site, "secret-un", to="meg+dupont@welyb.fr")
    site.change("UPDATE delivery SET state = 'sent'")
    (site.data.parent / "ged/Dupont/Achats").mkdir(exist_ok=True)
    words = ("--application", "meg", "--client", "dupont", "--folder", "Achats", "--address", "meg+dupont@welyb.fr")
    assert command(site, "connections", "add", *words, "--reason", "x").exit_code == 0
    assert command(site, "connections", "remove", "1", "--reason", "x", "--yes").exit_code == 0
    assert command(site, "erase", "--client", "dupont", "--reason", "fin", "--yes").exit_code == 0
    assert b"secret-un" not in everything(site)
    assert site.column("SELECT target FROM delivery") == ["erased@invalid"]


def test_reports_to_a_sender_are_erased_with_it(site: Inside) -> None:
    message = take(site, sender=WHO)
    site.change("UPDATE delivery SET state = 'failed'")
    site.change("UPDATE message SET user = ?", WHO)
    at = clock.stamp(clock.now())
    site.change(
        """INSERT INTO delivery (id, kind, route, recipient, target, domain, state, created_at, due_at, expires_at)
        VALUES ('n1-1', 'send', 'dsn', '', ?, 'fournisseur.fr', 'waiting', ?, ?, ?)""",
        *(WHO, at, at, at),
    )
    site.change(
        "INSERT INTO event (at, actor, event, message, delivery, detail) VALUES (?, 'run', 'notified', ?, ?, ?)",
        *(at, message, f"{message}-1", '{"by": "n1-1"}'),
    )
    assert command(site, "erase", "--sender", WHO, "--reason", "demande", "--yes").exit_code == 1, "it is on its way"
    site.change("UPDATE delivery SET state = 'sent' WHERE id = 'n1-1'")
    assert command(site, "erase", "--sender", WHO, "--reason", "demande", "--yes").exit_code == 0
    assert WHO.encode() not in everything(site)


@pytest.mark.parametrize("again", [True, False], ids=["asked-again", "mended"])
def test_an_erasure_cut_short_is_told_and_finished(site: Inside, again: bool) -> None:
    take(site, "secret-un", sender=WHO)
    site.file()
    asked = erasure.Asked(sender=WHO)
    site.do(lambda db: erasure.erase(db, asked, at=clock.stamp(clock.now()), actor="root", why="demande"))
    assert found(site) == ["erasing spool"]
    if again:
        assert command(site, "erase", "--sender", WHO, "--reason", "encore", "--yes").exit_code == 1, "nothing is left"
    else:
        assert found(site, "--mend") == ["erasing spool"]
    assert found(site) == []
    (segment,) = (site.data / "spool/segments").iterdir()
    assert set(segment.read_bytes()) == {0}


def test_erase_wants_one_thing_and_a_reason(site: Inside) -> None:
    for words in (["--reason", "x"], ["--client", "a"], ["--client", "a", "--sender", "b", "--reason", "x"]):
        assert command(site, "erase", *words).exit_code == 2
