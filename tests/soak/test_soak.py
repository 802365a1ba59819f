"""The soak itself stays in working order: a few seconds of it, at a rate that any machine has to spare.

What it says of memory and latency means nothing after so short a time, on a machine that does other things; what it says
of mails does.
"""

import json
from pathlib import Path

import pytest

from tests.soak.__main__ import Soak, options
from tests.support import debian

MEANT_FOR_LONGER = ("memory", "p99", "runs on time", "traffic", "descriptors")


@pytest.mark.timeout(180)
def test_a_short_soak_accounts_for_everything(tmp_path: Path) -> None:
    debian.require("cc")
    found = tmp_path / "soak.json"
    words = ["--minutes", "0.15", "--rate", "10", "--every", "2", "--json", str(found), "--spool", str(tmp_path)]
    soak = Soak(options(words))
    soak.run()
    results = json.loads(found.read_text())
    failed = [line for line in soak.lines if not line.good and not line.text.startswith(MEANT_FOR_LONGER)]
    assert not failed, results["findings"]
    assert results["facts"]["faults"].keys() >= {"database locked", "GED away", "collector away"}
    assert found.with_suffix(".svg").read_text().startswith("<svg")
    assert "lost: 0" in found.with_suffix(".md").read_text()
