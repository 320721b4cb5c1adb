"""Recognise images, videos, and files that the operating system put into a folder, by name."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"),
    *(".m2ts", ".mts", ".flv", ".wmv", ".ogv", ".gif"),
)
IMAGE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".jp2"),
)
SYSTEM_NAMES = (
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__"),
)
"""Lower-case names that macOS, Windows, Linux, Python and network storage create in folders and on disks."""


def is_hidden(name: str) -> bool:
    """Return whether a file or folder name belongs to no data: ``.DS_Store``, ``._a.png``, ``__MACOSX`` and so on."""
    return name.startswith(".") or name.casefold() in SYSTEM_NAMES


@lru_cache(maxsize=1)
def frame_suffixes() -> frozenset[str]:
    """Return the suffixes of still images that the installed Pillow reads."""
    from PIL import Image

    Image.init()
    return frozenset(suffix for suffix in IMAGE_SUFFIXES if Image.EXTENSION.get(suffix) in Image.OPEN)


def is_frame(path: Path) -> bool:
    """Return whether a file is a still image, and so may be a frame of a video."""
    return path.suffix.lower() in frame_suffixes() and not is_hidden(path.name) and path.is_file()


def is_picture(path: Path) -> bool:
    """Return whether a file is an image: a still image, or a GIF, of which the first frame is read."""
    return is_frame(path) or (path.suffix.lower() == ".gif" and not is_hidden(path.name) and path.is_file())


def is_video(path: Path) -> bool:
    """Return whether a file has the suffix of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not is_hidden(path.name) and path.is_file()
