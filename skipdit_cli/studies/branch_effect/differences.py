"""Paired differences of cached runs: with skip branches minus without, at the same noise, cache, seed and training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from skipdit_cli.studies.branch_effect.cache_grid import Cell
from skipdit_cli.studies.compute.curves import interpolate
from skipdit_cli.studies.spread import half_width, sign_beyond_spread, spread

OWN, EXACT = "psnr", "psnr_exact"
"""The PSNR of a cached run to the uncached run of its own model, and to the exact solution of its own model."""
Runs = Mapping[str, Mapping[str, Any]]
"""What ``measure_caches`` returns as ``cells``."""


@dataclass(frozen=True)
class Effect:
    """The difference that skip branches make to one or more caches, in dB.

    Args:
        per_seed: The mean over the caches, for each training seed.
        better, caches: The number of caches with a mean over seeds above 0, and of all.
    """

    per_seed: tuple[float, ...]
    better: int
    caches: int

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return fmean(self.per_seed)

    @property
    def spread(self) -> float:
        """The sample standard deviation over seeds."""
        return half_width(self.per_seed)

    @property
    def sign(self) -> int:
        """1 or -1 where all seeds agree on the sign and the mean exceeds the spread, else 0."""
        return sign_beyond_spread(self.per_seed)

    def __str__(self) -> str:
        return spread(self.per_seed, 2, "+")

    @property
    def count(self) -> str:
        """How many caches are better: "12 of 20"."""
        return f"{self.better} of {self.caches}"


def effect(
    pairs: Sequence[tuple[Runs, Runs]], cells: Iterable[Cell], difference: Callable[..., float | None]
) -> Effect | None:
    """Return the effect on some caches; None if no cache has a difference in all seeds.

    Args:
        pairs: For each seed, the runs with branches and those without.
        cells: The caches.
        difference: ``equal_schedule`` or ``equal_flops`` of one measure, with the arguments (with, without, cell).
    """
    known = []
    for cell in cells:
        values = [value for pair in pairs if (value := difference(*pair, cell)) is not None]
        if len(values) == len(pairs):
            known.append(values)
    if not known:
        return None
    return Effect(tuple(map(fmean, zip(*known))), sum(fmean(row) > 0 for row in known), len(known))


def equal_schedule(measure: str) -> Callable[[Runs, Runs, Cell], float | None]:
    """Return the difference at the same full steps, where the runs with branches cost more."""

    def difference(with_branches: Runs, without: Runs, cell: Cell) -> float | None:
        ours, theirs = with_branches[cell.name][measure], without[cell.name][measure]
        return None if ours is None or theirs is None else ours - theirs

    return difference


def equal_flops(measure: str, cells: Sequence[Cell]) -> Callable[[Runs, Runs, Cell], float | None]:
    """Return the difference at the same multiply-adds: the model without branches may have more full steps.

    Its value is interpolated, over the logarithm of the cost, between two caches that differ in nothing else; there is
    none beyond the largest.

    Args:
        cells: All caches.
    """

    def difference(with_branches: Runs, without: Runs, cell: Cell) -> float | None:
        ours = with_branches[cell.name]
        family = [without[other.name] for other in cells if other.family == cell.family]
        curve = [(run["forwards"], run[measure]) for run in family if run[measure] is not None]
        theirs = None if ours[measure] is None else interpolate(sorted(curve), ours["forwards"])
        return None if theirs is None else ours[measure] - theirs

    return difference


def best_within(runs: Runs, cells: Iterable[Cell], budget: float, measure: str) -> float | None:
    """Return the highest value of the caches that cost no more than a budget; None if there is no such cache."""
    values = [run[measure] for run in (runs[cell.name] for cell in cells) if (run["forwards"] or math.inf) <= budget]
    return max((value for value in values if value is not None), default=None)
