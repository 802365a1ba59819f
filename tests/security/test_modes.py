"""Who may read what we make: in the data folder its owner alone, in the GED whoever may work in that folder.

Whatever the umask of whoever starts us.
"""

import os
import stat
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.ged import Filed, Tree
from tests.security.processes import modes, umask, until
from tests.support import documents as made
from tests.support.clients import CLIENTS, mail
from tests.support.firm import digest
from tests.support.program import free_port
from tests.support.relay import Relay

SENDER = "compta@cabinet.example"
SMALL = ("facture.pdf", "application/pdf", made.pdf())
BIG = ("plan.pdf", "application/pdf", made.pdf_of_size(300_000))
PDF = made.pdf()


def under_umask(mask: int) -> list[str]:
    return ["sh", "-c", f'umask {mask:04o}; exec "$@"', "sh"]


@pytest.fixture(params=[0o000, 0o077, 0o777], ids=oct)
def mask(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def relay(tmp_path: Path, mask: int) -> Iterator[Relay]:
    nowhere = f"127.0.0.1:{free_port()}"
    settings = {"run": {"settle": "0 s"}, "delivery": {"routes": {"achats.factures-meg.fr": nowhere}}}
    relay = Relay(tmp_path, settings, under=under_umask(mask))
    relay.client("dupont").chmod(0o770)
    yield relay
    relay.stop()


def test_all_that_it_makes_is_its_owners_alone(relay: Relay, mask: int) -> None:
    data = relay.folder / "var"
    (relay.ged / "dupont/Achats").mkdir()
    relay.start()
    with umask(mask & 0o077):
        relay.cli("keys", "create", "s1")
        add = ("connections", "add", "--application", "meg-achats", "--client", "dupont", "--folder", "Achats")
        relay.cli(*add, "--address", "meg+achats+dupont@welyb.fr")
        for document in (SMALL, BIG):
            for to in ("ventes+dupont@welyb.fr", "meg+achats+dupont@welyb.fr"):
                assert CLIENTS["python"](relay.port, SENDER, [to], mail(SENDER, to, document)).accepted
        (relay.ged / "dupont/Achats/depot.pdf").write_bytes(BIG[2])
        relay.cli("runs", "now")
        held = relay.json("queue", "list", "--state", "waiting")
        relay.cli("queue", "hold", *(row["id"] for row in held), "--yes")
    found = modes(data)
    there = " ".join(found)
    for part in (
        "-wal",
        "-shm",
        "spool/segments/",
        "spool/files/",
        "token.key",
        "dkim/s1.pem",
        "serve.lock",
        "run.lock",
    ):
        assert part in there
    for path, mode in found.items():
        assert mode == (0o700 if (data / path).is_dir() else 0o600), f"{path} {mode:04o}"


def test_what_it_files_is_for_those_of_the_folder(relay: Relay) -> None:
    relay.start()
    assert CLIENTS["python"](
        relay.port, SENDER, ["ventes+dupont@welyb.fr"], mail(SENDER, "ventes+dupont@welyb.fr", SMALL)
    ).accepted
    client = relay.ged / "dupont"
    until(lambda: list(client.rglob("facture.pdf")) and not list(client.rglob(".*.part")))
    (filed,) = client.rglob("facture.pdf")
    assert stat.S_IMODE(filed.stat().st_mode) == 0o660
    assert {mode for path, mode in modes(client).items() if (client / path).is_dir()} == {0o770}


# --- the tree's own custom ------------------------------------------------------------------------------------------


def file(root: Path, *folders: str) -> Path:
    answer = Tree(root).file_document(folders, "x.pdf", delivery="d", chunks=[PDF], sha256=digest(PDF))
    assert isinstance(answer, Filed)
    return root / answer.path


@pytest.mark.parametrize(
    ("above", "folder", "document"),
    [
        (0o755, 0o755, 0o644),
        (0o775, 0o775, 0o664),
        (0o700, 0o700, 0o600),
        (0o750, 0o750, 0o640),
        (0o2770, 0o2770, 0o660),
        (0o1777, 0o777, 0o666),
        (0o555, 0o755, 0o644),  # whatever the folder says, its maker keeps its own rights
    ],
    ids=oct,
)
def test_the_custom_is_the_folders(tmp_path: Path, mask: int, above: int, folder: int, document: int) -> None:
    if above == 0o555 and os.geteuid():
        pytest.skip("only root writes there")
    tmp_path.chmod(above)
    with umask(mask & 0o077):
        place = file(tmp_path, "Ventes", "2026")
    assert stat.S_IMODE(place.stat().st_mode) == document
    assert {stat.S_IMODE(p.stat().st_mode) for p in (place.parent, place.parent.parent)} == {folder}
    tmp_path.chmod(0o700)


@pytest.mark.debian("root")
def test_the_group_is_the_folders(tmp_path: Path) -> None:
    os.chown(tmp_path, -1, 8)
    tmp_path.chmod(0o770)
    place = file(tmp_path, "Ventes")
    assert (place.stat().st_gid, place.parent.stat().st_gid) == (8, 8)


@pytest.mark.debian("root")
def test_the_group_goes_on_where_we_are_not_of_it() -> None:
    """chmod(2) takes setgid from whoever is not of the group: the folders below would fall to a group of ours."""
    with tempfile.TemporaryDirectory() as above:
        root = Path(above) / "client"
        root.mkdir()
        os.chmod(above, 0o755)
        os.chown(root, 65534, 8)
        root.chmod(0o2770)
        if not (child := os.fork()):
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            file(root, "Ventes", "2026")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert {path.stat().st_gid for path in root.rglob("*")} == {8}


def test_a_default_acl_has_the_last_word(tmp_path: Path, mask: int) -> None:
    # acl(5): user::rwx, user 54321 rwx, group::r-x, mask rwx, other::---
    entries = [(0x01, 7, -1), (0x02, 7, 54321), (0x04, 5, -1), (0x10, 7, -1), (0x20, 0, -1)]
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(tmp_path, "system.posix_acl_default", acl)
    except OSError as error:
        pytest.skip(f"no ACLs here: {error.strerror}")
    with umask(mask & 0o077):
        place = file(tmp_path, "Ventes")
    granted = os.getxattr(place, "system.posix_acl_access")
    assert struct.pack("<HHi", 0x02, 7, 54321) in granted
    assert stat.S_IMODE(place.stat().st_mode) == 0o660  # with an ACL the group bits are its mask
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o770


def test_nobody_reads_it_before_it_is_whole(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    looked: list[int] = []

    def chunks() -> Iterator[bytes]:
        yield PDF[:5]
        looked.extend(stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*.part"))
        yield PDF[5:]

    answer = Tree(tmp_path).file_document(["Ventes"], "x.pdf", delivery="d", chunks=chunks(), sha256=digest(PDF))
    assert isinstance(answer, Filed) and looked == [0o600]
