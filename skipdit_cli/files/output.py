"""A folder that a command writes: whether it may be, and how the one before it is kept until the new one stands."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from skipdit_cli import console
from skipdit_cli.errors import SkipditError, UsageError, first_line
from skipdit_cli.files.aside import asides_of, discard, free_name, lay_down, put_back, set_aside
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


@contextmanager
def replace_folder(target: Path, kind: str, overwrite: bool = False, needed_bytes: int = 0) -> Iterator[Path]:
    """``check_folder``, then ``fill_folder``."""
    check_folder(target, kind, overwrite, needed_bytes)
    with fill_folder(target, kind) as folder:
        yield folder


@contextmanager
def fill_folder(target: Path, kind: str) -> Iterator[Path]:
    """A new folder to fill, which takes ``target``'s place once the block ends well.

    The folder is ``<target>.tmp-<pid>``, beside the target. At the end all that is in it is listed, it is flushed to
    disk and renamed; on any exception it is removed and the target is as it was. Of a former folder only what its
    manifest lists is deleted.

    Raises:
        UsageError: The folder cannot be made.
        SkipditError: Writing failed on the way.
    """
    place = Path(os.path.realpath(target))  # a link stays, and what it leads to is replaced
    made = [parent for parent in place.parents if not parent.exists()]
    temporary, former = place.with_name(f"{place.name}.tmp-{os.getpid()}"), None
    if temporary not in at_work:
        shutil.rmtree(temporary, ignore_errors=True)  # of a dead process that had our number
    try:
        temporary.mkdir(parents=True)
        write_marker(temporary, kind, state=BEGUN, written=True)
    except OSError as cause:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_empty(made)
        raise _refusal(target, cause) from cause
    at_work.add(temporary)
    stands = False
    try:
        yield temporary
        write_marker(temporary, kind, names_in(temporary), BEGUN, written=True)
        for path in sorted(temporary.rglob("*"), reverse=True):
            sync(path)
        former = set_aside(place)
        temporary.rename(place)
        note(place, state=FINISHED)
        sync(place.parent)
        stands = True
    except Exception as cause:
        if not isinstance(cause, OSError) and type(cause).__name__ != "SafetensorError":  # not imported for this
            raise
        reason = getattr(cause, "strerror", None) or first_line(cause)
        raise SkipditError(f"Writing {target} failed: {reason}; nothing was kept.") from cause
    finally:
        at_work.discard(temporary)
        shutil.rmtree(temporary, ignore_errors=True)
        if former is not None and stands:
            discard(former)
        elif former is not None:
            put_back(former, place)
        if not place.exists():
            _remove_empty(made)


def _remove_empty(made: list[Path]) -> None:
    """Remove the folders above a target that were made for it, the lowest first."""
    with suppress(OSError):  # not empty: someone else's by now
        for parent in made:
            parent.rmdir()


def _refusal(target: Path, cause: OSError) -> SkipditError:
    """Why nothing can be written at a place: a full disk is no fault of the flag that named it."""
    full = cause.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None))
    return (SkipditError if full else UsageError)(
        f"Cannot write to {target}: {cause.strerror}; {'free some space or ' * full}give another --output."
    )


@dataclass
class Work:
    """A folder that a command works in. ``finished`` off: it ends early, and can be gone on with."""

    folder: Path
    finished: bool = True


@contextmanager
def work_in(
    target: Path, kind: str, resume: bool = False, hopeless: type[Exception] | tuple[type[Exception], ...] = ()
) -> Iterator[Work]:
    """A folder that is written while the block runs, each name put into its manifest before (``note``, ``install``).

    The former folder is set aside, and deleted, as far as its manifest goes, once this one is finished. Where the
    block fails it is put back, unless this one is ``resumable`` by then.

    Args:
        resume: Go on in the folder as it is.
        hopeless: Exceptions that put the former folder back in any case; this one is then kept beside it.
    Raises:
        UsageError: The folder cannot be made, or another process writes it.
    """
    place = Path(os.path.realpath(target))
    check_unused(target)  # once more: weights were loaded since it was checked
    # Unmarked, the folder was empty when it was checked; since then the run may have put its latents into it.
    former = None if resume or read_marker(place) is None else set_aside(place)
    try:
        place.mkdir(parents=True, exist_ok=True)
        sweep(place)
        sweep_files(place)
        marker = read_marker(place) or {"files": (), "state": BEGUN}
        resumed = resume and marker["state"] != BEGUN
        write_marker(place, kind, marker["files"] if resume else (), RESUMABLE if resumed else BEGUN, True)
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
            lay_down(place)
            if former is not None:
                console.say(f"The former {target} is kept in {former} until this one is finished.")
    except BaseException as cause:
        stands = (read_marker(place) or {}).get("state") == RESUMABLE
        if former is not None and (not stands or isinstance(cause, hopeless)):
            kept = free_name(place, "failed") if stands else None
            if kept is not None:
                place.rename(kept)
                lay_down(kept)
            if put_back(former, place):
                also = f"; what this run saved is in {kept}" if kept else ""
                console.warn(f"the run failed, so {target} is again as it was before{also}.")
        else:
            lay_down(place)
        raise
    finally:
        at_work.discard(place)


@contextmanager
def install(folder: Path, last: str = "") -> Iterator[Path]:
    """A folder to fill, whose files then move into ``folder``, in the place of those of ours below the same names.

    Args:
        last: The file that says that all are there: it is gone before the first one moves, and moves last.
    Raises:
        SkipditError: Writing failed, or somebody else's file has one of the names; then nothing moved.
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
        held = [name for name in names if name not in listed and os.path.lexists(folder / name)]
        if held:
            raise SkipditError(f"{folder / held[0]} is not from skipdit, so it was not replaced; move it elsewhere.")
        note(folder, *names)
        if last:
            (folder / last).unlink(missing_ok=True)
        tops = {name.split("/")[0] for name in names if "/" in name}
        stale = [name for name in listed if name.split("/")[0] in tops and name not in names and name[-1] != "/"]
        for name in stale:
            (folder / name).unlink(missing_ok=True)
            with suppress(OSError):  # others are in it
                (folder / name).parent.rmdir()
        for name in sorted(names, key=lambda name: name == last):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(part / name, folder / name)
        forget(folder, *stale)
        sync(folder)
    except OSError as cause:
        raise SkipditError(f"Writing {folder} failed: {cause.strerror or first_line(cause)}.") from cause
    finally:
        shutil.rmtree(part, ignore_errors=True)
