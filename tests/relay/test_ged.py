"""The tree on a real disk: every way a document gets there, every way out of the tree, every crash of a filing.

Long because each of those ways is a story of its own.
"""

import errno
import hashlib
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from relay.ged import (
    Changed,
    Copied,
    Damaged,
    Filed,
    GedAway,
    Listing,
    Tree,
    Unreadable,
    Vanished,
)
from rules.deposit import (
    Decision,
    Departed,
    Deposit,
    Difference,
    Known,
    Moved,
    Returned,
    Seen,
    Touched,
    decide,
    is_baseline,
    questions,
)

REPOSITORY = Path(__file__).parents[2]
PDF = b"%PDF-1.7 the bytes of an invoice\n"


@pytest.fixture
def ged(tmp_path: Path) -> Path:
    (tmp_path / "ged").mkdir()
    (tmp_path / "outside").mkdir()
    return tmp_path / "ged"


@contextmanager
def plain_user() -> Iterator[None]:
    """Root may read anything; a mailbox user may not."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_tree() -> Iterator[Path]:
    """A tree that a plain user can reach: pytest's own folders are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def listed(tree: Tree, skip: frozenset[str] = frozenset()) -> dict[str, Seen]:
    found = list(tree.scan(skip))
    assert all(isinstance(item, Listing) for item in found), found
    return {seen.path: seen for item in found if isinstance(item, Listing) for seen in map(item.seen, item.entries)}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def now_ns(tree: Tree) -> int:
    instant = tree.instant_ns()
    assert isinstance(instant, int)
    return instant


# --- deposits, as the run will see them -----------------------------------------------------------------------------


class Connection:
    """A connected folder with its inventory in memory, hashed or not."""

    def __init__(self, folder: Path, hashed: str) -> None:
        self.tree = Tree(folder)
        activated = now_ns(self.tree)
        seen = [s for s in listed(self.tree).values() if is_baseline(s, activated)]
        self.rows = {
            s.path: Known(
                s.path,
                s.device,
                s.inode,
                s.size,
                s.mtime_ns,
                s.ctime_ns,
                "baseline",
                self.hash(s.path) if hashed == "hashed" else None,
            )
            for s in seen
        }

    def hash(self, path: str) -> str:
        copied = self.tree.read_deposit(path, lambda _: None)
        assert isinstance(copied, Copied)
        return copied.sha256

    def run(self) -> tuple[Decision, ...]:
        there = listed(self.tree)
        common = self.rows.keys() & there.keys()
        difference = Difference(
            gone=tuple(row for path, row in self.rows.items() if path not in there),
            changed=tuple(
                (self.rows[path], there[path]) for path in sorted(common) if not _same(self.rows[path], there[path])
            ),
            new=tuple(seen for path, seen in there.items() if path not in self.rows),
        )
        now = now_ns(self.tree)
        hashes = {path: self.hash(path) for path in questions(difference, now_ns=now, settle_ns=0)}
        return decide(difference, hashes, now_ns=now, settle_ns=0)


def _same(row: Known, seen: Seen) -> bool:
    return (row.inode, row.size, row.mtime_ns, row.ctime_ns) == (seen.inode, seen.size, seen.mtime_ns, seen.ctime_ns)


@pytest.fixture(params=["hashed", "not yet hashed"])
def connection(request: pytest.FixtureRequest, ged: Path) -> Connection:
    """A folder connected after old.pdf and sub/deep.pdf had been put there, with an old file outside."""
    (ged / "sub").mkdir()
    for path in (ged / "old.pdf", ged / "sub/deep.pdf", ged.parent / "outside/new.pdf"):
        path.write_bytes(PDF + str(path.name).encode())
        os.utime(path, (1_000_000_000, 1_000_000_000))
    (ged.parent / "outside/folder").mkdir()
    shutil.copy2(ged.parent / "outside/new.pdf", ged.parent / "outside/folder/new.pdf")
    (ged / "arriving.pdf.part").write_bytes(PDF)
    return Connection(ged, request.param)


