"""OpenSMTPD from Debian as a peer. It calls no fsync: what it answered 250 can be lost in a power cut."""

from collections.abc import Sequence

from tests.bench.server import Mode, Packaged

# With its defaults it opens one connection in a few seconds, 100 mails each, to one relay: 14 mails a second.
_NO_DELAYS = ("host", "route", "source", "connector", "relay", "domain")


class OpenSmtpd(Packaged):
    """Keeps what comes while its transfer agent is paused."""

    name = "opensmtpd"
    can = frozenset({"accept", "drain", "list"})
    packages = ("opensmtpd",)
    queue = "/var/spool/smtpd"

    def version(self) -> str:
        return self.root.run("sh", "-c", "smtpd -h 2>&1 | head -1").replace("version: ", "").strip()

    def configured(self, mode: Mode) -> Sequence[str]:
        lines = (
            'smtp max-message-size "50M"',
            "smtp limit max-mails 1000000",  # else a session ends at its hundredth
            *(f"mta limit conn-delay-{what} 0" for what in _NO_DELAYS),
            "mta limit reconn-delay-route 0",
            f"listen on 127.0.0.1 port {self.port} hostname relay.example",
            f'action "out" relay host "smtp+notls://127.0.0.1:{self.place.sink_port}"',
            'match from any for any action "out"',
        )
        self.root.write("/etc/smtpd.conf", "\n".join([*lines, ""]))
        self.root.write("/etc/resolv.conf", "lookup file\n")  # else it asks a name server who its clients are
        (self.root.path / "var/spool/smtpd").mkdir(mode=0o711, exist_ok=True)  # it makes what is below
        self.lay_queue()
        return self.root.command("smtpd", "-F")

    def run_server(self, command: Sequence[str]) -> None:
        super().run_server(command)
        self.root.run("smtpctl", "pause", "mta")

    def start(self, mode: Mode) -> None:
        super().start(mode)
        if mode == "relay":
            self.flush()

    def flush(self) -> None:
        self.root.run("smtpctl", "resume", "mta")

    def listing(self) -> Sequence[str]:
        return self.root.command("smtpctl", "show", "queue")
