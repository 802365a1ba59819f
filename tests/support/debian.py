"""The Debian programs the tests use as peers: where they are, and what happens to a test when they are not.

Knows alone: that `make test` lays servers out under .venv/debian (deploy/install-debian) instead of installing them,
so that none starts by itself and the machine's own mail system stays; and that where CI=true a missing program is a
failure. Limits: Debian and its derivatives; Postfix needs root.
"""

import os
import platform
import shutil
import socket
from pathlib import Path

import pytest

ROOTS = Path(__file__).resolve().parents[2] / ".venv" / "debian"
UNPACKED = {
    "postfix": "usr/lib/postfix/sbin/master",
    "knot": "usr/sbin/knotd",
    "opendkim": "usr/sbin/opendkim",
    "unbound": "usr/sbin/unbound",
    "miltertest": "usr/bin/miltertest",
    "prometheus": "usr/bin/promtool",
    "systemd": "usr/bin/systemd-analyze",
    "clamav-daemon": "usr/sbin/clamd",
    "haproxy": "usr/sbin/haproxy",
    "sendmail-bin": "usr/libexec/sendmail/sendmail",
    "sendmail-cf": "usr/share/sendmail/cf/m4/cf.m4",
}
SYSTEM_PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def root_of(package: str) -> Path:
    """Where the unpacked `package` stands."""
    return ROOTS / package


def program(name: str) -> str:
    """The full path of an installed program; skips the test where there is none."""
    require(name)
    return str(shutil.which(name, path=SYSTEM_PATH))


def library_path(package: str) -> str:
    """LD_LIBRARY_PATH for the programs of an unpacked package: it brought the libraries this machine lacks."""
    triplet = f"{platform.machine()}-linux-gnu"
    root = root_of(package)
    own = (f"usr/lib/{package}", f"usr/lib/{triplet}/{package}")
    return ":".join(str(root / part) for part in (*own, f"usr/lib/{triplet}", f"lib/{triplet}", "usr/lib"))


def lacking(name: str) -> str | None:
    """Why `name` cannot be used here, None where it can."""
    if name == "root":
        return None if os.geteuid() == 0 else "needs root"
    if name in UNPACKED:
        if not (root_of(name) / UNPACKED[name]).exists():
            return f"{name} is not unpacked: sh deploy/install-debian test, as root"
        return lacking("root") if name in ("postfix", "sendmail-bin") else None
    if name.startswith("port "):
        return _port(int(name.removeprefix("port ")))
    return None if shutil.which(name, path=SYSTEM_PATH) else f"{name} is not installed"


def _port(number: int) -> str | None:
    try:
        with socket.socket() as tcp:
            tcp.bind(("127.25.25.25", number))
    except OSError as trouble:
        return f"no port {number} on loopback: {trouble.strerror}"
    return None


def require(*names: str) -> None:
    """Skip the running test where one of `names` is missing; fail it where CI=true."""
    reasons = [reason for reason in map(lacking, names) if reason]
    if not reasons:
        return
    if os.environ.get("CI") == "true":
        pytest.fail("; ".join(reasons), pytrace=False)
    pytest.skip("; ".join(reasons))


def faked_time(start: str) -> dict[str, str]:
    """Environment under which a program's clock begins at `start` (faketime(1)), for example "@2026-03-02 10:14:50".

    LD_PRELOAD rather than the wrapper: the wrapper would keep the process id, and signals, to itself.
    """
    require("faketime")
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    assert libraries, "the faketime package has no libfaketimeMT.so.1"
    return {"LD_PRELOAD": str(libraries[0]), "FAKETIME": start}
