"""The two decoders of video files: decord inside this process, and ffmpeg beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import skipdit_cli.media.ffmpeg as ffmpeg
from skipdit_cli.media.packets import Packets

if TYPE_CHECKING:
    import numpy as np

NEAR = 16  # frames; to decode so many more is quicker than to start ffmpeg once more
MOST_TERMS = 100  # of one expression of ffmpeg's


def with_decord(path: Path, packets: Packets, wanted: list[int]) -> list[np.ndarray] | None:
    """Ascending frames, uint8 (H, W, 3); None where decord is missing, fails, or does not suit the file."""
    if not packets.suits_decord:
        return None
    try:
        import decord
    except (ImportError, OSError, RuntimeError):  # no wheel for this machine, or one that does not load
        return None
    decord.logging.set_level(decord.logging.QUIET)
    try:
        # Without a limit to its tolerance, a frame that cannot be decoded is a copy of the one before.
        reader = decord.VideoReader(str(path.absolute()), ctx=decord.cpu(0), num_threads=1, fault_tol="1e-9")
        pictures = reader.get_batch(wanted).asnumpy()
    except Exception:  # ffmpeg, asked next, may do better, and else says why
        return None
    if len(reader) != packets.frames or pictures.shape[1:3] != packets.size[::-1]:
        return None
    return list(pictures)


def with_ffmpeg(path: Path, packets: Packets, wanted: list[int]) -> list[np.ndarray]:
    """Ascending frames, uint8 (H, W, 3).

    Raises:
        UsageError: One cannot be decoded.
    """
    pictures: list[np.ndarray] = []
    for part, seek in _parts(packets, wanted):
        expression = "+".join(_terms(packets, part))
        found = ffmpeg.decode(path, expression, len(part), seek)
        if len(found) < len(part) and seek is not None:  # it landed too late
            found = ffmpeg.decode(path, expression, len(part))
        if len(found) < len(part):
            raise ffmpeg.unreadable(path, f"its frame {part[len(found)]} cannot be decoded")
        pictures += found
    return pictures


def _parts(packets: Packets, wanted: list[int]) -> Iterator[tuple[list[int], float | None]]:
    """Parts that one run of ffmpeg decodes, each with the time in seconds to seek to, None for the first frame."""
    part: list[int] = []
    start = 0
    for number in wanted:
        entry = _entry(packets, number)
        if part and (entry > part[-1] + NEAR or len(_terms(packets, part)) == MOST_TERMS):
            yield part, _seek(packets, start)
            part = []
        if not part:
            start = entry
        part.append(number)
    yield part, _seek(packets, start)


def _entry(packets: Packets, number: int) -> int:
    """The last frame at or before this one from which it can be decoded."""
    if packets.times is None:
        return 0
    entry = packets.entries[packets.entries.searchsorted(packets.times[number], "right") - 1]
    return int(packets.times.searchsorted(entry))


def _seek(packets: Packets, start: int) -> float | None:
    """Between a frame and the next, as ffmpeg rounds times and takes the last key frame before one."""
    if start == 0 or packets.times is None:
        return None
    time = float(packets.times[start : start + 2].mean() * packets.tick)
    return time if time > 0 else None  # ffmpeg counts negative times from the end


def _terms(packets: Packets, part: list[int]) -> list[str]:
    """One term for each run of consecutive frames."""
    runs: list[list[int]] = []
    for number in part:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    if packets.times is None:
        return [f"between(n,{first},{last})" for first, last in runs]
    return [f"between(pts,{packets.times[first]},{packets.times[last]})" for first, last in runs]
