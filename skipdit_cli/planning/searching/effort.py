"""How much a search tries: what to choose from for the time there is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """How much a search tries.

    Args:
        samplers: The samplers that are tried with a cache, of those that are best without.
        starts: The candidates with a cache from which a local search starts.
        passes: The most passes of a local search over all full steps, or over all timesteps.
        fits: The most lists of timesteps that a sampler is fitted at.
        tries: About how many candidates that makes for a budget.
    """

    samplers: int = 5
    starts: int = 3
    passes: int = 4
    fits: int = 80
    tries: int = 850


EFFORTS = (
    Effort(),
    Effort(samplers=2, starts=1, passes=2, fits=48, tries=440),
    Effort(samplers=1, starts=1, passes=1, fits=24, tries=220),
)
"""What to choose from for the time there is, the greatest first."""
