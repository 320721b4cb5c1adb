"""Forecasts of the cached feature at a later step: the polynomial through the last full steps."""

from __future__ import annotations

from collections.abc import Sequence

FORECASTS = {"reuse": 1, "linear": 2, "taylor2": 3}
"""Name to the number of full steps that it uses. ``reuse`` is the constant of Skip-Cache (and of DeepCache, arXiv
2312.00858). ``taylor2`` is TaylorSeer's second order (arXiv 2503.06923) as divided differences, exact on uneven
steps."""


def weights(forecast: str, times: Sequence[float], t: float, damping: float = 1.0) -> list[float]:
    """Return the weight of each remembered full step in the prediction at t.

    The prediction is the polynomial through the remembered values, in Newton's form with its k-th divided difference
    multiplied by damping^k. Divided differences of noisy values overshoot far from them, which HiCache (arXiv
    2508.16984) contracts in the same way.

    Args:
        forecast: One of ``FORECASTS``.
        times: Positions of the remembered full steps, newest first, all different. Early in a run there are fewer
            than the forecast could use, and its degree is lower.
        t: The position to predict at.
        damping: From 0, which keeps the newest value, to 1, which is the plain polynomial.

    Returns:
        Weights that sum to 1. At the newest position they are 1, 0, 0, so that the newest value comes out unchanged.
    """
    points = times[: FORECASTS[forecast]]
    if damping == 1:
        return _lagrange(points, t)
    result = [0.0] * len(points)
    for degree in range(len(points)):  # each Newton term is the polynomial of one degree minus that of the one below
        share = damping**degree - (damping ** (degree + 1) if degree + 1 < len(points) else 0.0)
        for k, weight in enumerate(_lagrange(points[: degree + 1], t)):
            result[k] += share * weight
    return result


def _lagrange(points: Sequence[float], t: float) -> list[float]:
    """Return the weights of the polynomial through the values at these points, at t (Lagrange's form)."""
    result = []
    for k, t_k in enumerate(points):
        weight = 1.0
        for j, t_j in enumerate(points):
            if j != k:
                weight *= (t - t_j) / (t_k - t_j)
        result.append(weight)
    return result
