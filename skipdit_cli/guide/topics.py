"""The topics of the guide: Markdown files of this folder, in the order of its ``README.md``."""

from __future__ import annotations

import re
from pathlib import Path

from skipdit_cli.errors import UsageError, nearest

FOLDER = Path(__file__).parent
INDEX = FOLDER / "README.md"
_ENTRY = re.compile(r"^\| \[([\w-]+)\]\(\1\.md\) \| (.+?) \|$", re.MULTILINE)


def topics() -> dict[str, str]:
    """Return the names of all topics and one line about each, from the table of the index."""
    return dict(_ENTRY.findall(INDEX.read_text(encoding="utf-8")))


def topic_path(name: str) -> Path:
    """Return the Markdown file of a topic.

    Raises:
        UsageError: There is no such topic.
    """
    names = topics()
    if name not in names:
        raise UsageError(
            f"Got the topic '{name}', which the guide lacks.{nearest(name, names)} 'skipdit guide' lists all."
        )
    return FOLDER / f"{name}.md"


def name_commands(text: str) -> str:
    """Return Markdown whose links to other topics are the commands that show them, for a terminal."""

    def command(link: re.Match) -> str:
        words, name = link.groups()
        shown = f"`skipdit guide {name}`"
        return shown if words == name else f"{words} ({shown})"

    text = re.sub(r"\[([^\]]+)\]\(([\w-]+)\.md(?:#[\w-]+)?\)", command, text)
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", text)
