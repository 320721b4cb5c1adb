"""Which files are pictures, which are videos, and which no person put there."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"),
    *(".m2ts", ".mts", ".flv", ".wmv", ".ogv", ".gif"),
)
STILL = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".pbm", ".pgm", ".ppm", ".pnm", ".jp2"),
)
OF_MACHINES = (
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__"),
)
"""What systems leave in folders that people copy, and at the top of disks: macOS, Windows, Linux, Python, and the
storage boxes of Synology and others. In lower case."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is nobody's data: ``.DS_Store``, ``._a.png``, ``.ipynb_checkpoints``,
    ``__MACOSX`` and the like."""
    return name.startswith(".") or name.casefold() in OF_MACHINES


@lru_cache(maxsize=1)
def frame_suffixes() -> frozenset[str]:
    """Suffixes of still pictures that this machine's Pillow reads."""
    from PIL import Image

    Image.init()
    return frozenset(suffix for suffix in STILL if Image.EXTENSION.get(suffix) in Image.OPEN)


def is_frame(path: Path) -> bool:
    """Whether a file is a picture that may be a frame of a video."""
    return path.suffix.lower() in frame_suffixes() and not is_hidden(path.name) and path.is_file()


def is_picture(path: Path) -> bool:
    """As ``is_frame``, or a gif, whose first picture it then is."""
    return is_frame(path) or (path.suffix.lower() == ".gif" and not is_hidden(path.name) and path.is_file())


def is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and not is_hidden(path.name) and path.is_file()
