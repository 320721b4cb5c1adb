"""The files below a data folder: which are samples, and which are left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from skipdit_cli import console, media
from skipdit_cli.errors import UsageError


@dataclass(frozen=True)
class Found:
    """What lies below a folder, in sorted order.

    Args:
        samples: Pictures; or video files, and folders that hold the frames of one.
        left_out: All other files, but for hidden ones.
    """

    samples: list[Path]
    left_out: list[Path]


@dataclass(frozen=True)
class Bounds:
    """Where files may lie.

    Args:
        root: The data folder.
        allow_outside: Also elsewhere; it is then said.
    """

    root: Path
    allow_outside: bool = False

    def check(self, path: Path) -> None:
        """
        Raises:
            UsageError: The path, or a link on the way, leads out of the data folder, and that is not allowed.
        """
        where, root = os.path.realpath(path), os.path.realpath(self.root)
        if where == root or where.startswith(os.path.join(root, "")):
            return
        if not self.allow_outside:
            raise UsageError(
                f"Got {path}, which is {where}, outside the data folder {self.root}; give --allow-outside if that is "
                "meant."
            )
        console.warn_once("outside", f"{path} is {where}, outside the data folder, and is used, as others are.")


def walk(folder: Path, bounds: Bounds | None) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder at and below ``folder``, with its files; hidden parts left out, links followed.

    Args:
        bounds: None follows no link to a folder, and minds none to a file.
    Raises:
        UsageError: A link leads out of bounds, or to a folder that is met before; or a folder cannot be read.
    """
    met: dict[str, Path] = {}
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        files, below = [], []
        former = met.setdefault(os.path.realpath(here), here)
        if former is not here:
            raise UsageError(f"Got {here}, which leads to {former}: what lies there would be taken twice.")
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as cause:
            raise UsageError(f"Cannot read the folder {here}: {cause.strerror}.") from cause
        for entry in entries:
            if media.is_hidden(entry.name):
                continue
            path = here / entry.name
            if entry.is_symlink():
                if bounds is not None:
                    bounds.check(path)
                elif entry.is_dir():
                    continue
            (below if entry.is_dir() else files).append(path)
        yield here, files
        waiting += reversed(below)


def find_images(folders: Iterable[tuple[Path, list[Path]]]) -> Found:
    """
    Args:
        folders: As ``walk`` gives them.
    """
    samples, left_out = [], []
    for _, files in folders:
        for file in files:
            (samples if media.is_picture(file) else left_out).append(file)
    return Found(sorted(samples), left_out)


def find_videos(folders: Iterable[tuple[Path, list[Path]]]) -> Found:
    """As ``find_images``. Pictures beside a video are no frames."""
    samples, left_out = [], []
    for folder, files in folders:
        videos = [file for file in files if media.is_video(file)]
        frames = [] if videos else [file for file in files if media.is_frame(file)]
        samples += [folder] if frames else videos
        taken = {*videos, *frames}
        left_out += [file for file in files if file not in taken]
    return Found(sorted(samples), left_out)


def counted(files: list[Path], root: Path) -> str:
    """``cat/a.heic`` of one file; ``2 .txt, 1 .heic`` of more."""
    if len(files) == 1:
        return str(files[0].relative_to(root))
    suffixes = Counter(file.suffix.lower() or "without a suffix" for file in files)
    return ", ".join(f"{count:,} {suffix}" for suffix, count in suffixes.most_common())
