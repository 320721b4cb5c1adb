"""Output folders that are filled file by file: an interrupted run leaves what it has made, and is resumed."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path

from skipdit_cli.errors import SkipditError, UsageError, first_line
from skipdit_cli.files.checked import undamaged, write_checked
from skipdit_cli.files.marker import BEGUN, FINISHED, RESUMABLE, forget, note, read_marker, remove_listed
from skipdit_cli.files.output import work_in
from skipdit_cli.files.target import check_folder, check_resumed

PARTIAL = "partial.json"
"""The file with the settings of an unfinished run, deleted when it is finished."""
MOST_BYTES = 1 << 26

logger = logging.getLogger(__name__)


def is_partial(target: Path, kind: str) -> bool:
    """Return whether a folder is that of an interrupted run of a command, which the same command resumes."""
    place = Path(os.path.realpath(target))
    marker = read_marker(place) or {}
    return marker.get("kind") == kind and marker["state"] != FINISHED and (place / PARTIAL).is_file()


def check_partial(target: Path, kind: str, overwrite: bool) -> None:
    """Check that a folder may be written at ``target``, or that the interrupted run in it may be resumed.

    Raises:
        UsageError: As for ``check_folder`` and ``check_resumed``.
    """
    if is_partial(target, kind):
        check_resumed(target, kind)
    else:
        check_folder(target, kind, overwrite)


def is_resumed(
    target: Path, kind: str, settings: Mapping[str, object], overwrite: bool, spelled: Callable[[str], str] = str
) -> bool:
    """Return whether a run goes on from what an interrupted one left in its folder.

    With ``overwrite`` it does too where the settings are the same, and else the folder is replaced.

    Args:
        settings: All that the files depend on, as plain data.
        spelled: How a message writes the name of a setting.

    Raises:
        UsageError: The interrupted run has other settings.
    """
    if not is_partial(target, kind):
        return False
    partial = undamaged(target / PARTIAL, MOST_BYTES, may_lack_checksum=True)  # a run of 0.1.0 wrote none
    if partial == settings:
        return True
    if overwrite:
        check_folder(target, kind, overwrite)
        return False
    if partial is None:
        raise UsageError(
            f"Got {target / PARTIAL}, which is damaged; give another --output, or --overwrite to start anew."
        )
    names = [name for name in {**partial, **settings} if partial.get(name) != settings.get(name)]
    raise UsageError(
        f"Output {target} is of an interrupted run with other settings ({', '.join(map(spelled, names))}); give the "
        "same ones to go on, --overwrite to start anew, or another --output."
    )


class PartialFolder:
    """A folder that is filled file by file, in place, as a context manager.

    It is created by ``open``, so that a run that fails before its first file leaves nothing.

    Args:
        target: The folder.
        kind: The command that writes it.
        settings: All that the files depend on, as plain data.
        resume: Continue in the folder of an interrupted run.
    """

    def __init__(self, target: Path, kind: str, settings: Mapping[str, object], resume: bool):
        self.target, self.kind, self.settings, self.resume = target, kind, settings, resume
        self.place, self.stack, self.is_open = Path(os.path.realpath(target)), ExitStack(), False
        self.is_kept = False

    def __enter__(self) -> PartialFolder:
        return self

    def open(self, names: Iterable[str]) -> None:
        """Create the folder, or continue in it; a second call does nothing.

        Args:
            names: The files that will be written, relative to the folder.
        """
        if self.is_open:
            return
        self.stack.enter_context(work_in(self.target, self.kind, self.resume))
        self.is_open = True
        note(self.place, *names, PARTIAL)
        write_checked(self.place / PARTIAL, self.settings)

    def keep(self) -> None:
        """Say that the folder holds something to resume from, so that a failure does not remove it."""
        if not self.is_kept:  # the manifest may be long
            note(self.place, state=RESUMABLE)
            self.is_kept = True

    def finish(self, *temporary: str) -> None:
        """Mark the folder as finished, then delete what only an unfinished run needs.

        Args:
            temporary: Files that it needs beside its settings.
        """
        note(self.place, state=FINISHED)
        for name in (*temporary, PARTIAL):
            (self.place / name).unlink(missing_ok=True)
        forget(self.place, *temporary, PARTIAL)

    def __exit__(self, kind, cause, trace) -> None:
        try:
            self.stack.__exit__(kind, cause, trace)
        finally:
            state = (read_marker(self.place) or {}).get("state") if self.is_open else None
            if cause is not None and state == BEGUN:
                remove_listed(self.place)
            if isinstance(cause, KeyboardInterrupt) and state == RESUMABLE:
                logger.info("%s keeps what was made; the same command goes on from there.", self.target)
        if isinstance(cause, OSError):
            kept = "nothing was kept" if state != RESUMABLE else "what was made is kept, and the same command goes on"
            reason = cause.strerror or first_line(cause)
            raise SkipditError(f"Writing {self.target} failed: {reason}; {kept}.") from cause
