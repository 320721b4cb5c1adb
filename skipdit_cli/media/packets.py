"""The frames of a video file and their timestamps, from its packets: one pass that decodes nothing."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from skipdit_cli.media.ffmpeg import Video, open_video, unreadable

if TYPE_CHECKING:
    import numpy as np

KEY, CORRUPT, DISCARD = 1, 2, 4  # AV_PKT_FLAG_*; DISCARD marks what the edit list of an mp4 cuts away
NO_TIMESTAMP = -(2**63)  # AV_NOPTS_VALUE
SEEKABLE = ("mov", "matroska", "avi")  # containers with an index that FFmpeg seeks by
IDR = "filter_units=pass_types=5"  # drops all H.264 packets but IDR frames, across which no frame is predicted
MAX_PIXEL_ASPECT_RATIO = 16  # a larger one is a damaged header, or one made to exhaust the memory
ALPHA = re.compile(r"yuva|rgba|bgra|argb|abgr|gbrap|ya\d")  # names of FFmpeg's pixel formats

# For these, and where every frame after a key frame is displayed after it, the frames of decord 0.6.0 (FFmpeg 4.1) are
# identical to FFmpeg's. Elsewhere it returns other frames than the ones requested, or converts colours differently.
DECORD_CONTAINERS = ("mov", "matroska")
DECORD_CODECS = ("h264", "hevc", "vp8", "vp9")
DECORD_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gray", "gbrp")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Packets:
    """The frames of a video stream, in display order.

    Attributes:
        frames: Number of frames.
        fps: Average frame rate; None if the file does not determine it.
        times: int64 (frames,), ascending presentation timestamps in ticks; None if frames can only be counted from the
            first one on.
        entries: int64, ascending timestamps of the frames at which decoding can start.
        tick: Time base, in seconds.
        size: (width, height) as stored, before rotation.
        pixel: Width over height of a stored pixel as displayed; the container overrides the codec.
        turned: Whether display rotates the frames by a quarter turn.
        suits_decord: Whether decord reads the file correctly.
    """

    frames: int
    fps: float | None
    times: np.ndarray | None
    entries: np.ndarray
    tick: Fraction
    size: tuple[int, int]
    pixel: Fraction
    turned: bool
    suits_decord: bool

    def displayed_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) with square pixels of a decoded and rotated frame; the side along the stored
        rows is scaled, as players do."""
        width, height = size
        if self.turned:
            return width, max(1, round(height * self.pixel))
        return max(1, round(width * self.pixel)), height

    def seconds(self) -> np.ndarray | None:
        """Return the display time of each frame in seconds, relative to the first one: float64 (frames,).

        Without timestamps the times follow the average frame rate; without that either, None is returned.
        """
        import numpy as np

        if self.times is not None:
            return (self.times - self.times[0]) * float(self.tick)
        return None if self.fps is None else np.arange(self.frames) / self.fps


def read_packets(path: Path) -> Packets:
    """Read the packets of a video file; the result is cached until the file changes.

    Raises:
        UsageError: The file is empty, no video, has no frame, or is truncated or damaged.
    """
    status = path.stat()
    if status.st_size == 0:
        raise unreadable(path, "it is empty")
    return _read_packets(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16384)
def _read_packets(path: Path, _modified: int, _size: int) -> Packets:
    import numpy as np

    with open_video(path) as video:
        packets, idr = _table(video)
        _check(video, packets)
        size = video.codec.width, video.codec.height
        tick, pixel = Fraction(video.stream.time_base), Fraction(video.stream.sample_aspect_ratio or 1)
        if not 1 / MAX_PIXEL_ASPECT_RATIO <= pixel <= MAX_PIXEL_ASPECT_RATIO:
            raise unreadable(path, f"it says that its pixels are {pixel} times as wide as high")
        if ALPHA.match(video.codec.pix_fmt or ""):
            logger.warning(
                "%s has an alpha channel, which is ignored, as in files like it.", path, extra={"topic": "alpha"}
            )
        flags, kept = packets[:, 3], packets[packets[:, 3] & DISCARD == 0]
        times = np.sort(kept[:, 0])
        entries = np.sort(idr if video.codec.name == "h264" else packets[flags & KEY > 0, 0])
        unique = len(times) and times[0] != NO_TIMESTAMP and (np.diff(times) > 0).all()
        timed = unique and video.format in SEEKABLE and len(entries) and entries[0] <= times[0]
        frames = len(times) if timed else _count_frames(path)
        rotation = re.search(r"(?i)display ?matrix: rotation of (-?[\d.]+)", video.description)
        return Packets(
            frames=frames,
            fps=_frame_rate(frames, kept, tick) or float(video.stream.average_rate or 0) or None,
            times=times if timed else None,
            entries=entries,
            tick=tick,
            size=size,
            pixel=pixel,
            turned=rotation is not None and round(float(rotation[1]) / 90) % 2 == 1,
            suits_decord=bool(timed and _suits_decord(video) and _is_simple(packets, times, entries)),
        )


