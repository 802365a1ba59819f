"""The Debian package, from `make deb` to its purge, in a root of its own over this machine's: it serves, alone and behind
Postfix in both modes of the filter.

Knows alone: what an upgrade is tried with: the same package once more, one version on, with one migration on; and which
namespaces keep all of it to itself. Limits: no systemd runs there; that its units hold is test_units.py's to show.
"""

import json
import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support.debian import program, root_of

PROJECT = Path(__file__).parents[2]
BUILD = PROJECT / "deploy/debian/build"
# Processes of their own die with the first of them, whatever becomes of this one; a network of its own has every port free.
APART = ("--mount", "--propagation", "unchanged", "--net", "--pid", "--fork", "--kill-child")
SENDER = r"retours\+[a-z2-7]+@welyb\.fr"
MIGRATION = """

@migrations()
def second(db: Database) -> None:
    db.execute("ALTER TABLE message ADD COLUMN later TEXT NOT NULL DEFAULT ''")
    db.execute("PRAGMA user_version = 2")
"""


def run(*words: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT,
        timeout=280,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("package")
    run("sh", BUILD, out, COMPRESSION="none")
    (deb,) = out.glob("welyb-relay_*.deb")
    return deb


def newer(package: Path, folder: Path) -> Path:
    """Version 9, whose store has one migration more."""
    run("dpkg-deb", "-R", package, folder / "tree")
    control = folder / "tree/DEBIAN/control"
    control.write_text(re.sub(r"(?m)^Version: .*$", "Version: 9", control.read_text()))
    (store,) = (folder / "tree/usr/lib/welyb-relay/lib").glob("python3.*/site-packages/relay/store")
    schema, database = store / "schema.py", store / "database.py"
    schema.write_text(schema.read_text() + MIGRATION)
    text, count = re.subn(r"(?m)^SCHEMA = 1\b", "SCHEMA = 2", database.read_text())
    assert count == 1
    database.write_text(text)
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", folder / "tree", folder / "newer.deb")
    return folder / "newer.deb"


@pytest.mark.timeout(600)
@pytest.mark.debian("root", "postfix")
def test_its_life(package: Path, tmp_path: Path) -> None:
    (tmp_path / "story.py").write_text((PROJECT / "tests/deploy/story.py").read_text())
    script = PROJECT / "tests/deploy/package.sh"
    where = (root_of("postfix"), tmp_path / "root", tmp_path)
    said = run(program("unshare"), *APART, "sh", script, package, newer(package, tmp_path), *where)
    facts: dict[str, list[str]] = {}
    for line in said.splitlines():
        name, _, fact = line.partition(": ")
        facts.setdefault(name, []).append(fact.strip())
    log = (tmp_path / "dpkg.log").read_text()
    version = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["version"]
    assert facts["version"] == [f"welyb-relay, version {version}"], said
    assert facts["installed"] == [version.replace(".dev", "~dev")]
    assert facts["user"] == ["/var/lib/welyb-relay:/usr/sbin/nologin"]
    assert facts["modes"] == [
        "640 root welyb-relay /etc/welyb-relay/relay.toml 700 welyb-relay welyb-relay /var/lib/welyb-relay"
    ]
    assert facts["check"] == ["answered"]
    assert all(facts["story"]), said + log
    assert_told([json.loads(story) for story in facts["story"]])
    assert facts["data"] == ["600 welyb-relay"]
    assert facts["built"] == [""]
    assert facts["manual"] == ["2"] and facts["completion"] == ["there"]
    assert f'"{version}"' in facts["titled"][0]
    assert facts["upgraded"] == ["9 install ok installed"]
    assert facts["schema"] == ["2 4"]
    (removed,) = facts["removed"]
    assert "cannot access '/usr/bin/welyb-relay'" in removed and removed.endswith("relay.db")
    (purged,) = facts["purged"]
    assert purged.count("cannot access") == 2 and purged.endswith("/var/lib/welyb-relay/relay.db")
    assert "is kept: it holds the mail" in log


def assert_told(stories: list[dict[str, Any]]) -> None:
    """Alone and by "take" it leaves with the run; by "rewrite" Postfix sends it on at once, and no run does."""
    waits, sent, handed = ["waiting", 0], ["sent", 1], ["handed", 1]
    assert [(told["way"], told["filed"], told["at once"], told["after a run"]) for told in stories] == [
        ("alone", ["alone.pdf"], waits, sent),
        ("take", ["take.pdf"], waits, sent),
        ("rewrite", ["rewrite.pdf"], handed, handed),
        ("alone", ["alone (2).pdf", "alone.pdf"], waits, sent),
    ]
    for told in stories:
        ((sender, *recipients),) = told["received"]
        assert re.fullmatch(SENDER, sender) and recipients == [f"{told['way']}@factures-meg.fr"]
        assert told["unchanged"]
        assert told["mailq"] in ("", "Mail queue is empty")
