"""The models of a grid with what was measured of them, and how quality depends on their compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from skipdit_cli.studies.compute.curves import column, interpolate
from skipdit_cli.training.sweep import BACKWARD

LEAST_MODELS = 3
"""The fewest models whose correlation says anything."""


@dataclass(frozen=True)
class Model:
    """A model of the grid and what was measured of it.

    Args:
        name: The name of its point.
        macs: Multiply-adds of a forward.
        parameters: Its parameters.
        batch: Samples in a training step.
        curves: For each seed its quality at each checkpoint, in the order of their steps.
        sampling: For each seed its FID by the number of denoising steps.
    """

    name: str
    macs: int
    parameters: int
    batch: int
    curves: list[list[dict[str, float]]]
    sampling: list[dict[int, float]]

    def last(self, metric: str) -> list[float]:
        """Return the quality at the end of training, one for each seed."""
        return [curve[-1][metric] for curve in self.curves]

    def training_macs(self, step: float) -> float:
        """Return the multiply-adds of the training up to a step."""
        return BACKWARD * self.macs * self.batch * step


def correlations(models: Sequence[Model], metric: str) -> list[float]:
    """Return Pearson's correlation of the logarithm of GFLOPs with a metric, one for each seed; none of fewer than
    three different GFLOPs, for two points always lie on a line."""
    across = [math.log(model.macs) for model in models]
    if len(set(across)) < LEAST_MODELS:
        return []
    columns = zip(*(model.last(metric) for model in models))
    return [float(np.corrcoef(across, column)[0, 1]) for column in columns]


def best_at_budgets(models: Sequence[Model], metric: str, count: int = 6) -> list[dict[str, Any]]:
    """Return the model of the best quality at some budgets of training compute, by interpolation over its curve.

    Budgets that fewer than two models have spent are left out.
    """
    ends = [[model.training_macs(curve[at]["step"]) for model in models for curve in model.curves] for at in (0, -1)]
    low, high = max(min(ends[0]), 1.0), max(ends[1])
    budgets = []
    for budget in np.geomspace(low, high, count):
        values = {model.name: value for model in models if (value := at_budget(model, metric, budget)) is not None}
        if len(values) > 1:
            best = min(values, key=lambda name: fmean(values[name]))
            budgets.append({"training_macs": float(budget), "best": best, "values": values})
    return budgets


def training_pairs(models: Sequence[Model], metric: str) -> list[dict[str, Any]]:
    """Return whether the larger of two models is better at equal training compute, for each pair.

    They are compared at the most compute that both have spent between checkpoints; pairs without such a budget are
    left out. Each has the share of seeds in which the larger model is the better one.
    """
    pairs = []
    for small, large in combinations(models, 2):
        budget = min(model.training_macs(model.curves[0][-1]["step"]) for model in (small, large))
        values = [at_budget(model, metric, budget) for model in (small, large)]
        if large.macs > small.macs and values[0] is not None and values[1] is not None:
            is_better = [other < one for one, other in zip(*values)]
            pairs.append({"small": small.name, "large": large.name, "larger_is_better": fmean(is_better)})
    return pairs


def at_budget(model: Model, metric: str, budget: float) -> list[float] | None:
    """Return a model's quality at a budget of training compute; None outside its checkpoints."""
    values = [interpolate(column(curve, metric, model.training_macs(1)), budget) for curve in model.curves]
    known = [value for value in values if value is not None]
    return known if len(known) == len(values) else None


def sampling_pairs(models: Sequence[Model]) -> list[dict[str, Any]]:
    """Return whether a smaller model catches up with a larger and better one by more sampling compute, for each pair.

    The larger model gets its best FID among the step counts that cost no more than the most that the smaller one
    spends; pairs in which it has none are left out. Each has the share of seeds in which it stays behind.
    """
    pairs = []
    for small, large in combinations(models, 2):
        if large.macs <= small.macs or fmean(large.last("fid")) >= fmean(small.last("fid")):
            continue
        behind = []
        for one, other in zip(small.sampling, large.sampling):
            budget = small.macs * max(one)
            affordable = [fid for steps, fid in other.items() if large.macs * steps <= budget]
            if affordable:
                behind.append(min(affordable) < min(one.values()))
        if behind:
            pairs.append({"small": small.name, "large": large.name, "stays_behind": fmean(behind)})
    return pairs
