"""A single file: whether it may be written; how: under a temporary name, flushed, then renamed; its checksum."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skipdit_cli.errors import UsageError


def check_file(path: Path, overwrite: bool = False) -> None:
    """Whether a file may be written here; nothing is.

    Raises:
        UsageError: It exists and ``overwrite`` is off, it is a folder, or no folder above it can be written to.
    """
    if path.is_dir():
        raise UsageError(f"Output {path} is a folder, but a file is written; give another one.")
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"Output {path} exists; give another one, or --overwrite to replace it.")
    check_writable(path)


def check_writable(path: Path) -> Path:
    """The nearest folder above ``path`` that exists.

    Raises:
        UsageError: It is no folder, or cannot be written to.
    """
    parent = next(parent for parent in path.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"Cannot write to {path}: {parent} is not a writable folder; give another --output.")
    return parent


def checksum(path: Path) -> str:
    """SHA-256 of a file's bytes, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path``, of the same suffix, to write to; the file takes its place if the block ends well."""
    part = path.with_name(f"{path.name}.tmp-{os.getpid()}{path.suffix}")
    try:
        yield part
        sync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle to flush for a folder
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
