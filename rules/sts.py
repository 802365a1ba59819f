"""An MTA-STS record and policy as text → what a domain says of its MX hosts (RFC 8461).

Knows alone: how both are read, and which host a policy allows. What does not parse is no policy, as RFC 8461 §3.1 and §3.2
have it: the domain is then treated as one without.
Limits: syntax only; how the texts are had, and for how long they hold, is the shell's.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

MOST_AGE = 31_557_600  # seconds: a year (§3.2); more is taken as this
MAX_MX = 1000  # of one policy; 64 KiB hold no more that mean anything


class Mode(StrEnum):
    ENFORCE = "enforce"
    TESTING = "testing"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class StsPolicy:
    """`mx` are names, or "*." and a name, in lower case."""

    mode: Mode
    max_age: int
    mx: tuple[str, ...]


_WSP = r"[ \t]*"
_VERSION = re.compile(rf"v{_WSP}={_WSP}STSv1{_WSP};")  # what does not begin so is no record, and none too many (§3.1)
_FIELD = re.compile(rf"{_WSP}([A-Za-z0-9][A-Za-z0-9_.-]{{0,31}}){_WSP}={_WSP}([!-:<>-~]+){_WSP}")
_ID = re.compile(r"[A-Za-z0-9]{1,32}")


def announced(texts: Iterable[bytes]) -> str | None:
    """The policy's id, of the TXT records at `_mta-sts`; None where there is not exactly one that is valid (§3.1)."""
    records = [text.decode("ascii", "replace") for text in texts if _VERSION.match(text.decode("ascii", "replace"))]
    if len(records) != 1:
        return None
    fields = [_FIELD.fullmatch(part) for part in records[0].split(";")[1:] if part.strip(" \t")]
    found = next((field[2] for field in fields if field and field[1] == "id"), "")
    return found if all(fields) and _ID.fullmatch(found) else None


_NAME = r"(?:\*\.)?(?:[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})\.)*[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,62})"
_MX = re.compile(_NAME)
_AGE = re.compile(r"[0-9]{1,10}")


def parse(text: str) -> StsPolicy | None:
    """The policy that a policy file is, or None (§3.2). Keys that are not known are passed over."""
    values: dict[str, list[str]] = {}
    for line in re.split(r"\r?\n", text):
        if not line.strip():
            continue
        key, colon, value = line.partition(":")
        if not colon:
            return None
        values.setdefault(key.strip(), []).append(value.strip())
    return _policy(values)


def _policy(values: dict[str, list[str]]) -> StsPolicy | None:
    # Of a key that is there twice the first counts; all of mx do.
    version, mode, age = (values.get(key, [""])[0] for key in ("version", "mode", "max_age"))
    mx = [name.removesuffix(".") for name in values.get("mx", [])]
    known = mode in list(Mode) and _AGE.fullmatch(age) is not None
    named = bool(mx) or mode == Mode.NONE
    if version != "STSv1" or not known or not named or len(mx) > MAX_MX or not all(map(_MX.fullmatch, mx)):
        return None
    return StsPolicy(Mode(mode), min(int(age), MOST_AGE), tuple(name.lower() for name in mx))


def allows(policy: StsPolicy, host: str) -> bool:
    """Is this MX host one of the policy's? A leading "*." stands for exactly one label (§4.1)."""
    host = host.lower().rstrip(".")
    parent = host.partition(".")[2]
    return any(host == name or (name.startswith("*.") and parent == name[2:]) for name in policy.mx)
