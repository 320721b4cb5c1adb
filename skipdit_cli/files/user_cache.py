"""The folder of the user for what can be computed again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(part: str) -> Path:
    """Return the folder for one kind of kept results, below ``XDG_CACHE_HOME`` or ``~/.cache``; it may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skipdit" / part
