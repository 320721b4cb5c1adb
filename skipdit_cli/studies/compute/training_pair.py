"""Two trainings of one task, with and without skip branches, and how much training each needs for the same quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from skipdit_cli.studies.compute.curves import column, interpolate

VANILLA, SKIP = "vanilla", "skip"
VARIANTS = {VANILLA: "DiT", SKIP: "Skip-DiT"}
MEASURES = {"steps": "equal steps", "seconds": "equal clock", "macs": "equal FLOPs"}
"""What the training of the two models is measured in."""


@dataclass(frozen=True)
class Pair:
    """A model with and without skip branches.

    Args:
        name: The preset of the model.
        step_cost: For each of ``MEASURES``, what a training step costs, by variant.
        curves: For each variant, per seed, the quality at each checkpoint.
    """

    name: str
    step_cost: dict[str, dict[str, float]]
    curves: dict[str, list[list[dict[str, float]]]]

    def ratios(self, metric: str, measure: str) -> list[float]:
        """Return, for each seed, how many times the training of Skip-DiT the vanilla model needs for one quality.

        It is the quality that the worse of the two has in the end; what the better one needs for it is interpolated.
        """
        cost = self.step_cost[measure]
        return [
            training_ratio(*(_lists(curve, metric) for curve in curves)) * cost[VANILLA] / cost[SKIP]
            for curves in zip(self.curves[VANILLA], self.curves[SKIP])
        ]

    def is_told(self, metric: str) -> bool:
        """Return whether a metric can tell the trainings apart: in every seed, one of the models does not have at its
        first checkpoint the quality that ``ratios`` compares them at."""
        vanilla, skip = ([_lists(curve, metric)[1] for curve in self.curves[name]] for name in (VANILLA, SKIP))
        return all(max(one[0], other[0]) > compared_quality(one, other) for one, other in zip(vanilla, skip))

    def at_equal(self, metric: str, measure: str) -> dict[str, list[float]] | None:
        """Return the quality of both variants, per seed, at the largest cost that both trainings reach; None if one of
        them has no checkpoint at or before that cost."""
        cost = self.step_cost[measure]
        curves = {name: [column(curve, metric, cost[name]) for curve in self.curves[name]] for name in VARIANTS}
        budget = min(curve[-1][0] for each in curves.values() for curve in each)
        values = {name: [interpolate(curve, budget) for curve in each] for name, each in curves.items()}
        known = {name: [value for value in each if value is not None] for name, each in values.items()}
        return known if all(len(known[name]) == len(values[name]) for name in VARIANTS) else None


def _lists(curve: Sequence[dict[str, float]], metric: str) -> tuple[list[float], list[float]]:
    return [row["step"] for row in curve], [row[metric] for row in curve]


def compared_quality(vanilla: Sequence[float], skip: Sequence[float]) -> float:
    """Return the quality that two trainings are compared at: the best of the worse one, lower being better."""
    return max(min(vanilla), min(skip))


def training_ratio(
    vanilla: tuple[Sequence[float], Sequence[float]], skip: tuple[Sequence[float], Sequence[float]]
) -> float:
    """Return the steps of the vanilla model over those of the other for the worse of their final qualities.

    Args:
        vanilla, skip: Steps, ascending, and the quality at each, lower being better. The best so far counts.
    """
    best = [np.minimum.accumulate(np.asarray(values, float)) for _, values in (vanilla, skip)]
    quality = compared_quality(vanilla[1], skip[1])
    needed = [_steps_for(steps, values, quality) for (steps, _), values in zip((vanilla, skip), best)]
    return needed[0] / needed[1]


def _steps_for(steps: Sequence[float], best: np.ndarray, quality: float) -> float:
    """Return the step at which a falling curve reaches a quality; its first step, if it is better from the start."""
    at = int(np.argmax(best <= quality))
    if at == 0:
        return float(steps[at])
    share = (best[at - 1] - quality) / (best[at - 1] - best[at])
    return float(np.exp(np.log(steps[at - 1]) + share * (np.log(steps[at]) - np.log(steps[at - 1]))))
