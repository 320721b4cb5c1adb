"""The facts that ``skipdit info`` found out about a model, kept in the user's cache folder, as torch takes seconds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from skipdit_cli.files import cache_folder, read_checked, write_checked
from skipdit_cli.presets import load_preset, preset_path
from skipdit_cli.version import versions_of_results

LARGEST_CONFIG = 1 << 20
"""Bytes of a file whose content is compared; of a larger one, its size and its date are."""
MOST_BYTES = 1 << 26
"""Bytes of a file of facts."""
MOST_FILES = 500
"""Files of a folder; the facts of one with more are not kept."""


class KnownFacts:
    """What is kept of one model: valid while its files, the versions of the libraries and the steps are the same.

    Args:
        model, preset: As for the command.
        steps: The number of denoising steps.
        conditioning: As for the command.
    """

    def __init__(self, model: str | None, preset: str | None, steps: int, conditioning: str | None = None):
        self.path: Path | None = None
        with suppress(OSError):
            sources = list(_sources(model, preset))
            if sources and len(sources) <= MOST_FILES:
                versions = versions_of_results()
                digest = hashlib.sha256(json.dumps([model, preset, steps, conditioning, versions, sources]).encode())
                self.path = cache_folder("info") / f"{digest.hexdigest()}.json"

    def read(self) -> Any:
        """Return what ``write`` wrote, or None."""
        if self.path is None:
            return None
        with suppress(OSError):
            kept = read_checked(self.path, MOST_BYTES, "its facts are found out again")
            return None if kept is None else kept["facts"]
        return None

    def write(self, facts: object) -> None:
        """Keep facts, where the cache folder can be written."""
        if self.path is not None:
            with suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_checked(self.path, {"facts": facts})


def _sources(model: str | None, preset: str | None) -> Iterator[tuple[str, ...]]:
    """Yield a fingerprint of each file that the facts depend on; of none where a model is not on this machine."""
    folder = Path(model).expanduser() if model is not None else None
    if model is None and preset is not None:
        file = preset_path(preset)
        folder = load_preset(preset).weights_path
        if file is not None:
            yield _fingerprint(Path(file), Path(file).parent)
    if folder is not None and folder.is_dir():
        for path in sorted((*folder.glob("*"), *folder.glob("*/*"))):
            if path.is_file():
                yield _fingerprint(path, folder)


def _fingerprint(path: Path, folder: Path) -> tuple[str, ...]:
    facts, name = path.stat(), path.relative_to(folder).as_posix()
    if path.suffix in (".json", ".yaml", ".yml") and facts.st_size <= LARGEST_CONFIG:
        return name, hashlib.sha256(path.read_bytes()).hexdigest()
    return name, str(facts.st_size), str(facts.st_mtime_ns)
