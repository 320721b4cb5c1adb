"""The marker of an output folder: ``.skipdit.json``, with a manifest of the files that skipdit wrote there.

Paths in the manifest are relative, with ``/``; one that ends in ``/`` is a folder with its own marker. A path is added
before its file is written. Files to delete are found by walking the folder, so that a forged marker cannot reach
outside it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from skipdit_cli.files.one import replacing
from skipdit_cli.processes.writer import Writer, is_alive, parse_writer, this_process
from skipdit_cli.version import __version__

MARKER = ".skipdit.json"
SCHEMA = 1
ASIDE = re.compile(r"\.skipdit-old-(?P<pid>\d{1,9})(-\d+)?$")  # the end of the name of a former folder
BEGUN, RESUMABLE, FINISHED = "begun", "resumable", "finished"
LOCK = re.compile(r"\.(?P<name>.+)\.skipdit-lock")
"""The name of the lock of an output, which lies beside it (see ``lock.py``)."""
LOCK_INSIDE = ".skipdit-lock"
"""The name of the lock of a folder beside which nothing can be written; it lies in the folder."""
CARD, OWN_CARD = "README.md", "<!-- skipdit commands -->"
UNFINISHED = "partial."
"""The beginning of the names of the files that only an unfinished run needs."""
TEMPORARY = re.compile(r"(?P<name>.+)\.tmp-(?P<pid>\d{1,9})(\.[^.]*)?")

at_work: set[Path] = set()
"""The folders that this process is writing to."""


def read_marker(folder: Path) -> dict | None:
    """Return the marker of a folder, or None if it has none or an invalid one."""
    path = folder / MARKER
    try:
        marker: Any = None if path.is_symlink() else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    valid = isinstance(marker, dict) and marker.get("schema") == SCHEMA
    valid = valid and isinstance(marker.get("kind"), str) and isinstance(marker.get("files"), list)
    valid = valid and marker.get("state") in (BEGUN, RESUMABLE, FINISHED)
    return marker if valid and all(isinstance(name, str) for name in marker["files"]) else None


def write_marker(
    folder: Path, kind: str, files: Iterable[str] = (), state: str = FINISHED, written: bool = False
) -> None:
    """Write the marker of a folder.

    Args:
        kind: The command that writes the folder.
        files: The manifest.
        state: ``begun``, ``resumable`` or ``finished``.
        written: Whether to record this process as the one that writes the folder.
    """
    marker = {"schema": SCHEMA, "kind": kind, "version": __version__, "state": state, "files": sorted({*files})}
    if written:
        marker["writer"] = asdict(this_process())
    with replacing(folder / MARKER) as part:
        part.write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")


def note(folder: Path, *names: str, state: str | None = None) -> None:
    """Add paths to the manifest of a folder; a folder without a marker is left as it is.

    Args:
        state: The new state, if it changes. If the run fails, a former folder replaces one that is only ``begun``.
    """
    marker = read_marker(folder)
    if marker is None or (state in (None, marker["state"]) and {*names} <= {*marker["files"]}):
        return
    written = "writer" in marker and state != FINISHED
    write_marker(folder, marker["kind"], {*marker["files"], *names}, state or marker["state"], written)


def forget(folder: Path, *names: str) -> None:
    """Remove paths from the manifest of a folder."""
    marker = read_marker(folder)
    if marker is not None and {*names} & {*marker["files"]}:
        write_marker(folder, marker["kind"], {*marker["files"]} - {*names}, marker["state"], "writer" in marker)


def writer_of(folder: Path) -> Writer | None:
    """Return the process that the marker of a folder names as its writer, or None."""
    return parse_writer((read_marker(folder) or {}).get("writer"))


def is_written(folder: Path) -> bool:
    """Return whether a running process of this machine is writing a folder."""
    writer = writer_of(folder)
    if writer is None or not writer.is_of_this_machine():
        return False
    return folder in at_work if writer.pid == os.getpid() else writer.is_running()


def is_abandoned(folder: Path) -> bool:
    """Return whether the process that was writing a folder is dead; False for one of another machine."""
    writer = writer_of(folder)
    return writer is not None and writer.is_of_this_machine() and not is_written(folder)


def unlisted_files(folder: Path) -> Iterator[Path]:
    """Yield what a folder holds, at any depth, that its manifest does not list."""
    return (path for path, ours in _walk(folder) if not ours)


def remove_listed(folder: Path) -> bool:
    """Delete what the manifest of a folder lists, then its marker, then the folder itself if it is empty.

    Returns:
        Whether the folder is gone.
    """
    for path, ours in _walk(folder):
        if ours and path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # it holds files of others
                path.rmdir()
        elif ours:
            path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
    return not folder.exists()


def names_in(folder: Path) -> list[str]:
    """Return the files in a folder as the paths of a manifest."""
    files = (path for path in folder.rglob("*") if path.is_file() and path != folder / MARKER)
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """Yield all that a folder holds, contents of folders first and the marker last, and whether skipdit wrote each.
    Folders of others are not entered."""
    marker = read_marker(folder) or {"files": ()}
    listed = {*marker["files"]}
    folders = {str(above) for name in listed for above in PurePosixPath(name).parents}

    def visit(place: Path, above: str) -> Iterator[tuple[Path, bool]]:
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            path, name = Path(entry.path), above + entry.name
            if not entry.is_dir(follow_symlinks=False):
                if path != folder / MARKER:
                    yield path, not entry.is_symlink() and _is_listed(path, name, listed)
                continue
            if ASIDE.sub("", name) + "/" in listed and read_marker(path):
                yield from _walk(path)
            elif is_temporary(path):
                yield from ((inside, True) for inside in sorted(path.rglob("*"), reverse=True))
            elif name in folders:
                yield from visit(path, name + "/")
            else:
                yield path, False
                continue
            yield path, True

    yield from visit(folder, "")
    if listed or "kind" in marker:
        yield folder / MARKER, True


def _is_listed(path: Path, name: str, listed: set[str]) -> bool:
    if name not in listed:
        temporary, lock = TEMPORARY.fullmatch(name), LOCK.fullmatch(path.name)
        if lock is not None:
            locked = name.removesuffix(path.name) + lock["name"]
            return locked in listed or f"{locked}/" in listed
        is_ours = temporary is not None and (temporary["name"] in listed or temporary["name"] == MARKER)
        return is_ours or name == LOCK_INSIDE
    return path.name != CARD or OWN_CARD in path.read_text(encoding="utf-8", errors="replace")


def is_temporary(folder: Path) -> bool:
    """Return whether a folder is one that skipdit writes under a temporary name."""
    match = TEMPORARY.fullmatch(folder.name)
    if match is None or folder.is_symlink() or not folder.is_dir():
        return False
    writer = (read_marker(folder) or {}).get("writer")
    return _is_bare(folder) or (isinstance(writer, dict) and writer.get("pid") == int(match["pid"]))


def _is_bare(folder: Path) -> bool:
    """Return whether a folder holds nothing but a marker that was being written."""
    matches = (TEMPORARY.fullmatch(path.name) for path in folder.iterdir())
    return all(match is not None and match["name"] == MARKER for match in matches)


def sweep(folder: Path, name: str = "*") -> list[Path]:
    """Delete the temporary folders in ``folder`` whose writers are dead.

    Args:
        name: Glob pattern of their final names.
    Returns:
        The deleted folders.
    """
    deleted = []
    for path in folder.glob(f"{name}.tmp-*"):
        match = TEMPORARY.fullmatch(path.name)
        dead = match is not None and is_temporary(path) and not is_alive(int(match["pid"]))
        if dead and (is_abandoned(path) or _is_bare(path)):
            shutil.rmtree(path, ignore_errors=True)
            deleted.append(path)
    return deleted


def sweep_files(folder: Path) -> None:
    """Delete the temporary files that dead processes left in a folder."""
    for path, ours in list(_walk(folder)):
        match = TEMPORARY.fullmatch(path.name)
        if ours and match and path.is_file() and not is_alive(int(match["pid"])):
            path.unlink(missing_ok=True)
