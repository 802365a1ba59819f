"""Real senders, a raw dialogue for what no sender would say, and mails for them to send.

Knows alone: how swaks, msmtp, curl and smtplib are each made to send given bytes, and where each of them tells what the
server answered. Limits: one message per connection; `Sent` is the reply that decided, the first refusal or else the
last word.
"""

import base64
import contextlib
import re
import shlex
import smtplib
import socket
import ssl
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, localtime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, Self

from tests.support import debian

HOST = "127.0.0.1"
HELLO = "cabinet.example"
TIMEOUT = 60

Document = tuple[str, str, bytes]  # name, content type, content


def mail(
    sender: str, to: str | Sequence[str], *documents: Document, subject: str = "Facture", text: str = "Bonjour,"
) -> bytes:
    """A mail as a good client would write it, with a Message-ID of its own; lines end in CRLF."""
    message = EmailMessage(policy=SMTP)
    message["From"] = sender
    message["To"] = to if isinstance(to, str) else ", ".join(to)
    message["Subject"] = subject
    message["Date"] = format_datetime(localtime())
    message["Message-ID"] = f"<{uuid.uuid4().hex}@{HELLO}>"
    message.set_content(text + "\n")
    for name, content_type, content in documents:
        main, _, sub = content_type.partition("/")
        message.add_attachment(content, maintype=main, subtype=sub, filename=name)
    return message.as_bytes()


@dataclass(frozen=True, slots=True)
class Sent:
    """What the server had to say."""

    code: int
    text: str  # without the code; the lines of a longer reply joined by newlines

    @property
    def accepted(self) -> bool:
        return self.code == 250


class Client(Protocol):
    """One way to send. With `authority`, a PEM file, STARTTLS is demanded and the server's name verified by it."""

    def __call__(
        self, port: int, sender: str, recipients: Sequence[str], message: bytes, *, authority: Path | None = None
    ) -> Sent: ...


@dataclass(frozen=True, slots=True)
class Account:
    """What a user's program is set to: verified TLS, first of all or by STARTTLS, then AUTH with one mechanism."""

    name: str
    password: str
    authority: Path
    mechanism: str = "PLAIN"
    tls_first: bool = False


def swaks(
    port: int,
    sender: str,
    recipients: Sequence[str],
    message: bytes,
    *,
    authority: Path | None = None,
    account: Account | None = None,
) -> Sent:
    authority = account.authority if account else authority
    command = [debian.program("swaks"), "--server", HOST, "--port", str(port), "--helo", HELLO]
    command += ["--from", sender or "<>", "--to", ",".join(recipients), "--data", "-", "--no-data-fixup"]
    command += ["--hide-informational", "--timeout", str(TIMEOUT)]
    if authority is not None:
        first = account is not None and account.tls_first
        command += ["--tls-on-connect" if first else "--tls", "--tls-verify", "--tls-ca-path", str(authority)]
    if account is not None:
        command += ["--auth", account.mechanism, "--auth-user", account.name, "--auth-password", account.password]
    told = _transcript(command, stuffed(message).removesuffix(b"\r\n"))  # it ends the last line itself
    return _decided(_replies(told, r"<(?:-|~|\*\*|~\*) +(\d{3})([ -])(.*)"))


def curl(
    port: int,
    sender: str,
    recipients: Sequence[str],
    message: bytes,
    *,
    authority: Path | None = None,
    account: Account | None = None,
) -> Sent:
    authority = account.authority if account else authority
    scheme = "smtps" if account and account.tls_first else "smtp"
    command = [debian.program("curl"), "--verbose", "--no-progress-meter", "--max-time", str(TIMEOUT)]
    command += [f"{scheme}://{HOST}:{port}/{HELLO}", "--mail-from", sender, "--upload-file", "-"]
    for recipient in recipients:
        command += ["--mail-rcpt", recipient]
    if authority is not None:
        command += ["--ssl-reqd", "--cacert", str(authority)]
    if account is not None:
        command += ["--user", f"{account.name}:{account.password}", "--login-options", f"AUTH={account.mechanism}"]
    return _decided(_replies(_transcript(command, message), r"< (\d{3})([ -])(.*)"))


