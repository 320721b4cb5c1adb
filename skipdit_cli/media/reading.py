"""Videos in: files of many kinds, and folders that hold a picture a frame."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING

from skipdit_cli.errors import UsageError
from skipdit_cli.media.decoders import with_decord, with_ffmpeg
from skipdit_cli.media.ffmpeg import unreadable
from skipdit_cli.media.intake import flat, opened, read_picture, shown_size
from skipdit_cli.media.names import is_frame
from skipdit_cli.media.packets import Packets, packets_of

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class VideoFacts:
    """Width and height as shown, after any rotation and with square pixels; ``fps`` on average, None for a folder or
    where a file does not tell."""

    frames: int
    width: int
    height: int
    fps: float | None


def probe_video(path: Path) -> VideoFacts:
    """What a video is. Its first and its last frame are decoded, to see that they can be.

    Args:
        path: A video file, or a folder of frames.
    Raises:
        UsageError: It is missing, no video, damaged or cut off; or the frames of a folder differ in size.
    """
    path = Path(path)
    if path.is_dir():
        frames, fps = _count_frames(path), None
    elif _is_gif(path):
        frames, fps = _gif_facts(path)
    else:
        packets = packets_of(path)
        frames, fps = packets.frames, packets.fps
    height, width = read_video(path, [0, frames - 1]).shape[1:3]
    return VideoFacts(frames, width, height, fps)


def read_video(path: Path, indices: Sequence[int]) -> np.ndarray:
    """Frames of a video by number, as stored: none is dropped or repeated to make a rate constant. Pixels that are
    not square are made so.

    Only what they need is decoded: of a file with an index, from the key frame before each. decord reads where it is
    installed and known to be right, ffmpeg everywhere else; their pixels are the same.

    Args:
        path: A video file, or a folder of frames.
        indices: In any order, repeated or not.
    Returns:
        uint8 (len(indices), H, W, 3), RGB.
    Raises:
        UsageError: As ``probe_video``; or a number is out of range, or a frame cannot be decoded.
    """
    import numpy as np

    path = Path(path)
    numbers = [index(number) for number in indices]
    wanted = sorted(set(numbers)) or [0]
    if path.is_dir():
        pictures = _read_folder(path, wanted)
    elif _is_gif(path):
        pictures = _read_gif(path, wanted)
    else:
        packets = packets_of(path)
        _check_range(path, wanted, packets.frames)
        pictures = with_decord(path, packets, wanted)
        if pictures is None:
            pictures = with_ffmpeg(path, packets, wanted)
        pictures = [_squared(picture, packets) for picture in pictures]
    if len({picture.shape for picture in pictures}) > 1:
        raise unreadable(path, "its frames differ in size")
    stacked = np.stack(pictures)
    return stacked if numbers == wanted else stacked[np.searchsorted(wanted, numbers)]


def frame_times(path: Path) -> np.ndarray:
    """When each frame of a video is shown, in seconds from the first one on: float64 (frames,), ascending.

    Raises:
        UsageError: As ``probe_video``; or nothing tells.
    """
    import numpy as np

    path = Path(path)
    if path.is_dir():
        raise UsageError(f"Got {path}, a folder of frames, which does not tell when each is shown.")
    if _is_gif(path):
        *starts, end = _gif_times(path)
        times = np.array(starts) if end else None
    else:
        times = packets_of(path).seconds()
    if times is None:
        raise UsageError(f"Got {path}, which does not tell when its frames are shown.")
    return times


def _squared(picture: np.ndarray, packets: Packets) -> np.ndarray:
    """A decoded frame as it is shown; the same for both decoders, as it is done after them."""
    import numpy as np
    from PIL import Image

    height, width = picture.shape[:2]
    size = packets.shown((width, height))
    if size == (width, height):
        return picture
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def is_frame_folder(path: Path) -> bool:
    """Whether a folder directly holds pictures."""
    return Path(path).is_dir() and any(map(is_frame, Path(path).iterdir()))


def _check_range(path: Path, wanted: list[int], frames: int) -> None:
    outside = [number for number in wanted if not 0 <= number < frames]
    if outside:
        raise UsageError(f"Got frame {outside[0]} of {path}, but its frames are 0 to {frames - 1}.")


def frame_files(folder: Path) -> list[Path]:
    """Pictures by name, numbers in it by value: ``frame_2`` before ``frame_10``."""

    def natural(path: Path) -> tuple:
        return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", path.name)], path.name

    files = sorted(filter(is_frame, folder.iterdir()), key=natural)
    if not files:
        raise UsageError(f"Got {folder}, a folder without pictures, but expected a video file or a folder of frames.")
    return files


def _count_frames(folder: Path) -> int:
    """How many, if all are of one size, which their headers tell."""
    sizes: dict[tuple[int, int], Path] = {}
    files = frame_files(folder)
    for file in files:
        with opened(file) as image:
            sizes.setdefault(shown_size(image), file)
    if len(sizes) > 1:
        (one, first), (other, second) = list(sizes.items())[:2]
        between = f"{first.name} has {one[0]}x{one[1]} and {second.name} {other[0]}x{other[1]}"
        raise unreadable(folder, f"its frames differ in size, {between}")
    return len(files)


def _read_folder(folder: Path, wanted: list[int]) -> list[np.ndarray]:
    import numpy as np

    files = frame_files(folder)
    _check_range(folder, wanted, len(files))
    return [np.asarray(read_picture(files[number]).convert("RGB")) for number in wanted]


def _is_gif(path: Path) -> bool:
    """By its first bytes. Pillow reads these: decord cannot, and it alone is asked, so there is nothing to differ."""
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
    """When each frame begins, in seconds, and when the last one ends."""
    import numpy as np

    milliseconds = [0]
    with opened(path, "a video") as image:
        for number in range(image.n_frames):
            image.seek(number)
            milliseconds.append(milliseconds[-1] + image.info.get("duration", 0))
    return np.array(milliseconds) / 1000


def _read_gif(path: Path, wanted: list[int]) -> list[np.ndarray]:
    import numpy as np

    pictures = []
    with opened(path, "a video") as image:
        _check_range(path, wanted, image.n_frames)
        for number in wanted:
            image.seek(number)
            pictures.append(np.asarray(flat(image, path).convert("RGB")))
    return pictures
