"""In which language the command speaks: the locale's, French where it says nothing.

Limits: two languages, each text written beside its translation; click's own words stay as they are.
"""

import os


def current() -> str:
    """ "fr" or "en" (POSIX: LC_ALL over LC_MESSAGES over LANG; "C" says nothing)."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(name, "")
        if value:
            return "en" if value.lower().startswith("en") else "fr"
    return "fr"


def t(french: str, english: str) -> str:
    return english if current() == "en" else french
