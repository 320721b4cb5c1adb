"""The heat maps of study ``smoothness``: its surfaces, and similarities by block and step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, log10
from typing import Any

from skipdit_cli.reports import Axis, HeatMap, HeatMaps
from skipdit_cli.studies.smoothness.surface import grid

TITLES = {
    "vanilla": "DiT",
    "vanilla-longer": "DiT, trained longer",
    "skip-dit": "Skip-DiT",
    "skip-dit, trunk": "Skip-DiT, branches unperturbed",
}
LEVELS = 6
"""The bounds between the levels of a surface."""

Surfaces = Mapping[str, Mapping[tuple[int, int], Sequence[Mapping[str, Any]]]]
"""Model to (training seed, direction seed) to the surface of each step."""


def surface_maps(surfaces: Surfaces, settings: Any) -> list[HeatMaps]:
    """Return the surfaces of each step, those of the first training seed and the first directions."""
    cells = [f"{value:g}" for value in grid(settings.radius, settings.points)]
    groups = []
    for at, step in enumerate(settings.steps):
        maps = [HeatMap(TITLES[name], next(iter(runs.values()))[at]["cosine"]) for name, runs in surfaces.items()]
        lowest = min(each.lowest[0] for each in maps)
        groups.append(
            HeatMaps(
                f"Perturbation surface at step {step}",
                maps,
                "The cosine between perturbed and unperturbed features when the weights are theta + alpha d1 + "
                "beta d2, for the first training seed and the first pair of directions. In the middle nothing is "
                "perturbed; the higher the cosines around it, the smoother is the model. The circle marks the lowest.",
                "cosine between perturbed and unperturbed features",
                Axis("alpha", cells),
                Axis("beta", cells),
                _bounds(lowest),
                has_contours=True,
            )
        )
    return groups


def _bounds(lowest: float) -> list[float]:
    """Return evenly spaced levels between 1 and the lowest value, in as few digits as keep them apart."""
    step = max(1 - lowest, 1e-9) / (LEVELS + 1)
    digits = 1 - floor(log10(step))
    return [round(1 - at * step, digits) for at in range(1, LEVELS + 1)]


def similarity_maps(similar: Mapping[str, Sequence[Mapping]]) -> list[HeatMaps]:
    """Return the similarity by block and step, of the first training seed."""
    groups = []
    for kind, title, measure in (
        ("successive", "Similarity of successive steps", "cosine of a block's output with that of the step before"),
        ("cached", "Similarity of cached to full features", "cosine of a block's output with that of an all-full run"),
    ):
        maps = [HeatMap(TITLES[name], each[0][kind]) for name, each in similar.items() if each[0][kind] is not None]
        if not maps:
            continue
        blocks, steps = len(maps[0].values), len(maps[0].values[0])
        first = 2 if kind == "successive" else 1
        across = Axis("step", [str(at + first) for at in range(steps)])
        caption = f"The {measure}, for the first training seed" + (
            "." if kind == "successive" else "; where a block did not run, nothing is drawn."
        )
        down = Axis("block", [str(at) for at in range(blocks)])
        groups.append(HeatMaps(title, maps, caption, measure, across, down))
    return groups
