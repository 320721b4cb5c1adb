"""Means over seeds and their spread."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

RULE = (
    "A difference is called one only if all seeds agree on its sign and its mean exceeds its spread, the sample "
    "standard deviation. That is no proof: 3 seeds of models that do not differ show one in about 1 comparison of 5, "
    "5 seeds in 1 of 19."
)
"""What reports say of ``sign_beyond_spread``; the shares are of normal values, by simulation."""


def spread(values: Sequence[float], digits: int = 1, sign: str = "") -> str:
    """Return the mean of values and their sample standard deviation: "12.3 ±0.4"; of one value, the value alone.

    Args:
        digits: Decimals.
        sign: "+" for differences, whose mean has a sign even where it is positive.
    """
    text = f"{fmean(values):{sign}.{digits}f}"
    return text if len(values) < 2 else f"{text} ±{stdev(values):.{digits}f}"


def sign_beyond_spread(values: Sequence[float]) -> int:
    """Return the sign, 1 or -1, of differences that agree on it and whose mean exceeds their spread; 0 of others."""
    mean = fmean(values)
    agree = min(values) > 0 or max(values) < 0
    return (1 if mean > 0 else -1) if agree and abs(mean) > half_width(values) else 0


def half_width(values: Sequence[float]) -> float:
    """Return the sample standard deviation of values; 0 of one value."""
    return stdev(values) if len(values) > 1 else 0.0