def _rsync(outside: Path, ged: Path) -> None:
    shutil.copy2(outside / "new.pdf", ged / ".new.pdf.Xy1z")
    (ged / ".new.pdf.Xy1z").rename(ged / "new.pdf")


FORMS: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "copy": ("new.pdf", lambda outside, ged: shutil.copyfile(outside / "new.pdf", ged / "new.pdf")),
    "move in": ("new.pdf", lambda outside, ged: (outside / "new.pdf").rename(ged / "new.pdf")),
    "rename in": ("arriving.pdf", lambda outside, ged: (ged / "arriving.pdf.part").rename(ged / "arriving.pdf")),
    "cp -p": ("sub/new.pdf", lambda outside, ged: shutil.copy2(outside / "new.pdf", ged / "sub/new.pdf")),
    "rsync -a": ("new.pdf", _rsync),
    "hard link": ("new.pdf", lambda outside, ged: os.link(outside / "new.pdf", ged / "new.pdf")),
    "hard link in the tree": ("link.pdf", lambda outside, ged: os.link(ged / "old.pdf", ged / "link.pdf")),
    "folder moved in": ("in/new.pdf", lambda outside, ged: (outside / "folder").rename(ged / "in")),
    "over a name that left": ("old.pdf", lambda outside, ged: _archive(outside, ged)),
}


def _archive(outside: Path, ged: Path) -> None:
    (ged / "old.pdf").rename(ged / "sub/old.pdf")
    (outside / "new.pdf").rename(ged / "old.pdf")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_deposit_is_one(connection: Connection, ged: Path, form: str) -> None:
    path, deposit = FORMS[form]
    deposit(ged.parent / "outside", ged)
    decisions = connection.run()
    assert [d.seen.path for d in decisions if isinstance(d, Deposit)] == [path]
    assert all(isinstance(d, Deposit | Touched | Moved) for d in decisions)


def _copy_and_delete(ged: Path) -> None:
    shutil.copy2(ged / "old.pdf", ged / "sub/old.pdf")
    (ged / "old.pdf").unlink()


def _swap(ged: Path) -> None:
    (ged / "old.pdf").rename(ged / "x")
    (ged / "sub/deep.pdf").rename(ged / "old.pdf")
    (ged / "x").rename(ged / "sub/deep.pdf")


NOT_RETROACTIVE: dict[str, Callable[[Path], object]] = {
    "touch": lambda ged: (ged / "old.pdf").touch(),
    "chmod": lambda ged: (ged / "old.pdf").chmod(0o600),
    "rename": lambda ged: (ged / "old.pdf").rename(ged / "new name.pdf"),
    "move": lambda ged: (ged / "old.pdf").rename(ged / "sub/old.pdf"),
    "move over another": lambda ged: (ged / "old.pdf").rename(ged / "sub/deep.pdf"),
    "rename of a folder": lambda ged: (ged / "sub").rename(ged / "renamed"),
    "move of a folder": lambda ged: os.renames(ged / "sub", ged / "x/y"),
    "copy and delete": _copy_and_delete,
    "swap": _swap,
}


@pytest.mark.parametrize("form", NOT_RETROACTIVE)
def test_what_was_there_before_is_never_a_deposit(connection: Connection, ged: Path, form: str) -> None:
    assert connection.run() == ()
    NOT_RETROACTIVE[form](ged)
    decisions = connection.run()
    assert decisions and all(isinstance(d, Touched | Moved | Returned | Departed) for d in decisions)


def test_an_instant_parts_what_was_done_before_from_what_is_done_after(ged: Path) -> None:
    tree = Tree(ged)
    for number in range(50):
        (ged / f"before{number}").touch()
        instant = now_ns(tree)
        (ged / f"after{number}").touch()
        there = listed(tree)
        assert is_baseline(there[f"before{number}"], instant)
        assert not is_baseline(there[f"after{number}"], instant)
    assert all(not name.startswith(".") for name in os.listdir(ged))


