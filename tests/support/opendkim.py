"""A verifier by other hands: OpenDKIM, asking a real DNS for the keys.

Limits: Debian's, which knows Ed25519 too; it asks its name server at port 53 only, so one of the test's own needs root.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.support import debian

_RESULT = re.compile(r"dkim=(\w+) (?:.*? )?header\.d=(\S+) .*?header\.a=(\S+) header\.s=(\S+)")  # each on a line


class Verified(NamedTuple):
    result: str  # RFC 8601 §2.7.1
    domain: str
    selector: str
    algorithm: str


def verify(message: bytes, folder: Path, *, name_server: str) -> list[Verified]:
    """What it says of each signature of `message`, from the top."""
    program = debian.root_of("opendkim") / "usr/sbin/opendkim"
    settings, mail = folder / "opendkim.conf", folder / "mail.eml"
    settings.write_text(f"Mode v\nNameservers {name_server}\nSyslog no\nRequireSafeKeys no\nSocket inet:1@127.0.0.1\n")
    mail.write_bytes(message)
    done = subprocess.run(
        [program, "-x", settings, "-vv", "-t", mail],
        env={**os.environ, "LD_LIBRARY_PATH": debian.library_path("opendkim")},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    )
    said = done.stdout + done.stderr
    assert "Authentication-Results" in said, said
    return [
        Verified(result, domain, selector, algorithm) for result, domain, algorithm, selector in _RESULT.findall(said)
    ]
