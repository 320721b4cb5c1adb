"""The ffmpeg program that imageio-ffmpeg carries: run under a time limit, and its pictures as arrays."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skipdit_cli.errors import SkipditError, UsageError

if TYPE_CHECKING:
    import numpy as np

TIME_LIMIT = 120  # seconds; a file on which ffmpeg takes longer is given up
CONTAINERS = "mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,flv,asf,ogg"  # no pictures, texts or playlists
CONVERSION = "scale=flags=bicubic,format=rgb24"  # what decord asks of swscale, bit for bit
PICTURE = re.compile(rb"P6\n(\d+) (\d+)\n255\n")


def unreadable(path: Path, why: str) -> UsageError:
    return UsageError(f"Got {path}, which cannot be read as a video: {why}.")


def run_ffmpeg(path: Path, *arguments: str, seek: Sequence[str] = ()) -> tuple[int, bytes, str]:
    """Exit code, output, and log (each line with its level) of ffmpeg reading ``path``; ``seek`` goes before it.

    Raises:
        UsageError: It took longer than ``TIME_LIMIT``.
        SkipditError: There is no ffmpeg, or one of before 5.1.
    """
    import imageio_ffmpeg

    log = ["-hide_banner", "-nostdin", "-loglevel", "level+info"]
    read = ["-threads", "1", "-copyts", *seek, "-format_whitelist", CONTAINERS, "-i", f"file:{path}"]
    try:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), *log, *read, *arguments, "-"]
        done = subprocess.run(command, capture_output=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired as cause:
        raise unreadable(path, f"ffmpeg was not done with it after {TIME_LIMIT} seconds") from cause
    except (OSError, RuntimeError) as cause:
        raise SkipditError(
            "Videos are read by ffmpeg, which cannot be started; pip install imageio-ffmpeg."
        ) from cause
    told = done.stderr.decode(errors="replace")
    if "Unrecognized option" in told:
        raise SkipditError(f"The ffmpeg at {command[0]} is too old to read videos; pip install -U imageio-ffmpeg.")
    return done.returncode, done.stdout, told


def decode(path: Path, select: str, count: int, seek: float | None = None) -> list[np.ndarray]:
    """The pictures, uint8 (H, W, 3), of the frames for which ``select`` holds, an expression of the filter of that
    name.

    Args:
        count: No more are decoded after so many.
        seek: Decoding starts at the last key frame before this time in seconds, not at the first frame.
    """
    start = [] if seek is None else ["-seek_timestamp", "1", "-noaccurate_seek", "-ss", f"{seek:.6f}"]
    filters = f"select='{select}',{CONVERSION}"
    arguments = ["-map", "0:V:0", "-vf", filters, "-fps_mode", "passthrough", "-frames:v", str(count)]
    return _pictures(run_ffmpeg(path, *arguments, "-c:v", "ppm", "-f", "image2pipe", seek=start)[1])


def _pictures(output: bytes) -> list[np.ndarray]:
    """The whole pictures at the start of a stream of PPM files."""
    import numpy as np

    found, at = [], 0
    while head := PICTURE.match(output, at):
        width, height = int(head[1]), int(head[2])
        at = head.end() + 3 * width * height
        if at > len(output):
            break
        found.append(np.frombuffer(output, np.uint8, 3 * width * height, head.end()).reshape(height, width, 3))
    return found
