"""Run the ffmpeg program of imageio-ffmpeg under a time limit, and read its pictures as arrays."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skipdit_cli.errors import SkipditError, UsageError
from skipdit_cli.media.intake import MAX_PIXELS

if TYPE_CHECKING:
    import numpy as np

TIME_LIMIT = 120  # seconds; reading stops at a file that takes longer
CONTAINERS = "mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,flv,asf,ogg"  # no images, texts or playlists
MAX_BLOCK = 1 << 29  # bytes that ffmpeg allocates in one piece: less than an index of a billion frames takes
MAX_OUTPUT = 1 << 26  # bytes of a table of packets; those of eleven hours at 25 frames a second
CONVERSION = "scale=flags=bicubic,format=rgb24"  # the conversion of decord, bit for bit
PPM_HEADER = re.compile(rb"P6\n(\d+) (\d+)\n255\n")


def unreadable(path: Path, reason: str) -> UsageError:
    """Return the error for a file that cannot be read as a video."""
    return UsageError(f"Got {path}, which cannot be read as a video: {reason}.")


def run_ffmpeg(path: Path, *arguments: str, seek: Sequence[str] = ()) -> tuple[int, bytes, str]:
    """Run ffmpeg on a video file.

    Args:
        arguments: Options of the output, which goes to a pipe.
        seek: Options of the input.
    Returns:
        The exit code, the output, and the log, each line of which names its level.
    Raises:
        UsageError: ffmpeg takes longer than ``TIME_LIMIT``.
        SkipditError: ffmpeg is missing, or older than 5.1.
    """
    import imageio_ffmpeg

    log_options = ["-hide_banner", "-nostdin", "-loglevel", "level+info", "-max_alloc", str(MAX_BLOCK)]
    source = [
        "-max_pixels",
        str(MAX_PIXELS),
        "-threads",
        "1",
        "-copyts",
        *seek,
        "-format_whitelist",
        CONTAINERS,
        "-i",
        f"file:{path}",
    ]
    try:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), *log_options, *source, *arguments, "-"]
        process = subprocess.run(command, capture_output=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired as cause:
        raise unreadable(path, f"ffmpeg was not done with it after {TIME_LIMIT} seconds") from cause
    except (OSError, RuntimeError) as cause:
        raise SkipditError(
            "Videos are read by ffmpeg, which cannot be started; pip install imageio-ffmpeg."
        ) from cause
    log = process.stderr.decode(errors="replace")
    if "Unrecognized option" in log:
        raise SkipditError(f"The ffmpeg at {command[0]} is too old to read videos; pip install -U imageio-ffmpeg.")
    return process.returncode, process.stdout, log


def tabulate(path: Path, *arguments: str) -> tuple[int, bytes, str]:
    """Run ffmpeg for a table of the packets of a file, by its muxer ``framecrc``.

    Args:
        arguments: Options of the output, but for its format.
    Returns:
        As ``run_ffmpeg``.
    Raises:
        UsageError: As ``run_ffmpeg``; or the table has more than ``MAX_OUTPUT`` bytes.
    """
    code, output, log = run_ffmpeg(path, *arguments, "-f", "framecrc", "-fs", str(MAX_OUTPUT))
    if len(output) >= MAX_OUTPUT:
        raise unreadable(path, f"it has more than {output.count(bytes([10])):,} frames")
    return code, output, log


def decode(path: Path, select: str, count: int, seek: float | None = None) -> list[np.ndarray]:
    """Decode some frames of a video, cropped and rotated as they are displayed.

    Args:
        select: Expression of ffmpeg's filter ``select``, which holds for these frames.
        count: Decoding stops after this many selected frames.
        seek: Time in seconds; decoding starts at the last key frame before it, instead of at the first frame.
    Returns:
        uint8 (H, W, 3) arrays, RGB; fewer than ``count`` if frames cannot be decoded.
    """
    import numpy as np

    start = [] if seek is None else ["-seek_timestamp", "1", "-noaccurate_seek", "-ss", f"{seek:.6f}"]
    arguments = ["-map", "0:V:0", "-vf", f"select='{select}',{CONVERSION}", "-fps_mode", "passthrough"]
    arguments += ["-frames:v", str(count), "-c:v", "ppm", "-f", "image2pipe"]
    output = run_ffmpeg(path, *arguments, seek=start)[1]
    pictures, offset = [], 0
    while header := PPM_HEADER.match(output, offset):
        width, height = int(header[1]), int(header[2])
        offset = header.end() + 3 * width * height
        if offset > len(output):
            break
        pixels = np.frombuffer(output, np.uint8, 3 * width * height, header.end())
        pictures.append(pixels.reshape(height, width, 3))
    return pictures
