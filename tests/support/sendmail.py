"""A mail server with the relay behind it: a real sendmail that takes its filter's settings from deploy/sendmail.

Knows alone: how sendmail runs from unpacked packages, beside any mail system of the machine, on settings that Debian's own
m4 files make of the snippet as it stands; only its ports are changed, for each test has its own. Limits: root; no mailboxes:
whatever the relay leaves to it is sent on to one place.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.support import debian
from tests.support.program import Program, answers, free_port

SNIPPET = Path(__file__).resolve().parents[2] / "deploy/sendmail/relay.mc"

# What a postmaster's sendmail.mc has above the snippet. Nothing is looked up in DNS, nobody is turned away for the load of
# the machine, and a folder below /tmp will do. STARTTLS is offered only where all four of its files are named.
SENDMAIL_MC = """\
include(`{cf}/m4/cf.m4')dnl
VERSIONID(`scenario')dnl
OSTYPE(`linux')dnl
define(`confDOMAIN_NAME', `mail.dupont.example')dnl
define(`QUEUE_DIR', `{folder}/queue')dnl
define(`ALIAS_FILE', `{folder}/aliases')dnl
define(`STATUS_FILE', `{folder}/statistics')dnl
define(`confPID_FILE', `{folder}/pid')dnl
define(`confSERVICE_SWITCH_FILE', `{folder}/switch')dnl
define(`confTO_IDENT', `0')dnl
define(`confTO_RESOLVER_RETRANS', `1s')dnl
define(`confTO_RESOLVER_RETRY', `1')dnl
define(`confDONT_PROBE_INTERFACES', `True')dnl
define(`confDONT_BLAME_SENDMAIL', `TrustStickyBit')dnl
define(`confREFUSE_LA', `9999')dnl
define(`confQUEUE_LA', `9999')dnl
define(`SMART_HOST', `esmtp:[{host}]')dnl
define(`ESMTP_MAILER_ARGS', `TCP $h {port}')dnl
define(`confCACERT', `{folder}/authority.pem')dnl
define(`confCACERT_PATH', `{folder}')dnl
define(`confSERVER_CERT', `{folder}/chain.pem')dnl
define(`confSERVER_KEY', `{folder}/key.pem')dnl
define(`confAUTH_MECHANISMS', `EXTERNAL')dnl
TRUST_AUTH_MECH(`EXTERNAL')dnl
FEATURE(`no_default_msa')dnl
FEATURE(`accept_unresolvable_domains')dnl
DAEMON_OPTIONS(`Family=inet, Addr=127.0.0.1, Port={own}, Name=MTA')dnl
MAILER(`local')dnl
MAILER(`smtp')dnl
"""

# Its first act is to ask for the name of the machine; where that has no dot, it asks DNS, and sleeps for a minute.
# An address has dots and needs no DNS; confDOMAIN_NAME is what it calls itself.
IN_A_MACHINE_NAMED = ("--uts", "sh", "-c", 'hostname "$0" && exec "$@"', "127.0.0.1")


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Who is where: the relay's milter and its SMTP, by port, and where all other mail goes."""

    milter: int
    smtp: int
    elsewhere: str


class Sendmail:
    """sendmail under `folder`, on a port of its own. Clients with a certificate of `authority` may authenticate by it."""

    def __init__(self, folder: Path, neighbours: Neighbours, authority: trustme.CA) -> None:
        debian.require("sendmail-bin", "sendmail-cf", "m4", "unshare", "hostname")
        self.folder = folder
        self.port = free_port()
        self.queue = folder / "queue"
        self.queue.mkdir(mode=0o700, parents=True)
        (folder / "switch").write_text("hosts files\naliases files\n")
        (folder / "aliases").touch()
        (folder / "sendmail.mc").write_text(self._base(neighbours.elsewhere) + snippet(neighbours))
        self._certify(authority)
        self._make_cf()
        settings = ["-C", folder / "sendmail.cf", "-X", folder / "traffic"]
        self.program = Program(
            [debian.program("unshare"), *IN_A_MACHINE_NAMED, _unprivileged(folder), *settings, "-bD", "-q1s"],
            folder,
            name="sendmail",
            env={"LD_LIBRARY_PATH": debian.library_path("sendmail-bin")},
        )
        self.program.logs.append(folder / "traffic")

    def _base(self, elsewhere: str) -> str:
        host, _, port = elsewhere.rpartition(":")
        cf = debian.root_of("sendmail-cf") / "usr/share/sendmail/cf"
        return SENDMAIL_MC.format(cf=cf, folder=self.folder, host=host, port=port, own=self.port)

    def _certify(self, authority: trustme.CA) -> None:
        issued = authority.issue_cert("127.0.0.1")
        authority.cert_pem.write_to_path(str(self.folder / "authority.pem"))
        for pem in issued.cert_chain_pems:
            pem.write_to_path(str(self.folder / "chain.pem"), append=True)
        issued.private_key_pem.write_to_path(str(self.folder / "key.pem"))
        (self.folder / "key.pem").chmod(0o600)  # else it is not used

    def _make_cf(self) -> None:
        made = subprocess.run(
            [debian.program("m4"), "-E", self.folder / "sendmail.mc"], capture_output=True, timeout=60, check=False
        )
        assert (made.returncode, made.stderr) == (0, b"")
        (self.folder / "sendmail.cf").write_bytes(made.stdout)

    def start(self) -> None:
        self.program.start(lambda: answers("127.0.0.1", self.port))

    def stop(self) -> None:
        self.program.stop()

    def waiting(self) -> dict[str, str]:
        """What is in its queue: recipient → why it waits, "" where nothing was tried yet."""
        found: dict[str, str] = {}
        for path in self.queue.glob("qf*"):
            try:
                lines = path.read_text(errors="backslashreplace").splitlines()
            except FileNotFoundError:
                continue  # it has left meanwhile
            reason = next((line[1:] for line in lines if line.startswith("M")), "")
            found |= {line.partition(":")[2].strip("<>"): reason for line in lines if line.startswith("R")}
        return found


def snippet(neighbours: Neighbours) -> str:
    """deploy/sendmail/relay.mc with the ports of `neighbours`."""
    text = SNIPPET.read_text("utf-8")
    ports = {"WELYB_MILTER": f"inet:{neighbours.milter}@127.0.0.1", "WELYB_SMTP_PORT": str(neighbours.smtp)}
    for name, value in ports.items():
        text, count = re.subn(rf"(?m)^define\(`{name}', `[^']*'\)", f"define(`{name}', `{value}')", text)
        assert count == 1, name
    return text


def _unprivileged(folder: Path) -> Path:
    """The program without its setgid bit, with which it would be given no LD_LIBRARY_PATH."""
    program = folder / "sendmail"
    program.write_bytes((debian.root_of("sendmail-bin") / debian.UNPACKED["sendmail-bin"]).read_bytes())
    program.chmod(0o755)
    return program
