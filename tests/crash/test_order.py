"""What a kill cannot show: that bytes are on the disk, and not only with the kernel, before anything leans on them.

A process killed loses nothing it has written, synced or not. So the calls themselves are looked at, in their order.
"""

import re

import pytest

from tests.crash.ledger import by_chunks, by_data
from tests.crash.site import MEG, VENTES, Site, until
from tests.crash.strace import watched

CALLS = "write,pwrite64,fsync,fdatasync,linkat,unlinkat,sendto"
WAL = (r"pwrite64\(\d+<.*relay\.db-wal>", r"fsync\(\d+<.*relay\.db-wal>")
TOLD = (r'sendto\(\d+<socket:\[\d+\]>, "250 2\.0\.0 Message',)


@pytest.mark.parametrize(
    ("how", "sizes", "bytes_"),
    [
        pytest.param(by_data, (0,), (r"write\(\d+<.*/segments/.*>", r"fdatasync\(\d+<.*/segments/.*>"), id="small"),
        pytest.param(
            by_data,
            (600_000,),
            (r"write\(\d+<.*/files/.*>", r"fdatasync\(\d+<.*/files/.*>", r"fsync\(\d+<.*/files/[\d-]+>"),
            id="large",
        ),
        pytest.param(
            by_chunks,
            (600_000,),
            (r"write\(\d+<.*/files/.*>", r"fdatasync\(\d+<.*/files/.*>", r"fsync\(\d+<.*/files/[\d-]+>"),
            id="bdat",
        ),
    ],
)
def test_bytes_then_rows_then_250(site: Site, how: object, sizes: tuple[int, ...], bytes_: tuple[str, ...]) -> None:
    letter, log = site.ledger.letter(MEG, sizes=sizes), site.log()
    with watched(site.relay.program.pid, CALLS, log):
        assert site.post(letter, how)
    in_order(log.read_text(errors="replace"), *bytes_, *WAL, *TOLD)


def test_document_then_name_then_record(site: Site) -> None:
    letter, log = site.ledger.letter(VENTES), site.log()
    with watched(site.relay.program.pid, CALLS, log):
        assert site.post(letter)
        until(lambda: site.states(letter) == ["filed"] and "filed" in log.read_text(errors="replace"), "file")
    calls = log.read_text(errors="replace")
    temporary = r"\.welyb-[^>]*\.part"
    filing = (rf"write\(\d+<.*{temporary}>", rf"fsync\(\d+<.*{temporary}>", r"\blinkat\(", rf"fsync\(\d+<{site.month}>")
    in_order(calls[calls.index(".welyb-") :], *filing, *WAL, rf"unlinkat\(.*{temporary}.* = 0")


def in_order(calls: str, *patterns: str) -> None:
    """Of each kind the last call before the first of the next: the whole of a step is over when the next begins."""
    lines = calls.splitlines()
    begins = [next((n for n, line in enumerate(lines) if re.search(p, line)), None) for p in patterns]
    assert None not in begins and begins == sorted(begins), f"{begins}\n" + "\n".join(lines[-60:])
    for earlier, later in zip(patterns, begins[1:], strict=False):
        last = max(n for n, line in enumerate(lines) if re.search(earlier, line)) if "wal" not in earlier else 0
        assert last < later, f"{earlier} after line {later}\n" + "\n".join(lines[-60:])
