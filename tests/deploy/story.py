"""In the root of the package: the service's command line as its user, and a mail for the GED and for a collector to it.

    python story.py WAY

"alone": it comes to the relay itself. "take", "rewrite": it comes to Postfix, which has the relay behind it with the
settings that the package ships for that mode. Says in JSON what became of it.

Knows alone: how a site's Postfix is set up around such settings. Limits: a network of its own, since ports are those that
the settings and the pages name.
"""

import fcntl
import json
import os
import pwd
import re
import smtplib
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller

SETTINGS = Path("/tmp/relay.toml")
UNIT = Path("/lib/systemd/system/welyb-relay.service")
SNIPPETS = Path("/usr/share/doc/welyb-relay/postfix")
GED = Path("/srv/ged")
VENTES = "ventes+macon-dupont@welyb.fr"
COLLECTOR = ("127.0.0.1", 2526)
# Port 25 is systemd's to bind, or Postfix's. The clock's run would come in between, four times an hour.
ALONE = {
    'listen = ["0.0.0.0:25"]': 'listen = ["127.0.0.1:2525"]',
    '# "factures-meg.fr" = "127.0.0.1:2526"': '"factures-meg.fr" = "127.0.0.1:2526"',
    'every = "15 min"': 'every = "24 hours"',
}
# All that is for elsewhere goes to the collector.
SITE = """
myhostname = mx.welyb.fr
relayhost = [127.0.0.1]:2526
alias_maps =
alias_database =
maillog_file = /var/log/maillog
"""
SIOCSIFFLAGS, IFF_UP = 0x8914, 1


class Collector:
    """Takes every mail and keeps it."""

    def __init__(self) -> None:
        self.mails: list[Any] = []

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        self.mails.append(envelope)
        return "250 2.0.0 Ok"


def bring_loopback_up() -> None:
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", IFF_UP))


def become() -> None:
    account = pwd.getpwnam("welyb-relay")
    os.initgroups(account.pw_name, account.pw_gid)
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)


def changed(text: str, changes: dict[str, str]) -> str:
    for there, instead in changes.items():
        assert text.count(there) == 1, there
        text = text.replace(there, instead)
    return text


@contextmanager
def served(way: str) -> Iterator[None]:
    """The relay, by its unit's command line; behind Postfix by [milter], as the page says."""
    behind = {"listen = []": 'listen = ["inet:127.0.0.1:8891"]', 'mode = "take"': f'mode = "{way}"'}
    changes = ALONE if way == "alone" else ALONE | behind
    SETTINGS.write_text(changed(Path("/etc/welyb-relay/relay.toml").read_text(), changes))
    found = re.search(r"(?m)^ExecStart=(.*)$", UNIT.read_text())
    assert found
    relay = subprocess.Popen(found[1].split(), preexec_fn=become, stdout=subprocess.PIPE, text=True, cwd="/")
    try:
        assert relay.stdout and relay.stdout.readline().startswith("ready")
        yield
    finally:
        relay.terminate()
        code = relay.wait(60)
    assert code == 0, code


@contextmanager
def in_front(way: str) -> Iterator[None]:
    """Postfix, started as its unit does; nobody where the relay is alone."""
    if way == "alone":
        yield
        return
    parts = [Path("/usr/share/postfix/main.cf.debian"), SNIPPETS / f"main.cf.{way}"]
    Path("/etc/postfix/main.cf").write_text(SITE.join(part.read_text() for part in parts))
    for words in (["/usr/lib/postfix/configure-instance.sh", "-"], ["postfix", "start"]):
        subprocess.run(words, check=True, stdout=sys.stderr)
    try:
        yield
    finally:
        subprocess.run(["postfix", "stop"], check=True, stdout=sys.stderr)


def send(way: str) -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["Subject"] = "compta@cabinet.example", "Facture"
    mail["Message-ID"] = f"<{time.time_ns()}@cabinet.example>"
    mail.set_content("ci-joint")
    content = f"%PDF-1.4 {way}".encode()
    mail.add_attachment(content, maintype="application", subtype="pdf", filename=f"{way}.pdf")
    with smtplib.SMTP("127.0.0.1", 2525 if way == "alone" else 25, timeout=60) as client:
        client.send_message(mail, to_addrs=[VENTES, f"meg+{way}@welyb.fr"])
    return mail


def queue() -> dict[str, str]:
    """Recipient → the state of its newest delivery."""
    done = subprocess.run(["welyb-relay", "queue", "list", "--json"], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["recipient"]: row["state"] for row in reversed(rows)}


def filed(way: str) -> list[str]:
    """The documents that came by this way, in the GED."""
    return sorted(path.name for path in GED.rglob(f"{way}*.pdf"))


def until(holds: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)


def documents(mail: Any) -> list[bytes]:
    return [part.get_payload(decode=True) for part in mail.walk() if part.get_filename()]


def told(way: str, collector: Collector) -> dict[str, Any]:
    """The story itself."""
    before, meg = filed(way), f"meg+{way}@welyb.fr"
    mail = send(way)
    until(lambda: len(filed(way)) > len(before) and queue()[VENTES] == "filed")
    if way == "rewrite":
        until(lambda: collector.mails)
    at_once = [queue()[meg], len(collector.mails)]
    subprocess.run(["welyb-relay", "runs", "now"], check=True, stdout=subprocess.DEVNULL)
    return {
        "way": way,
        "filed": filed(way),
        "at once": at_once,
        "after a run": [queue()[meg], len(collector.mails)],
        "received": [[one.mail_from, *one.rcpt_tos] for one in collector.mails],
        "unchanged": all(documents(message_from_bytes(one.content)) == documents(mail) for one in collector.mails),
        "mailq": "" if way == "alone" else subprocess.check_output(["postqueue", "-p"], text=True).strip(),
    }


def main(way: str) -> None:
    bring_loopback_up()
    os.environ["WELYB_RELAY_CONFIG"] = str(SETTINGS)
    collector = Collector()
    far = Controller(collector, hostname=COLLECTOR[0], port=COLLECTOR[1])
    far.start()
    try:
        with served(way), in_front(way):
            print(json.dumps(told(way, collector)))
    finally:
        far.stop()


if __name__ == "__main__":
    main(sys.argv[1])
