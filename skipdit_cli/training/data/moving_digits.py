"""Handwritten digits, still and in motion: the data of the embedded models."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

CANVAS, LENGTH, COPIES = 12, 32, 8
"""Height and width of a video, its number of frames, and the number of videos of each scan."""
FOLD = 5
"""One scan of this many is in the split ``test``."""
DIRECTIONS = np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)])


def count() -> int:
    """Return the number of videos: ``COPIES`` of every scan of scikit-learn's digits, each on a path of its own."""
    return COPIES * len(scans()[0])


def numbers(count: int, split: str | None = None) -> list[int]:
    """Return the numbers of the scans, or of the videos, of a split.

    All videos of one scan are in the split of that scan.

    Args:
        count: The number of scans or videos.
        split: ``train`` or ``test``; None for both.
    """
    total = len(scans()[0])
    return [i for i in range(count) if split is None or ((i % total) % FOLD == FOLD - 1) == (split == "test")]


def label(index: int) -> int:
    """Return the digit that video ``index`` shows."""
    images, labels = scans()
    return int(labels[index % len(images)])


def showing(digit: int) -> list[int]:
    """Return the numbers of the videos that show a digit, one per scan."""
    return np.flatnonzero(scans()[1] == digit).tolist()


def moving_digit(index: int) -> np.ndarray:
    """Return video ``index``: uint8 (LENGTH, CANVAS, CANVAS), grey.

    The 8x8 scan, unchanged, moves one pixel per frame along a diagonal and bounces off the walls; its start and
    direction are drawn from ``index``.
    """
    images, _ = scans()
    scan = images[index % len(images)]
    rng = np.random.default_rng(index)
    room = CANVAS - len(scan)
    start = rng.integers(0, room + 1, 2)
    step = DIRECTIONS[rng.integers(len(DIRECTIONS))]
    frames = np.zeros((LENGTH, CANVAS, CANVAS), np.uint8)
    for i, frame in enumerate(frames):
        top, left = _reflected(start + i * step, room)
        frame[top : top + len(scan), left : left + len(scan)] = scan
    return frames


def _reflected(position: np.ndarray, room: int) -> np.ndarray:
    """Return where a point that bounces between 0 and ``room`` is after a straight path to ``position``."""
    folded = position % (2 * room)
    return np.minimum(folded, 2 * room - folded)


@lru_cache(maxsize=1)
def scans() -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's digits, uint8 (1797, 8, 8) in grey, and their labels (1797,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images * 255 / 16).round().astype(np.uint8), digits.target
