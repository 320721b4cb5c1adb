"""JSON files that hold their own checksum, so that a damaged one is recognised and never trusted."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skipdit_cli.errors import UsageError
from skipdit_cli.files.one import replacing
from skipdit_cli.formats import parse_json, read_text, to_json

CHECKSUM = "sha256"
"""The key of the checksum."""

logger = logging.getLogger(__name__)


def write_checked(path: Path, content: Mapping[str, object], indent: int | None = None) -> None:
    """Write a JSON object and the checksum of its content, whole or not at all."""
    plain = json.loads(to_json(dict(content)))
    with replacing(path) as part:
        part.write_text(to_json({**plain, CHECKSUM: digest(plain)}, indent), encoding="utf-8")


def read_checked(path: Path, most_bytes: int, consequence: str) -> dict[str, Any] | None:
    """Return what ``write_checked`` wrote, or None where there is no such file or it is damaged, which is logged.

    Args:
        most_bytes: The size that no such file exceeds.
        consequence: The end of the warning about a damaged file: what happens now.
    """
    if not path.is_file():
        return None
    content = undamaged(path, most_bytes)
    if content is None:
        logger.warning("%s is damaged, so %s.", path, consequence)
    return content


def undamaged(path: Path, most_bytes: int, may_lack_checksum: bool = False) -> dict[str, Any] | None:
    """Return what ``write_checked`` wrote, or None where the file is damaged.

    Args:
        most_bytes: The size that no such file exceeds.
        may_lack_checksum: Take an object without a checksum as it is.
    """
    try:
        content: Any = parse_json(read_text(path, most_bytes), path)
    except UsageError:
        return None
    if not isinstance(content, dict):
        return None
    found = content.pop(CHECKSUM, None)
    return content if found == digest(content) or (found is None and may_lack_checksum) else None


def digest(content: object) -> str:
    """Return the SHA-256 checksum of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
