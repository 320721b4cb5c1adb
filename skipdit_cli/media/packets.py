"""Where the frames of a video file lie, found from its packets in one pass that decodes nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from skipdit_cli import console
from skipdit_cli.media.ffmpeg import run_ffmpeg, unreadable

if TYPE_CHECKING:
    import numpy as np

KEY, CORRUPT, DISCARD = 1, 2, 4  # AV_PKT_FLAG_*; DISCARD is what lies outside the cut of an mp4's edit list
NO_TIME = -(2**63)  # AV_NOPTS_VALUE
SEEKABLE = ("mov", "matroska", "avi")  # containers whose index ffmpeg's seeking follows
IDR = "filter_units=pass_types=5"  # of H.264 leaves the frames that no prediction reaches across
MOST_UNLIKE = 16  # sides of a pixel; beyond, a header is damaged, or meant to fill the memory
ALPHA = re.compile(r"yuva|rgba|bgra|argb|abgr|gbrap|ya\d")  # names of ffmpeg's pixel formats

# decord 0.6.0 (FFmpeg 4.1) gives the very pixels of ffmpeg for these, and for key frames no frame is shown before;
# elsewhere it takes frames for others, or converts differently.
DECORD_CONTAINERS = ("mov", "matroska")
DECORD_CODECS = ("h264", "hevc", "vp8", "vp9")
DECORD_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gray", "gbrp")


@dataclass(frozen=True)
class Packets:
    """The frames of a video stream, in the order of display.

    Attributes:
        frames: Their number.
        fps: On average; None where the file does not tell.
        times: int64 (frames,), ascending, in ticks; None where frames can only be counted from the first one on.
        entries: int64, ascending: the times at which decoding can start and is right from there on.
        tick: Seconds.
        size: (width, height) as stored, before any rotation.
        pixel: Width over height of a stored pixel as it is shown: the container's word, else the codec's, else 1.
        turned: It is shown after a quarter turn.
        suits_decord: decord reads the file right.
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

    def shown(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size at which a decoded and turned picture of ``size`` is shown: the side along the stored rows made
        longer or shorter, as players do."""
        width, height = size
        if self.turned:
            return width, max(1, round(height * self.pixel))
        return max(1, round(width * self.pixel)), height

    def seconds(self) -> np.ndarray | None:
        """When each frame is shown, from the first one on; by the average rate where times are not known, None
        without one."""
        import numpy as np

        if self.times is not None:
            return (self.times - self.times[0]) * float(self.tick)
        return None if self.fps is None else np.arange(self.frames) / self.fps


def packets_of(path: Path) -> Packets:
    """The frames of a video file; remembered until the file changes.

    Raises:
        UsageError: It is empty, no video, holds no frame, is cut off or damaged.
    """
    status = path.stat()
    if status.st_size == 0:
        raise unreadable(path, "it is empty")
    return _scanned(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16384)
def _scanned(path: Path, _changed: int, _size: int) -> Packets:
    import numpy as np

    copy = ("-map", "0:V:0", "-c", "copy", "-copyinkf", "-f", "framecrc")
    code, output, log = run_ffmpeg(path, "-map", "0:V:0", *copy, "-bsf:v:1", IDR)
    if code and "bitstream filter" in log:  # it knows some codecs only
        code, output, log = run_ffmpeg(path, *copy)
    stream = _stream(log.split("Output #0")[0])
    packets, idr, tick, size, pixel = _listed(output.decode())
    _check(path, code, log, stream, packets)
    if not 1 / MOST_UNLIKE <= pixel <= MOST_UNLIKE:
        raise unreadable(path, f"it says that its pixels are {pixel} times as wide as high")
    if ALPHA.match(stream.pixels):
        console.warn_once("alpha", f"{path} has a channel of transparency, which is left out of it and its like.")
    flags, shown = packets[:, 3], packets[packets[:, 3] & DISCARD == 0]
    times = np.sort(shown[:, 0])
    entries = np.sort(idr if stream.codec == "h264" else packets[flags & KEY > 0, 0])
    named = len(times) and times[0] != NO_TIME and (np.diff(times) > 0).all()  # one time, one frame
    timed = named and stream.container in SEEKABLE and len(entries) and entries[0] <= times[0]
    frames = len(times) if timed else _count(path)
    return Packets(
        frames=frames,
        fps=_rate(frames, shown, tick),
        times=times if timed else None,
        entries=entries,
        tick=tick,
        size=size,
        pixel=pixel,
        turned=stream.turned,
        suits_decord=bool(timed and stream.suits_decord(size) and _plain(packets, times, entries)),
    )


@dataclass(frozen=True)
class _Stream:
    """What ffmpeg's log says of the first video stream."""

    container: str
    codec: str
    pixels: str
    streams: int
    moved: bool
    turned: bool

    def suits_decord(self, size: tuple[int, int]) -> bool:
        """decord knows no flips, crops, odd heights of yuv420p, and chooses among several streams by itself."""
        known = self.container in DECORD_CONTAINERS and self.codec in DECORD_CODECS and self.pixels in DECORD_FORMATS
        return known and self.streams == 1 and not self.moved and not ("420" in self.pixels and size[1] % 2)


def _stream(log: str) -> _Stream:
    container = re.search(r"Input #0, (\w+)", log)
    videos = re.findall(r"^\[info\] +Stream #0:.*?: Video: (\w+)(?!.*attached pic)(.*)", log, re.MULTILINE)
    codec, details = videos[0] if videos else ("", "")
    pixels = re.search(r", (\w+)[(,]", details)
    moved = re.search(r"(?i)display ?matrix|cropping", log) is not None
    angle = re.search(r"(?i)display ?matrix: rotation of (-?[\d.]+)", log)
    turned = angle is not None and round(float(angle[1]) / 90) % 2 == 1
    return _Stream(container[1] if container else "", codec, pixels[1] if pixels else "", len(videos), moved, turned)


def _listed(table: str) -> tuple[np.ndarray, np.ndarray, Fraction, tuple[int, int], Fraction]:
    """ffmpeg's ``framecrc`` table: the packets as stored, int64 (N, 4) of (time, decoding time, duration, flags); the
    times of the IDR frames; the tick, in seconds; (width, height); width over height of a pixel."""
    import numpy as np

    tick, size, pixel, packets, idr = Fraction(0), (0, 0), Fraction(1), [], []
    for line in table.splitlines():
        if line.startswith("#tb 0: "):
            tick = Fraction(line[7:])
        elif line.startswith("#dimensions 0: "):
            width, height = line[15:].split("x")
            size = int(width), int(height)
        elif line.startswith("#sar 0: "):
            across, down = map(int, line[8:].split("/"))
            pixel = Fraction(across, down) if across > 0 and down > 0 else pixel  # 0/1 is: not said
        elif line[:2] in ("0,", "1,"):
            fields = line.split(",")
            time = int(fields[2])
            flags = next((int(field[3:], 16) for field in fields[6:] if field.startswith(" F=")), KEY)
            if line[0] == "1":
                idr.append(time)
            else:
                packets.append((time, int(fields[1]), int(fields[3]), flags))
    return np.array(packets, np.int64).reshape(-1, 4), np.array(idr, np.int64), tick, size, pixel


def _check(path: Path, code: int, log: str, stream: _Stream, packets: np.ndarray) -> None:
    """Refuse what ffmpeg complained of, unless it is of another stream."""
    complaints = re.findall(r"^(?:\[([^@\]\n]*)[^\]\n]*\] )?\[(?:error|fatal)\] (.*)$", log, re.MULTILINE)
    if "matches no streams" in log:
        raise unreadable(path, "it holds no video stream")
    if code and "Format not on whitelist" in log:
        raise unreadable(path, "it is of another kind")
    if code:
        why = complaints[0][1].rstrip(".") if complaints else f"exit code {code}"
        raise unreadable(path, f"it is no video, or not whole (ffmpeg: {why})")
    for source, complaint in complaints:
        if source.startswith("in#0") or source.strip().split(",")[0] in (stream.container, stream.codec):
            raise unreadable(path, f"it is damaged or cut off (ffmpeg: {complaint.rstrip('.')})")
    if (packets[:, 3] & CORRUPT).any():
        raise unreadable(path, "it is damaged or cut off")
    if not len(packets):
        raise unreadable(path, "it holds no frame")


def _count(path: Path) -> int:
    """The frames that come out when all is decoded."""
    decode = ("-map", "0:V:0", "-fps_mode", "passthrough", "-f", "framecrc")
    frames = sum(line.startswith("0,") for line in run_ffmpeg(path, *decode)[1].decode().splitlines())
    if not frames:
        raise unreadable(path, "no frame of it can be decoded")
    return frames


def _rate(frames: int, shown: np.ndarray, tick: Fraction) -> float | None:
    """Frames by the time they take together, by times of display or, where one has none, of decoding."""
    for times in (shown[:, 0], shown[:, 1]):
        if len(times) and times.min() != NO_TIME:
            span = float((times.max() - times.min() + shown[-1, 2]) * tick)
            return round(frames / span, 3) if span > 0 else None
    return None


def _plain(packets: np.ndarray, times: np.ndarray, entries: np.ndarray) -> bool:
    """Whether nothing is cut away, decoding can start at every key frame, and no frame stored after one is shown
    before it: decord numbers key frames by their place in the file."""
    import numpy as np

    keys = np.flatnonzero(packets[:, 3] & KEY)
    uncut = len(packets) == len(times) and times[0] >= 0 and len(keys) == len(entries)
    return bool(uncut and (packets[keys, 0] == times[keys]).all())