def test_an_instant_of_a_tree_that_may_only_be_read(open_tree: Path) -> None:
    (open_tree / "before").touch()
    with plain_user():
        instant = now_ns(Tree(open_tree))
    (open_tree / "after").touch()
    there = listed(Tree(open_tree))
    assert is_baseline(there["before"], instant) and not is_baseline(there["after"], instant)


# --- the tree -------------------------------------------------------------------------------------------------------


def test_clients_are_the_first_level_folders(ged: Path) -> None:
    for name in ("Maçon & Dupont", "dupont", ".Trash", "@eaDir", "#recycle", "lost+found", "dupont/Achats"):
        (ged / name).mkdir()
    (ged / "a file").touch()
    (ged / "a link").symlink_to(ged / "dupont")
    os.mkdir(os.fsencode(ged) + b"/caf\xe9")
    assert Tree(ged).clients() == ("Maçon & Dupont", "dupont")
    assert isinstance(Tree(ged / "none").clients(), GedAway)


def test_identity_tells_one_folder_from_another(ged: Path) -> None:
    (ged / "a").mkdir()
    (ged / "b").mkdir()
    tree = Tree(ged)
    assert tree.within("a").identity() == Tree(ged / "a").identity() != tree.within("b").identity()
    (ged / "a").rename(ged / "c")
    assert isinstance(tree.within("a").identity(), GedAway)


def test_a_tree_that_is_not_the_expected_one_is_away(ged: Path) -> None:
    identity = Tree(ged).identity()
    assert isinstance(identity, tuple)
    tree = Tree(ged, expected=identity)
    assert tree.clients() == ()
    ged.rename(ged.parent / "unmounted")
    ged.mkdir()
    for answer in (tree.clients(), tree.identity(), tree.instant_ns(), next(tree.scan())):
        assert isinstance(answer, GedAway)
    assert isinstance(tree.file_document(["c"], "a.pdf", delivery="d", chunks=[PDF], sha256=sha256(PDF)), GedAway)
    assert os.listdir(ged) == []


def test_scan_sees_documents_and_nothing_else(ged: Path, tmp_path: Path) -> None:
    (ged / "a/b").mkdir(parents=True)
    (ged / "a/b/deep é.pdf").write_bytes(PDF)
    (ged / "top.pdf").write_bytes(PDF)
    for ignored in ("x.part", ".hidden", "Thumbs.db", "~$x.docx", "a/.DS_Store"):
        (ged / ignored).touch()
    for folder in ("@eaDir", ".git", "a/#recycle"):
        (ged / folder).mkdir()
        (ged / folder / "x.pdf").touch()
    (tmp_path / "outside/secret.pdf").touch()
    (ged / "link.pdf").symlink_to(tmp_path / "outside/secret.pdf")
    (ged / "linked").symlink_to(tmp_path / "outside")
    (ged / "loop").symlink_to(ged)
    os.mkfifo(ged / "pipe.pdf")
    assert set(listed(Tree(ged))) == {"top.pdf", "a/b/deep é.pdf"}
    assert listed(Tree(ged).within("a")) == listed(Tree(ged / "a"))
    status = os.stat(ged / "top.pdf")
    assert listed(Tree(ged))["top.pdf"] == Seen(
        "top.pdf", status.st_dev, status.st_ino, len(PDF), status.st_mtime_ns, status.st_ctime_ns
    )
    assert Tree(ged).look("a/b/deep é.pdf") == listed(Tree(ged))["a/b/deep é.pdf"]
    for none in ("link.pdf", "linked/secret.pdf", "pipe.pdf", "a", "nowhere", "nowhere/x"):
        assert Tree(ged).look(none) is None


def test_scan_leaves_out_nested_connections(ged: Path) -> None:
    for path in ("a/1.pdf", "a/b/2.pdf", "ab/3.pdf"):
        (ged / path).parent.mkdir(parents=True, exist_ok=True)
        (ged / path).touch()
    assert set(listed(Tree(ged), frozenset({"a"}))) == {"ab/3.pdf"}
    assert set(listed(Tree(ged), frozenset({"a/b"}))) == {"a/1.pdf", "ab/3.pdf"}
    assert set(listed(Tree(ged).within("a"), frozenset({"b"}))) == {"1.pdf"}


