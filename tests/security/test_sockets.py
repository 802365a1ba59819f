"""Listening sockets handed over by systemd: a launcher does what systemd does, sockets from descriptor 3 on.

Limits: sd_listen_fds(3) is its contract; no systemd runs here.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme

from tests.security.processes import as_user, open_folder, reachable_by, status, until, workers
from tests.support import documents as made
from tests.support.clients import CLIENTS, Dialogue, mail
from tests.support.program import free_address, free_port, listens
from tests.support.relay import Relay, command

SENDER, MEG = "compta@cabinet.example", "meg+martin@welyb.fr"
PDF = ("facture.pdf", "application/pdf", made.pdf())

# Arguments: what to hand over, one word each, then "--" and the command. `whose`: "" for LISTEN_PID as it should be.
LAUNCHER = """
import os, socket, sys
whose, *words = sys.argv[1:]
things, argv = words[:words.index("--")], words[words.index("--") + 1:]
kept = []
for thing in things:
    kind, _, place = thing.partition("=")
    host, _, port = place.rpartition(":")
    if kind in ("tcp", "submission", "submissions"):
        sock = socket.create_server((host, int(port)))
    elif kind == "dual":
        sock = socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True)
    elif kind == "udp":
        sock = socket.socket(type=socket.SOCK_DGRAM)
    elif kind == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(place)
        sock.listen()
    elif kind == "deaf":
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
    elif kind == "connected":
        sock, _far = socket.socketpair()
    elif kind == "file":
        sock = open(os.devnull)
    kept.append(os.dup2(sock.fileno(), 40 + len(kept)))
for number, fd in enumerate(kept):
    os.dup2(fd, 3 + number, inheritable=True)
