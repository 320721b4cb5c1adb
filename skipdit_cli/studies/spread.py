"""Means over seeds and their spread."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return the mean of values and their sample standard deviation: "12.3 ±0.4"; of one value, the value alone."""
    text = f"{fmean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ±{stdev(values):.{digits}f}"


def half_width(values: Sequence[float]) -> float:
    """Return the sample standard deviation of values; 0 of one value."""
    return stdev(values) if len(values) > 1 else 0.0