def _table(video: Video) -> tuple[np.ndarray, np.ndarray]:
    """Return the packets in file order, int64 (N, 4) of (presentation timestamp, decoding timestamp, duration, flags),
    and the timestamps of the IDR frames of H.264."""
    import av
    import numpy as np
    from av.bitstream import BitStreamFilterContext

    rate = video.stream.guessed_rate
    duration = round(1 / (Fraction(rate) * Fraction(video.stream.time_base))) if rate else 0
    packets, idr, only_idr = [], [], None
    if video.codec.name == "h264":
        with suppress(av.FFmpegError):  # FFmpeg logs an error for damaged headers, here and for damaged packets below
            only_idr = BitStreamFilterContext(IDR, video.stream)
    for packet in video.packets():
        if not packet.size:
            continue
        time, decoding_time = (NO_TIMESTAMP if stamp is None else stamp for stamp in (packet.pts, packet.dts))
        flags = KEY * packet.is_keyframe | CORRUPT * packet.is_corrupt | DISCARD * packet.is_discard
        packets.append((time, decoding_time, packet.duration or duration, flags))
        with suppress(av.FFmpegError):
            idr += [time for _ in only_idr.filter(packet)] if only_idr else []
    return np.array(packets, np.int64).reshape(-1, 4), np.array(idr, np.int64)


def _check(video: Video, packets: np.ndarray) -> None:
    """Raise a UsageError for a file that FFmpeg found damaged."""
    errors = video.errors()
    if errors:
        raise unreadable(video.path, f"it is damaged or cut off (ffmpeg: {errors[0]})")
    if (packets[:, 3] & CORRUPT).any():
        raise unreadable(video.path, "it is damaged or cut off")
    if not len(packets):
        raise unreadable(video.path, "it holds no frame")


def _count_frames(path: Path) -> int:
    """Return the number of frames of a file without usable timestamps, which has to be decoded for it."""
    with open_video(path) as video:
        frames = sum(1 for _ in video.frames())
    if not frames:
        raise unreadable(path, "no frame of it can be decoded")
    return frames


def _frame_rate(frames: int, packets: np.ndarray, tick: Fraction) -> float | None:
    """Return the average frame rate, by presentation timestamps or, if one is missing, by decoding timestamps."""
    for times in (packets[:, 0], packets[:, 1]):
        if len(times) and times.min() != NO_TIMESTAMP:
            span = float((times.max() - times.min() + packets[-1, 2]) * tick)
            return round(frames / span, 3) if span > 0 else None
    return None


def _suits_decord(video: Video) -> bool:
    """Whether decord reads a stream of this kind: it ignores rotation and cropping, misreads odd heights of 4:2:0, and
    picks one of several streams by its own rule."""
    pixels = video.codec.pix_fmt
    known = video.format in DECORD_CONTAINERS and video.codec.name in DECORD_CODECS and pixels in DECORD_FORMATS
    moved = re.search(r"(?i)display ?matrix|cropping", video.description)
    return known and video.streams == 1 and not moved and not ("420" in pixels and video.codec.height % 2)


def _is_simple(packets: np.ndarray, times: np.ndarray, entries: np.ndarray) -> bool:
    """Whether nothing is cut away, decoding can start at every key frame, and key frames are displayed in file order:
    decord numbers a key frame by its position in the file."""
    import numpy as np

    keys = np.flatnonzero(packets[:, 3] & KEY)
    uncut = len(packets) == len(times) and times[0] >= 0 and len(keys) == len(entries)
    return bool(uncut and (packets[keys, 0] == times[keys]).all())
