"""The topics of the guide: Markdown files of this folder, in the order of its ``README.md``."""

from __future__ import annotations

import re
from pathlib import Path

from skipdit_cli.errors import UsageError, nearest

FOLDER = Path(__file__).parent
INDEX = FOLDER / "README.md"
MOST_COLUMNS = 7
"""The columns of a table that fit a terminal."""
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


def for_terminal(text: str) -> str:
    """Return Markdown as it reads best on a terminal.

    Links to other topics are the commands that show them, blocks begin with what they need, and lines of tables with
    many columns are not broken.
    """

    def command(link: re.Match) -> str:
        words, name = link.groups()
        shown = f"`skipdit guide {name}`"
        return shown if words == name else f"{words} ({shown})"

    text = re.sub(r"\[([^\]]+)\]\(([\w-]+)\.md(?:#[\w-]+)?\)", command, text)
    text = re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", text)
    text = re.sub(r"^```(\w+) (needs [\w ]+)$", r"```\1\n# \2", text, flags=re.MULTILINE)
    return re.sub(r"(?:^\|.*\|\n)+", lambda table: _align(table[0]), text, flags=re.MULTILINE)


def _align(table: str) -> str:
    """Return a Markdown table of more than ``MOST_COLUMNS`` columns as a block of aligned text."""
    head, _, *rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.splitlines()]
    if len(head) <= MOST_COLUMNS:
        return table
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (head, *rows)]
    return "\n".join(["```", *lines, "```", ""])