def test_scan_reports_names_it_cannot_keep(ged: Path) -> None:
    (ged / "good.pdf").touch()
    os.mkdir(os.fsencode(ged) + b"/d\xe9")
    for name in (b"/caf\xe9.pdf", b"/d\xe9/x.pdf"):
        with open(os.fsencode(ged) + name, "w"):
            pass
    found = list(Tree(ged).scan())
    assert sorted(item.path for item in found if isinstance(item, Unreadable)) == ["caf\\xe9.pdf", "d\\xe9"]
    assert [e[0] for item in found if isinstance(item, Listing) for e in item.entries] == ["good.pdf"]


def test_scan_reports_a_folder_it_may_not_read_and_goes_on(open_tree: Path) -> None:
    (open_tree / "closed").mkdir(mode=0)
    (open_tree / "open").mkdir()
    (open_tree / "open/x.pdf").touch()
    with plain_user():
        found = list(Tree(open_tree).scan())
        away = list(Tree(open_tree).within("closed").scan())
    assert [item.path for item in found if isinstance(item, Unreadable)] == ["closed"]
    assert {item.folder for item in found if isinstance(item, Listing)} == {"", "open"}
    assert [type(item) for item in away] == [GedAway]


def test_scan_of_a_folder_that_is_missing_or_a_link_is_away(ged: Path, tmp_path: Path) -> None:
    (ged / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "outside/below").mkdir()
    for folder in ("missing", "out", "out/below"):
        assert [type(item) for item in Tree(ged).within(folder).scan()] == [GedAway]
    for folder in ("../outside", "a/../..", "./a", "/etc", "a//b"):
        with pytest.raises(ValueError):
            list(Tree(ged).within(folder).scan())


def test_scan_of_a_deep_tree_runs_out_of_descriptors_without_falling(ged: Path) -> None:
    path = ged
    for _ in range(200):
        path = path / "d"
        path.mkdir()
    (path / "deep.pdf").touch()
    assert list(listed(Tree(ged))) == ["d/" * 200 + "deep.pdf"]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 60, hard))
    try:
        found = list(Tree(ged).scan())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert sum(isinstance(item, Unreadable) for item in found) == 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_scan_left_half_way_closes_what_it_opened(ged: Path) -> None:
    (ged / "a/b/c").mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    scan = Tree(ged).scan()
    next(scan), next(scan)
    scan.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before


def test_scan_reads_a_hundred_thousand_files_a_second(ged: Path) -> None:
    for folder in range(40):
        (ged / str(folder)).mkdir()
        for number in range(250):
            os.close(os.open(ged / str(folder) / f"Facture Dupont {number}.pdf", os.O_CREAT | os.O_WRONLY))
    speeds = []
    for _ in range(3):
        started = time.process_time()  # of this process alone: the machine may be busy
        count = sum(len(item.entries) for item in Tree(ged).scan() if isinstance(item, Listing))
        speeds.append(count / (time.process_time() - started))
    assert count == 10_000 and max(speeds) > 100_000, speeds


# --- reading --------------------------------------------------------------------------------------------------------


def test_a_deposit_is_copied_and_hashed(ged: Path) -> None:
    data = os.urandom(3_000_000)
    (ged / "a").mkdir()
    (ged / "a/x.pdf").write_bytes(data)
    tree, copy = Tree(ged), bytearray()
    assert tree.read_deposit("a/x.pdf", copy.extend) == Copied(sha256(data), listed(tree)["a/x.pdf"])
    assert copy == data


