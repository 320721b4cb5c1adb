"""Handwritten digits, still and in motion: the data of the embedded models."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

CANVAS, LENGTH, COPIES = 12, 32, 8
DIRECTIONS = np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)])


def count() -> int:
    """How many videos there are: every scan of scikit-learn's digits, ``COPIES`` times, each on a way of its own."""
    return COPIES * len(scans()[0])


def label(index: int) -> int:
    """The digit that video ``index`` shows."""
    pictures, labels = scans()
    return int(labels[index % len(pictures)])


def showing(digit: int) -> list[int]:
    """The videos of a digit, a scan of another hand each."""
    return np.flatnonzero(scans()[1] == digit).tolist()


def moving_digit(index: int) -> np.ndarray:
    """Video ``index``: uint8 (LENGTH, CANVAS, CANVAS), grey. The scan, 8x8 and unchanged, goes a pixel a frame along a
    diagonal and bounces off the walls; start and direction are drawn from ``index``."""
    pictures, _ = scans()
    scan = pictures[index % len(pictures)]
    rng = np.random.default_rng(index)
    room = CANVAS - len(scan)
    start = rng.integers(0, room + 1, 2)
    step = DIRECTIONS[rng.integers(len(DIRECTIONS))]
    frames = np.zeros((LENGTH, CANVAS, CANVAS), np.uint8)
    for at, frame in enumerate(frames):
        top, left = _reflected(start + at * step, room)
        frame[top : top + len(scan), left : left + len(scan)] = scan
    return frames


def _reflected(place: np.ndarray, room: int) -> np.ndarray:
    """Where a point that bounces between 0 and ``room`` is, after going straight to ``place``."""
    folded = place % (2 * room)
    return np.minimum(folded, 2 * room - folded)


@lru_cache(maxsize=1)
def scans() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: uint8 (1797, 8, 8) grey, and what they show (1797,)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images * 255 / 16).round().astype(np.uint8), digits.target
