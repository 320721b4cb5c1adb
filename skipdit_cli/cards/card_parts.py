"""Pieces of a card's text: parts between two marks, paths without the user's home folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from skipdit_cli.errors import UsageError
from skipdit_cli.formats import parse_yaml

LONGEST_FRONT_MATTER = 1 << 18
"""Characters."""


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


def front_matter(text: str, name: str) -> dict[str, str | list[str]]:
    """Return the values in a card's front matter that are texts, or lists of texts; the card may be a stranger's.

    Args:
        name: File name for messages.
    Raises:
        UsageError: It is no readable YAML, or no mapping.
    """
    match = re.match(r"\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", text, flags=re.DOTALL)
    if match is None:
        return {}
    if len(match[1]) > LONGEST_FRONT_MATTER:
        raise UsageError(f"{name} is longer than the {LONGEST_FRONT_MATTER:,} characters that are read.")
    values = parse_yaml(match[1], name)
    if not isinstance(values, (dict, type(None))):
        raise UsageError(f"{name} is a {type(values).__name__}, but expected a mapping.")
    return {key: value for key, value in (values or {}).items() if isinstance(key, str) and _is_texts(value)}


def _is_texts(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
