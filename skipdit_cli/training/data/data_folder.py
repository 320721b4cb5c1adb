"""The files of a data folder: which are samples and which are left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from skipdit_cli import media
from skipdit_cli.errors import UsageError
from skipdit_cli.training.observer import SILENT, Observer


@dataclass(frozen=True)
class FileSet:
    """The files below a folder, in sorted order.

    Args:
        samples: Images; or video files, and folders that hold the frames of a video.
        left_out: All other files except hidden ones.
    """

    samples: list[Path]
    left_out: list[Path]


@dataclass(frozen=True)
class Bounds:
    """Where the files of a data set may lie.

    Args:
        root: The data folder.
        allow_outside: Whether files may also lie elsewhere; the observer then gets a warning.
    """

    root: Path
    allow_outside: bool = False
    observer: Observer = SILENT

    def check(self, path: Path) -> None:
        """Check that a path may be read.

        Raises:
            UsageError: The path, or a link on the way, leads out of the data folder, and that is not allowed.
        """
        target, root = os.path.realpath(path), os.path.realpath(self.root)
        if target == root or target.startswith(os.path.join(root, "")):
            return
        if not self.allow_outside:
            raise UsageError(
                f"Got {path}, which is {target}, outside the data folder {self.root}; give --allow-outside if that is "
                "meant."
            )
        self.observer.warn(f"{path} is {target}, outside the data folder, and is used, as others are.", "outside")


def walk(folder: Path, bounds: Bounds | None) -> Iterator[tuple[Path, list[Path]]]:
    """Yield each folder at and below ``folder`` with its files; hidden ones are left out and links are followed.

    Args:
        bounds: None follows no link to a folder and accepts every link to a file.
    Raises:
        UsageError: A link leads out of bounds or to a folder that was visited, or a folder cannot be read.
    """
    visited: dict[str, Path] = {}
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        first = visited.setdefault(os.path.realpath(current), current)
        if first is not current:
            raise UsageError(f"Got {current}, which leads to {first}: what lies there would be taken twice.")
        files, subfolders = _entries(current, bounds)
        yield current, files
        waiting += reversed(subfolders)


def _entries(folder: Path, bounds: Bounds | None) -> tuple[list[Path], list[Path]]:
    """Return the files and the folders directly in ``folder``, as ``walk`` visits them."""
    files, subfolders = [], []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as cause:
        raise UsageError(f"Cannot read the folder {folder}: {cause.strerror}.") from cause
    for entry in entries:
        if media.is_hidden(entry.name):
            continue
        path = folder / entry.name
        if entry.is_symlink():
            if bounds is not None:
                bounds.check(path)
            elif entry.is_dir():
                continue
        (subfolders if entry.is_dir() else files).append(path)
    return files, subfolders


def find_images(folders: Iterable[tuple[Path, list[Path]]]) -> FileSet:
    """Return the images of a data folder.

    Args:
        folders: The folders with their files, from ``walk``.
    """
    samples, left_out = [], []
    for _, files in folders:
        for file in files:
            (samples if media.is_picture(file) else left_out).append(file)
    return FileSet(sorted(samples), left_out)


def find_videos(folders: Iterable[tuple[Path, list[Path]]]) -> FileSet:
    """Return the videos of a data folder: files, and folders of frames. Images beside a video file are no frames."""
    samples, left_out = [], []
    for folder, files in folders:
        videos = [file for file in files if media.is_video(file)]
        frames = [] if videos else [file for file in files if media.is_frame(file)]
        samples += [folder] if frames else videos
        left_out += [file for file in files if file not in {*videos, *frames}]
    return FileSet(sorted(samples), left_out)


def summary_of(files: list[Path], root: Path) -> str:
    """Return ``cat/a.heic`` for one file, and ``2 .txt, 1 .heic`` for several."""
    if len(files) == 1:
        return str(files[0].relative_to(root))
    suffixes = Counter(file.suffix.lower() or "without a suffix" for file in files)
    return ", ".join(f"{count:,} {suffix}" for suffix, count in suffixes.most_common())
