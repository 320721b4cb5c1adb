"""Fit a multistep sampler to one model: where it evaluates the model, and its coefficients.

The coefficients are fitted step by step, on the sampler's own path, by least squares to the exact solution at the next
timestep. That has a closed form: no gradient, and one run of the sampler. The timesteps are searched by such runs.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.planning.accuracy import accuracy_db
from skipdit_cli.planning.exact import exact_sampler
from skipdit_cli.sampling.generate import Generated, generate
from skipdit_cli.sampling.schedulers import FITTED, FittedScheduler, Sampler, make_scheduler
from skipdit_cli.trunk import Interposed, interpose

PATH_STEPS = 64
"""The number of exact states, which are the timesteps that the search may choose from."""
FIRST_ORDER_STEPS = 512
"""The number of steps of the exact path where the pipeline has a solver of first order only."""
POWERS = (1.2, 1.4, 1.6, 1.8, 2.0)
"""The starts of the search: evaluation k of n lies at the share (1 - k/n)^power of the timesteps."""
MOVES = (-2, -1, 1, 2)
MAX_EQUATIONS = 200_000


@dataclass(frozen=True)
class ExactPath:
    """The exact solution from the noise of each calibration seed, at many timesteps.

    Args:
        timesteps: Descending.
        states: The latents (B, ...) at each timestep, in float32.
        samples: The final samples.
        last: The final latents in the layout of the states.
    """

    timesteps: list[float]
    states: list[torch.Tensor]
    samples: Generated
    last: torch.Tensor


@dataclass(frozen=True)
class Fit:
    """A fitted sampler.

    Args:
        sampler: Its timesteps and coefficients.
        accuracy_db: The ``accuracy_db`` of its samples to the exact ones, on the calibration seeds.
    """

    sampler: Sampler
    accuracy_db: float


def fit_sampler(
    pipe,
    conditions: Sequence[int | str | None],
    evaluations: int,
    *,
    trials: int = 120,
    advance: Callable[[], None] | None = None,
    **settings: Any,
) -> Fit:
    """Search the timesteps of a sampler of so many evaluations of the model, and fit its coefficients.

    Args:
        pipe: A pipeline, as for ``generate``.
        conditions: One class label or prompt per calibration sample. 32 samples of 64 values are enough, and fewer of
            larger latents; all are one batch.
        evaluations: Denoising steps, from 2 on.
        trials: The most lists of timesteps that are tried.
        advance: Called after each denoising step of the exact path and of each trial.
        settings: As for ``generate``: the guidance scale, the first calibration seed.

    Raises:
        UsageError: As for ``generate``; or there are too few or too many evaluations.
    """
    if not 2 <= evaluations <= PATH_STEPS // 2:
        raise UsageError(f"Got {evaluations} evaluations for a fitted sampler but expected 2 to {PATH_STEPS // 2}.")
    path = exact_path(pipe, conditions, advance=advance, **settings)
    fits: dict[tuple[int, ...], Fit] = {}

    def accuracy(nodes: tuple[int, ...]) -> float:
        if nodes not in fits:
            fits[nodes] = fit_coefficients(pipe, conditions, path, nodes, advance=advance, **settings)
        return fits[nodes].accuracy_db

    best, choice = max(_starts(path.timesteps, evaluations), key=accuracy), random.Random(0)
    for _ in range(20 * trials):
        if len(fits) >= trials:
            break
        nodes = _changed(best, choice)
        if _fit_in(nodes, len(path.timesteps)) and accuracy(nodes) > accuracy(best):
            best = nodes
    return fits[best]


def exact_path(
    pipe, conditions: Sequence[int | str | None], *, advance: Callable[[], None] | None = None, **settings: Any
) -> ExactPath:
    """Return the exact solution at ``PATH_STEPS`` timesteps.

    Args:
        pipe, conditions, advance, settings: As for ``fit_sampler``.
    """
    sampler, steps = exact_sampler(pipe, PATH_STEPS, settings), PATH_STEPS
    if sampler == Sampler():
        steps = FIRST_ORDER_STEPS
    scheduler = make_scheduler(sampler, pipe)
    interpose(scheduler, "step", _RecordedStep)
    record: _RecordedStep = scheduler.step
    run = {**settings, "scheduler": scheduler, "num_inference_steps": steps, "batch_size": None}
    samples = generate(pipe, conditions, **run, decode=False, advance=advance)
    stride = steps // PATH_STEPS
    return ExactPath(record.timesteps[::stride], record.states[::stride], samples, record.last)


def fit_coefficients(
    pipe,
    conditions: Sequence[int | str | None],
    path: ExactPath,
    nodes: Sequence[int],
    *,
    advance: Callable[[], None] | None = None,
    **settings: Any,
) -> Fit:
    """Fit the coefficients of a sampler that evaluates the model at given timesteps of an exact path.

    Args:
        pipe, conditions, advance: As for ``fit_sampler``.
        path: ``exact_path`` of the same conditions and settings.
        nodes: Indices of the timesteps in the path, ascending from 0.
        settings: As for ``generate``. With a ``policy``, the sampler is fitted to what the cache forecasts as well.
    """
    timesteps = [path.timesteps[node] for node in nodes]
    targets = [*(path.states[node] for node in nodes[1:]), path.last]
    scheduler = _FittingScheduler(timesteps, targets)
    run = {**settings, "scheduler": scheduler, "num_inference_steps": len(nodes), "batch_size": None}
    samples = generate(pipe, conditions, **run, decode=False, advance=advance)
    sampler = Sampler(FITTED, arguments={"coefficients": scheduler.rows}, timesteps=timesteps)
    return Fit(sampler, accuracy_db(pipe, samples, path.samples))


class _RecordedStep(Interposed):
    """A scheduler's ``step`` that keeps the state before each step, and the last one."""

    def __init__(self, inner):
        super().__init__(inner)
        self.timesteps: list[float] = []
        self.states: list[torch.Tensor] = []

    def __call__(self, model_output, timestep, sample, *args, **kwargs):
        result = self.inner(model_output, timestep, sample, *args, **kwargs)
        self.timesteps.append(float(timestep))
        self.states.append(sample.float())
        self.last = (result[0] if isinstance(result, tuple) else result.prev_sample).float()
        return result


