"""One run to an output folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from skipdit_cli.errors import UsageError

LOCK = ".lock"


@contextmanager
def only_run_in(output: Path) -> Iterator[None]:
    """Keep other runs out of a folder for the length of the block.

    Raises:
        UsageError: A run is at work there.
    """
    held = _lock(output, os.O_CREAT)
    try:
        yield
    finally:
        with suppress(OSError):
            (output / LOCK).unlink()
        os.close(held)


def check_unused(output: Path) -> None:
    """Whether no run is at work in a folder; nothing is written.

    Raises:
        UsageError: One is.
    """
    if (output / LOCK).is_file():
        os.close(_lock(output, 0))


def _lock(output: Path, create: int) -> int:
    """The descriptor of the locked file."""
    path = output / LOCK
    held = os.open(path, os.O_RDWR | create, 0o644)
    try:
        _take(held)
    except OSError as cause:
        owner = os.pread(held, 100, 0).decode(errors="replace").strip() if hasattr(os, "pread") else ""
        os.close(held)
        by = f" ({owner})" if owner else ""
        raise UsageError(
            f"Output {output} is in use by another run{by}; wait for it to end, or give another -o."
        ) from cause
    if create:
        os.ftruncate(held, 0)
        os.write(held, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return held


def _take(held: int) -> None:
    """Lock an open file, or raise OSError at once."""
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(held, msvcrt.LK_NBLCK, 1)
        return
    import fcntl

    fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
