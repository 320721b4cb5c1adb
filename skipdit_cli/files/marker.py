"""What a folder of ours says of itself: ``.skipdit.json``, with a manifest of what we wrote there.

Names in the manifest are relative, with ``/``; one that ends in ``/`` is a folder with a marker of its own. A name is
put into it before the file is written. What is deleted is found by walking the folder, so that a marker that
somebody else wrote reaches nothing outside it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from skipdit_cli import __version__
from skipdit_cli.files.one import replacing, sync

MARKER = ".skipdit.json"
SCHEMA = 1
ASIDE = re.compile(r"\.skipdit-old-(?P<pid>\d{1,9})(-\d+)?$")
"""How the name of a folder ends that was set aside."""
BEGUN, RESUMABLE, FINISHED = "begun", "resumable", "finished"
CARD, OWN_CARD = "README.md", "<!-- skipdit commands -->"
TEMPORARY = re.compile(r"(?P<name>.+)\.tmp-(?P<pid>\d{1,9})(\.[^.]*)?")

at_work: set[Path] = set()
"""The folders that this process is writing."""


def read_marker(folder: Path) -> dict | None:
    """The marker of a folder; None where there is none, or no whole one."""
    path = folder / MARKER
    try:
        marker = None if path.is_symlink() else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(marker, dict) and marker.get("schema") == SCHEMA
    whole = whole and isinstance(marker.get("kind"), str) and isinstance(marker.get("files"), list)
    whole = whole and marker.get("state") in (BEGUN, RESUMABLE, FINISHED)
    return marker if whole and all(isinstance(name, str) for name in marker["files"]) else None


def write_marker(
    folder: Path, kind: str, files: Iterable[str] = (), state: str = FINISHED, written: bool = False
) -> None:
    """Write the marker of a folder.

    Args:
        written: Whether this process is writing the folder, which the marker then says.
    """
    marker = {"schema": SCHEMA, "kind": kind, "version": __version__, "state": state, "files": sorted({*files})}
    if written:
        marker["writer"] = {"pid": os.getpid(), "started": _started(os.getpid()), "host": socket.gethostname()}
    with replacing(folder / MARKER) as part:
        part.write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    sync(folder)


def note(folder: Path, *names: str, state: str | None = None) -> None:
    """Put names into the manifest of a folder; without a marker nothing is done.

    Args:
        state: What the folder is from now on; ``resumable`` and ``finished`` are kept, ``begun`` gives way to a former
            one when the run fails.
    """
    marker = read_marker(folder)
    if marker is None or (state in (None, marker["state"]) and {*names} <= {*marker["files"]}):
        return
    written = "writer" in marker and state != FINISHED
    write_marker(folder, marker["kind"], {*marker["files"], *names}, state or marker["state"], written)


def forget(folder: Path, *names: str) -> None:
    """Take names out of the manifest of a folder."""
    marker = read_marker(folder)
    if marker is not None and {*names} & {*marker["files"]}:
        write_marker(folder, marker["kind"], {*marker["files"]} - {*names}, marker["state"], "writer" in marker)


def is_written(folder: Path) -> bool:
    """Whether a process that lives is writing a folder: this one, or another one on this machine."""
    writer = _writer(folder)
    if writer.get("pid") == os.getpid():
        return folder in at_work
    return is_alive(writer.get("pid")) and _started(writer["pid"]) == writer.get("started")


def is_abandoned(folder: Path) -> bool:
    """Whether a process on this machine that was writing a folder is dead. Of other machines' nobody can tell."""
    return bool(_writer(folder)) and not is_written(folder)


def _writer(folder: Path) -> dict:
    """What the marker of a folder says of the process on this machine that writes it; empty where it says nothing."""
    writer = (read_marker(folder) or {}).get("writer")
    return writer if isinstance(writer, dict) and writer.get("host") == socket.gethostname() else {}


def _started(pid: int) -> float | None:
    """When a process began, which tells it from a later one of the same number; None where that is not known."""
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def is_alive(pid: object) -> bool:
    """Whether there is a process of this number here."""
    if not isinstance(pid, int) or isinstance(pid, bool) or not 0 < pid < 2**31:
        return False
    if os.name == "nt":
        return True  # os.kill would end it there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def strangers(folder: Path) -> Iterator[Path]:
    """What in a folder its manifest does not list, at any depth."""
    return (path for path, ours in _walk(folder) if not ours)


def remove_listed(folder: Path) -> bool:
    """Delete from a folder what its manifest lists, its marker last, and the folder itself if nothing is left in it.

    Returns:
        Whether it is gone.
    """
    for path, ours in _walk(folder):
        if ours and path.is_dir() and not path.is_symlink():
            with suppress(OSError):  # somebody else's lie in it
                path.rmdir()
        elif ours:
            path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()
    return not folder.exists()


def names_in(folder: Path) -> list[str]:
    """The files in a folder, as a manifest lists them."""
    found = (path for path in folder.rglob("*") if path.is_file() and path != folder / MARKER)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _walk(folder: Path) -> Iterator[tuple[Path, bool]]:
    """All that is in a folder, what is in its folders before them and its marker last; each with whether it is ours.
    Nothing is said of what lies in a folder of somebody else's."""
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
                yield from ((inside, True) for inside in reversed(sorted(path.rglob("*"))))
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
    temporary = TEMPORARY.fullmatch(name)
    if name not in listed:
        return temporary is not None and (temporary["name"] in listed or temporary["name"] == MARKER)
    return path.name != CARD or OWN_CARD in path.read_text(encoding="utf-8", errors="replace")


def is_temporary(folder: Path) -> bool:
    """Whether a folder is one that we write under a name of its own, to be renamed."""
    named = TEMPORARY.fullmatch(folder.name)
    if named is None or folder.is_symlink() or not folder.is_dir():
        return False
    writer = (read_marker(folder) or {}).get("writer")
    return not any(folder.iterdir()) or (isinstance(writer, dict) and writer.get("pid") == int(named["pid"]))


def sweep(folder: Path, name: str = "*") -> list[Path]:
    """Delete the temporary folders in ``folder`` whose writers are dead.

    Args:
        name: A glob pattern of what they were to become.
    Returns:
        Those that were there.
    """
    found = []
    for path in folder.glob(f"{name}.tmp-*"):
        dead = is_temporary(path) and not is_alive(int(TEMPORARY.fullmatch(path.name)["pid"]))
        if dead and (is_abandoned(path) or not any(path.iterdir())):
            shutil.rmtree(path, ignore_errors=True)
            found.append(path)
    return found


def sweep_files(folder: Path) -> None:
    """Delete the files of ours that a dead process was writing in ``folder``, under names that were to be renamed."""
    for path, ours in list(_walk(folder)):
        named = TEMPORARY.fullmatch(path.name)
        if ours and named and path.is_file() and not is_alive(int(named["pid"])):
            path.unlink(missing_ok=True)
