"""The store made, and the store of an older release migrated, by a relay that dies at any of its calls meanwhile.

The release to come is a copy of this one with one migration more. Its first start on a filled store is recorded; each
prefix of its calls is what a kill there leaves, and what was synced of them is what a power cut there leaves.
"""

import copy
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import relay
from relay.store.database import SCHEMA
from tests.crash import audit
from tests.crash.disk import Choice, Disk, Record, compiled, entirely, recorded, records, strictly
from tests.crash.site import CLIENT, MEG, VENTES, Site, until
from tests.crash.strace import Point

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "5"))
SEED = int(os.environ.get("CRASH_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
HERE = Path(relay.__file__).parents[1]
MAILS = 12
NEXT = f"""

@migrations()
def the_next(db: Database) -> None:
    db.execute("ALTER TABLE message ADD COLUMN seen TEXT")
    db.execute("CREATE TABLE probe (message TEXT PRIMARY KEY REFERENCES message, padding BLOB) WITHOUT ROWID")
    db.execute("INSERT INTO probe SELECT id, zeroblob(2000) FROM message")
    db.execute("UPDATE message SET seen = received_at")
    db.execute("CREATE INDEX message_by_seen ON message (seen)")
    db.execute("PRAGMA user_version = {SCHEMA + 1}")
"""
PROBED = "SELECT count(*) FROM probe JOIN message m ON m.id = message AND seen = received_at"
OPENS = f"""
import json, sys
from pathlib import Path
from relay.store.database import open_for_writing
for line in sys.stdin:
    db = open_for_writing(Path(line.strip()))
    ask = lambda sql: db.conn.execute(sql).fetchall()
    found = dict(tables=ask("SELECT name FROM sqlite_master ORDER BY 1"), version=ask("PRAGMA user_version"))
    found.update(integrity=ask("PRAGMA integrity_check"), foreign=ask("PRAGMA foreign_key_check"))
    found.update(messages=ask("SELECT count(*) FROM message"))
    found.update(probed=ask("{PROBED}") if ("probe",) in found["tables"] else [(0,)])
    db.close()  # before it answers: the next store will be laid out in this place
    print(json.dumps(found), flush=True)
"""

pytestmark = [pytest.mark.debian("strace", "cc"), pytest.mark.timeout(120 + 10 * ROUNDS)]


@dataclass(frozen=True, slots=True)
class Start:
    """A start that was recorded until it took mail; `tree` is the release it was."""

    site: Site
    base: Disk
    records: list[Record]
    tree: Path


@pytest.fixture(scope="module")
def release_to_come(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("release")
    for package in ("relay", "rules"):
        shutil.copytree(HERE / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    schema, database = tree / "relay/store/schema.py", tree / "relay/store/database.py"
    schema.write_text(schema.read_text() + NEXT)
    text, changed = re.subn(
        rf"^SCHEMA = {SCHEMA}\b", f"SCHEMA = {SCHEMA + 1}", database.read_text(), flags=re.MULTILINE
    )
    assert changed == 1
    database.write_text(text)
    return tree


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """No store yet."""
    site = Site(tmp_path_factory.mktemp("first"))
    yield _start(site, HERE)
    site.stop()


@pytest.fixture(scope="module")
def upgrade(tmp_path_factory: pytest.TempPathFactory, release_to_come: Path) -> Iterator[Start]:
    """A store with mails, of a relay that was killed."""
    site = Site(tmp_path_factory.mktemp("upgrade"))
    site.relay.client(CLIENT)
    site.relay.start()
    for number in range(MAILS):
        letter = site.taken(MEG, VENTES, sizes=(600_000,) if number == 0 else (0,))
        until(lambda letter=letter: "filed" in site.states(letter), "file")
    site.relay.kill()
    yield _start(site, release_to_come)
    site.stop()


def _start(site: Site, tree: Path) -> Start:
    folder = site.relay.folder
    library, log, base = compiled(site.folder), site.folder / "calls", Disk(folder, ("var", "ged"))
    with recorded(library, folder, log) as environment, _release(site, tree):
        before = dict(site.relay.program.env)
        site.relay.program.env.update(environment)
        site.relay.start()
        site.relay.kill()
        site.relay.program.env = before
    return Start(site, base, records(log), tree)


@contextmanager
def _release(site: Site, tree: Path) -> Iterator[None]:
    """Whatever is started within the block is of that release."""
    before = dict(site.relay.program.env)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tree))
        site.relay.program.env["PYTHONPATH"] = str(tree)
        yield
    site.relay.program.env = before


@contextmanager
def opening(tree: Path) -> Iterator[Any]:
    """A process of the release that opens one store after another as `serve` does, and tells what it has then."""
    # In that folder: python -c looks for packages where it stands, before anywhere else.
    program = subprocess.Popen([sys.executable, "-c", OPENS], cwd=tree, stdin=-1, stdout=-1, text=True)
    assert program.stdin and program.stdout

    def ask(database: Path) -> dict[str, Any]:
        program.stdin.write(f"{database}\n")
        program.stdin.flush()
        line = program.stdout.readline()
        assert line, f"{database} could not be opened"
        return json.loads(line)

    with program:
        yield ask
        program.stdin.close()


@pytest.mark.parametrize("choice", [pytest.param(entirely, id="killed"), pytest.param(strictly, id="power-cut")])
@pytest.mark.parametrize("which", ["first", "upgrade"])
def test_a_migration_cut_anywhere(
    which: str, choice: Choice, tmp_path: Path, request: pytest.FixtureRequest, account: list[str]
) -> None:
    start: Start = request.getfixturevalue(which)
    mails = MAILS * (which == "upgrade")
    wanted = {"version": [[SCHEMA + (which == "upgrade")]], "integrity": [["ok"]], "foreign": []}
    wanted |= {"messages": [[mails]], "probed": [[mails]]}
    disk, opened = copy.deepcopy(start.base), 0
    with opening(start.tree) as ask:
        for calls, record in enumerate([*start.records, None]):
            if record is None or record.kind != "S":
                disk.lay_out(tmp_path, choice)
                found = ask(tmp_path / "var/relay.db")
                wanted.setdefault("tables", found["tables"])
                assert found == wanted, f"after {calls} calls"
                opened += 1
            if record is not None:
                disk.apply(record)
    cut = "killed" if choice is entirely else "power cut"
    account.append(f"migrations: {which}, {cut} at {opened} instants, each store opened again whole")


def test_an_upgrade_killed_at_random(upgrade: Start, account: list[str]) -> None:
    """The command itself, on the real disk: killed, killed again, then let be; old and new mail is filed."""
    dice, site = random.Random(SEED), upgrade.site
    writes = sum(r.kind == "W" and r.path.endswith("-wal") for r in upgrade.records)
    rounds = max(2, ROUNDS // 10)
    for _ in range(rounds):
        shutil.rmtree(site.data)
        copy.deepcopy(upgrade.base).lay_out(site.relay.folder)
        with _release(site, upgrade.tree):
            for nth in sorted(dice.sample(range(1, writes), 2)):
                site.dies_running(Point("pwrite64", site.wal, nth), "serve")
            site.back()
            letter = site.taken(VENTES)
            until(lambda letter=letter: site.states(letter) == ["filed"], "file")
            site.relay.kill()
        assert audit.rows(site.data, "PRAGMA user_version") == [(SCHEMA + 1,)], f"seed {SEED}"
        assert audit.rows(site.data, "SELECT count(*) FROM probe") == [(MAILS,)], f"seed {SEED}"
        assert not audit.of_store(site.data, site.ledger) and not audit.of_ged(site.ged, site.ledger)
    account.append(f"migrations: {rounds} upgrades killed twice each at a random page, then finished (seed {SEED})")
