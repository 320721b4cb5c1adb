"""Single files: check that one may be written, write it under a temporary name and rename it, and its checksum."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skipdit_cli.errors import UsageError


def check_file(path: Path, overwrite: bool = False) -> None:
    """Check that a file may be written, without writing it.

    Raises:
        UsageError: It exists and ``overwrite`` is off, it is a folder, or its parent folder is not writable.
    """
    if path.is_dir():
        raise UsageError(f"Output {path} is a folder, but a file is written; give another one.")
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"Output {path} exists; give another one, or --overwrite to replace it.")
    check_writable(path)


def check_writable(path: Path) -> Path:
    """Return the nearest existing parent of a path.

    Raises:
        UsageError: It is no folder, or not writable.
    """
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"Cannot write to {path}: {parent} is not a writable folder; give another --output.")
    return parent


def checksum(path: Path) -> str:
    """Return the SHA-256 checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path of the same suffix to write to; it replaces ``path`` unless the block raises."""
    part = path.with_name(f"{path.name}.tmp-{os.getpid()}{path.suffix}")
    try:
        yield part
        sync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot flush a folder
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
