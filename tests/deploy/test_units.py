"""The systemd units: what they take from the service is compared with what the real command asks of the kernel.

Knows alone: how a directive is checked without a systemd to enforce it: the calls of a whole story (mail, filing, a run,
a reload) are written down by strace and compared with what the directive leaves. Limits: it takes systemd's own word
(systemd-analyze) for which calls a set holds.
"""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.smtp.door import Kind
from tests.security.processes import until
from tests.support import documents as made
from tests.support.clients import Dialogue, mail
from tests.support.debian import library_path, program, root_of
from tests.support.program import free_port
from tests.support.relay import Relay

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
SERVICE = (UNITS / "welyb-relay.service").read_text()
SENDER, VENTES, ACHATS = "compta@cabinet.example", "ventes+dupont@welyb.fr", "meg+achats+dupont@welyb.fr"
PDF = ("facture.pdf", "application/pdf", made.pdf())
BIG = ("plan.pdf", "application/pdf", made.pdf_of_size(600_000))
CALL = re.compile(r"^\d+ +(?:<\.\.\. )?(\w+)")


def directives(name: str) -> list[str]:
    return [line.partition("=")[2].strip() for line in SERVICE.splitlines() if line.startswith(f"{name}=")]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What a relay asks of the kernel from the moment it begins to serve: the lines of strace."""
    folder = tmp_path_factory.mktemp("units")
    log = folder / "calls"
    under = [program("strace"), "-f", "-qq", "-s", "200", "-o", str(log)]
    nowhere = {"routes": {"achats.factures-meg.fr": f"127.0.0.1:{free_port()}"}}
    settings = {"run": {"every": "1 min", "settle": "0 s"}, "delivery": nowhere, "smtp": {"processes": 2}}
    relay = Relay(folder, settings, under=under)
    (relay.client("dupont") / "Achats").mkdir()
    relay.start()
    try:
        with Dialogue(relay.port) as dialogue:
            dialogue.hello()
            for document in (PDF, BIG):
                assert {reply.code for reply in dialogue.envelope(SENDER, VENTES, ACHATS)} == {250}
                assert dialogue.data(mail(SENDER, VENTES, document)).code == 250
        until(lambda: len(relay.json("queue", "list", "--state", "filed")) == 2)
        (served,) = children(relay.program.pid)  # strace keeps signals to itself
        os.kill(served, signal.SIGHUP)
        until(lambda: "reloaded" in relay.program.err.read_text())
        os.kill(served, signal.SIGTERM)
        assert relay.program.process is not None
        assert relay.program.process.wait(60) == 0
    finally:
        relay.stop()
    yield log.read_text(errors="backslashreplace").splitlines()


def children(pid: int) -> list[int]:
    """strace's: the relay."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def allowed() -> set[str]:
    """SystemCallFilter= in order: sets and calls added, and with ~ taken away."""
    found: set[str] = set()
    for line in directives("SystemCallFilter"):
        words = line.removeprefix("~").split()
        named = {call for word in words for call in members(word)}
        found = found - named if line.startswith("~") else found | named
    return found


def members(word: str) -> set[str]:
    if not word.startswith("@"):
        return {word}
    lines = analyze("syscall-filter", word).splitlines()
    entries = {line.strip() for line in lines if line.startswith("    ") and not line.strip().startswith("#")}
    return {call for entry in entries for call in (members(entry) if entry.startswith("@") else {entry})}


def analyze(*words: str) -> str:
    units = f"{root_of('systemd')}/lib/systemd/system:"  # a machine without systemd has none; the colon adds its own
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": library_path("systemd"),
        "LC_ALL": "C.UTF-8",
        "SYSTEMD_UNIT_PATH": units,
    }
    tool = root_of("systemd") / "usr/bin/systemd-analyze"
    done = subprocess.run([tool, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.debian("systemd", "strace")
def test_no_call_is_outside_the_filter(calls: list[str]) -> None:
    used = {match[1] for line in calls if (match := CALL.match(line))}
    assert len(used) > 40
    assert used - allowed() == set()


@pytest.mark.debian("strace")
def test_no_memory_is_both_written_and_run(calls: list[str]) -> None:
    assert directives("MemoryDenyWriteExecute") == ["yes"]
    assert any("PROT_EXEC" in line for line in calls)
    assert not [line for line in calls if "PROT_WRITE|PROT_EXEC" in line]


@pytest.mark.debian("strace")
def test_no_other_family_of_addresses(calls: list[str]) -> None:
    (families,) = directives("RestrictAddressFamilies")
    asked = {match[1] for line in calls if (match := re.search(r"\bsocket\((AF_\w+)", line))}
    # The C library asks the kernel which addresses there are (AF_NETLINK), and goes on without an answer.
    assert {"AF_INET"} <= asked <= {*families.split(), "AF_NETLINK"}


@pytest.mark.debian("strace")
def test_nothing_is_written_but_its_data_and_the_ged(
    calls: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert directives("ProtectSystem") == ["strict"]
    opened = [re.search(r'open(?:at)?\((?:AT_FDCWD, )?"(/[^"]*)", ([A-Z_|]+)', line) for line in calls]
    written = {match[1] for match in opened if match and re.search("O_WRONLY|O_RDWR|O_CREAT", match[2])}
    here = str(tmp_path_factory.getbasetemp())
    assert any(path.endswith("relay.db") for path in written)
    assert [path for path in written if not path.startswith((here, "/dev/null", "/dev/shm", "/tmp/"))] == []


def test_the_doors_for_users_bear_the_names_that_are_known() -> None:
    texts = {path.name: path.read_text() for path in UNITS.glob("*.socket")}
    named = {name: re.findall(r"(?m)^FileDescriptorName=(.*)$", text) for name, text in texts.items()}
    assert named == {
        "welyb-relay.socket": [],
        "welyb-relay-submission.socket": [Kind.SUBMISSION],
        "welyb-relay-submissions.socket": [Kind.SUBMISSIONS],
    }


def laid_out(folder: Path) -> list[Path]:
    """The units, without what only an installed package has."""
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/usr/bin/welyb-relay", "/bin/true").replace("Documentation=", "#")
        (folder / unit.name).write_text(text)
    return sorted(folder.iterdir())


def verified(units: list[Path]) -> str:
    """What systemd has to say of them."""
    return analyze("verify", "--man=no", *map(str, units))


@pytest.mark.debian("systemd")
def test_systemd_understands_the_units_and_finds_little_to_blame(tmp_path: Path) -> None:
    units = laid_out(tmp_path)
    assert len(units) == 4
    assert verified(units) == ""
    analyze("security", "--offline=yes", "--threshold=20", str(tmp_path / "welyb-relay.service"))


@pytest.mark.debian("systemd")
def test_the_drop_in_of_the_readme_moves_the_socket(tmp_path: Path) -> None:
    found = re.search(r"(?m)^    (\[Socket\]\n(?:    .*\n)+)", (UNITS.parents[1] / "README.md").read_text())
    assert found
    text = found[1].replace("    ", "")
    assert text.splitlines()[1] == "ListenStream=", "what the unit has is taken back first"
    units = laid_out(tmp_path)
    drop_in = tmp_path / "welyb-relay.socket.d/override.conf"
    drop_in.parent.mkdir()
    drop_in.write_text(text)
    assert verified(units) == ""
    drop_in.write_text(text + "ListenStrem=2525\n")
    assert "ListenStrem" in verified(units), "it was read"
