"""No mail up to 50 MB costs a second of processor time or 64 MB of memory more than an innocent one of its size.

Each bomb goes through the whole intake, from the first byte to the answer, in a process of its own (forked, so that the
peak of memory is that mail's alone), after innocent mails have loaded what loads once. Processor time is the process's,
all threads and the kernel's share included. BOMBS=file writes the figures there.
"""

import json
import os
import resource
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from relay.draft import Envelope, Recipient
from rules import path
from rules.replies import Reply
from tests.fuzz import bombs
from tests.support import documents as d
from tests.support.effort import LONG
from tests.support.inside import SENDER, Inside, inside

# Seconds, of a quarter of the mail with room for a machine that is busy; MB.
CPU, MEMORY = 1.0 if LONG else 0.7, 64.0
ENDED_AFTER = 10  # seconds of processor time
CHUNK = 256 * 1024  # what asyncio reads at most at once


@dataclass(frozen=True, slots=True)
class Cost:
    cpu: float
    memory: float  # MB at the peak, above what was there
    said: str  # the answer


def in_a_child(work: Callable[[], Any]) -> Any:
    """What `work` gives, as JSON has it, from a process of its own, which is ended when it has worked for too long."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (ENDED_AFTER, ENDED_AFTER))
        try:
            with os.fdopen(write, "w") as told:
                try:
                    json.dump(work(), told)
                except BaseException:
                    json.dump({"error": traceback.format_exc()}, told)
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as told:
        text = told.read()
    os.waitpid(child, 0)
    assert text, f"more than {ENDED_AFTER} s"
    result = json.loads(text)
    assert "error" not in result, result["error"]
    return result


def metered(work: Callable[[], str]) -> dict[str, Any]:
    """What `work` costs in this process from here on."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, cpu = _memory("VmRSS"), _cpu()
    said = work()
    return {"cpu": _cpu() - cpu, "memory": _memory("VmHWM") - before, "said": said}


def _memory(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1000


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _take(relay: Inside, message: bytes) -> Reply:
    """As the session would hand it over: in pieces as they come off the socket."""
    peer = relay.intake.peer("127.0.0.1")
    to = [path.parse(b"<%b@welyb.fr>" % local) for local in (b"meg+dupont", b"ventes+dupont")]
    recipients = [
        r for p in to if isinstance(p, path.Path) and isinstance(r := relay.intake.recipient(p, peer), Recipient)
    ]
    transaction = relay.intake.begin(Envelope(peer, "cabinet.example", "ESMTP", "", SENDER), recipients)
    for at in range(0, len(message), CHUNK):
        transaction.feed(message[at : at + CHUNK])
    return await transaction.finish()


def cost_of_intake(message: bytes, folder: Path) -> Cost:
    def work() -> dict[str, Any]:
        with inside(folder) as relay:
            warm = [d.pdf(), d.docx(), d.ods(), d.ubl_xml(), d.text(), d.old_xls(), b"\0" * 2_000_000]
            for document in warm:
                relay._run(_take(relay, bombs.mixed([bombs.attached(document)])))
            return metered(lambda: f"{(reply := relay._run(_take(relay, message))).code} {reply.text()}")

    return Cost(**in_a_child(work))


def noted(name: str, cost: Cost, size: int) -> None:
    if figures := os.environ.get("BOMBS"):
        with Path(figures).open("a") as file:
            file.write(
                json.dumps({"name": name, "size": size, "cpu": cost.cpu, "memory": cost.memory, "said": cost.said})
                + "\n"
            )


@pytest.fixture(scope="module")
def innocent(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Seconds that as many bytes of ordinary documents take: what a bomb is measured against."""
    costs = {}
    for name, make in bombs.INNOCENT.items():
        message = make()
        costs[name] = cost_of_intake(message, tmp_path_factory.mktemp("innocent"))
        noted(name, costs[name], len(message))
    return costs["190 PDFs"].cpu


@pytest.mark.parametrize("name", bombs.BOMBS)
def test_no_mail_costs_more_than_it_may(name: str, innocent: float, tmp_path: Path) -> None:
    message = bombs.BOMBS[name]()
    cost = cost_of_intake(message, tmp_path)
    noted(name, cost, len(message))
    assert cost.said[0] in "25", "it is answered for good: 451 would bring it again"
    assert cost.cpu <= CPU + innocent
    assert cost.memory <= MEMORY


@pytest.mark.parametrize("name", bombs.RECURSIVE)
def test_an_author_within_authors_is_answered_for_good(name: str, tmp_path: Path) -> None:
    assert cost_of_intake(bombs.RECURSIVE[name](), tmp_path).said.startswith("250 ")