os.environ["LISTEN_FDS"] = str(len(things)) if "gone" not in whose else str(len(things) + 3)
os.environ["LISTEN_PID"] = "1" if whose == "other" else str(os.getpid())
os.environ["LISTEN_FDNAMES"] = ":".join(thing.split("=")[0] if thing.startswith("sub") else "anything" for thing in things)
os.execvp(argv[0], argv)
"""


def launcher(*things: str, whose: str = "", then: Sequence[str] = ()) -> list[str]:
    return [sys.executable, "-c", LAUNCHER, whose, *things, "--", *then]


@pytest.fixture
def relays(tmp_path: Path) -> Iterator[list[Relay]]:
    """Each is stopped at the end."""
    made_: list[Relay] = []
    yield made_
    for relay in made_:
        relay.stop()


def handed(relays: list[Relay], folder: Path, *things: str, processes: int = 1, **more: object) -> Relay:
    relays.append(Relay(folder, {"smtp": {"processes": processes}}, under=launcher(*things, **more)))  # type: ignore[arg-type]
    return relays[-1].start()


@pytest.mark.parametrize("processes", [1, 2])
def test_their_names_say_which_are_for_users(relays: list[Relay], tmp_path: Path, processes: int) -> None:
    ca, (mx, users, tls_first) = trustme.CA(), (free_port() for _ in range(3))
    (tmp_path / "relay").mkdir()
    ca.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "relay/all.pem"))
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    smtp = {"processes": processes, "certificate": "all.pem", "key": "all.pem"}
    things = (f"tcp=127.0.0.1:{mx}", f"submission=127.0.0.1:{users}", f"submissions=127.0.0.1:{tls_first}")
    relays.append(Relay(tmp_path, {"smtp": smtp}, under=launcher(*things)))
    relays[-1].start()
    with Dialogue(mx) as anyone, Dialogue(users) as user, Dialogue(tls_first, authority=tmp_path / "ca.pem") as other:
        for dialogue, code in ((anyone, 250), (user, 530), (other, 530)):
            dialogue.hello()
            assert dialogue.say(f"MAIL FROM:<{SENDER}>").code == code


def test_one_for_users_needs_a_certificate(tmp_path: Path) -> None:
    relay = Relay(tmp_path)
    serve = [*command(), "--config", str(relay.config), "serve"]
    words = launcher(f"submission=127.0.0.1:{free_port()}", then=serve)
    done = subprocess.run(words, cwd=relay.folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "needs a certificate. Remedy: [smtp] certificate and key" in done.stderr


def bound(relay: Relay) -> list[str]:
    (ready,) = [line for line in relay.program.written().splitlines() if line.startswith("ready")]
    return ready.split()[1:]


@pytest.mark.parametrize("processes", [1, 2])
def test_they_take_the_place_of_listen(relays: list[Relay], tmp_path: Path, processes: int) -> None:
    ports = [free_port(), free_port()]
    relay = handed(relays, tmp_path, *(f"tcp=127.0.0.1:{port}" for port in ports), processes=processes)
    assert bound(relay) == [f"127.0.0.1:{port}" for port in ports]
    assert not listens("127.0.0.1", relay.port)
    for port in ports:
        assert CLIENTS["python"](port, SENDER, [MEG], mail(SENDER, MEG, PDF)).accepted
    assert len(workers(relay)) == (2 if processes == 2 else 0)
    for pid in workers(relay):
        assert b"LISTEN_" not in Path(f"/proc/{pid}/environ").read_bytes()
    assert relay.stop() == 0


def test_workers_share_the_one_socket_and_none_is_missed(relays: list[Relay], tmp_path: Path) -> None:
    port = free_port()
    relay = handed(relays, tmp_path, f"tcp=127.0.0.1:{port}", processes=2)
    pair = workers(relay)
    before = {pid: _descriptors(pid) for pid in pair}
    with ExitStack() as stack:

        def both_have_taken_some() -> bool:
            stack.enter_context(Dialogue(port))
            return all(_descriptors(pid) > before[pid] for pid in pair)

        until(both_have_taken_some)
    os.kill(pair[0], signal.SIGKILL)
    until(lambda: f"worker-lost pid={pair[0]}" in relay.program.err.read_text())
    for _ in range(10):
        assert CLIENTS["python"](port, SENDER, [MEG], mail(SENDER, MEG, PDF)).accepted
    os.kill(pair[1], signal.SIGKILL)
    until(lambda: f"worker-lost pid={pair[1]}" in relay.program.err.read_text())
    for _ in range(10):
        assert CLIENTS["python"](port, SENDER, [MEG], mail(SENDER, MEG, PDF)).accepted
    assert len(relay.json("queue", "list")) == 20


def _descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.debian("root", "port 25")
def test_a_plain_user_serves_port_25_with_no_right_to_bind_it(relays: list[Relay]) -> None:
    address = free_address(25)
    with open_folder() as folder:
        under = launcher(f"tcp={address}:25", then=as_user(65534))
        relay = Relay(folder, under=under, product=reachable_by(65534))
        relays.append(relay)
        os.chown(relay.folder, 65534, 65534)
        relay.start()
        assert status(relay.program.pid)["CapEff"] == "0" * 16
        with Dialogue(25, host=address) as dialogue:
            assert dialogue.hello().code == 250
        relay.stop()


def test_one_socket_for_both_kinds_of_address(relays: list[Relay], tmp_path: Path) -> None:
    port = free_port()
    try:
        relay = handed(relays, tmp_path, f"dual=[::]:{port}")
    except AssertionError as error:
        if "Address family" in str(error) or "assign requested" in str(error):
            pytest.skip("no IPv6 here")
        raise
    assert bound(relay) == [f"[::]:{port}"]
    assert CLIENTS["python"](port, SENDER, [MEG], mail(SENDER, MEG, PDF)).accepted  # 127.0.0.1, trusted as such
    assert "peer=127.0.0.1 " in relay.program.err.read_text()


def test_those_of_another_process_are_left_alone(relays: list[Relay], tmp_path: Path) -> None:
    relay = handed(relays, tmp_path, f"tcp=127.0.0.1:{free_port()}", whose="other")
    assert bound(relay) == [f"127.0.0.1:{relay.port}"]


@pytest.mark.parametrize("thing", ["udp", "unix=unix.sock", "deaf", "connected", "file", "gone"])
def test_what_is_no_listening_tcp_socket_is_refused(tmp_path: Path, thing: str) -> None:
    relay = Relay(tmp_path)
    things = [f"tcp=127.0.0.1:{free_port()}", *([thing] if thing != "gone" else [])]
    serve = [*command(), "--config", str(relay.config), "serve"]
    done = subprocess.run(
        launcher(*things, whose="gone" if thing == "gone" else "", then=serve),
        cwd=relay.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "inherited descriptor 4" in done.stderr and "Remedy" in done.stderr and "Traceback" not in done.stderr
    assert "ready" not in done.stdout


@pytest.mark.parametrize("abstract", ["", "@"], ids=["path", "abstract"])
def test_systemd_is_told_when_mail_is_taken_and_when_no_more_is(
    relays: list[Relay], tmp_path: Path, abstract: str
) -> None:
    """sd_notify(3), which Type=notify in the unit waits for."""
    place = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind("\0" + place[1:] if abstract else place)
        told.settimeout(30)
        relay = Relay(tmp_path, env={"NOTIFY_SOCKET": abstract + place[1:] if abstract else place})
        relays.append(relay.start())
        assert told.recv(100) == b"READY=1"
        assert CLIENTS["python"](relay.port, SENDER, [MEG], mail(SENDER, MEG, PDF)).accepted
        assert relay.stop() == 0
        assert told.recv(100) == b"STOPPING=1"