@pytest.mark.parametrize("what", ["grow", "shrink", "rewrite", "rename", "delete", "chmod"])
def test_a_deposit_that_changes_while_it_is_read_is_not_taken(ged: Path, what: str) -> None:
    path = ged / "x.pdf"
    path.write_bytes(b"a" * 2_500_000)
    now_ns(Tree(ged))  # the next change is stamped later
    changes: dict[str, Callable[[], object]] = {
        "grow": lambda: os.truncate(path, 3_000_000),
        "shrink": lambda: os.truncate(path, 1_000_000),
        "rewrite": lambda: path.write_bytes(b"b" * 2_500_000),
        "rename": lambda: path.rename(ged / "y.pdf"),
        "delete": path.unlink,
        "chmod": lambda: path.chmod(0o600),
    }
    once = iter([changes[what]])
    answer = Tree(ged).read_deposit("x.pdf", lambda _: next(once, lambda: None)())
    assert isinstance(answer, Changed) and answer.before != answer.after


def test_what_is_not_a_file_of_the_tree_has_vanished(ged: Path, tmp_path: Path) -> None:
    (tmp_path / "outside/secret.pdf").write_bytes(b"secret")
    (ged / "link.pdf").symlink_to(tmp_path / "outside/secret.pdf")
    (ged / "linked").symlink_to(tmp_path / "outside")
    os.mkfifo(ged / "pipe.pdf")
    (ged / "folder.pdf").mkdir()
    copy = bytearray()
    for path in ("link.pdf", "linked/secret.pdf", "pipe.pdf", "folder.pdf", "missing.pdf", "no/where.pdf"):
        assert Tree(ged).read_deposit(path, copy.extend) == Vanished(path)
    for path in ("../outside/secret.pdf", "linked/../../outside/secret.pdf", ""):
        with pytest.raises(ValueError):
            Tree(ged).read_deposit(path, copy.extend)
    assert isinstance(Tree(ged / "missing").read_deposit("x", copy.extend), GedAway)
    assert copy == b""


def test_a_deposit_it_may_not_read_is_reported(open_tree: Path) -> None:
    (open_tree / "x.pdf").touch(mode=0)
    with plain_user():
        answer = Tree(open_tree).read_deposit("x.pdf", lambda _: None)
    assert isinstance(answer, Unreadable) and answer.path == "x.pdf"


# --- filing ---------------------------------------------------------------------------------------------------------

VENTES = ["dupont", "Ventes", "2026", "11"]


def file(ged: Path, name: str = "facture.pdf", delivery: str = "d1", data: bytes = PDF) -> Filed:
    filed = Tree(ged).file_document(VENTES, name, delivery=delivery, chunks=[data[:5], data[5:]], sha256=sha256(data))
    assert isinstance(filed, Filed), filed
    return filed


def everything(ged: Path) -> dict[str, bytes]:
    return {str(path.relative_to(ged)): path.read_bytes() for path in ged.rglob("*") if path.is_file()}


def test_a_document_is_filed_whole_and_once(ged: Path) -> None:
    filed = file(ged)
    assert filed == Filed("dupont/Ventes/2026/11/facture.pdf", "dupont/Ventes/2026/11/.welyb-d1.part")
    assert everything(ged) == {filed.path: PDF, filed.temporary: PDF}
    assert set(listed(Tree(ged))) == {filed.path}
    for _ in range(2):
        assert Tree(ged).forget_temporary(filed) is None
        assert everything(ged) == {filed.path: PDF}


def test_filing_below_a_client(ged: Path) -> None:
    tree = Tree(ged).within("dupont")
    (ged / "dupont").mkdir()
    filed = tree.file_document(["V"], "a.pdf", delivery="d", chunks=[PDF], sha256=sha256(PDF))
    assert filed == Filed("V/a.pdf", "V/.welyb-d.part")
    assert isinstance(filed, Filed) and tree.forget_temporary(filed) is None
    assert everything(ged) == {"dupont/V/a.pdf": PDF}


def test_existing_folders_are_found_whatever_their_case_and_accents(ged: Path) -> None:
    (ged / "Dupont/VENTES/2026").mkdir(parents=True)
    assert file(ged).path == "Dupont/VENTES/2026/11/facture.pdf"
    (ged / "Me\u0301ga").mkdir()  # as macOS writes it
    filed = Tree(ged).file_document(["méga"], "x.pdf", delivery="d", chunks=[PDF], sha256=sha256(PDF))
    assert isinstance(filed, Filed) and filed.path == "Me\u0301ga/x.pdf"
    (ged / "dupont").mkdir()
    assert file(ged, delivery="d2").path == "dupont/Ventes/2026/11/facture.pdf"  # the exact name goes first


