"""One installation for all the kills of a test run, and the account of the random ones at its end."""

from collections.abc import Generator, Iterator

import pytest

from tests.crash.site import MEG, Site
from tests.support import debian
from tests.support.program import tail

accounts = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def shared_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    debian.require("postfix", "strace")
    site = Site.start(tmp_path_factory.mktemp("crash"))
    yield site
    try:
        site.back()
        site.settled()
    finally:
        site.stop()


@pytest.fixture
def site(shared_site: Site) -> Site:
    """Serving, one mail waiting for a run at least, with a segment to append to and a WAL that was begun and is short."""
    if not shared_site.relay.program.running:
        shared_site.back()
    shared_site.checkpoint()
    shared_site.taken(MEG)
    return shared_site


@pytest.fixture
def account(request: pytest.FixtureRequest) -> list[str]:
    """Lines for the end of the test run."""
    return request.config.stash.setdefault(accounts, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash.get(accounts, []):
        terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    arguments = getattr(item, "funcargs", {})
    site = arguments.get("site") or getattr(arguments.get("story"), "site", None)
    if report.failed and site is not None:
        for log in sorted(site.folder.rglob("*.err"), key=lambda path: path.stat().st_mtime)[-6:]:
            report.sections.append((log.name, tail(log)))
    return report
