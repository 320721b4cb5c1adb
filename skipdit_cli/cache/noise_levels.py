"""The noise level of each step, as a scheduler tells it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch

LARGEST = 20.0
"""Bound of the levels, for a step that begins at pure noise or at data."""


def noise_levels(scheduler, timesteps: Sequence[float]) -> tuple[float, ...] | None:
    """Return log(alpha / sigma) before each step of a run, where x = alpha * data + sigma * noise; None where the
    scheduler has no levels that are known, or where the noise does not fall from step to step (inversion, repainting).

    The ``sigmas`` of diffusers' schedulers are sigma / alpha, from far above 1 on, or the sigma of a flow with alpha =
    1 - sigma, from 1 on; a scheduler without them has ``alphas_cumprod``, the squares of alpha, by timestep.

    Args:
        scheduler: The scheduler, after ``set_timesteps``.
        timesteps: Its timesteps, in order.
    """
    sigmas, alphas = getattr(scheduler, "sigmas", None), getattr(scheduler, "alphas_cumprod", None)
    if sigmas is not None and len(sigmas) >= len(timesteps):
        values = torch.as_tensor(sigmas).tolist()
        is_flow = max(values) <= 1
        ratios = [_log_ratio(1 - sigma if is_flow else 1.0, sigma) for sigma in values[: len(timesteps)]]
    elif alphas is not None:
        values = torch.as_tensor(alphas).tolist()
        squares = [values[min(max(round(t), 0), len(values) - 1)] for t in timesteps]
        ratios = [_log_ratio(square, 1 - square) / 2 for square in squares]
    else:
        return None
    return tuple(ratios) if all(later >= ratio for ratio, later in pairwise(ratios)) else None


def _log_ratio(signal: float, noise: float) -> float:
    if signal <= 0 or noise <= 0:
        return LARGEST if signal > noise else -LARGEST
    return min(max(math.log(signal / noise), -LARGEST), LARGEST)