def msmtp(
    port: int,
    sender: str,
    recipients: Sequence[str],
    message: bytes,
    *,
    authority: Path | None = None,
    account: Account | None = None,
) -> Sent:
    authority = account.authority if account else authority
    tls, auth = ["--tls=off"], ["--auth=off"]
    if authority is not None:
        starttls = "off" if account and account.tls_first else "on"
        tls = ["--tls=on", f"--tls-starttls={starttls}", f"--tls-trust-file={authority}"]
    if account is not None:
        said = f"--passwordeval=printf %s {shlex.quote(account.password)}"
        auth = [f"--auth={account.mechanism.lower()}", f"--user={account.name}", said]
    command = [debian.program("msmtp"), "--file=/dev/null", f"--host={HOST}", f"--port={port}", f"--domain={HELLO}"]
    command += [*auth, f"--from={sender or '<>'}", f"--timeout={TIMEOUT}", "--logfile=-", *tls]
    # The message is to leave as it is.
    command += [
        "--set-from-header=off",
        "--set-date-header=off",
        "--set-msgid-header=off",
        "--undisclosed-recipients=off",
    ]
    told = _transcript([*command, "--", *recipients], message.replace(b"\r\n", b"\n"))
    if (reply := re.search(r"smtpstatus=(\d{3}) smtpmsg='(.*?)'(?: \w+=|$)", told, re.MULTILINE)) is None:
        raise AssertionError(f"msmtp got no reply:\n{told}")
    # The log line has \n for a line end, and ? for a quote.
    return Sent(int(reply[1]), "\n".join(line[4:] for line in reply[2].split("\\n")))


class _Listening(smtplib.SMTP):
    """smtplib, which keeps the reply to an accepted message to itself, overheard."""

    def __init__(self, port: int, replies: list[Sent]) -> None:
        self.replies = replies  # first: the greeting is one already
        super().__init__(HOST, port, local_hostname=HELLO, timeout=TIMEOUT)

    def getreply(self) -> tuple[int, bytes]:
        code, text = super().getreply()
        self.replies.append(Sent(code, text.decode(errors="backslashreplace")))
        return code, text


def python(port: int, sender: str, recipients: Sequence[str], message: bytes, *, authority: Path | None = None) -> Sent:
    replies: list[Sent] = []
    refusals = contextlib.suppress(smtplib.SMTPResponseException, smtplib.SMTPRecipientsRefused)
    with refusals, _Listening(port, replies) as server:
        if authority is not None:
            server.starttls(context=ssl.create_default_context(cafile=str(authority)))
        server.ehlo()
        server.sendmail(sender, recipients, message, ["BODY=8BITMIME"] if server.has_extn("8bitmime") else [])
    return _decided(replies)


SUBMITTERS = {"swaks": swaks, "msmtp": msmtp, "curl": curl}  # those that take an Account
CLIENTS: dict[str, Client] = {"swaks": swaks, "msmtp": msmtp, "curl": curl, "python": python}


def stuffed(message: bytes) -> bytes:
    """What follows DATA: dots doubled, the final dot in its place."""
    body = re.sub(rb"(?m)^\.", b"..", message)
    return body + (b".\r\n" if body.endswith(b"\r\n") or not body else b"\r\n.\r\n")


def _transcript(command: Sequence[str], message: bytes) -> str:
    with TemporaryDirectory() as home:  # so that no settings of whoever runs the tests have a say
        done = subprocess.run(
            command,
            input=message,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"HOME": home, "PATH": debian.SYSTEM_PATH, "LC_ALL": "C.UTF-8"},
            timeout=TIMEOUT + 10,
            check=False,
        )
    return done.stdout.decode(errors="backslashreplace")


def _replies(transcript: str, pattern: str) -> list[Sent]:
    """The replies in a transcript; `pattern` finds the code, the hyphen or space, and the text of one line."""
    replies: list[Sent] = []
    lines: list[str] = []
    for code, more, text in re.findall(rf"(?m)^{pattern}$", transcript):
        lines.append(text.rstrip("\r"))
        if more == " ":
            replies.append(Sent(int(code), "\n".join(lines)))
            lines = []
    assert replies, f"no reply in:\n{transcript}"
    return replies


