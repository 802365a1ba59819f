"""The collector: a real Postfix that receives for its domains and keeps every message whole.

Knows alone: how Postfix runs from an unpacked package, as its own instance under a test's folder, beside any mail
system of the machine; how it is told to refuse, defer or limit; and how to read back exactly what was transmitted.
Limits: root; one copy is kept per recipient; mail that it would send anywhere itself is thrown away; a message that
does not begin with a header field gets the empty line it lacks.
"""

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from tests.support import debian
from tests.support.program import LOOK_EVERY, Program, ProgramFailed, answers, free_port, listens

# Postfix wants a user and a group of its own, apart from those it delivers as (mail_params.c, check_overlap). Any that
# every Debian has will do: nothing of them is used but the numbers.
OWNER, DROP_GROUP, DELIVERS_AS = "daemon", "mail", "nobody"

OWN_FOLDERS = (
    *("active", "bounce", "corrupt", "defer", "deferred", "flush"),
    *("hold", "incoming", "private", "saved", "trace", "data"),
)

MAIN_CF = """\
compatibility_level = 3.6
config_directory = {folder}
meta_directory = {folder}
queue_directory = {queue}
# Relative, to the queue: daemons that dropped root could not walk down to a test's folder, which is root's alone.
data_directory = data
virtual_mailbox_base = /proc/self/cwd/mail
daemon_directory = {package}/usr/lib/postfix/sbin
shlib_directory = {package}/usr/lib/postfix
command_directory = {package}/usr/sbin
import_environment = LD_LIBRARY_PATH MAIL_CONFIG TZ=UTC LANG=C
mail_owner = {owner}
setgid_group = {drop_group}
default_privs = {delivers_as}
maillog_file = {folder}/maillog
maillog_file_prefixes = {folder}
myhostname = mx.{first_domain}
# Where it listens is in master.cf: any loopback address, where this wants a configured one.
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mydestination =
mynetworks =
local_recipient_maps =
alias_maps =
alias_database =
default_transport = discard
relay_transport = discard
virtual_mailbox_domains = {domains}
virtual_mailbox_maps = static:all/
virtual_mailbox_limit = 0
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
message_size_limit = {size_limit}
smtpd_relay_restrictions = reject_unauth_destination
smtpd_recipient_restrictions = check_recipient_access texthash:{folder}/recipients
header_checks = regexp:{folder}/headers
# Nothing is added, taken away or put right: tests compare bytes.
local_header_rewrite_clients =
message_drop_headers =
header_size_limit = 10000000
smtpd_forbid_bare_newline = reject
cleanup_replace_stray_cr_lf = no
smtpd_tls_received_header = yes
# No waiting, no counting.
smtpd_peername_lookup = no
smtpd_error_sleep_time = 0
smtpd_client_connection_count_limit = 0
in_flow_delay = 0
"""

MASTER_CF = """\
{address}:{port} inet n - n - - smtpd
cleanup  unix n - n - 0 cleanup
qmgr     unix n - n 300 1 qmgr
tlsmgr   unix - - n 1000? 1 tlsmgr
rewrite  unix - - n - - trivial-rewrite
bounce   unix - - n - 0 bounce
defer    unix - - n - 0 bounce
trace    unix - - n - 0 bounce
error    unix - - n - - error
retry    unix - - n - - error
smtp     unix - - n - - smtp
relay    unix - - n - - smtp
discard  unix - - n - - discard
virtual  unix - n n - - virtual
anvil    unix - - n - 1 anvil
postlog  unix-dgram n - n - 1 postlogd
"""


@dataclass(frozen=True, slots=True)
class Received:
    """One accepted message as it was stored for one recipient."""

    path: Path
    raw: bytes  # with the collector's own trace on top, lines ending in LF
    envelope_sender: str  # "" is the null sender
    envelope_recipient: str
    trace: bytes  # the Received field the collector added
    transmitted: bytes  # what was sent between DATA and the dot, CRLF and all

    @property
    def over_tls(self) -> bool:
        return b"(using TLS" in self.trace


