"""Check that an output folder may be written: what a command may replace, and what it refuses."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from skipdit_cli.console import size_text
from skipdit_cli.errors import UsageError
from skipdit_cli.files.aside import is_empty, recover
from skipdit_cli.files.lock import check_unlocked
from skipdit_cli.files.marker import MARKER, is_written, read_marker, unlisted_files, writer_of
from skipdit_cli.files.one import check_writable

CONVERT, RUN, BENCH, SAMPLE, DEMO, PLANS, STUDY = "convert", "train", "bench", "sample", "demo", "calibrate", "study"
SWEEP = "train --sweep"
"""The kinds of output folder, each named after the command that writes it; ``finetune`` writes that of ``train``."""
IN_PLACE = (RUN, DEMO, SAMPLE, STUDY, SWEEP)
"""The kinds that are written in place (``work_in``); others are written elsewhere and renamed (``fill_folder``)."""


def check_folder(target: Path, kind: str, overwrite: bool = False, needed_bytes: int = 0) -> None:
    """Check that a folder may be written at ``target``; leftovers of a killed run are cleaned up.

    Raises:
        UsageError: It is not empty and ``overwrite`` is off; or it holds files that no command of this kind wrote; or
            it cannot be created, or the disk has too little space.
    """
    place = _recovered(target)
    if not (kind in IN_PLACE and is_empty(place)) and place in (here := Path.cwd(), *here.parents):
        raise UsageError(f"Output {target} is the folder that the command runs in; run it from another one.")
    if not is_empty(place):
        if not overwrite:
            resume_hint = ", or --resume-from-checkpoint latest to go on" if kind == RUN else ""
            raise UsageError(
                f"Output {target} exists and is not empty; give another --output, or --overwrite to replace it"
                f"{resume_hint}."
            )
        check_own(target, kind)
    check_room(target, needed_bytes)


def check_own(target: Path, kind: str) -> None:
    """Check that commands of one kind wrote all of a folder.

    Raises:
        UsageError: The folder has no marker, or holds files that no command of this kind wrote.
    """
    place = Path(os.path.realpath(target))
    marker = read_marker(place)
    if marker is None:
        first = min(path.name for path in place.iterdir())
        raise UsageError(
            f"Output {target} holds {first} and no {MARKER} that lists what skipdit wrote (0.1.0 left none), so it is "
            "not ours to replace; give another --output, or remove it by hand."
        )
    if marker["kind"] != kind:
        raise UsageError(
            f"Output {target} was written by 'skipdit {marker['kind']}', which is not replaced by another command; "
            "give another --output, or remove it by hand."
        )
    unlisted = next(unlisted_files(place), None)
    if unlisted is not None:
        raise UsageError(
            f"Output {target} holds {unlisted.relative_to(place)}, which skipdit did not write, so it is not "
            "replaced; give another --output, or move that elsewhere."
        )
    if os.path.ismount(place):
        raise UsageError(f"Output {target} is a mount point, whose place nothing can take; give a folder in it.")


def check_room(target: Path, needed_bytes: int) -> None:
    """Check that ``target`` can be created on a disk with ``needed_bytes`` free.

    Raises:
        UsageError: It cannot be created, or the disk has too little space.
    """
    parent = check_writable(Path(os.path.realpath(target)))
    free = shutil.disk_usage(parent).free
    if free < needed_bytes:
        raise UsageError(
            f"Output {target} needs {size_text(needed_bytes)} but {parent} has {size_text(free)} free; give another "
            "--output."
        )


def check_resumed(target: Path, kind: str) -> None:
    """Check that a run may be resumed in ``target``.

    Raises:
        UsageError: It is a file, of another kind, being written by another process, or not writable.
    """
    place = _recovered(target)
    marker = read_marker(place)
    if marker is not None and marker["kind"] != kind:
        raise UsageError(f"Output {target} was written by 'skipdit {marker['kind']}'; give the --output of the run.")
    check_writable(place / MARKER if place.is_dir() else place)


def check_unused(target: Path) -> None:
    """Check that no other process is writing a folder.

    Raises:
        UsageError: Another process is writing it.
    """
    place = Path(os.path.realpath(target))
    if is_written(place):
        raise UsageError(
            f"Output {target} is being written by another process: {writer_of(place)}; wait until it ends, or give "
            "another --output."
        )
    check_unlocked(target)


def _recovered(target: Path) -> Path:
    """Return the real path of an output folder, after cleaning up what a killed run left there.

    Raises:
        UsageError: It is a file, or another process is writing it.
    """
    place = Path(os.path.realpath(target))
    check_unused(target)
    recover(place)
    if os.path.lexists(place) and not place.is_dir():
        raise UsageError(f"Output {target} is a file, but a folder is written; give another --output.")
    return place
