"""Former folders, kept under another name until the new one is complete, then deleted, or restored on failure."""

from __future__ import annotations

import glob
import logging
import os
from contextlib import suppress
from pathlib import Path

from skipdit_cli.files.marker import (
    ASIDE,
    BEGUN,
    FINISHED,
    LOCK_INSIDE,
    MARKER,
    UNFINISHED,
    at_work,
    forget,
    is_abandoned,
    read_marker,
    remove_listed,
    sweep,
    sweep_files,
    write_marker,
)
from skipdit_cli.processes.writer import is_alive

logger = logging.getLogger(__name__)


def is_empty(place: Path) -> bool:
    """Return whether a path does not exist, or is a folder that holds nothing but a marker and its own lock."""
    return not place.is_dir() or all(path.name in (MARKER, LOCK_INSIDE) for path in place.iterdir())


def recover(place: Path) -> None:
    """Clean up after killed runs: restore a former folder that was not replaced, and delete temporary folders."""
    with suppress(OSError):  # another process of this run was faster, or a file is unreadable, which is reported later
        for path in sweep(place.parent, glob.escape(place.name)):
            logger.info("Removed %s, left by a run that was killed.", path)
        if place.is_dir():
            _clean(place)
        asides = asides_of(place)
        marker = read_marker(place)
        if asides and (is_empty(place) or (marker and marker["state"] == BEGUN and is_abandoned(place))):
            if put_back(asides[-1], place):
                logger.info("Put %s back, as it was before a run that was killed.", place)
        elif asides and marker and marker["state"] == FINISHED:
            for aside in asides:
                discard(aside)


def _clean(place: Path) -> None:
    """Delete what a run left in a folder that was killed as it began, or after it had finished."""
    marker = read_marker(place)
    if marker is None or (marker["state"] == BEGUN and is_abandoned(place)):
        sweep_files(place)
    elif marker["state"] == FINISHED and (left := [name for name in marker["files"] if name.startswith(UNFINISHED)]):
        for name in left:
            (place / Path(name).name).unlink(missing_ok=True)
        forget(place, *left)


def set_aside(place: Path) -> Path | None:
    """Rename a folder to a free name beside it; an empty one stays, and None is returned."""
    if is_empty(place):
        (place / MARKER).unlink(missing_ok=True)
        return None  # it may be the working directory or a mount point
    aside = free_name(place, "skipdit-old")
    place.rename(aside)
    os.utime(aside)  # asides_of() sorts by it
    return aside


def asides_of(place: Path) -> list[Path]:
    """Return the former folders of a place, oldest first, without those of processes that are still running."""
    asides, own_pid = [], os.getpid()
    is_writing = place in at_work or place.with_name(f"{place.name}.tmp-{own_pid}") in at_work
    for path in place.parent.glob(f"{glob.escape(place.name)}.skipdit-old-*"):
        match = ASIDE.search(path.name)
        if match is None or path.is_symlink() or not read_marker(path):
            continue
        if not (is_writing if int(match["pid"]) == own_pid else is_alive(int(match["pid"]))):
            asides.append(path)
    return sorted(asides, key=lambda path: path.stat().st_mtime_ns)


def put_back(former: Path, place: Path) -> bool:
    """Restore a former folder, after deleting what replaced it; returns False if that holds files of others."""
    if place.exists() and not remove_listed(place):
        logger.warning("%s holds what skipdit did not write, so what was there before stays in %s.", place, former)
        return False
    former.rename(place)
    return True


def discard(former: Path) -> None:
    """Delete the listed files of a former folder."""
    with suppress(OSError):
        if remove_listed(former):
            return
    logger.warning("%s holds what skipdit did not write, or could not delete, so it was kept.", former)


def release(place: Path) -> None:
    """Remove the writing process from the marker of an unfinished folder."""
    marker = read_marker(place)
    if marker is not None:
        write_marker(place, marker["kind"], marker["files"], marker["state"])


def free_name(place: Path, word: str) -> Path:
    """Return an unused path beside a place, with ``word`` in its name."""
    first = f"{place.name}.{word}-{os.getpid()}"
    names = (first, *(f"{first}-{number}" for number in range(2, 10_000)))
    return next(path for name in names if not os.path.lexists(path := place.with_name(name)))
