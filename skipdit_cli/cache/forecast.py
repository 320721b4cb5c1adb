"""How the cached feature is carried to a later step: the polynomial through the last full steps."""

from __future__ import annotations

from collections.abc import Sequence

FORECASTS = {"reuse": 1, "linear": 2, "taylor2": 3}
"""Name to number of full steps looked at. ``reuse`` is Skip-Cache's (and DeepCache's, arXiv 2312.00858) constant;
``taylor2`` is TaylorSeer's second order (arXiv 2503.06923) as divided differences, exact on uneven steps."""


def weights(forecast: str, times: Sequence[float], t: float) -> list[float]:
    """The weight of each remembered full step in the prediction at t (Lagrange's form).

    Args:
        times: Positions of the remembered full steps, newest first, all different; early in a run there are fewer
            than the forecast could use, and its degree is lower.
    Returns:
        Weights that sum to 1. At the newest position they are 1, 0, 0: moving nowhere changes nothing.
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
