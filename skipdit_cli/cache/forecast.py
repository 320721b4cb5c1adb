"""Forecasts of the cached feature at a later step: the polynomial through the last full steps."""

from __future__ import annotations

from collections.abc import Sequence

FORECASTS = {"reuse": 1, "linear": 2, "taylor2": 3}
"""Name to the number of full steps that it uses. ``reuse`` is the constant of Skip-Cache (and of DeepCache, arXiv
2312.00858). ``taylor2`` is TaylorSeer's second order (arXiv 2503.06923) as divided differences, exact on uneven
steps."""


def weights(forecast: str, times: Sequence[float], t: float) -> list[float]:
    """Return the weight of each remembered full step in the prediction at t (Lagrange's form).

    Args:
        forecast: One of ``FORECASTS``.
        times: Positions of the remembered full steps, newest first, all different. Early in a run there are fewer
            than the forecast could use, and its degree is lower.
        t: The position to predict at.

    Returns:
        Weights that sum to 1. At the newest position they are 1, 0, 0, so that the newest value comes out unchanged.
    """
    points = times[: FORECASTS[forecast]]
    result = []
    for k, t_k in enumerate(points):
        weight = 1.0
        for j, t_j in enumerate(points):
            if j != k:
                weight *= (t - t_j) / (t_k - t_j)
        result.append(weight)
    return result
