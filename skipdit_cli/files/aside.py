"""Folders that are set aside until a new one stands: under which name, put back, deleted, found after a kill."""

from __future__ import annotations

import glob
import os
from contextlib import suppress
from pathlib import Path

from skipdit_cli import console
from skipdit_cli.files.marker import (
    ASIDE,
    BEGUN,
    FINISHED,
    MARKER,
    at_work,
    is_abandoned,
    is_alive,
    read_marker,
    remove_listed,
    sweep,
    write_marker,
)


def is_empty(place: Path) -> bool:
    """Whether nothing is at a place, or a folder with nothing in it, or with a marker alone."""
    return not place.is_dir() or all(path.name == MARKER for path in place.iterdir())


def recover(place: Path) -> None:
    """Put in order what killed runs left at a place and beside it: a former folder that no new one took the place of
    is put back, temporary ones are swept."""
    with suppress(OSError):  # another process of this run was faster; what cannot be read is said later
        for path in sweep(place.parent, glob.escape(place.name)):
            console.say(f"Removed {path}, left by a run that was killed.")
        asides = asides_of(place)
        marker = read_marker(place)
        if asides and (is_empty(place) or (marker and marker["state"] == BEGUN and is_abandoned(place))):
            if put_back(asides[-1], place):
                console.say(f"Put {place} back, as it was before a run that was killed.")
        elif asides and marker and marker["state"] == FINISHED:
            for aside in asides:
                discard(aside)


def set_aside(place: Path) -> Path | None:
    """Rename a folder, unless it is empty, to a free name beside it."""
    if is_empty(place):
        (place / MARKER).unlink(missing_ok=True)
        return None  # and the folder stays, which may be the one that the process stands in, or a mount point
    aside = free_name(place, "skipdit-old")
    place.rename(aside)
    os.utime(aside)  # the order in which they were set aside
    return aside


def asides_of(place: Path) -> list[Path]:
    """The folders of ours that were set aside from a place, the last one last; not by a process that is at it now."""
    found, mine = [], os.getpid()
    ours_now = place in at_work or place.with_name(f"{place.name}.tmp-{mine}") in at_work
    for path in place.parent.glob(f"{glob.escape(place.name)}.skipdit-old-*"):
        named = ASIDE.search(path.name)
        if named is None or path.is_symlink() or not read_marker(path):
            continue
        if not (ours_now if int(named["pid"]) == mine else is_alive(int(named["pid"]))):
            found.append(path)
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def put_back(former: Path, place: Path) -> bool:
    """Give a folder that was set aside its place again, once what lies there is removed; whether that went well."""
    if place.exists() and not remove_listed(place):
        console.warn(f"{place} holds what skipdit did not write, so what was there before stays in {former}.")
        return False
    former.rename(place)
    return True


def discard(former: Path) -> None:
    """Delete what is listed of a folder that was set aside."""
    with suppress(OSError):
        if remove_listed(former):
            return
    console.warn(f"{former} holds what skipdit did not write, or could not delete, so it was kept.")


def lay_down(place: Path) -> None:
    """Take the writer out of the marker of a folder that is not finished."""
    marker = read_marker(place)
    if marker is not None:
        write_marker(place, marker["kind"], marker["files"], marker["state"])


def free_name(place: Path, word: str) -> Path:
    """A name beside a place that nothing has."""
    first = f"{place.name}.{word}-{os.getpid()}"
    names = (first, *(f"{first}-{number}" for number in range(2, 10_000)))
    return next(path for name in names if not os.path.lexists(path := place.with_name(name)))
