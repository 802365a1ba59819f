"""Postfix from Debian as a peer, alone or with OpenDKIM signing beside it; and in front of the relay, its milter."""

import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing

from tests.bench.ours import Ours
from tests.bench.server import SIZE_LIMIT, Mode, Packaged, Place
from tests.support.milterpost import snippet
from tests.support.program import free_port, listens
from tests.support.relay import Relay


class Postfix(Packaged):
    """Keeps what comes in its hold queue. Its settings are Debian's but for what is named here."""

    name = "postfix"
    can = frozenset({"accept", "drain", "list", "milter"})
    packages = ("postfix",)
    queue = "/var/spool/postfix"

    def version(self) -> str:
        return "Postfix " + self.root.run("postconf", "-h", "mail_version").strip()

    def settings(self, mode: Mode) -> list[str]:
        held = "check_client_access static:HOLD" if mode == "hold" else "permit_mynetworks, reject"
        return [
            "inet_interfaces = loopback-only",
            "inet_protocols = ipv4",
            "mydestination =",
            f"relayhost = [127.0.0.1]:{self.place.sink_port}",
            f"message_size_limit = {SIZE_LIMIT}",
            f"smtpd_recipient_restrictions = {held}",
            "smtpd_tls_security_level = none",
            "smtp_tls_security_level = none",
            "in_flow_delay = 0",
            "maillog_file = /var/log/postfix.log",
        ]

    def configured(self, mode: Mode) -> Sequence[str]:
        for service in self.root.run("postconf", "-M").splitlines():
            if service.split()[1] == "inet":
                self.root.run("postconf", "-MX", "/".join(service.split()[:2]))
        listener = f"127.0.0.1:{self.port}"
        self.root.run("postconf", "-M", f"{listener}/inet={listener} inet n - y - - smtpd")
        self.root.run("postconf", "-e", *self.settings(mode))
        self.lay_queue()
        return self.root.command("postfix", "start-fg")

    def flush(self) -> None:
        self.root.run("postsuper", "-H", "ALL")
        subprocess.run([*self.group.prefix, *self.root.command("postqueue", "-f")], check=True)

    def listing(self) -> Sequence[str]:
        return self.root.command("postqueue", "-p")


class Signing(Postfix):
    """It signs what comes in, so only the whole way, in and out, can be compared."""

    name = "postfix+opendkim"
    can = frozenset({"through"})
    packages = ("postfix", "opendkim", "opendkim-tools")

    def version(self) -> str:
        said = self.root.run("opendkim", "-V").split("\n")[0].strip()
        return f"{super().version()} with {said}"

    def prepare(self) -> None:
        super().prepare()
        if not (self.root.path / "etc/dkim/s1.private").exists():
            self.root.write("/etc/dkim/domains", "")
            self.root.run("opendkim-genkey", "-b", "2048", "-s", "s1", "-d", "client.example", "-D", "/etc/dkim")

    def settings(self, mode: Mode) -> list[str]:
        milter = f"inet:127.0.0.1:{self._milter_port}"
        return [*super().settings(mode), f"smtpd_milters = {milter}", "milter_default_action = tempfail"]

    def configured(self, mode: Mode) -> Sequence[str]:
        self._milter_port = free_port()
        lines = (
            "Domain client.example",
            "KeyFile /etc/dkim/s1.private",
            "Selector s1",
            "Mode s",
            "Canonicalization relaxed/simple",
            f"Socket inet:{self._milter_port}@127.0.0.1",
            "Syslog yes",
            "RequireSafeKeys no",
        )
        self.root.write("/etc/dkim/opendkim.conf", "\n".join([*lines, ""]))
        command = self.root.command("opendkim", "-f", "-x", "/etc/dkim/opendkim.conf")
        milter = subprocess.Popen([*self.group.prefix, *command], stdin=subprocess.DEVNULL)
        self.group.adopt(milter.pid)
        self._milter = milter
        for _ in range(500):
            if listens("127.0.0.1", self._milter_port) or milter.poll() is not None:
                break
        return super().configured(mode)

    def stop(self) -> None:
        super().stop()
        milter = getattr(self, "_milter", None)
        if milter is not None:
            milter.kill()
            milter.wait()


class Behind(Postfix):
    """It receives, and the relay takes every mail from it, as the settings of deploy/postfix have it."""

    name = "postfix+relay"
    can = frozenset({"milter"})
    recipient = Ours.recipient

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._milter = f"inet:127.0.0.1:{free_port()}"
        self._relay: Relay | None = None

    def settings(self, mode: Mode) -> list[str]:
        ours = snippet("take") | {"welyb_milter": self._milter}
        return [*super().settings(mode), *(f"{name} = {value}" for name, value in ours.items())]

    def configured(self, mode: Mode) -> Sequence[str]:
        folder = self.folder / "relay"
        folder.mkdir()
        settings = {"milter": {"listen": [self._milter]}, "authentication": {"verify": "none"}}
        self._relay = Relay(folder, settings, under=self.group.prefix).start()
        self.group.adopt(self._relay.program.pid)
        return super().configured(mode)

    def taken(self) -> int:
        """How many mails are in the relay's store."""
        assert self._relay is not None
        with closing(sqlite3.connect(self._relay.folder / "var/relay.db")) as db:
            return int(db.execute("SELECT count(*) FROM message").fetchone()[0])

    def stop(self) -> None:
        if self._relay is not None:
            self._relay.stop()
            self._relay = None
        super().stop()
