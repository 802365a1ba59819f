"""The only place where everything is put together: what `serve` runs, and what a command that does a run borrows.

Knows alone: the order of start (sockets, identity, store, mending, then ready) and of stop (no new mail, what is under way
finished, the writer last), and what each signal means.
"""

import asyncio
import contextlib
import ctypes
import os
import pwd
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sqlite_utils import Database

from relay import care, clock, flush, ids, log, memory, sign
from relay.accept import Intake
from relay.commit import Writer
from relay.config import Config, load_rules
from relay.crew import Crew
from relay.directory import Directory, list_clients
from relay.filing import Filing
from relay.lock import held
from relay.milter.listener import Milter
from relay.milter.listener import bind as bind_milter
from relay.sign import Signer
from relay.smtp import certificate
from relay.smtp.door import Door
from relay.smtp.listener import Listener, addresses, bind
from relay.spool import Spool
from relay.store.database import open_for_reading, open_for_writing
from relay.worker import Orders
from rules.ruleset import RuleSet

ALONE_WITHIN = 5.0  # seconds for what a killed daemon leaves behind to end
_NO_NEW_PRIVILEGES = 38  # PR_SET_NO_NEW_PRIVS of linux/prctl.h


class StartError(RuntimeError):
    """The relay cannot start; the message says what to do."""


def take_identity(data: Path) -> None:
    """Run as root, we become the owner of the data folder, for good: no file ends up out of the daemon's reach.

    With the groups of the owner's account, as systemd's User= has it (a shared GED may be open to one of them), and
    with none of root's.
    """
    if os.geteuid() != 0 or not data.exists():
        return
    owner = data.stat()
    if owner.st_uid == 0:
        return
    try:
        account = pwd.getpwuid(owner.st_uid)
        group = account.pw_gid
        os.initgroups(account.pw_name, group)
    except KeyError:
        group = owner.st_gid
        os.setgroups([])  # an owner without an account has no other groups
    os.setresgid(group, group, group)
    os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)
    _gain_nothing()


def _gain_nothing() -> None:
    """No program that we or our children start has more rights than we have, whatever bits it bears: prctl(2)."""
    ctypes.CDLL(None).prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)


def _within_reach(config: Config) -> None:
    """Workers are started by who we are now, which an interpreter in the home of root, say, is closed to."""
    if config.smtp.processes > 1 and not os.access(sys.executable, os.X_OK):
        raise StartError(
            f"{sys.executable}: user {os.getuid()}, who owns {config.relay.data}, cannot run it, and [smtp] processes "
            "needs that. Remedy: install welyb-relay with a Python that every user can reach, or set processes = 1."
        )


def _show_certificate(config: Config) -> None:
    """Read by who we are now: the key may be closed to him, and a worker could only die of it."""
    if not config.smtp.certificate:
        return
    try:
        certificate.load(config.smtp)
    except OSError as error:
        raise StartError(
            f"[smtp] certificate {config.smtp.certificate}, key {config.smtp.key}: {error}. Remedy: PEM files that belong "
            f"together and that user {os.geteuid()} can read, or neither."
        ) from None


def token_key(data: Path) -> ids.TokenKey:
    """The secret behind `retours+TOKEN`; made once, by whoever comes first.

    To change it: `mv token.key token.key.old`, and start again. What is on its way then still finds its way back.
    """
    former = data / "token.key.old"
    return ids.TokenKey(_secret(data), (former.read_bytes(),) if former.exists() else ())


def _secret(data: Path) -> bytes:
    path = data / "token.key"
    if path.exists():
        return path.read_bytes()
    with contextlib.suppress(FileExistsError):
        made = data / f"token.{secrets.token_hex(4)}"
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, secrets.token_bytes(32))
        os.fsync(fd)
        os.close(fd)
        try:
            os.link(made, path)
        finally:
            made.unlink()
    return path.read_bytes()


def signers(config: Config) -> tuple[Signer, ...]:
    """Each signs with a key of [dkim] selector; none where none is set."""
    return tuple(_signer(config, selector) for selector in config.dkim.selector)


def _signer(config: Config, selector: str) -> Signer:
    path = key_path(config, selector)
    try:
        return Signer(config.relay.domain, selector, sign.load(str(path)))
    except FileNotFoundError:
        raise StartError(f"{path}: no such DKIM key. Remedy: `welyb-relay keys create {selector}`.") from None


def key_path(config: Config, selector: str) -> Path:
    return config.relay.data / "dkim" / f"{selector}.pem"


@contextlib.asynccontextmanager
async def means(config: Config, ruleset: RuleSet) -> AsyncIterator[flush.Means]:
    """Store, spool and writer, opened for a run or for serving, and closed in order."""
    data = config.relay.data
    for folder in (data, data / "spool"):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    db = open_for_writing(config.database)
    reader = open_for_reading(config.database)
    key = token_key(data)  # before the spool, whose opening makes the name durable too
    spool = Spool(data / "spool", lambda: ids.new(clock.now()))
    writer = Writer(db, spool)
    try:
        yield flush.Means(config, ruleset, reader, spool, writer, signers(config), key)
    finally:
        await writer.close()
        spool.close()
        reader.close()
        db.close()


def _alone(data: Path) -> contextlib.AbstractContextManager[int]:
    """One daemon for one data folder: the descriptor of the lock, which its workers hold with it.

    After a crash they are gone in a moment; until then they might commit a mail whose file we would take for an orphan.
    """
    other = StartError(f"{data}: another relay serves from here. Remedy: stop it first.")
    return held(data / "serve.lock", other, within=ALONE_WITHIN)


