"""Pieces of a card's text: parts between two marks, paths without the user's home folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def marked(name: str, text: str) -> str:
    """Put a text between two comments, which markdown does not show and by which it is found again."""
    return f"<!-- skipdit {name} -->\n{text}\n<!-- /skipdit {name} -->"


def is_marked(text: str, name: str) -> bool:
    """Return whether a card has a marked part of this name."""
    return _match(text, name) is not None


def marked_text(text: str, name: str) -> str:
    """Return the text between the two marks of a part; empty if the card has none."""
    match = _match(text, name)
    return match[1] if match else ""


def replace_marked(text: str, name: str, new: str) -> str:
    """Replace the text of a marked part, which the card must have."""
    match: Any = _match(text, name)
    return text[: match.start()] + marked(name, new) + text[match.end() :]


def _match(text: str, name: str) -> re.Match | None:
    return re.search(rf"<!-- skipdit {name} -->\n(.*?)\n?<!-- /skipdit {name} -->", text, flags=re.DOTALL)


def without_home(text: str) -> str:
    """Replace the path of the user's home folder by ``~``: others read a card."""
    home = Path.home()
    if len(home.parts) < 2:
        return text
    return re.sub(rf"(?<![\w.~-]){re.escape(str(home))}(?![\w.-])", "~", text)
