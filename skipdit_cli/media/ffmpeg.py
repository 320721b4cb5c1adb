"""Demuxing and decoding with FFmpeg's libraries, as bundled with PyAV, under a time limit."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from skipdit_cli.errors import UsageError

if TYPE_CHECKING:
    import av
    import numpy as np

TIME_LIMIT = 120  # seconds; reading stops at a file that takes longer
OPTIONS = {
    # No image, text or playlist formats.
    "format_whitelist": "mov,matroska,avi,mpeg,mpegts,mpegvideo,m4v,h264,hevc,flv,asf,ogg",
    "fflags": "-genpts",  # PyAV generates timestamps by default; those of an AVI with B-frames are out of order
}


def unreadable(path: Path, reason: str) -> UsageError:
    """Return the error for a file that cannot be read as a video."""
    return UsageError(f"Got {path}, which cannot be read as a video: {reason}.")


class Video:
    """An open video file and its first video stream that is not cover art.

    Attributes:
        streams: Number of video streams.
        format: Short name of the container format.
        description: FFmpeg's description of the file; PyAV exposes side data of streams nowhere else.
    """

    def __init__(self, path: Path, container: av.container.InputContainer, log: list[tuple[int, str, str]]):
        from av.stream import Disposition

        videos = [video for video in container.streams.video if not video.disposition & Disposition.attached_pic]
        if not videos:
            raise unreadable(path, "it holds no video stream")
        self.path, self.container, self.stream, self.streams, self._log = path, container, videos[0], len(videos), log
        self.codec = self.stream.codec_context
        if self.codec is None:
            raise unreadable(path, "its codec is unknown")
        self.codec.thread_count = 1
        self.format = container.format.name.split(",")[0]
        self.description = container.dumps_format()
        self._deadline = time.monotonic() + TIME_LIMIT

    def errors(self) -> list[str]:
        """Return the errors that FFmpeg has logged for the container and the codec, not those for other streams."""
        sources = (self.format, self.codec.name)
        return [message for message, source in _errors(self._log) if source.split(",")[0] in sources]

    def packets(self) -> Iterator[av.Packet]:
        """Yield the packets of the stream in file order, then an empty one that flushes the decoder."""
        for packet in self.container.demux(self.stream):
            if time.monotonic() > self._deadline:
                raise _timeout(self.path)
            yield packet

    def frames(self) -> Iterator[av.VideoFrame]:
        """Yield the decoded frames in display order; packets that cannot be decoded are skipped."""
        import av

        for packet in self.packets():
            with suppress(av.FFmpegError):
                yield from packet.decode()


@contextmanager
def open_video(path: Path) -> Iterator[Video]:
    """Open a video file.

    Raises:
        UsageError: The file is no video, has no video stream, is incomplete, or takes longer than ``TIME_LIMIT``.
    """
    import av

    # PyAV below 19 raises for a metadata tag that is not UTF-8, unless told otherwise; 19 has no such argument.
    tags = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    av.logging.set_level(av.logging.INFO)
    av.logging.set_skip_repeated(False)  # otherwise a repeated message is held back and logged for a later file
    with av.logging.Capture() as log:
        try:
            with av.open(f"file:{path}", options=OPTIONS, timeout=TIME_LIMIT, **tags) as container:
                yield Video(path, container, log)
        except av.ExitError as cause:
            raise _timeout(path) from cause
        except av.FFmpegError as cause:
            messages = [message for message, _ in _errors(log)] or [str(cause.strerror)]
            if any("Format not on whitelist" in message for message in messages):
                raise unreadable(path, "it is of another kind") from cause
            raise unreadable(path, f"it is no video, or not whole (ffmpeg: {messages[0]})") from cause


def _timeout(path: Path) -> UsageError:
    return unreadable(path, f"ffmpeg was not done with it after {TIME_LIMIT} seconds")


def _errors(log: list[tuple[int, str, str]]) -> list[tuple[str, str]]:
    """Return the (message, source) of each logged error; a source is the name of a codec, container or filter."""
    import av

    return [(message.strip().rstrip("."), source) for level, source, message in log if level <= av.logging.ERROR]


def decode(
    path: Path, selection: Collection[int], count: int, seek: float | None = None, by_number: bool = False
) -> list[np.ndarray]:
    """Decode some frames of a video, cropped and rotated as they are displayed.

    Args:
        selection: Presentation timestamps of the frames, in units of the stream's time base.
        count: Decoding stops after this many selected frames.
        seek: Time in seconds; decoding starts at the last key frame before it, instead of at the first frame.
        by_number: ``selection`` holds frame numbers, counted from the first decoded frame, instead of timestamps.
    Returns:
        uint8 (H, W, 3) arrays, RGB.
    """
    pictures: list[np.ndarray] = []
    with open_video(path) as video:
        if seek is not None:
            video.container.seek(int(seek / video.stream.time_base), stream=video.stream)
        graphs: dict[tuple, av.filter.Graph] = {}
        for number, frame in enumerate(video.frames()):
            if (number if by_number else frame.pts) not in selection:
                continue
            kind = frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range
            graph = graphs[kind] = graphs.get(kind) or _filter_graph(video, frame)
            graph.vpush(frame)
            pictures.append(graph.vpull().to_ndarray())
            if len(pictures) == count:
                break
    return pictures


def _filter_graph(video: Video, frame: av.VideoFrame) -> av.filter.Graph:
    """Return the filters that turn decoded frames into displayed RGB; decord converts with the same settings."""
    import av

    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=video.stream.time_base
    )
    filters = [*_cropping(video.description), *_rotation(frame), ("scale", "flags=bicubic"), ("format", "rgb24")]
    graph.link_nodes(source, *(graph.add(*arguments) for arguments in filters), graph.add("buffersink")).configure()
    return graph


def _cropping(description: str) -> list[tuple[str, str]]:
    """Return the filter for the cropping that the container declares; decoders apply only the codec's."""
    borders = re.search(r"(?i)frame cropping: (\d+)/(\d+)/(\d+)/(\d+)", description)
    if not borders:
        return []
    top, bottom, left, right = map(int, borders.groups())
    return [("crop", f"iw-{left + right}:ih-{top + bottom}:{left}:{top}")]


def _rotation(frame: av.VideoFrame) -> list[tuple[str, str]]:
    """Return the filters that the ffmpeg program inserts for a display matrix (fftools, ffmpeg_filter.c)."""
    import numpy as np

    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return []
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    angle = round(math.degrees(math.atan2(b, a))) % 360
    flips = [("hflip", "")] * (angle == 180 and a < 0) + [("vflip", "")] * (d < 0)
    return {
        0: flips,
        90: [("transpose", "cclock_flip" if c > 0 else "clock")],
        180: flips,
        270: [("transpose", "clock_flip" if c < 0 else "cclock")],
    }.get(angle, [("rotate", f"{angle}*PI/180")])
