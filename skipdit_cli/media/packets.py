"""The frames of a video file and their timestamps, from its packets: one pass that decodes nothing."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from skipdit_cli.media.ffmpeg import tabulate, unreadable
from skipdit_cli.media.intake import MAX_PIXELS

if TYPE_CHECKING:
    import numpy as np

KEY, CORRUPT, DISCARD = 1, 2, 4  # AV_PKT_FLAG_*; DISCARD marks what the edit list of an mp4 cuts away
NO_TIMESTAMP = -(2**63)  # AV_NOPTS_VALUE
SEEKABLE = ("mov", "matroska", "avi")  # containers with an index that ffmpeg seeks by
IDR = "filter_units=pass_types=5"  # drops all H.264 packets but IDR frames, across which no frame is predicted
MAX_PIXEL_ASPECT_RATIO = 16  # a larger one is a damaged header, or one made to exhaust the memory
ALPHA = re.compile(r"yuva|rgba|bgra|argb|abgr|gbrap|ya\d")  # names of ffmpeg's pixel formats

# For these, and where every frame after a key frame is displayed after it, the frames of decord 0.6.0 (FFmpeg 4.1) are
# identical to ffmpeg's. Elsewhere it returns other frames than the ones requested, or converts colours differently.
DECORD_CONTAINERS = ("mov", "matroska")
DECORD_CODECS = ("h264", "hevc", "vp8", "vp9")
DECORD_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gray", "gbrp")

PACKET = re.compile(r"^([01]), *(-?\d+), *(-?\d+), *(-?\d+), *\d+, 0x\w+(?:, F=0x(\w+))?", re.MULTILINE)
ERROR = re.compile(r"^(?:\[([^@\]\n]*)[^\]\n]*\] )?\[(?:error|fatal)\] (.*)$", re.MULTILINE)

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

    copy = ("-map", "0:V:0", "-c", "copy", "-copyinkf")
    code, output, log = tabulate(path, "-map", "0:V:0", *copy, "-bsf:v:1", IDR)
    if code and "bitstream filter" in log:  # the filter exists for some codecs only
        code, output, log = tabulate(path, *copy)
    stream = _parse_log(log.split("Output #0")[0])
    packets, idr, tick, size, pixel = _parse_table(output.decode())
    _check(path, code, log, stream, packets)
    if size[0] * size[1] > MAX_PIXELS:
        raise unreadable(path, f"its frames are of {size[0]}x{size[1]} pixels, more than {MAX_PIXELS:,}")
    if not 1 / MAX_PIXEL_ASPECT_RATIO <= pixel <= MAX_PIXEL_ASPECT_RATIO:
        raise unreadable(path, f"it says that its pixels are {pixel} times as wide as high")
    if ALPHA.match(stream.pixel_format):
        message = "%s has an alpha channel, which is ignored, as in files like it."
        logger.warning(message, path, extra={"topic": "alpha"})
    flags, kept = packets[:, 3], packets[packets[:, 3] & DISCARD == 0]
    times = np.sort(kept[:, 0])
    entries = np.sort(idr if stream.codec == "h264" else packets[flags & KEY > 0, 0])
    unique = len(times) and times[0] != NO_TIMESTAMP and (np.diff(times) > 0).all()
    timed = unique and stream.container in SEEKABLE and len(entries) and entries[0] <= times[0]
    frames = len(times) if timed else _count_frames(path)
    return Packets(
        frames=frames,
        fps=_frame_rate(frames, kept, tick),
        times=times if timed else None,
        entries=entries,
        tick=tick,
        size=size,
        pixel=pixel,
        turned=stream.turned,
        suits_decord=bool(timed and stream.suits_decord(size[1]) and _is_simple(packets, times, entries)),
    )


@dataclass(frozen=True)
class _Stream:
    """The first video stream of a file that is not cover art, as the log of ffmpeg describes it.

    Attributes:
        streams: Number of such streams.
        moved: Whether display rotates, flips or crops the frames.
        turned: Whether display rotates the frames by a quarter turn.
    """

    container: str
    codec: str
    pixel_format: str
    streams: int
    moved: bool
    turned: bool

    def suits_decord(self, height: int) -> bool:
        """Whether decord reads a stream of this kind: it ignores rotation and cropping, misreads odd heights of 4:2:0,
        and picks one of several streams by its own rule."""
        known = self.codec in DECORD_CODECS and self.pixel_format in DECORD_FORMATS
        odd = "420" in self.pixel_format and height % 2
        return self.container in DECORD_CONTAINERS and known and self.streams == 1 and not self.moved and not odd


def _parse_log(log: str) -> _Stream:
    def first(pattern: str, text: str = log) -> str:
        match = re.search(pattern, text)
        return match[1] if match else ""

    videos = re.findall(r"^\[info\] +Stream #0:.*?: Video: (\w+)(?!.*attached pic)(.*)", log, re.MULTILINE)
    codec, details = videos[0] if videos else ("", "")
    angle = first(r"(?i)display ?matrix: rotation of (-?[\d.]+)")
    return _Stream(
        container=first(r"Input #0, (\w+)"),
        codec=codec,
        pixel_format=first(r", (\w+)[(,]", details),
        streams=len(videos),
        moved=bool(first(r"(?i)(display ?matrix|cropping)")),
        turned=round(float(angle or 0) / 90) % 2 == 1,
    )


def _parse_table(table: str) -> tuple[np.ndarray, np.ndarray, Fraction, tuple[int, int], Fraction]:
    """Parse the output of ffmpeg's muxer ``framecrc``.

    Returns:
        The packets in file order, int64 (N, 4) of (presentation timestamp, decoding timestamp, duration, flags); the
        timestamps of the IDR frames; the time base in seconds; (width, height); width over height of a pixel.
    """
    import numpy as np

    header = dict(re.findall(r"^#(\w+) 0: (.*)$", table, re.MULTILINE))
    width, height = map(int, header.get("dimensions", "0x0").split("x"))
    across, down = map(int, header.get("sar", "0/1").split("/"))
    pixel = Fraction(across, down) if across > 0 and down > 0 else Fraction(1)  # 0/1 stands for an unknown ratio
    packets, idr = [], []
    for stream, decoding_time, time, duration, flags in PACKET.findall(table):
        if stream == "1":
            idr.append(int(time))
        else:
            packets.append((int(time), int(decoding_time), int(duration), int(flags, 16) if flags else KEY))
    tick = Fraction(header.get("tb", 0))
    return np.array(packets, np.int64).reshape(-1, 4), np.array(idr, np.int64), tick, (width, height), pixel


def _check(path: Path, code: int, log: str, stream: _Stream, packets: np.ndarray) -> None:
    """Raise a UsageError for a file that ffmpeg found damaged; errors of its other streams do not matter."""
    errors = [(source.strip(), message.rstrip(".")) for source, message in ERROR.findall(log)]
    if "matches no streams" in log:
        raise unreadable(path, "it holds no video stream")
    if code and "Format not on whitelist" in log:
        raise unreadable(path, "it is of another kind")
    if code:
        reason = errors[0][1] if errors else f"exit code {code}"
        raise unreadable(path, f"it is no video, or not whole (ffmpeg: {reason})")
    for source, message in errors:
        if source.startswith("in#0") or source.split(",")[0] in (stream.container, stream.codec):
            raise unreadable(path, f"it is damaged or cut off (ffmpeg: {message})")
    if (packets[:, 3] & CORRUPT).any():
        raise unreadable(path, "it is damaged or cut off")
    if not len(packets):
        raise unreadable(path, "it holds no frame")


def _count_frames(path: Path) -> int:
    """Return the number of frames of a file without usable timestamps, which has to be decoded for it."""
    frames = len(PACKET.findall(tabulate(path, "-map", "0:V:0", "-fps_mode", "passthrough")[1].decode()))
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


def _is_simple(packets: np.ndarray, times: np.ndarray, entries: np.ndarray) -> bool:
    """Whether nothing is cut away, decoding can start at every key frame, and key frames are displayed in file order:
    decord numbers a key frame by its position in the file."""
    import numpy as np

    keys = np.flatnonzero(packets[:, 3] & KEY)
    uncut = len(packets) == len(times) and times[0] >= 0 and len(keys) == len(entries)
    return bool(uncut and (packets[keys, 0] == times[keys]).all())
