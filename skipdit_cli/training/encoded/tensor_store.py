"""A folder of shards, found by the content of what they were encoded from, and the manifest that lists them."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from skipdit_cli.errors import UsageError
from skipdit_cli.files import checksum, replacing
from skipdit_cli.formats import parse_json, read_text, to_json
from skipdit_cli.training.encoded.tensor_shard import FORMAT, NAME, Shard, open_shard
from skipdit_cli.training.observer import SILENT, Observer

MANIFEST = "manifest.json"
STALE_SECONDS = 3600
"""The age at which a temporary file is one that a killed run left."""


class Store:
    """A folder of shards of latents and of encoded texts, which several runs may use at the same time.

    ``manifest.json`` lists the shards, with the checksum, the size and the time of each: a shard of which size and
    time are as listed is not read again to compare its checksum. What a shard holds is said by its header alone, so a
    manifest that is lost is made again, and files are found in the folder, never by a path in the manifest.

    Args:
        data: What shards record of the data source.
    """

    def __init__(self, folder: Path, observer: Observer = SILENT, data: dict | None = None):
        self.folder, self.observer, self.data = folder, observer, data or {}
        self.compared: dict[str, dict] = {}  # the size and time of shards whose checksum this process has compared

    def shards(self, thorough: bool = False) -> tuple[list[Shard], list[Path]]:
        """Return the intact shards of the folder, and the paths of damaged ones.

        Args:
            thorough: Compare the checksums of those, too, that were compared before.
        """
        listed = {} if thorough else {**self._listed(), **self.compared}
        paths = [path for path in self._files() if NAME.fullmatch(path.name)]
        with ThreadPoolExecutor() as pool:
            shards = list(pool.map(partial(intact_shard, listed), paths))
        damaged = [path for path, shard in zip(paths, shards) if shard is None]
        self.compared = {shard.path.name: _stamp(shard.path) for shard in shards if shard is not None}
        return [shard for shard in shards if shard is not None], damaged

    def write_manifest(self, shards: Sequence[Shard]) -> None:
        """Write the manifest of intact shards, unless it is as it should be.

        Raises:
            OSError: It cannot be written.
        """
        listed = self._listed()
        entries = {shard.path.name: {**_stamp(shard.path), **_summary(shard)} for shard in shards}
        if entries != listed:
            with replacing(self.folder / MANIFEST) as part:
                part.write_text(to_json({"format": FORMAT, "shards": entries}, indent=1), encoding="utf-8")

    def warn_of_former_layout(self) -> None:
        """Warn of the files of skipdit 0.1, one an entry, which are not read."""
        former = [path for path in self._files() if re.fullmatch("[0-9a-f]{2}", path.name) and path.is_dir()]
        if former:
            self.observer.warn(
                f"{self.folder} also holds latents or texts of skipdit 0.1, one file for each, which are no longer "
                f"read; delete its folders {former[0].name} to {former[-1].name} to free their space."
            )

    def remove_stale(self) -> None:
        """Delete temporary files that killed runs left."""
        for path in self._files():
            if ".tmp-" in path.name and NAME.match(path.name.partition(".tmp-")[0]):
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime > STALE_SECONDS:
                        path.unlink()

    def free_bytes(self) -> int:
        """Return the number of bytes that are free on the disk of the folder."""
        return shutil.disk_usage(self._place()).free

    def check_writable(self) -> None:
        """Check that the folder can be written.

        Raises:
            UsageError: It cannot.
        """
        place = self._place()
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise UsageError(
                f"Cannot write to {self.folder}: {place} is not a writable folder; give another --cache-latents."
            )

    def _place(self) -> Path:
        """Return the folder, or the nearest one above it that exists."""
        return next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())

    def _files(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else []

    def _listed(self) -> dict:
        """Return what the manifest says of each shard, by file name; of a damaged manifest nothing."""
        path = self.folder / MANIFEST
        try:
            manifest = parse_json(read_text(path), path) if path.is_file() else None
        except UsageError:
            self.observer.warn(f"{path} is damaged; all shards are compared with their checksums.", MANIFEST)
            return {}
        shards = manifest.get("shards") if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None
        return shards if isinstance(shards, dict) else {}


def _stamp(path: Path) -> dict:
    """Return the size and the time of a file, by which a change of it is noticed."""
    status = path.stat()
    return {"bytes": status.st_size, "modified": status.st_mtime_ns}


def _summary(shard: Shard) -> dict:
    facts = {"kind": shard.kind, "entries": len(shard.names), "settings": shard.settings, "data": shard.data}
    return {"checksum": _named_checksum(shard.path), **facts}


def _named_checksum(path: Path) -> str:
    """Return the first 32 digits of the SHA-256 of a shard, which its name says."""
    return path.stem.partition("-")[2]


def intact_shard(listed: dict, path: Path) -> Shard | None:
    """Return a shard, or None if its content is not what its name says.

    Args:
        listed: The size and time of shards of which the checksum has been compared, by file name.
    """
    try:
        entry = listed.get(path.name)
        stamp = {key: entry.get(key) for key in ("bytes", "modified")} if isinstance(entry, dict) else None
        shard = open_shard(path)
        return shard if stamp == _stamp(path) or _named_checksum(path) == checksum(path)[:32] else None
    except (OSError, UsageError):
        return None
