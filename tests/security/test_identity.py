"""Who the relay is: a plain user from the start, or from the moment its port is bound; never root with its guard down.

Long stories, because each start of the real command answers several questions at once.
"""

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.security.processes import as_user, everything, open_folder, owners, reachable_by, status, until, workers
from tests.support import documents as made
from tests.support.clients import Dialogue, mail
from tests.support.debian import program
from tests.support.program import free_address, free_port
from tests.support.relay import Relay, from_source

pytestmark = pytest.mark.debian("root")

REPOSITORY = Path(__file__).resolve().parents[2]
NOBODY, UNNAMED = 65534, 54321  # a user with an account, and one without
SENDER, VENTES = "compta@cabinet.example", "ventes+dupont@welyb.fr"
ACHATS = "meg+achats+dupont@welyb.fr"
PDF = ("facture.pdf", "application/pdf", made.pdf())
BIG = ("plan.pdf", "application/pdf", made.pdf_of_size(300_000))


@pytest.fixture
def open_relay(request: pytest.FixtureRequest) -> Iterator[Callable[..., Relay]]:
    """Makes a relay whose files a given user owns, in a folder that anyone can reach."""
    made_: list[Relay] = []
    with open_folder() as folder:

        def make(uid: int, settings: dict[str, object], *, under: list[str] | None = None) -> Relay:
            settings = {"run": {"settle": "0 s"}, **settings}
            relay = Relay(folder, settings, under=under or (), product=reachable_by(uid))
            (relay.folder / "var").mkdir(mode=0o700)
            (relay.client("dupont") / "Achats").mkdir()
            for path in everything(relay.folder):
                os.chown(path, uid, uid)
            made_.append(relay)
            return relay

        yield make
        for relay in made_:
            relay.stop()


def is_powerless(pid: int, uid: int) -> None:
    """It is `uid` in every sense, and has no way to be anything else."""
    found = status(pid)
    assert found["Uid"].split() == found["Gid"].split() == [str(uid)] * 4
    groups = {int(group) for group in found["Groups"].split()}
    try:
        account = pwd.getpwuid(uid)
        assert groups == set(os.getgrouplist(account.pw_name, account.pw_gid))
    except KeyError:
        assert groups == set()
    assert 0 not in groups
    assert {found[name] for name in ("CapEff", "CapPrm", "CapAmb")} == {"0" * 16}
    assert found["NoNewPrivs"] == "1"


@pytest.mark.debian("port 25")
@pytest.mark.parametrize(("uid", "processes"), [(NOBODY, 1), (UNNAMED, 2)])
def test_started_as_root_it_binds_port_25_and_is_root_no_more(
    open_relay: Callable[..., Relay], uid: int, processes: int
) -> None:
    address = free_address(25)
    groups = [program("setpriv"), "--groups=0,4,6,8"]  # what a login of root brings, on some systems
    relay = open_relay(uid, {"smtp": {"listen": [f"{address}:25"], "processes": processes}}, under=groups).start()
    assert f"ready {address}:25" in relay.program.written()
    family = [relay.program.pid, *workers(relay)]
    assert len(family) == (1 if processes == 1 else 3)
    for pid in family:
        is_powerless(pid, uid)
    assert "as-root" not in relay.program.err.read_text()
    with Dialogue(25, host=address) as dialogue:
        dialogue.hello()
        for document in (PDF, BIG):
            assert {reply.code for reply in dialogue.envelope(SENDER, VENTES, ACHATS)} == {250}
            assert dialogue.data(mail(SENDER, VENTES, document)).code == 250
    until(lambda: len(relay.json("queue", "list", "--state", "filed")) == 2)
    if processes == 1:
        orders(relay)
        assert relay.stop() == 0
    else:  # with the daemon down it is the command that opens the store anew
        assert relay.stop() == 0
        orders(relay)
    assert owners(relay.folder / "var", relay.ged) == {(uid, uid)}


# Every order in a process of its own, which is root until the command decides otherwise; the imports are shared.
ORDERS = """
import importlib, json, os, pkgutil, sys
import relay.cli, relay.daemon
for module in pkgutil.iter_modules(relay.cli.__path__):
    if module.name != "__main__":
        importlib.import_module(f"relay.cli.{module.name}")
for words in json.load(sys.stdin):
    if not (child := os.fork()):
        sys.argv[1:] = ["--config", "relay.toml", *words]
        relay.cli.main()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code and words[0] != "check":
        sys.exit(f"{words}: exit {code}")
"""


def orders(relay: Relay) -> None:
    """Root gives an order of every kind; what it leaves behind belongs to the owner of the data folder all the same."""
    nowhere = f"127.0.0.1:{free_port()}"
    relay.configure({"delivery": {"routes": {"achats.factures-meg.fr": nowhere, "factures-meg.fr": nowhere}}})
    add = ["connections", "add", "--application", "meg-achats", "--client", "dupont", "--folder", "Achats", "--address"]
    _order(relay, [[*add, ACHATS]])
    deposit = relay.ged / "dupont/Achats/depot.pdf"
    deposit.write_bytes(BIG[2])
    os.chown(deposit, *_owner(relay))
    given = [
        ["check"],
        ["keys", "create", "s1"],
        ["clients", "add", "martin", "--fiscal-year-end", "06-30"],
        ["runs", "now"],
        *(["queue", verb, "--state", "waiting,held", "--yes"] for verb in ("hold", "release")),
        ["runs", "now", "--dry-run"],
        *(
            listing.split()
            for listing in ("queue list", "queue summary", "documents list", "runs list", "clients list")
        ),
        ["trace", SENDER],
        ["connections", "remove", "1"],
    ]
    _order(relay, given)
    assert "depot.pdf" in {row["name"] for row in relay.json("documents", "list")}