def test_a_name_that_is_taken_is_numbered_and_nothing_is_overwritten(ged: Path) -> None:
    place = ged / "dupont/Ventes/2026/11"
    place.mkdir(parents=True)
    (place / "Facture.PDF").write_bytes(b"a person's")
    paths = [file(ged, delivery=f"d{n}", data=PDF + bytes([n])).path for n in range(3)]
    assert [path.rpartition("/")[2] for path in paths] == ["facture (2).pdf", "facture (3).pdf", "facture (4).pdf"]
    assert (place / "Facture.PDF").read_bytes() == b"a person's"
    assert [(ged / path).read_bytes() for path in paths] == [PDF + bytes([n]) for n in range(3)]


def test_a_dangling_link_is_a_taken_name(ged: Path, tmp_path: Path) -> None:
    (ged / "dupont/Ventes/2026/11").mkdir(parents=True)
    (ged / "dupont/Ventes/2026/11/facture.pdf").symlink_to(tmp_path / "outside/made.pdf")
    assert file(ged).path.endswith("/facture (2).pdf")
    assert os.listdir(tmp_path / "outside") == []


def test_filings_at_the_same_time_lose_nothing(ged: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        filed = list(pool.map(lambda n: file(ged, delivery=f"d{n}", data=PDF + str(n).encode()), range(40)))
    assert len({f.path for f in filed}) == 40
    assert all((ged / f.path).read_bytes() == PDF + str(n).encode() for n, f in enumerate(filed))


# --- filing after a crash


CRASH = """
import hashlib, os, sys
from relay.ged import Tree
data = {data!r}
def chunks():
    yield data[:5]
    if {point!r} == "writing": os._exit(9)
    yield data[5:]
Tree({root!r}).file_document({folders!r}, "facture.pdf", delivery="d1", chunks=chunks(), sha256={sha256!r})
os._exit(9)
"""


def crash(ged: Path, point: str) -> None:
    code = CRASH.format(data=PDF, point=point, root=str(ged), folders=VENTES, sha256=sha256(PDF))
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 9


def test_a_crash_while_writing_shows_nothing_and_is_mended(ged: Path) -> None:
    crash(ged, "writing")
    assert everything(ged) == {"dupont/Ventes/2026/11/.welyb-d1.part": PDF[:5]}
    assert listed(Tree(ged)) == {}
    filed = file(ged)
    assert everything(ged) == {"dupont/Ventes/2026/11/facture.pdf": PDF, filed.temporary: PDF}


def test_a_crash_before_the_link_is_mended(ged: Path) -> None:
    (ged / "dupont/Ventes/2026/11").mkdir(parents=True)
    (ged / "dupont/Ventes/2026/11/.welyb-d1.part").write_bytes(PDF)
    filed = file(ged)
    assert everything(ged) == {filed.path: PDF, filed.temporary: PDF}


@pytest.mark.parametrize(
    "moved_to", ["dupont/Ventes/2026/11/facture.pdf", "dupont/Ventes/2026/11/x.pdf", "dupont/Classé/x.pdf"]
)
def test_a_crash_before_the_record_files_nothing_twice(ged: Path, moved_to: str) -> None:
    crash(ged, "recording")
    (ged / moved_to).parent.mkdir(exist_ok=True)
    (ged / "dupont/Ventes/2026/11/facture.pdf").rename(ged / moved_to)
    filed = file(ged)
    assert filed.path == moved_to
    assert Tree(ged).forget_temporary(filed) is None
    assert everything(ged) == {moved_to: PDF}


def test_a_document_moved_before_the_record_is_found_from_within_the_client_too(ged: Path) -> None:
    crash(ged, "recording")
    (ged / "dupont/Classé").mkdir()
    (ged / "dupont/Ventes/2026/11/facture.pdf").rename(ged / "dupont/Classé/x.pdf")
    tree = Tree(ged).within("dupont")
    filed = tree.file_document(VENTES[1:], "facture.pdf", delivery="d1", chunks=[PDF], sha256=sha256(PDF))
    assert isinstance(filed, Filed) and filed.path == "Classé/x.pdf"


def test_a_link_made_by_a_backup_is_neither_a_proof_nor_harmed(ged: Path, tmp_path: Path) -> None:
    crash(ged, "writing")
    os.link(ged / "dupont/Ventes/2026/11/.welyb-d1.part", tmp_path / "outside/snapshot")
    filed = file(ged)
    assert (ged / filed.path).read_bytes() == PDF
    assert (tmp_path / "outside/snapshot").read_bytes() == PDF[:5]


def test_a_document_deleted_after_it_was_recorded_is_not_brought_back_by_forgetting(ged: Path) -> None:
    filed = file(ged)
    (ged / filed.path).unlink()
    assert Tree(ged).forget_temporary(filed) is None
    assert everything(ged) == {}


# --- filing that fails


def test_bytes_that_are_not_the_expected_ones_are_not_filed(ged: Path) -> None:
    answer = Tree(ged).file_document(VENTES, "x.pdf", delivery="d", chunks=[b"other"], sha256=sha256(PDF))
    assert answer == Damaged(sha256(b"other"))
    assert everything(ged) == {}


def test_a_failure_of_the_spool_is_not_taken_for_one_of_the_tree(ged: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield PDF
        raise FileNotFoundError("the spool")

    with pytest.raises(FileNotFoundError, match="the spool"):
        Tree(ged).file_document(VENTES, "x.pdf", delivery="d", chunks=chunks(), sha256=sha256(PDF))
    assert everything(ged) == {}


@pytest.mark.parametrize("there", [True, False], ids=["found", "made"])
def test_a_folder_that_cannot_be_synced_keeps_no_descriptor(
    ged: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    if there:
        (ged / "Ventes").mkdir()

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(3):
        answer = Tree(ged).file_document(("Ventes",), "x.pdf", delivery=f"d{number}", chunks=[PDF], sha256=sha256(PDF))
        assert isinstance(answer, GedAway)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_leaves_nothing_behind(ged: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        data = b"a" * 200_000
        answer = Tree(ged).file_document(VENTES, "x.pdf", delivery="d", chunks=[data], sha256=sha256(data))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(answer, GedAway) and answer.code and answer.reason
    assert everything(ged) == {}


def test_no_link_leads_a_filing_out_of_the_tree(ged: Path, tmp_path: Path) -> None:
    (ged / "dupont").mkdir()
    (ged / "dupont/Ventes").symlink_to(tmp_path / "outside")
    answer = Tree(ged).file_document(VENTES, "x.pdf", delivery="d", chunks=[PDF], sha256=sha256(PDF))
    assert isinstance(answer, GedAway)
    assert os.listdir(tmp_path / "outside") == []


def test_a_missing_root_is_not_made(ged: Path) -> None:
    tree = Tree(ged / "unmounted")
    answer = tree.file_document(VENTES, "x.pdf", delivery="d", chunks=[PDF], sha256=sha256(PDF))
    assert isinstance(answer, GedAway)
    assert isinstance(tree.forget_temporary(Filed("a/x.pdf", "a/.welyb-d.part")), GedAway)
    assert os.listdir(ged) == []


@pytest.mark.parametrize(
    ("folders", "name", "delivery"),
    [
        (["..", "outside"], "x.pdf", "d"),
        (["a/b"], "x.pdf", "d"),
        ([""], "x.pdf", "d"),
        (["a"], "../x.pdf", "d"),
        (["a"], "x.pdf", "../d"),
        (["a"], "x.pdf", ""),
    ],
)
def test_a_name_that_climbs_is_a_broken_promise(ged: Path, folders: list[str], name: str, delivery: str) -> None:
    with pytest.raises(ValueError):
        Tree(ged).file_document(folders, name, delivery=delivery, chunks=[PDF], sha256=sha256(PDF))
    assert everything(ged.parent) == {}
