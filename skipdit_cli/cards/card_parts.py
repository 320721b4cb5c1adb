"""Pieces of a card's text: parts between two marks that are found again, cells of a table, paths without a home."""

from __future__ import annotations

import re
from pathlib import Path


def marked(name: str, text: str) -> str:
    """``text`` between two comments, which markdown does not show."""
    return f"<!-- skipdit {name} -->\n{text}\n<!-- /skipdit {name} -->"


def is_marked(text: str, name: str) -> bool:
    return _found(text, name) is not None


def marked_text(text: str, name: str) -> str:
    """What stands between the two marks; empty if they are not there."""
    found = _found(text, name)
    return found[1] if found else ""


def replace_marked(text: str, name: str, new: str) -> str:
    """``text`` with another marked part; the marks must be there."""
    found = _found(text, name)
    return text[: found.start()] + marked(name, new) + text[found.end() :]


def _found(text: str, name: str) -> re.Match | None:
    return re.search(rf"<!-- skipdit {name} -->\n(.*?)\n?<!-- /skipdit {name} -->", text, flags=re.DOTALL)


def cell(value: object) -> str:
    """A value as the cell of a markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def without_home(text: str) -> str:
    """``text`` with ``~`` for this user's home folder: a card is read by others."""
    home = Path.home()
    if len(home.parts) < 2:
        return text
    return re.sub(rf"(?<![\w.~-]){re.escape(str(home))}(?![\w.-])", "~", text)
