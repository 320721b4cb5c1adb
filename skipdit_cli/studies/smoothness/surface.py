"""Perturbation surfaces: how far features move at the same inputs when the weights do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from skipdit_cli.families.pipeline_parts import transformer_of
from skipdit_cli.sampling.generate import generate
from skipdit_cli.studies.smoothness.directions import Plane
from skipdit_cli.trunk import Trunk

REFINEMENT = 16
"""Cells of the interpolated surface between two points of the grid, for the area above a level."""


@dataclass(frozen=True)
class Call:
    """The inputs of a transformer in one denoising step: x_t, t and the conditions.

    Args:
        args, kwargs: The arguments of its forward.
    """

    args: tuple
    kwargs: dict[str, Any]

    @torch.no_grad()
    def run(self, transformer) -> Any:
        """Return what the transformer makes of these inputs."""
        return transformer(*self.args, **self.kwargs)


@dataclass(frozen=True)
class Surface:
    """The similarity of perturbed to unperturbed features over alpha (columns) and beta (rows).

    Args:
        cosine: The cosine, mean over the samples.
        relative_l2: ``||f' - f|| / ||f||``, mean over the samples.
    """

    cosine: list[list[float]]
    relative_l2: list[list[float]]


def record_calls(pipe, conditions: Sequence[int | str | None], steps: Collection[int], **settings: Any) -> list[Call]:
    """Sample with a pipeline, and return the inputs of its transformer at some denoising steps.

    Args:
        conditions, settings: As for ``generate``.
        steps: The numbers of the steps, from 1 on; for a pipeline that calls its transformer once per step.
    """
    calls: list[Call] = []
    number = 0

    def keep(module, args, kwargs) -> None:
        nonlocal number
        number += 1
        if number in steps:
            calls.append(_copied(Call(args, kwargs)))

    handle = transformer_of(pipe).register_forward_pre_hook(keep, with_kwargs=True)
    try:
        generate(pipe, conditions, decode=False, **settings)
    finally:
        handle.remove()
    return calls


def features(transformer, trunk: Trunk, call: Call, block: int) -> torch.Tensor:
    """Return the output of one unit of the trunk at given inputs: (samples, values), of the stream that branches join.

    Args:
        block: The index of the unit; a negative one counts from the end.
    """
    at, outputs = range(len(trunk))[block], []

    def keep(module, args, result) -> None:
        outputs.append(trunk.joined_output(at, result).detach())

    handle = trunk.units[at][-1].register_forward_hook(keep)
    try:
        call.run(transformer)
    finally:
        handle.remove()
    samples = _batch_size(call)
    return outputs[0].reshape(samples, -1)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the cosine of features (samples, values), mean over the samples, in float64. It is exactly 1 for equal
    features, as the root of a square is exact."""
    a, b = a.double(), b.double()
    return float(((a * b).sum(1) / ((a * a).sum(1) * (b * b).sum(1)).sqrt()).mean())


def relative_l2(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return ``||a - b|| / ||b||`` of features (samples, values), mean over the samples, in float64."""
    a, b = a.double(), b.double()
    return float(((a - b).norm(dim=1) / b.norm(dim=1)).mean())


def grid(radius: float, points: int) -> list[float]:
    """Return evenly spaced values from -radius to radius; an odd number of them has 0 in the middle."""
    return [radius * (2 * at - (points - 1)) / (points - 1) for at in range(points)]


def measure_surfaces(
    transformer,
    trunk: Trunk,
    calls: Sequence[Call],
    values: Sequence[float],
    seed: int,
    *,
    block: int = -1,
    with_branches: bool = True,
) -> list[Surface]:
    """Return the surface of each call, over a grid of perturbed weights.

    Args:
        calls: The inputs, one for each surface.
        values: Those of alpha and of beta.
        seed: That of the two directions.
        block: Whose output the features are, see ``features``.
        with_branches: Whether the weights of skip branches are perturbed as well.
    """
    look = partial(features, transformer, trunk, block=block)
    references = [look(call) for call in calls]
    surfaces = [Surface([], []) for _ in calls]
    with Plane(transformer, seed, with_branches) as plane:
        for beta in values:
            for surface in surfaces:
                surface.cosine.append([])
                surface.relative_l2.append([])
            for alpha in values:
                plane.move(alpha, beta)
                for surface, call, reference in zip(surfaces, calls, references):
                    perturbed = look(call)
                    surface.cosine[-1].append(cosine(perturbed, reference))
                    surface.relative_l2[-1].append(relative_l2(perturbed, reference))
    return surfaces


def share_above(values: Sequence[Sequence[float]], level: float) -> float:
    """Return the share of the square on which a surface, interpolated between its points, is at or above a level."""
    surface = torch.tensor(values, dtype=torch.float64)[None, None]
    size = [(points - 1) * REFINEMENT + 1 for points in surface.shape[2:]]
    fine = F.interpolate(surface, size, mode="bilinear", align_corners=True)
    return float((fine >= level).double().mean())


def _batch_size(call: Call) -> int:
    tensors = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, torch.Tensor)]
    return max(len(value) for value in tensors if value.ndim > 2)


def _copied(call: Call) -> Call:
    def copy(value):
        return value.detach().clone() if isinstance(value, torch.Tensor) else value

    return Call(tuple(map(copy, call.args)), {name: copy(value) for name, value in call.kwargs.items()})
