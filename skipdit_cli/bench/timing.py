"""Timing that can be trusted: all cases in turn, round by round, so that a slow minute is slow for every one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from skipdit_cli.sampling.generate import Generated

MOST_ROUNDS = 3
PATIENCE = 300.0


@dataclass(frozen=True)
class Measured:
    """What one case took, one entry a round.

    Args:
        seconds: The denoising loop.
        seconds_end_to_end: Everything, with noise, cache and decoding.
        peak_bytes: The most memory the device held during the first run; None where it does not say (CPU).
        first: What the first round made.
    """

    seconds: list[float]
    seconds_end_to_end: list[float]
    peak_bytes: int | None
    first: Generated


def interleave(runs: Sequence[Callable[[], Generated]], rounds: int | None, device: torch.device) -> list[Measured]:
    """Run every case once a round, every other round in reverse order, and gather what each took.

    Args:
        runs: Each returns once its device is done, and times itself.
        rounds: None for 3, or fewer where the next would end after ``PATIENCE`` seconds.
    """
    began = time.perf_counter()
    measured: list[Measured | None] = [None for _ in runs]
    for number in range(rounds or MOST_ROUNDS):
        spent = time.perf_counter() - began
        if rounds is None and number and spent * (number + 1) / number > PATIENCE:
            break
        order = range(len(runs)) if number % 2 == 0 else reversed(range(len(runs)))
        for at in order:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            made = runs[at]()
            peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
            measured[at] = measured[at] or Measured([], [], peak, made)
            measured[at].seconds.append(made.denoise_seconds)
            measured[at].seconds_end_to_end.append(made.total_seconds)
    return measured


def median(values: Sequence[float]) -> float:
    return float(np.median(values))


def spread(values: Sequence[float]) -> float:
    """The interquartile range."""
    low, high = np.percentile(values, [25, 75])
    return float(high - low)


def ratios(baseline: Sequence[float], values: Sequence[float]) -> list[float]:
    """How many times faster than the baseline, round by round."""
    return [a / b for a, b in zip(baseline, values)]
