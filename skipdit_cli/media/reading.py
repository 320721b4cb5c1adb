"""Read videos: files of many formats, GIFs, and folders that hold one image per frame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING

from skipdit_cli.errors import UsageError
from skipdit_cli.media.decoders import decode_frames
from skipdit_cli.media.ffmpeg import unreadable
from skipdit_cli.media.intake import displayed_size, flatten, open_image, read_picture
from skipdit_cli.media.names import is_frame
from skipdit_cli.media.packets import Packets, read_packets

if TYPE_CHECKING:
    import numpy as np

MAX_BYTES = 1 << 30
"""Bytes of the frames that are read at once: 172 of 1920x1080."""


@dataclass(frozen=True)
class VideoFacts:
    """Properties of a video.

    Attributes:
        frames: Number of frames.
        width, height: Size as displayed: after rotation, with square pixels.
        fps: Average frame rate; None for a folder of frames, or if the file does not determine it.
    """

    frames: int
    width: int
    height: int
    fps: float | None


def probe_video(path: Path) -> VideoFacts:
    """Return the properties of a video, after decoding its first and last frame to verify that they are readable.

    Args:
        path: A video file, or a folder of frames.
    Raises:
        UsageError: The video is missing, no video, damaged or truncated; or the frames of a folder differ in size.
    """
    path = Path(path)
    if path.is_dir():
        frames, fps = _count_frames(path), None
    elif _is_gif(path):
        frames, fps = _gif_facts(path)
    else:
        packets = read_packets(path)
        frames, fps = packets.frames, packets.fps
    height, width = read_video(path, [0, frames - 1]).shape[1:3]
    return VideoFacts(frames, width, height, fps)


def read_video(path: Path, indices: Sequence[int]) -> np.ndarray:
    """Read frames of a video by number, as stored: no frame is dropped or repeated for a constant frame rate.

    Frames are rotated and scaled to square pixels, as players do. Of a file with an index, only the frames since the
    preceding key frame are decoded. decord decodes where it is installed and known to be correct, FFmpeg otherwise;
    their pixels are identical.

    Args:
        path: A video file, or a folder of frames.
        indices: Frame numbers, in any order, possibly repeated.
    Returns:
        uint8 (len(indices), H, W, 3), RGB.
    Raises:
        UsageError: As for ``probe_video``; or a number is out of range, or a frame cannot be decoded.
    """
    import numpy as np

    path = Path(path)
    numbers = [index(number) for number in indices]
    distinct = sorted(set(numbers)) or [0]
    if path.is_dir():
        pictures = _read_folder(path, distinct)
    elif _is_gif(path):
        pictures = _read_gif(path, distinct)
    else:
        packets = read_packets(path)
        _check_range(path, distinct, packets.frames)
        _check_bytes(path, len(distinct), packets.displayed_size(packets.size))
        pictures = [_with_square_pixels(picture, packets) for picture in decode_frames(path, packets, distinct)]
    if len({picture.shape for picture in pictures}) > 1:
        raise unreadable(path, "its frames differ in size")
    stacked = np.stack(pictures)
    return stacked if numbers == distinct else stacked[np.searchsorted(distinct, numbers)]


def frame_times(path: Path) -> np.ndarray:
    """Return when each frame of a video is displayed, in seconds since the first one: float64 (frames,), ascending.

    Raises:
        UsageError: As for ``probe_video``; or the video has no timestamps and no frame rate.
    """
    import numpy as np

    path = Path(path)
    if path.is_dir():
        raise UsageError(f"Got {path}, a folder of frames, which does not tell when each is shown.")
    if _is_gif(path):
        *starts, end = _gif_times(path)
        times = np.array(starts) if end else None
    else:
        times = read_packets(path).seconds()
    if times is None:
        raise UsageError(f"Got {path}, which does not tell when its frames are shown.")
    return times


def _with_square_pixels(picture: np.ndarray, packets: Packets) -> np.ndarray:
    import numpy as np
    from PIL import Image

    height, width = picture.shape[:2]
    size = packets.displayed_size((width, height))
    if size == (width, height):
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def is_frame_folder(path: Path) -> bool:
    """Return whether a path is a folder that directly holds images."""
    return Path(path).is_dir() and any(map(is_frame, Path(path).iterdir()))


def _check_range(path: Path, numbers: list[int], frames: int) -> None:
    outside = [number for number in numbers if not 0 <= number < frames]
    if outside:
        raise UsageError(f"Got frame {outside[0]} of {path}, but its frames are 0 to {frames - 1}.")


def _check_bytes(path: Path, count: int, size: tuple[int, int]) -> None:
    """Refuse frames that are too many or too large to be read at once, before any is decoded."""
    if 3 * count * size[0] * size[1] > MAX_BYTES:
        raise unreadable(path, f"{count} frames of {size[0]}x{size[1]} are more than {MAX_BYTES >> 30} GiB at once")


def frame_files(folder: Path) -> list[Path]:
    """Return the images in a folder in natural order: ``frame_2`` before ``frame_10``.

    Raises:
        UsageError: The folder holds no image.
    """

    def natural(path: Path) -> tuple:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)], path.name

    files = sorted(filter(is_frame, folder.iterdir()), key=natural)
    if not files:
        raise UsageError(f"Got {folder}, a folder without pictures, but expected a video file or a folder of frames.")
    return files


def _count_frames(folder: Path) -> int:
    """Return the number of frames in a folder, after comparing the sizes in their headers."""
    sizes: dict[tuple[int, int], Path] = {}
    files = frame_files(folder)
    for file in files:
        with open_image(file) as image:
            sizes.setdefault(displayed_size(image), file)
    if len(sizes) > 1:
        (size, file), (other_size, other_file) = list(sizes.items())[:2]
        difference = f"{file.name} has {size[0]}x{size[1]} and {other_file.name} {other_size[0]}x{other_size[1]}"
        raise unreadable(folder, f"its frames differ in size, {difference}")
    return len(files)


def _read_folder(folder: Path, numbers: list[int]) -> list[np.ndarray]:
    import numpy as np

    files = frame_files(folder)
    _check_range(folder, numbers, len(files))
    with open_image(files[0]) as image:
        _check_bytes(folder, len(numbers), image.size)
    return [np.asarray(read_picture(files[number]).convert("RGB")) for number in numbers]


def _is_gif(path: Path) -> bool:
    """Whether a file starts as a GIF does; GIFs are read with Pillow, as decord cannot read them."""
    if not path.is_file():
        raise UsageError(f"Got {path}, which is not there, but expected a video file or a folder of frames.")
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GIF8"
    except OSError as cause:
        raise unreadable(path, cause.strerror or str(cause)) from cause


def _gif_facts(path: Path) -> tuple[int, float | None]:
    times = _gif_times(path)
    frames = len(times) - 1
    return frames, round(frames / times[-1], 3) if times[-1] else None


def _gif_times(path: Path) -> np.ndarray:
    """Return when each frame of a GIF begins, in seconds, and when the last one ends: float64 (frames + 1,)."""
    import numpy as np

    milliseconds = [0]
    with open_image(path, "a video") as image:
        for number in range(image.n_frames):
            image.seek(number)
            milliseconds.append(milliseconds[-1] + image.info.get("duration", 0))
    return np.array(milliseconds) / 1000


def _read_gif(path: Path, numbers: list[int]) -> list[np.ndarray]:
    import numpy as np

    pictures = []
    with open_image(path, "a video") as image:
        _check_range(path, numbers, image.n_frames)
        _check_bytes(path, len(numbers), image.size)
        for number in numbers:
            image.seek(number)
            pictures.append(np.asarray(flatten(image, path).convert("RGB")))
    return pictures
