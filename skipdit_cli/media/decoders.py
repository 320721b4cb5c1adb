"""The two decoders of video files: decord, where it reads a file correctly, and the ffmpeg program otherwise."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import skipdit_cli.media.ffmpeg as ffmpeg
from skipdit_cli.media.packets import Packets

if TYPE_CHECKING:
    import numpy as np

MAX_GAP = 16  # frames; decoding this many unneeded ones is faster than another run of ffmpeg
MAX_TERMS = 100  # in one expression of ffmpeg
MAX_CLAIM = 1 << 24  # frames in the header of an mp4; decord reserves memory for as many, and ends the process without
MAX_HEADER = 1 << 26  # bytes of that header


def decode_frames(path: Path, packets: Packets, numbers: list[int]) -> list[np.ndarray]:
    """Decode frames by number.

    Args:
        numbers: Ascending frame numbers.
    Returns:
        uint8 (H, W, 3) arrays, RGB, rotated but with the pixel aspect ratio of the file.
    Raises:
        UsageError: A frame cannot be decoded.
    """
    pictures = _with_decord(path, packets, numbers)
    return _with_ffmpeg(path, packets, numbers) if pictures is None else pictures


def _with_decord(path: Path, packets: Packets, numbers: list[int]) -> list[np.ndarray] | None:
    """Decode with decord; None if it is missing, fails, or does not suit the file."""
    if not packets.suits_decord or _claimed_frames(path) > MAX_CLAIM:
        return None
    try:
        import decord
    except (ImportError, OSError, RuntimeError):  # no wheel for this machine, or one that does not load
        return None
    decord.logging.set_level(decord.logging.QUIET)
    try:
        # By default decord tolerates faults: it returns the previous frame for one that cannot be decoded.
        reader = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1, fault_tol="1e-9")
        pictures = reader.get_batch(numbers).asnumpy()
    except Exception:  # ffmpeg, which is tried next, decodes the frames or gives the reason
        return None
    if len(reader) != packets.frames or pictures.shape[1:3] != packets.size[::-1]:
        return None
    return list(pictures)


def _claimed_frames(path: Path) -> float:
    """Return the most frames that a table in the header of an mp4, its box ``moov``, claims.

    Returns:
        Infinity for a header that is too large or compressed; 0 for a file that has none.
    """
    import numpy as np

    claim, start, end = 0, 0, path.stat().st_size
    with path.open("rb") as file:
        while start + 16 <= end:
            file.seek(start)
            size, kind, long_size = struct.unpack(">I4sQ", file.read(16))
            size = long_size if size == 1 else size or end - start
            if kind == b"moov":
                file.seek(start)
                header = file.read(min(size, MAX_HEADER))
                if size > MAX_HEADER or b"cmov" in header:
                    return math.inf
                for table in re.finditer(b"stts.{4}(.{4})", header, re.DOTALL):  # pairs of a count and a duration
                    pairs = header[table.end() :][: 8 * int.from_bytes(table[1], "big")]
                    counts = np.frombuffer(pairs[: len(pairs) // 8 * 8], ">u4")[::2]
                    claim = max(claim, int(counts.sum(dtype=np.int64)))
            if size < 8:
                break
            start += size
    return claim


def _with_ffmpeg(path: Path, packets: Packets, numbers: list[int]) -> list[np.ndarray]:
    pictures: list[np.ndarray] = []
    for group, seek in _groups(packets, numbers):
        select = "+".join(_terms(packets, group))
        decoded = ffmpeg.decode(path, select, len(group), seek)
        if len(decoded) < len(group) and seek is not None:  # the seek landed too late
            decoded = ffmpeg.decode(path, select, len(group))
        if len(decoded) < len(group):
            raise ffmpeg.unreadable(path, f"its frame {group[len(decoded)]} cannot be decoded")
        pictures += decoded
    return pictures


def _groups(packets: Packets, numbers: list[int]) -> Iterator[tuple[list[int], float | None]]:
    """Yield groups of frames that one run of ffmpeg decodes, each with the time in seconds to seek to, if any."""
    group: list[int] = []
    start = 0
    for number in numbers:
        entry = _entry(packets, number)
        if group and (entry > group[-1] + MAX_GAP or len(_terms(packets, group)) == MAX_TERMS):
            yield group, _seek_time(packets, start)
            group = []
        if not group:
            start = entry
        group.append(number)
    yield group, _seek_time(packets, start)


def _terms(packets: Packets, group: list[int]) -> list[str]:
    """Return one term of ffmpeg's ``select`` expression for each range of consecutive frames."""
    import numpy as np

    ranges = np.split(group, np.flatnonzero(np.diff(group) > 1) + 1)
    variable, values = ("n", range(packets.frames)) if packets.times is None else ("pts", packets.times)
    return [f"between({variable},{values[numbers[0]]},{values[numbers[-1]]})" for numbers in ranges]


def _entry(packets: Packets, number: int) -> int:
    """Return the last frame, up to this one, from which this one can be decoded."""
    if packets.times is None:
        return 0
    entry = packets.entries[packets.entries.searchsorted(packets.times[number], "right") - 1]
    return int(packets.times.searchsorted(entry))


def _seek_time(packets: Packets, start: int) -> float | None:
    """Return a time halfway to the next frame: ffmpeg rounds, then takes the last key frame before the time."""
    if start == 0 or packets.times is None:
        return None
    time = float(packets.times[start : start + 2].mean() * packets.tick)
    return time if time > 0 else None  # ffmpeg takes a negative time for one relative to the end