def _order(relay: Relay, given: list[list[str]]) -> None:
    subprocess.run(
        [sys.executable, "-c", ORDERS],
        cwd=relay.folder,
        input=json.dumps(given),
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        check=True,
        timeout=60,
    )


def _owner(relay: Relay) -> tuple[int, int]:
    found = (relay.folder / "var").stat()
    return found.st_uid, found.st_gid


def test_a_plain_user_is_enough(open_relay: Callable[..., Relay]) -> None:
    relay = open_relay(NOBODY, {}, under=as_user(NOBODY)).start()
    found = status(relay.program.pid)
    assert found["Uid"].split() == [str(NOBODY)] * 4 and found["NoNewPrivs"] == "1"
    with Dialogue(relay.port) as dialogue:
        dialogue.hello()
        assert {reply.code for reply in dialogue.envelope(SENDER, VENTES)} == {250}
        assert dialogue.data(mail(SENDER, VENTES, PDF)).code == 250
    until(lambda: relay.json("queue", "list", "--state", "filed"))
    assert owners(relay.folder / "var", relay.ged) == {(NOBODY, NOBODY)}
    told = relay.program.err.read_text()
    assert "as-root" not in told and "trouble" not in told


def test_a_python_out_of_reach_is_named_before_workers_need_it() -> None:
    with open_folder() as folder:
        (folder / "private").mkdir(mode=0o700)
        python = folder / "private" / "python"
        python.symlink_to(sys.executable)
        relay = Relay(folder, {"smtp": {"processes": 2}}, product=from_source(str(python)))
        (relay.folder / "var").mkdir(mode=0o700)
        os.chown(relay.folder / "var", NOBODY, NOBODY)
        done = relay.cli("serve", check=False)
        assert done.returncode == 1 and not done.stdout
        assert f"{python}: user {NOBODY}" in done.stderr and "Remedy: install welyb-relay with a Python" in done.stderr


def test_root_with_a_data_folder_of_its_own_is_warned(tmp_path: Path) -> None:
    relay = Relay(tmp_path).start()
    try:
        assert "WARNING as-root" in relay.program.err.read_text()
        assert status(relay.program.pid)["NoNewPrivs"] == "1"
    finally:
        relay.stop()


BACK = """
import ctypes, os, sys
from pathlib import Path
from relay.daemon import take_identity
take_identity(Path(sys.argv[1]))
ways = {
    "setuid": lambda: os.setuid(0), "seteuid": lambda: os.seteuid(0), "setreuid": lambda: os.setreuid(0, 0),
    "setresuid": lambda: os.setresuid(-1, 0, -1), "setgid": lambda: os.setgid(0), "setegid": lambda: os.setegid(0),
    "setresgid": lambda: os.setresgid(-1, 0, -1), "setgroups": lambda: os.setgroups([0]),
    "chown": lambda: os.chown(sys.argv[1], 0, 0), "chroot": lambda: os.chroot("/"),
}
for name, way in ways.items():
    try:
        way()
    except PermissionError:
        continue
    print(name, "is a way back")
os.execv(sys.argv[2], [sys.argv[2], "-u"])
"""


def test_there_is_no_way_back() -> None:
    with open_folder() as folder:
        (folder / "var").mkdir()
        os.chown(folder / "var", NOBODY, NOBODY)
        set_uid = folder / "id"
        set_uid.write_bytes(Path(program("id")).read_bytes())
        set_uid.chmod(0o4755)
        done = subprocess.run(
            [sys.executable, "-c", BACK, str(folder / "var"), str(set_uid)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == f"{NOBODY}\n", done.stdout + done.stderr


def test_a_data_folder_in_the_group_of_root_does_not_leave_us_in_it() -> None:
    with open_folder() as folder:
        os.chown(folder, NOBODY, 0)
        script = (
            "import os, sys; from pathlib import Path; from relay.daemon import take_identity;"
            "take_identity(Path(sys.argv[1])); print(os.getresgid(), os.getgroups())"
        )
        done = subprocess.run(
            [sys.executable, "-c", script, str(folder)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == f"{(NOBODY,) * 3} [{NOBODY}]\n"


@pytest.mark.parametrize("words", ["queue list", "check", "keys list", "dns", "explain meg+x@welyb.fr", "runs now"])
def test_another_user_is_told_who_may_ask(open_relay: Callable[..., Relay], words: str) -> None:
    relay = open_relay(UNNAMED, {})
    asked = [*as_user(NOBODY), program("env"), "LC_ALL=en_GB.UTF-8", *reachable_by(NOBODY)]
    done = subprocess.run(
        [*asked, "--config", str(relay.config), *words.split()], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1 and done.stderr.startswith(f"Error: {relay.folder / 'var'}/")
    assert done.stderr.endswith("Permission denied. Remedy: run it as root, or as the owner of the data.\n")
