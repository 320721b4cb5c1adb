"""Timing in interleaved rounds: every case runs once per round, so that a slow minute is slow for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from skipdit_cli.sampling.generate import Generated

MOST_ROUNDS = 3
"""Rounds of a bench that is not given a number of them."""
TIME_LIMIT = 300.0
"""Seconds after which such a bench begins no further round."""


@dataclass(frozen=True)
class Measured:
    """The measurements of one case, with one entry per round.

    Args:
        seconds: Duration of the denoising loop.
        seconds_end_to_end: Duration of the whole run, with noise, cache and decoding.
        peak_bytes: Peak memory of the device in the first round; None on a CPU, which does not report it.
        first: The result of the first round.
    """

    seconds: list[float]
    seconds_end_to_end: list[float]
    peak_bytes: int | None
    first: Generated


def interleave(
    runs: Sequence[Callable[[], Generated]],
    rounds: int | None,
    device: torch.device,
    known: Sequence[Measured | None] | None = None,
    save: Callable[[list[Measured]], None] = lambda measured: None,
) -> list[Measured]:
    """Run every case once per round, every other round in reverse order; return the measurements of each case.

    Args:
        runs: One function per case, which times itself and returns once its device is done.
        rounds: Number of rounds; None for ``MOST_ROUNDS``, or fewer if the next one would end after ``TIME_LIMIT``.
        device: The device of the model.
        known: What earlier rounds measured of each case, if there are any; they count as rounds of this bench.
        save: Called with all measurements after each whole round.
    """
    measured: list[Any] = list(known or [None for _ in runs])
    done = 0 if measured[0] is None else len(measured[0].seconds)
    start = time.perf_counter() - sum(sum(each.seconds_end_to_end) for each in measured if each is not None)
    for number in range(done, rounds or MOST_ROUNDS):
        elapsed = time.perf_counter() - start
        if rounds is None and number and elapsed * (number + 1) / number > TIME_LIMIT:
            break
        order = range(len(runs)) if number % 2 == 0 else reversed(range(len(runs)))
        for case in order:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            result = runs[case]()
            peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
            measured[case] = measured[case] or Measured([], [], peak, result)
            measured[case].seconds.append(result.denoise_seconds)
            measured[case].seconds_end_to_end.append(result.total_seconds)
        save(measured)
    return measured


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(np.median(values))


def spread(values: Sequence[float]) -> float | None:
    """Return the interquartile range; None of a single value, which has none."""
    if len(values) < 2:
        return None
    low, high = np.percentile(values, [25, 75])
    return float(high - low)


def ratios(baseline: Sequence[float], values: Sequence[float]) -> list[float]:
    """Return the speedup over the baseline in each round."""
    return [a / b for a, b in zip(baseline, values)]