def _decided(replies: Sequence[Sent]) -> Sent:
    """The first refusal, or else the last reply but the goodbye."""
    return next((reply for reply in replies if reply.code >= 400), [r for r in replies if r.code != 221][-1])


@dataclass(frozen=True, slots=True)
class Reply:
    code: int
    lines: tuple[str, ...]  # without the code

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Dialogue:
    """An SMTP session word by word: nothing is added, checked or put right but the CRLF of a line given as text."""

    def __init__(
        self,
        port: int,
        *,
        host: str = HOST,
        source: str = "",
        timeout: float = 20,
        first: bytes = b"",
        authority: Path | None = None,
    ) -> None:
        """`first` goes before all else (a PROXY header, say); with `authority` TLS comes next, before the greeting."""
        self.host = host
        # `source`: any address of 127.0.0.0/8 will do; "" leaves it to the system.
        self.socket: socket.socket = socket.create_connection((host, port), timeout, (source, 0))
        self.send(first)
        if authority is not None:
            self._secure(authority)
        self._input = self.socket.makefile("rb")
        self.greeting = self.reply()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up, without QUIT."""
        self._input.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> Reply:
        """The next reply, all its lines; ConnectionError where the server has hung up."""
        lines: list[str] = []
        while True:
            line = self._input.readline()
            if not line.endswith(b"\r\n"):
                raise ConnectionError(f"hung up after {lines} {line!r}")
            lines.append(line[4:-2].decode(errors="backslashreplace"))
            if line[3:4] != b"-":
                return Reply(int(line[:3]), tuple(lines))

    def say(self, line: str | bytes) -> Reply:
        """One line, its reply."""
        self.send(_line(line))
        return self.reply()

    def pipeline(self, *lines: str | bytes) -> list[Reply]:
        """All lines in one piece, then a reply for each."""
        self.send(b"".join(map(_line, lines)))
        return [self.reply() for _ in lines]

    def hello(self) -> Reply:
        return self.say(f"EHLO {HELLO}")

    def envelope(self, sender: str, *recipients: str) -> list[Reply]:
        """MAIL and the RCPTs, one after the other."""
        return [self.say(f"MAIL FROM:<{sender}>"), *(self.say(f"RCPT TO:<{recipient}>") for recipient in recipients)]

    def data(self, message: bytes) -> Reply:
        """DATA and the message; the reply to its final dot, or to DATA where that was refused."""
        go_ahead = self.say("DATA")
        if go_ahead.code != 354:
            return go_ahead
        self.send(stuffed(message))
        return self.reply()

    def chunk(self, data: bytes) -> Reply:
        """BDAT, and more to come (RFC 3030 §2)."""
        self.send(b"BDAT %d\r\n" % len(data) + data)
        return self.reply()

    def last_chunk(self, data: bytes) -> Reply:
        self.send(b"BDAT %d LAST\r\n" % len(data) + data)
        return self.reply()

    def starttls(self, authority: Path) -> Reply:
        """STARTTLS, then the handshake where the server is willing."""
        reply = self.say("STARTTLS")
        if reply.code == 220:
            self._secure(authority)
            self._input = self.socket.makefile("rb")
        return reply

    def _secure(self, authority: Path) -> None:
        context = ssl.create_default_context(cafile=str(authority))
        self.socket = context.wrap_socket(self.socket, server_hostname=self.host)

    def plain(self, name: str, password: str, *, identity: str = "") -> Reply:
        """AUTH PLAIN with its initial response (RFC 4616)."""
        return self.say("AUTH PLAIN " + encoded("\0".join((identity, name, password))))


def encoded(text: str) -> str:
    """As AUTH wants it (RFC 4954 §4)."""
    return base64.b64encode(text.encode()).decode("ascii")


def _line(line: str | bytes) -> bytes:
    return line.encode() + b"\r\n" if isinstance(line, str) else line
