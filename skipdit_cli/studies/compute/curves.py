"""Curves over training or compute: the values between their points, and their points as plots draw them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean

from skipdit_cli.reports import Point
from skipdit_cli.studies.spread import half_width, spread


def checkpointing_steps(train_steps: int, checkpoints: int) -> int:
    """Return the optimizer steps between two of so many checkpoints."""
    return max(1, train_steps // checkpoints)


def interpolate(curve: Sequence[tuple[float, float]], x: float) -> float | None:
    """Return the value of a curve at ``x``, linear over its logarithm; None outside of the curve.

    Args:
        curve: Points (x, value) by rising x, which is above 0.
    """
    if len(curve) == 1 and x == curve[0][0]:
        return curve[0][1]
    for (left, low), (right, high) in pairwise(curve):
        if left <= x <= right:
            share = math.log(x / left) / math.log(right / left) if right > left else 0.0
            return low + share * (high - low)
    return None


def column(curve: Sequence[dict[str, float]], metric: str, scale: float = 1.0) -> list[tuple[float, float]]:
    """Return a metric at the checkpoints of a training.

    Args:
        scale: What a step counts: its cost, in any unit.

    Returns:
        Points (step times ``scale``, value), for ``interpolate``.
    """
    return [(row["step"] * scale, row[metric]) for row in curve]


def seed_points(
    curves: Sequence[Sequence[dict[str, float]]], metric: str, digits: int, scale: float = 1.0
) -> list[Point]:
    """Return the mean of a metric at each checkpoint, with the spread over the trainings of all seeds as its bar.

    Args:
        curves: The checkpoints of each training; all have the same steps.
        digits: Decimals of the text on hover.
        scale: What a step counts on the axis across.
    """
    points = []
    for rows in zip(*curves):
        values = [row[metric] for row in rows]
        points.append(
            Point(rows[0]["step"] * scale, fmean(values), title=spread(values, digits), spread=half_width(values))
        )
    return points
