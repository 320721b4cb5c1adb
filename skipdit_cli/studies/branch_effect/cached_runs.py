"""The cached runs of one model: how far each is from the uncached run and from the exact solution, and its cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from skipdit_cli.studies.branch_effect.cache_grid import make_cells, parse_sampler

UNCACHED = "uncached"
FEATURES = "digits"
"""The feature network, which classifies digits."""


def measure_caches(
    model: str,
    grid: Mapping[str, Sequence],
    samples: int,
    run: Mapping[str, Any],
    exact_db: float,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure every cell of a grid on one model, from the same noise.

    Args:
        model: A pipeline folder.
        grid: The arguments of ``make_cells``.
        samples: The number of samples; their class labels go round.
        run: ``guidance_scale``, ``seed`` and others, as for ``generate``.
        exact_db: The accuracy of the exact solution, as of ``solve_exactly``.

    Returns:
        ``cells``: by the name of each, and of ``"SAMPLER uncached"``, its ``forwards`` (multiply-adds over those of
        one forward without branches), its ``full_steps``, its ``psnr`` to the uncached run of this sampler, its
        ``psnr_exact``, and its ``agreement`` (the share of samples that are classified as their label); None where
        a value is not finite. ``exact``: the steps and the agreement of the exact solution. ``branches``: the share
        that branches add to a forward.
    """
    from skipdit_cli.evaluation import load_features
    from skipdit_cli.planning.exact import solve_exactly
    from skipdit_cli.planning.flops import StepFlops

    pipe, labels = _open(model, samples, device)
    network = load_features(FEATURES, device=device)
    flops = StepFlops(pipe.transformer)
    exact = solve_exactly(pipe, labels, accuracy_db=exact_db, **run)
    references: dict[str, Any] = {}
    results = {}
    for name, sampler, cell in _runs(grid):
        generated = _sample(pipe, labels, sampler, cell, run)
        if cell is None:
            references[sampler] = generated
        results[name] = {
            **_cost(generated, flops, cell),
            "psnr": None if cell is None else _accuracy(pipe, generated, references[sampler]),
            "psnr_exact": _accuracy(pipe, generated, exact),
            "agreement": _agreement(network, generated, labels),
        }
    solution = {"steps": exact.steps, "agreement_db": exact.agreement_db}
    return {"cells": results, "exact": solution, "branches": flops.full / flops.vanilla - 1}


def measure_scores(
    model: str,
    grid: Mapping[str, Sequence],
    samples: int,
    run: Mapping[str, Any],
    device: str = "cpu",
) -> dict[str, dict[str, float | None]]:
    """Score the samples of every cell of a grid, and those of the uncached runs, against all scans of digits.

    Args:
        model, grid, samples, run: As for ``measure_caches``.

    Returns:
        By the name of each run, its ``fid``, ``kid`` and ``agreement``.
    """
    from skipdit_cli.evaluation import agreement, features, load_features, score
    from skipdit_cli.training.data.moving_digits import scans

    pipe, labels = _open(model, samples, device)
    network = load_features(FEATURES, device=device)
    real = features(network, scans()[0])
    results: dict[str, dict[str, float | None]] = {}
    for name, sampler, cell in _runs(grid):
        generated = _sample(pipe, labels, sampler, cell, run)
        if generated is None:
            results[name] = dict.fromkeys(("fid", "kid", "agreement"))
            continue
        statistics = features(network, generated.images)
        scores = score(statistics, real, network, ("fid", "kid"))
        results[name] = {**{key: scores[key] for key in ("fid", "kid")}, "agreement": agreement(statistics, labels)}
    return results


def _open(model: str, samples: int, device: str) -> tuple[Any, list[int]]:
    """Return a pipeline on a device, and the class labels of samples."""
    from skipdit_cli.models import open_model

    pipe = open_model(model).to(device)
    return pipe, [at % pipe.transformer.config.num_embeds_ada_norm for at in range(samples)]


def _runs(grid: Mapping[str, Sequence]) -> list[tuple[str, str, Any]]:
    """Return the name, the sampler and the cell of each run; for each sampler first its uncached run, without cell."""
    cells = make_cells(**grid)  # type: ignore[arg-type]
    runs: list[tuple[str, str, Any]] = [(f"{sampler} {UNCACHED}", sampler, None) for sampler in grid["samplers"]]
    return [*runs, *((cell.name, cell.sampler, cell) for cell in cells)]


def _sample(pipe, labels: Sequence, sampler: str, cell, run: Mapping[str, Any]):
    """Return the samples of a run; None if they are NaN or infinite."""
    from skipdit_cli.errors import NotFiniteError
    from skipdit_cli.sampling.generate import generate

    scheduler, steps = parse_sampler(sampler)
    policy = None if cell is None else cell.policy()
    try:
        return generate(pipe, labels, policy=policy, scheduler=scheduler, num_inference_steps=steps, **run)
    except NotFiniteError:
        return None


def _cost(generated, flops, cell) -> dict[str, Any]:
    """Return the multiply-adds of a run in forwards without branches, and the number of its full steps."""
    if generated is None:
        return {"forwards": None, "full_steps": None}
    plan = [step in generated.full_steps for step in range(generated.steps)]
    cost = generated.steps if cell is None else flops.cost(plan, cell.policy().layers)
    return {"forwards": cost * flops.full / flops.vanilla, "full_steps": sum(plan)}


def _accuracy(pipe, generated, reference) -> float | None:
    """Return the PSNR in dB of samples to a reference; None if it is not finite."""
    from skipdit_cli.planning.accuracy import accuracy_db

    if generated is None or reference is None:
        return None
    accuracy = accuracy_db(pipe, generated, reference)
    return accuracy if math.isfinite(accuracy) else None


def _agreement(network, generated, labels: Sequence) -> float | None:
    from skipdit_cli.evaluation import agreement, features

    if generated is None:
        return None
    return agreement(features(network, generated.images), labels)