def read(path: Path) -> Received:
    """Take a stored message apart: Return-Path, X-Original-To, Delivered-To, Received, then what was transmitted."""
    raw = path.read_bytes()
    sender, recipient, delivered, rest = raw.split(b"\n", 3)
    assert sender.startswith(b"Return-Path: ") and delivered.startswith(b"Delivered-To: "), f"not as expected: {path}"
    trace, below = _first_field(rest)
    assert trace.startswith(b"Received: "), f"no trace of the collector: {path}"
    return Received(
        path=path,
        raw=raw,
        envelope_sender=sender.partition(b": ")[2].decode().removeprefix("<").removesuffix(">"),
        envelope_recipient=recipient.partition(b": ")[2].decode(),
        trace=trace,
        transmitted=below.replace(b"\n", b"\r\n"),
    )


def _first_field(text: bytes) -> tuple[bytes, bytes]:
    end = text.index(b"\n") + 1
    while text[end : end + 1] in (b" ", b"\t"):
        end = text.index(b"\n", end) + 1
    return text[:end], text[end:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What the collector is and does. Recipients are addresses, or domains for all of theirs."""

    domains: Sequence[str] = ("factures-meg.fr", "achats.factures-meg.fr")
    address: str = "127.0.0.1"
    port: int = 0
    size_limit: int = 50_000_000
    reject: Sequence[str] = ()  # recipients that get 550 5.1.1 at RCPT
    defer: Sequence[str] = ()  # recipients that get 450 4.2.0 at RCPT
    replies: Mapping[str, str] = field(default_factory=dict)  # recipients that get this very reply at RCPT
    refuse_header: str = ""  # a message with a header line matching this regexp gets 550 5.7.1 after the dot
    certificate: tuple[Path, Path] | None = None  # chain and key, PEM: STARTTLS is offered
    main_cf: Mapping[str, str] = field(default_factory=dict)  # anything else, for example smtpd_discard_ehlo_keywords

    def recipients(self) -> Mapping[str, str]:
        return {
            **dict.fromkeys(self.reject, "550 5.1.1 User unknown"),
            **dict.fromkeys(self.defer, "450 4.2.0 Mailbox busy, try again later"),
            **self.replies,
        }


class Collector:
    """Postfix under `folder`; the same queue and messages from one start to the next."""

    def __init__(self, folder: Path, behaviour: Behaviour) -> None:
        debian.require("postfix")
        self.folder = folder
        self.behaviour = replace(behaviour, port=behaviour.port or free_port(behaviour.address))
        package = debian.root_of("postfix")
        # -s: in the foreground. Libraries by their path, as in the daemons (import_environment).
        self.program = Program(
            [package / "usr/lib/postfix/sbin/master", "-s", "-c", folder],
            folder,
            name="postfix",
            env={"LD_LIBRARY_PATH": debian.library_path("postfix")},
        )
        self.program.logs.append(folder / "maillog")
        _lay_out_queue(self.queue)

    @classmethod
    def start(cls, folder: Path, **behaviour: Any) -> Self:
        """Start one under `folder`/collector; `behaviour` is the fields of Behaviour."""
        collector = cls(folder / "collector", Behaviour(**behaviour))
        collector.resume()
        return collector

    @property
    def queue(self) -> Path:
        return self.folder / "queue"

    @property
    def port(self) -> int:
        return self.behaviour.port

    @property
    def address(self) -> str:
        return self.behaviour.address

    @property
    def destination(self) -> str:
        """As [delivery.routes] wants it."""
        return f"{self.address}:{self.port}"

    def resume(self) -> None:
        """Start, or start again, on the same port."""
        self._write_settings()
        self.program.start(lambda: answers(self.address, self.port))

    def stop(self) -> None:
        """Stop; from then on connections are refused, and all that was accepted is among `messages`."""
        if self.program.running:
            self._settle()  # cut off between filing a message and noting it, Postfix would file it twice
        self.program.stop()
        # Its daemons hold the socket too, and die a moment after it.
        self._until(lambda: not listens(self.address, self.port), "stop listening", timeout=5)

    def change(self, **behaviour: Any) -> None:
        """Go on with other fields of Behaviour; whatever stood stays."""
        self.stop()
        self.behaviour = replace(self.behaviour, **behaviour)
        self.resume()

    def messages(self) -> list[Received]:
        """Everything accepted so far, oldest first: what Postfix has in hand is waited for."""
        self._settle()
        return self._kept()

    def wait(self, count: int, timeout: float = 10) -> list[Received]:
        """Everything accepted, once it is `count` messages or more."""
        self._until(lambda: len(self._kept_files()) >= count, f"receive {count} messages", timeout=timeout)
        return self._kept()

    def forget(self) -> None:
        """Begin afresh: the messages received so far are gone."""
        for message in self.messages():
            message.path.unlink()

    def _settle(self) -> None:
        self._until(lambda: not self._in_hand(), "put away what it accepted", timeout=10)

    def _kept_files(self) -> list[Path]:
        return list((self.queue / "mail/all/new").glob("*"))

    def _kept(self) -> list[Received]:
        files = sorted(self._kept_files(), key=lambda path: (path.stat().st_mtime_ns, path.name))
        return [read(path) for path in files]

    def _in_hand(self) -> list[Path]:
        """Queue files whose 250 was given; while one is still being received it is not executable."""
        # incoming first: files move from there to active, and one that moves meanwhile must be met again.
        return [
            path
            for part in ("incoming", "active", "deferred")
            for path in (self.queue / part).rglob("*")
            if path.is_file() and os.access(path, os.X_OK)
        ]

    def _until(self, reached: Callable[[], bool], what: str, *, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not reached():
            if time.monotonic() > deadline:
                raise ProgramFailed(
                    f"the collector did not {what}; it has {len(self._kept_files())}\n{self.program.told()}"
                )
            time.sleep(LOOK_EVERY)

    def _write_settings(self) -> None:
        here = self.behaviour
        main = MAIN_CF.format(
            folder=self.folder,
            queue=self.queue,
            package=debian.root_of("postfix"),
            owner=OWNER,
            drop_group=DROP_GROUP,
            delivers_as=DELIVERS_AS,
            address=here.address,
            first_domain=here.domains[0],
            domains=" ".join(here.domains),
            size_limit=here.size_limit,
        )
        more = dict(here.main_cf)
        if here.certificate is not None:
            chain, key = here.certificate
            more |= {"smtpd_tls_chain_files": f"{key}, {chain}", "smtpd_tls_security_level": "may"}
        lines = [f"{name} = {value}" for name, value in more.items()]
        recipients = [f"{recipient} {reply}" for recipient, reply in here.recipients().items()]
        self._write("main.cf", main + "\n".join([*lines, ""]))
        self._write("master.cf", MASTER_CF.format(address=here.address, port=here.port))
        self._write("recipients", "\n".join([*recipients, ""]))
        self._write("headers", f"/{here.refuse_header}/ REJECT content not accepted\n" if here.refuse_header else "")

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        # Postfix rereads a file in 0.3 s steps until its last change is two seconds past (dict_load_file_xt).
        os.utime(path, (0, 0))


def _lay_out_queue(queue: Path) -> None:
    """What the package's post-install script would create; the modes are Postfix's."""
    for name in ("", "pid", "mail"):
        (queue / name).mkdir(mode=0o755, exist_ok=True)
    for name in OWN_FOLDERS:
        (queue / name).mkdir(mode=0o700, exist_ok=True)
        shutil.chown(queue / name, OWNER)
    for name, mode in (("maildrop", 0o730), ("public", 0o710)):
        (queue / name).mkdir(exist_ok=True)
        (queue / name).chmod(mode)
        shutil.chown(queue / name, OWNER, DROP_GROUP)
    shutil.chown(queue / "mail", DELIVERS_AS)
