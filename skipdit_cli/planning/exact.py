"""The exact solution of the sampling ODE, from the same noise, by many steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.planning.accuracy import accuracy_db as agreement_of
from skipdit_cli.sampling.generate import generate
from skipdit_cli.sampling.memory.halving import noted_in
from skipdit_cli.sampling.pipelines.call_arguments import is_text_conditional
from skipdit_cli.sampling.pixels import is_pixel_space
from skipdit_cli.sampling.schedulers import (
    Sampler,
    check_deterministic,
    follows_flow,
    keeps_noise_schedule,
    log_snr_timesteps,
    make_scheduler,
    shifted_timesteps,
)

FIRST_STEPS = 25
"""The number of steps of the first run."""
TRIAL_STEPS = 2
"""The number of steps of the two runs that show whether a pipeline's call is deterministic."""


@dataclass(frozen=True)
class Exact:
    """The exact solution, as far as it converged.

    Args:
        latents: float32, as of ``Generated``.
        images: uint8, as of ``Generated``; None where latents are not decoded.
        steps: The number of steps of the last run, which made them.
        agreement_db: The ``accuracy_db`` of the run before it, of half as many steps, to it.
        sampler: The sampler of the last run.
    """

    latents: torch.Tensor
    images: np.ndarray | None
    steps: int
    agreement_db: float
    sampler: Sampler


def solve_exactly(
    pipe,
    conditions: Sequence[int | str | None],
    *,
    accuracy_db: float,
    least_gain_db: float = -math.inf,
    begin: Exact | None = None,
    advance: Callable[[], None] | None = None,
    **settings: Any,
) -> Exact:
    """Sample with twice the steps, again and again, until two runs in a row agree.

    A noise-predicting model is sampled by DPM-Solver++ of order 3 (arXiv 2211.01095) at fractional timesteps spaced
    evenly in the log of the signal-to-noise ratio; a flow of a multistep solver (Wan) by UniPC of order 3 at
    shifted fractional timesteps; any other flow, and a noise schedule that no other scheduler has, by the
    pipeline's own scheduler. No run has more steps than the noise schedule has timesteps, so the two last may agree
    less well than requested: see ``agreement_db`` of the result.

    Args:
        pipe, conditions: As for ``generate``.
        accuracy_db: How well two runs in a row must agree, by ``planning.accuracy.accuracy_db``.
        least_gain_db: Stop where twice the steps make two runs agree better by less than this: the precision of the
            model is reached.
        begin: A solution of the same samples to go on from, with twice its steps.
        advance: Called after each denoising step of each run.
        settings: As for ``generate``. The number of steps is chosen here; a ``scheduler`` is only checked.

    Raises:
        UsageError: As for ``generate``; or the scheduler, or the pipeline's call, is not deterministic.
        NotFiniteError: A run is NaN or infinite.
    """
    arguments = {"decode": getattr(pipe, "vae", None) is not None or is_pixel_space(pipe), **settings}
    arguments.pop("num_inference_steps", None)
    eta = arguments.get("arguments")
    if "scheduler" in arguments:
        check_deterministic(make_scheduler(arguments.pop("scheduler"), pipe), eta)
    check_deterministic(make_scheduler(exact_sampler(pipe, FIRST_STEPS, arguments), pipe), eta)
    if is_text_conditional(pipe):
        _check_repeatable(pipe, conditions, arguments)
    exact = begin
    for steps in _step_counts(pipe):
        if begin is not None and steps <= begin.steps:
            continue
        sampler = exact_sampler(pipe, steps, arguments)
        run = {**arguments, "num_inference_steps": steps, "scheduler": sampler, "advance": advance}
        run["on_halved"] = noted_in(arguments)
        samples, agreement, before = generate(pipe, conditions, **run), math.nan, math.nan
        if exact is not None:
            agreement, before = agreement_of(pipe, exact, samples), exact.agreement_db
        exact = Exact(samples.latents, samples.images, steps, agreement, sampler)
        if agreement >= accuracy_db or agreement < before + least_gain_db:
            break
    assert exact is not None
    return exact


def usual_accuracy(pipe) -> float:
    """Return the accuracy in dB that ``solve_exactly`` mostly reaches within ``usual_steps``."""
    own_scheduler = exact_sampler(pipe, FIRST_STEPS, {}).name is None  # of order 1, mostly
    return 45.0 if own_scheduler else 60.0


def usual_steps(pipe) -> int:
    """Return the denoising steps of one batch in the first four runs of ``solve_exactly``, which often suffice."""
    return sum(list(_step_counts(pipe))[:4])


def _step_counts(pipe) -> Iterator[int]:
    """Yield the numbers of steps of the runs: doubled, up to the timesteps of the noise schedule."""
    most = pipe.scheduler.config.get("num_train_timesteps", 1000)
    steps = min(FIRST_STEPS, max(1, most // 2))
    while steps < most:
        yield steps
        steps *= 2
    yield most


def exact_sampler(pipe, steps: int, settings: dict[str, Any]) -> Sampler:
    """Return the sampler that solves the model's ODE most accurately in so many steps."""
    order: dict[str, object] = {"solver_order": 3}
    config, strength = pipe.scheduler.config, settings.get("strength")
    if follows_flow(pipe.scheduler):
        if "beta_schedule" not in config or strength is not None:
            return Sampler()
        timesteps = shifted_timesteps(config.num_train_timesteps, steps, config.get("flow_shift", 1.0))
        return Sampler("unipc", arguments=order, timesteps=timesteps)
    solver = make_scheduler("dpm++", pipe)
    if not keeps_noise_schedule(solver, pipe):
        return Sampler()
    if strength is not None:  # which keeps a share of the scheduler's own timesteps
        return Sampler("dpm++", "lu", order)
    return Sampler("dpm++", arguments=order, timesteps=log_snr_timesteps(solver.alphas_cumprod, steps))


def _check_repeatable(pipe, conditions: Sequence[int | str | None], settings: dict[str, Any]) -> None:
    """Refuse a pipeline of which two equal calls give different samples."""
    trial = {**settings, "decode": False, "num_inference_steps": TRIAL_STEPS}
    trial["scheduler"] = exact_sampler(pipe, TRIAL_STEPS, settings)
    first, second = (generate(pipe, conditions[:1], **trial).latents for _ in range(2))
    if not torch.equal(first, second):
        raise UsageError(
            f"Two equal calls of this {type(pipe).__name__} give different samples, so it has no exact solution; "
            f"leave out the --pipeline-arg that adds noise."
        )
