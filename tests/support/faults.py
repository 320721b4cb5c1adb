"""Faults of disks: files that are damaged, disks that are full, files that may not grow."""

import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DAMAGES = ("flip", "cut", "remove")


def damaged(path: Path, damage: str, at: float = 0.5) -> None:
    """Flip one bit of a file, cut it short, or remove it.

    Args:
        at: Where, as a fraction of its length.
    """
    if damage == "remove":
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    place = int(len(data) * at)
    if damage == "cut":
        del data[place:]
    else:
        data[place] ^= 1
    path.write_bytes(data)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size in bytes: a write, in native code too, then fails with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class FullDisk:
    """A disk that is full from some moment on: no file on it can be opened for writing and no folder created.

    Only what Python itself opens is counted and refused.

    Args:
        folder: The disk.
        room: How many times a file may be opened for writing, or a folder created, before it is full.

    Attributes:
        count: How many times that was tried.
    """

    current = None

    def __init__(self, folder: Path, room: float = float("inf")):
        self.folder, self.room, self.count = os.path.realpath(folder) + os.sep, room, 0

    def __enter__(self):
        if not FullDisk.is_hooked:
            sys.addaudithook(_refuse)
            FullDisk.is_hooked = True
        FullDisk.current = self
        return self

    def __exit__(self, *_):
        FullDisk.current = None

    is_hooked = False


def _refuse(event: str, arguments: tuple) -> None:
    disk = FullDisk.current
    if disk is None or event not in ("open", "os.mkdir"):
        return
    path, _, flags = arguments
    if event == "open" and not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
        return
    if isinstance(path, (str, bytes, os.PathLike)) and os.path.abspath(os.fsdecode(path)).startswith(disk.folder):
        disk.count += 1
        if disk.count > disk.room:
            raise OSError(28, os.strerror(28), os.fsdecode(path))