async def serve(config: Config, *, reload: Callable[[], Config], welcome: Callable[[list[str]], None]) -> None:
    """Until SIGTERM or SIGINT. `welcome` is told the addresses once mail is taken."""
    memory.share_arenas()
    os.umask(os.umask(0o077) & 0o077)  # what we make says who may read it; its owner always may
    asyncio.get_running_loop().set_exception_handler(log.astray)
    ruleset = load_rules(config)
    shares = bind(config)
    config.relay.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    take_identity(config.relay.data)
    _gain_nothing()
    if os.geteuid() == 0:
        log.as_root()
    _within_reach(config)
    _show_certificate(config)
    with _alone(config.relay.data) as alone:
        async with means(config, ruleset) as tools, _figures(config):
            await _serve(tools, shares, alone, reload=reload, welcome=welcome)


@contextlib.asynccontextmanager
async def _figures(config: Config) -> AsyncIterator[None]:
    """[metrics] listen, for as long as we serve."""
    if not config.metrics.listen:
        yield
        return
    from relay.metrics import Exposition  # a library that no command needs

    exposition = Exposition(config)
    try:
        await exposition.start()
    except OSError as error:
        raise StartError(
            f"{config.metrics.listen}: {error.strerror}. Remedy: see what listens there, or [metrics] listen."
        ) from None
    try:
        yield
    finally:
        await exposition.stop()


async def _serve(
    tools: flush.Means,
    shares: list[list[Door]],
    alone: int,
    *,
    reload: Callable[[], Config],
    welcome: Callable[[list[str]], None],
) -> None:
    config = tools.config
    with contextlib.suppress(flush.RunUnderWay), flush.lock(config.relay.data):
        await care.mend(tools.spool, tools.db)
    list_clients_of(config)
    directory = Directory(open_for_reading(config.database), tools.writer, config.ged.root)
    intake = Intake(
        config,
        tools.ruleset,
        spool=tools.spool,
        writer=tools.writer,
        directory=directory,
        token_key=tools.token_key,
    )
    filing = Filing(config, tools.ruleset, spool=tools.spool, writer=tools.writer, db=open_for_reading(config.database))
    intake.on_filings = filing.wake
    clockwork = flush.Clockwork(replace(tools, db=open_for_reading(config.database)))
    listener = Listener(intake)
    milter = Milter(intake)
    crew = Crew(tools.writer, on_filings=filing.wake, lost=listener.start)
    parts = _Parts(intake, filing, clockwork, crew, tools.token_key)
    stop = _signals(lambda: parts.reload(reload))
    workers = [asyncio.create_task(filing.work()), asyncio.create_task(clockwork.work())]
    try:
        await milter.start(bind_milter(config))
        await _take_mail(listener, crew, shares, parts.orders(config, tools.ruleset), alone)
        bound = addresses(shares[0])
        log.serving(" ".join([*bound, *config.milter.listen]))
        welcome(bound)
        _notify("READY=1")
        failed = await _first(stop, workers)
        log.stopping("signal" if failed is None else "failure")
    finally:
        _notify("STOPPING=1")
        await asyncio.gather(listener.stop(), milter.stop(), crew.stop())
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        await intake.settled()
    if failed is not None:
        log.trouble("serve", failed)
        raise StartError("A part of the relay failed: the log says which. Remedy: start it again, report that line.")


async def _take_mail(listener: Listener, crew: Crew, shares: list[list[Door]], orders: Orders, alone: int) -> None:
    """In this process where it is the only one, else in workers: this one is then left to write, to file and to run."""
    if len(shares) == 1:
        await listener.start(shares[0])
    else:
        await crew.start(shares, orders, lock=alone)


async def _first(stop: asyncio.Event, workers: "list[asyncio.Task[None]]") -> BaseException | None:
    """Waits for the word to stop; a worker that dies is a reason too, for a relay that files nothing must be seen."""
    stopped = asyncio.create_task(stop.wait())
    done, _ = await asyncio.wait([stopped, *workers], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    return next((task.exception() for task in done if task is not stopped and not task.cancelled()), None)


def list_clients_of(config: Config) -> bool:
    """Brings the list of clients up to date; False where the GED is away: the last list serves."""
    db: Database = open_for_writing(config.database)
    try:
        return list_clients(db, config.ged.root)
    finally:
        db.close()


def _signals(on_hangup: Callable[[], None]) -> asyncio.Event:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    return stop


@dataclass(frozen=True, slots=True)
class _Parts:
    """What is told of new settings."""

    intake: Intake
    filing: Filing
    clockwork: flush.Clockwork
    crew: Crew
    token_key: ids.TokenKey

    def orders(self, config: Config, ruleset: RuleSet) -> Orders:
        return Orders(config, ruleset, self.token_key)

    def reload(self, read: Callable[[], Config]) -> None:
        """SIGHUP: settings and rules are read again; what cannot be used leaves the old ones standing."""
        try:
            config = read()
            ruleset = load_rules(config)
            signing = signers(config)
            _show_certificate(config)
        except Exception as error:
            log.trouble("reload", error)
            return
        self.intake.adopt(config, ruleset)
        self.filing.adopt(config, ruleset)
        self.clockwork.adopt(config, ruleset, signing)
        self.crew.tell(self.orders(config, ruleset))
        log.reloaded()


def _notify(state: str) -> None:
    """sd_notify(3): one datagram to the socket systemd names, if it does."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + address[1:] if address.startswith("@") else address)
        sock.sendall(state.encode())


def say(line: str) -> None:
    """To whoever started us."""
    print(line, file=sys.stdout, flush=True)
