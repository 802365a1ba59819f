"""python deploy/man.py DIR: the man pages, from the command's own help, in French and in English.

The language of a page is that of the locale it is made under, as the command's is.
"""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

LANGUAGES = {"fr": "fr/man1", "en": "man1"}


def write(folder: Path) -> None:
    """All pages of the present locale, one a verb."""
    import click
    from click_man.core import write_man_pages

    from relay.cli import cli

    context = click.Context(cli, info_name="welyb-relay")
    verbs = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    # Its own group imports a verb only when it is asked for; a page of it has all of them.
    eager = click.Group("welyb-relay", commands=verbs, params=cli.params, help=cli.help)
    # What is installed here may be older than what the pages are made for.
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    folder.mkdir(parents=True, exist_ok=True)
    write_man_pages("welyb-relay", eager, version=project["version"], target_dir=str(folder))


def main() -> None:
    if "MAN_PAGES" in os.environ:
        write(Path(sys.argv[1]))
        return
    for language, below in LANGUAGES.items():
        locale = {"MAN_PAGES": language, "LC_ALL": {"fr": "fr_FR.UTF-8", "en": "en_US.UTF-8"}[language]}
        subprocess.run([sys.executable, __file__, Path(sys.argv[1]) / below], env={**os.environ, **locale}, check=True)


if __name__ == "__main__":
    main()