class _FittingScheduler(FittedScheduler):
    """A fitted scheduler that fits each row of its coefficients when it comes to it.

    Args:
        timesteps: Descending.
        targets: The latents to reach after each denoising step.
    """

    def __init__(self, timesteps: Sequence[float], targets: Sequence[torch.Tensor]):
        super().__init__()
        self.explicit, self.targets = timesteps, targets

    def set_timesteps(self, *args, **kwargs) -> None:
        super().set_timesteps(*args, **kwargs)
        self.rows = []

    def row(self, index: int) -> Sequence[float]:
        """Fit and return the coefficients of a denoising step."""
        target = self.targets[index].flatten()
        stride = -(-len(target) // MAX_EQUATIONS)
        terms = torch.stack([term.flatten()[::stride] for term in self.terms], dim=1).double().cpu()
        solution = torch.linalg.lstsq(terms, target[::stride, None].double().cpu()).solution
        self.rows.append([float(f"{c:.9g}") for c in solution[:, 0].tolist()])  # as a plan writes them
        return self.rows[index]

    def _check_rows(self) -> None:
        """The rows are not fitted yet."""


def _starts(timesteps: Sequence[float], evaluations: int) -> Iterator[tuple[int, ...]]:
    """Yield lists of nodes to start the search from."""
    for power in POWERS:
        nodes: list[int] = []
        for k in range(evaluations):
            wanted = timesteps[0] * (1 - k / evaluations) ** power
            first, last = (nodes[-1] + 1 if nodes else 0), len(timesteps) - evaluations + k
            nodes.append(min((abs(timesteps[node] - wanted), node) for node in range(first, last + 1))[1])
        yield tuple(nodes)


def _changed(nodes: tuple[int, ...], choice: random.Random) -> tuple[int, ...]:
    """Return nodes of which a run of neighbours, but never the first, is shifted, and sometimes one more."""
    start = choice.randrange(1, len(nodes))
    stop, shift = start + choice.choice((1, 1, 2, 3, len(nodes))), choice.choice(MOVES)
    changed = [node + shift if start <= at < stop else node for at, node in enumerate(nodes)]
    if choice.random() < 0.3:
        changed[choice.randrange(1, len(nodes))] += choice.choice(MOVES)
    return tuple(changed)


def _fit_in(nodes: tuple[int, ...], count: int) -> bool:
    """Return whether nodes ascend, and stay below ``count``."""
    return nodes[-1] < count and all(before < after for before, after in itertools.pairwise(nodes))
