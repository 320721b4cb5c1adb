"""Output folders: written elsewhere and renamed, or in place; a former one is kept until the new one is complete."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from skipdit_cli.errors import NO_ROOM, SPACE, SkipditError, UsageError, first_line
from skipdit_cli.files.aside import asides_of, discard, free_name, put_back, release, set_aside
from skipdit_cli.files.lock import locked
from skipdit_cli.files.marker import (
    BEGUN,
    FINISHED,
    RESUMABLE,
    at_work,
    forget,
    names_in,
    note,
    read_marker,
    sweep,
    sweep_files,
    write_marker,
)
from skipdit_cli.files.one import sync
from skipdit_cli.files.target import check_folder, check_unused

logger = logging.getLogger(__name__)


@contextmanager
def replace_folder(target: Path, kind: str, overwrite: bool = False, needed_bytes: int = 0) -> Iterator[Path]:
    """Check that a folder may be written at ``target``, then fill it (``check_folder``, ``fill_folder``)."""
    check_folder(target, kind, overwrite, needed_bytes)
    with locked(target), fill_folder(target, kind) as folder:
        yield folder


@contextmanager
def fill_folder(target: Path, kind: str) -> Iterator[Path]:
    """Yield a new folder to fill, which replaces ``target`` unless the block raises.

    The folder is ``<target>.tmp-<pid>``, beside the target. At the end its files are listed in a manifest and flushed
    to disk, and it is renamed; on an exception it is deleted and the target stays as it was. Of a former folder only
    the files in its manifest are deleted.

    Raises:
        UsageError: The folder cannot be created.
        SkipditError: A file could not be written.
    """
    place = Path(os.path.realpath(target))  # a link stays, and its target is replaced
    created = [parent for parent in place.parents if not parent.exists()]
    temporary, former = place.with_name(f"{place.name}.tmp-{os.getpid()}"), None
    if temporary not in at_work:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a dead process with the same id
    try:
        temporary.mkdir(parents=True)
        write_marker(temporary, kind, state=BEGUN, written=True)
    except OSError as cause:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(created)
        raise _refusal(target, cause) from cause
    at_work.add(temporary)
    complete = False
    try:
        yield temporary
        write_marker(temporary, kind, names_in(temporary), BEGUN, written=True)
        for path in sorted(temporary.rglob("*"), reverse=True):
            sync(path)
        former = set_aside(place)
        temporary.rename(place)
        note(place, state=FINISHED)
        sync(place.parent)
        complete = True
    except Exception as cause:
        if not isinstance(cause, OSError) and type(cause).__name__ != "SafetensorError":  # not imported for this
            raise
        reason = getattr(cause, "strerror", None) or first_line(cause)
        raise SkipditError(f"Writing {target} failed: {reason}; nothing was kept.") from cause
    finally:
        at_work.discard(temporary)
        shutil.rmtree(temporary, ignore_errors=True)
        if former is not None and complete:
            discard(former)
        elif former is not None:
            put_back(former, place)
        if not place.exists():
            _remove_empty(created)


def _remove_empty(parents: list[Path]) -> None:
    """Remove the parent folders that were created for a target, the innermost first, unless others use them."""
    with suppress(OSError):
        for parent in parents:
            parent.rmdir()


def _refusal(target: Path, cause: OSError) -> SkipditError:
    """Return the error for a folder that cannot be written; a full disk is no bad input."""
    full = cause.errno in NO_ROOM
    return (SkipditError if full else UsageError)(
        f"Cannot write to {target}: {cause.strerror}; {SPACE * full}give another --output."
    )


@dataclass
class Work:
    """A folder that a command writes in place.

    Attributes:
        folder: Its path.
        finished: False for a run that stops early and can be resumed.
    """

    folder: Path
    finished: bool = True


@contextmanager
def work_in(
    target: Path, kind: str, resume: bool = False, restore_on: type[Exception] | tuple[type[Exception], ...] = ()
) -> Iterator[Work]:
    """Yield a folder that is locked and written in place; paths are added to its manifest before they are written
    (``note``, ``install``).

    A former folder is kept under another name, and the files in its manifest are deleted once this one is finished. If
    the block raises, the former folder is restored, unless this one is ``resumable`` by then.

    Args:
        resume: Continue in the existing folder.
        restore_on: Exceptions that restore the former folder in any case; this one is then kept beside it.
    Raises:
        UsageError: The folder cannot be created, or another process writes it.
    """
    with locked(target), _work_in(target, kind, resume, restore_on) as work:
        yield work


@contextmanager
def _work_in(
    target: Path, kind: str, resume: bool, restore_on: type[Exception] | tuple[type[Exception], ...]
) -> Iterator[Work]:
    """Yield a folder for ``work_in``, which has locked it."""
    place = Path(os.path.realpath(target))
    check_unused(target)  # again, as loading weights since the last check takes long
    # A folder without a marker was empty when checked; it may hold the cached latents of this run by now.
    former = None if resume or read_marker(place) is None else set_aside(place)
    try:
        place.mkdir(parents=True, exist_ok=True)
        sweep(place)
        sweep_files(place)
        marker = read_marker(place) or {"files": (), "state": BEGUN}
        resumed = resume and marker["state"] != BEGUN
        write_marker(place, kind, marker["files"] if resume else (), RESUMABLE if resumed else BEGUN, True)
        sync(place.parent)
    except OSError as cause:
        if former is not None:
            put_back(former, place)
        raise _refusal(target, cause) from cause
    at_work.add(place)
    work = Work(place)
    try:
        yield work
        at_work.discard(place)
        if work.finished:
            note(place, state=FINISHED)
            for aside in asides_of(place):
                discard(aside)
        else:
            release(place)
            if former is not None:
                logger.info("The former %s is kept in %s until this one is finished.", target, former)
    except BaseException as cause:
        resumable = (read_marker(place) or {}).get("state") in (RESUMABLE, FINISHED)
        if former is not None and (not resumable or isinstance(cause, restore_on)):
            kept = free_name(place, "failed") if resumable else None
            if kept is not None:
                place.rename(kept)
                release(kept)
            if put_back(former, place):
                saved = f"; what this run saved is in {kept}" if kept else ""
                logger.warning("the run failed, so %s is again as it was before%s.", target, saved)
        else:
            release(place)
        raise
    finally:
        at_work.discard(place)


@contextmanager
def install(folder: Path, last: str = "") -> Iterator[Path]:
    """Yield a folder to fill, whose files then move into ``folder`` and replace those that skipdit wrote there.

    Args:
        last: The file that marks the others as complete: it is deleted before the first one moves, and moves last.
    Raises:
        SkipditError: Writing failed, or a file would replace one of others; then none has moved.
    """
    part = folder / f".part.tmp-{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        write_marker(part, "part", state=BEGUN, written=True)
        yield part
        names = names_in(part)
        for name in names:
            sync(part / name)
        listed = (read_marker(folder) or {"files": names})["files"]
        foreign = [name for name in names if name not in listed and os.path.lexists(folder / name)]
        if foreign:
            raise SkipditError(
                f"{folder / foreign[0]} is not from skipdit, so it was not replaced; move it elsewhere."
            )
        note(folder, *names)
        if last:
            (folder / last).unlink(missing_ok=True)
            sync(folder)
        tops = {name.split("/")[0] for name in names if "/" in name}
        stale = [name for name in listed if name.split("/")[0] in tops and name not in names and name[-1] != "/"]
        for name in stale:
            (folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # not empty
                (folder / name).parent.rmdir()
        for name in sorted(names, key=lambda name: name == last):
            if name == last:
                _sync_above(folder, names)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(part / name, folder / name)
        _sync_above(folder, names)
        forget(folder, *stale)
    except OSError as cause:
        raise SkipditError(f"Writing {folder} failed: {cause.strerror or first_line(cause)}.") from cause
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sync_above(folder: Path, names: Iterable[str]) -> None:
    """Flush the entries of a folder, and of the folders in it that hold some files."""
    for above in sorted({each for name in names for each in PurePosixPath(name).parents}, reverse=True):
        if (folder / above).is_dir():
            sync(folder / above)
