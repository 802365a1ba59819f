"""A mail that comes by the milter, and the relay dead between its commit and its answer."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash.ledger import SENDER, Letter
from tests.crash.site import MEG, Site
from tests.crash.strace import Point
from tests.support.mta import Mta


@pytest.mark.parametrize("size", [pytest.param(0, id="small"), pytest.param(600_000, id="large")])
def test_a_mail_by_the_milter_whose_answer_is_on_its_lips(site: Site, tmp_path: Path, size: int) -> None:
    path = str(tmp_path / "milter.sock")
    site.relay.stop()
    site.relay.configure({"milter": {"listen": [f"unix:{path}"]}})
    site.back()
    letter = site.ledger.letter(MEG, sizes=(size,))
    agreed_rcpt_data = 3
    with site.dies_at(Point("sendto", nth=agreed_rcpt_data + 1)):
        assert not site.post(letter, by_milter(path))
    site.back()
    assert site.stored(letter) == 1
    assert site.post(letter, by_milter(path))
    assert site.stored(letter) == 1


def by_milter(path: str) -> Callable[[int, Letter], bool]:
    """Whether the mail server was told that we have it."""

    def send(port: int, letter: Letter) -> bool:
        with Mta(path) as mta:
            return mta.client("127.0.0.1").post(SENDER, letter.recipients, letter.data) == [(b"d", b"")]

    return send
