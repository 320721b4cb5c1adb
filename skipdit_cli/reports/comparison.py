"""The samples of several rows, to be compared in pairs on a page: PNG files, and how far each two are apart."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

LIMIT = 5_000_000
"""The bytes of all pictures of a page, at most."""
SIDES = (512, 384, 256, 192, 128, 96, 64)
"""Sides in pixels, longest first, that pictures are scaled down to where they are too many."""
FEWEST = 4
"""Samples that are kept before pictures are scaled down to less than ``LEAST_SIDE``."""
LEAST_SIDE = 192
PIXELATED = 128
"""Pictures of fewer pixels a side are enlarged without smoothing."""


@dataclass(frozen=True)
class Comparison:
    """The samples of several rows.

    Args:
        names: The name of each row.
        samples: The name of each sample, which all rows have.
        files: Data URIs of PNG files, each once; the frames of a video lie side by side.
        places: For each row, the place in ``files`` of each sample.
        height, width, frames: Size of a frame, and the number of frames: 1 for images.
        psnr: For each pair of rows i < j, keyed "i-j", the PSNR in dB of each sample; None where the two are equal.
        left, right: The rows that are shown first.
        left_out: What was left out or scaled down for the size of the file, in one sentence; empty for nothing.
    """

    names: Sequence[str]
    samples: Sequence[str]
    files: Sequence[str]
    places: Sequence[Sequence[int]]
    height: int
    width: int
    frames: int
    psnr: Mapping[str, Sequence[float | None]]
    left: int
    right: int
    left_out: str = ""

    @property
    def worst_first(self) -> list[int]:
        """The samples by the PSNR of the two rows that are shown first, the lowest first."""
        low, high = sorted((self.left, self.right))
        values = self.psnr.get(f"{low}-{high}", [None] * len(self.samples))
        return sorted(range(len(values)), key=lambda at: math.inf if (value := values[at]) is None else value)


def make_comparison(
    rows: Mapping[str, np.ndarray],
    samples: Sequence[str],
    left: str | None = None,
    right: str | None = None,
    limit: int = LIMIT,
) -> Comparison | None:
    """Return the comparison of rows of samples, within a limit of bytes; None if there are fewer than two rows.

    Args:
        rows: Name of each row to its samples, uint8 (N, [F,] H, W, 3), of one shape.
        samples: The name of each sample.
        left, right: The rows that are shown first; by default the first two.
        limit: Bytes of all files together.
    """
    if len(rows) < 2:
        return None
    names = list(rows)
    videos = [images if images.ndim == 5 else images[:, None] for images in rows.values()]
    count, frames, height, width, _ = videos[0].shape
    for number, side in _reductions(count, max(height, width)):
        files, places = _encode([video[:number] for video in videos], side)
        if sum(map(len, files)) <= limit:
            break
    scale = min(1.0, side / max(height, width))
    kept = range(number)
    return Comparison(
        names=names,
        samples=[samples[at] for at in kept],
        files=files,
        places=places,
        height=max(1, round(height * scale)),
        width=max(1, round(width * scale)),
        frames=frames,
        psnr=_distances([video[:number] for video in videos]),
        left=names.index(left) if left in names else 0,
        right=names.index(right) if right in names else 1,
        left_out=_left_out(count, number, (height, width), scale),
    )


def _reductions(count: int, side: int) -> Iterator[tuple[int, int]]:
    """Yield numbers of samples and sides of pictures to try, from the whole to the least."""
    yield count, side
    few = min(count, FEWEST)
    sides = [each for each in SIDES if each < side]
    large = [each for each in sides if each >= LEAST_SIDE]
    yield from ((count, each) for each in large)
    yield from ((few, each) for each in (side, *sides))
    yield from ((number, sides[-1] if sides else side) for number in range(few - 1, 0, -1))


def _left_out(count: int, number: int, size: tuple[int, int], scale: float) -> str:
    """Return what was reduced, in one sentence; empty for nothing."""
    parts = []
    if number < count:
        parts.append(f"{count - number} of {count} samples are left out")
    if scale < 1:
        parts.append(f"pictures of {size[1]}x{size[0]} pixels are shown at {scale:.0%} of that")
    text = " and ".join(parts)
    return f"To keep this file small, {text}; figures are those of the full size." if parts else ""


def _encode(videos: Sequence[np.ndarray], side: int) -> tuple[list[str], list[list[int]]]:
    """Return the data URIs of all samples, each once, and the place of each row's samples among them."""
    known: dict[str, int] = {}
    places = [[known.setdefault(_data_uri(sample, side), len(known)) for sample in video] for video in videos]
    return list(known), places


def _data_uri(frames: np.ndarray, side: int) -> str:
    """Return a PNG of frames, uint8 (F, H, W, 3), side by side, as a data URI."""
    images = [_scaled(Image.fromarray(frame), side) for frame in frames]
    strip = Image.new("RGB", (sum(image.width for image in images), images[0].height))
    for at, image in enumerate(images):
        strip.paste(image, (at * image.width, 0))
    if (frames == frames[..., :1]).all():
        strip = strip.convert("L")
    file = io.BytesIO()
    strip.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _scaled(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(size * scale)) for size in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def _distances(videos: Sequence[np.ndarray]) -> dict[str, list[float | None]]:
    """Return the PSNR in dB of each sample for each pair of rows."""
    distances: dict[str, list[float | None]] = {}
    for i, one in enumerate(videos):
        for j in range(i + 1, len(videos)):
            errors = [float(np.mean((a.astype(np.float32) - b) ** 2)) for a, b in zip(one, videos[j])]
            distances[f"{i}-{j}"] = [
                round(10 * float(np.log10(255**2 / error)), 2) if error else None for error in errors
            ]
    return distances
