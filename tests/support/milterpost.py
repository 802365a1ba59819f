"""A mail server with the relay behind it: a real Postfix that takes its filter's settings from deploy/postfix.

Knows alone: how a snippet is laid into a main.cf, and how a test speaks as a client elsewhere (XCLIENT). Limits: the
filter's address alone is changed in the snippet, for each test has a port of its own.
"""

from pathlib import Path

from tests.support.behind import OTHERS
from tests.support.collector import Collector

SNIPPETS = Path(__file__).resolve().parents[2] / "deploy/postfix"


def snippet(mode: str) -> dict[str, str]:
    """The settings of main.cf.MODE."""
    lines = (SNIPPETS / f"main.cf.{mode}").read_text("utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}


def mail_server(folder: Path, mode: str, milter: str, collectors: str) -> Collector:
    """Postfix, with the mailboxes of OTHERS and the relay at `milter`; anything for elsewhere it sends to `collectors`."""
    host, _, port = collectors.rpartition(":")
    ours = {"welyb_milter": milter, "smtpd_authorized_xclient_hosts": "127.0.0.0/8"}
    elsewhere = {"default_transport": f"smtp:[{host}]:{port}", "minimal_backoff_time": "1s"}
    return Collector.start(folder, domains=(OTHERS,), main_cf=snippet(mode) | ours | elsewhere)
