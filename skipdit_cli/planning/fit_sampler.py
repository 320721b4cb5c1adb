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
from skipdit_cli.planning.searching.prefixes import SharedPrefixes
from skipdit_cli.sampling.generate import Generated, batches, generate
from skipdit_cli.sampling.schedulers import FITTED, FittedScheduler, Sampler, follows_flow, make_scheduler
from skipdit_cli.trunk import Interposed, interpose

PATH_STEPS = 64
"""The number of exact states, which are the timesteps that the search may choose from."""
MIN_EVALUATIONS, MAX_EVALUATIONS = 2, PATH_STEPS // 2
"""The denoising steps that a fitted sampler may have."""
FIRST_ORDER_STEPS = 256
"""The number of steps of the exact path where the pipeline has a solver of first order only."""
POWERS = (1.2, 1.4, 1.6, 1.8, 2.0)
"""The starts of the search: evaluation k of n lies at the share (1 - k/n)^power of the timesteps."""
MOVES = (-2, -1, 1, 2)
"""How far a timestep is moved in a trial, in places of the exact path."""
MAX_EQUATIONS = 200_000
"""The most values of the latents, of all samples together, that a row of coefficients is fitted to."""


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


class SamplerFitter:
    """Fits samplers of any number of evaluations to one pipeline, on the same calibration samples.

    Args:
        pipe: A pipeline, as for ``generate``.
        conditions: One class label or prompt per calibration sample. 32 samples of 64 values are enough, and fewer of
            larger latents; all are one batch.
        prefixes: Shares the beginnings of runs, if given.
        known: The accuracies of an interrupted search, to which new ones are added.
        advance: Called after each denoising step of the exact path and of each fit.
        settings: As for ``generate``: the guidance scale, the first calibration seed. With a ``policy``, samplers are
            fitted to what the cache forecasts as well.

    Attributes:
        path: The exact solution, whose timesteps the fitted samplers choose from.

    Raises:
        UsageError: As for ``generate``; or the pipeline does not take the samples in one batch.
    """

    def __init__(
        self,
        pipe,
        conditions: Sequence[int | str | None],
        *,
        prefixes: SharedPrefixes | None = None,
        known: dict[str, list[float]] | None = None,
        advance: Callable[[], None] | None = None,
        **settings: Any,
    ):
        self.pipe, self.conditions, self.prefixes, self.advance = pipe, list(conditions), prefixes, advance
        self.settings = {**settings, "batch_size": None, "decode": False}
        self.known = {} if known is None else known
        count = len(batches(pipe, self.conditions, alone=settings.get("image") is not None))
        if count != 1:
            raise UsageError(f"Got {count} batches to fit a sampler to but expected 1; give one prompt, and no image.")
        self.path = self._solve()

    def search(self, evaluations: int, trials: int = 120, tried: Callable[[], None] | None = None) -> Fit:
        """Search the timesteps of a sampler of so many evaluations of the model, and fit its coefficients.

        Args:
            evaluations: Denoising steps, from 2 on.
            trials: The most lists of timesteps that are tried.
            tried: Called after each of them.

        Raises:
            UsageError: There are too few or too many evaluations.
        """
        if not MIN_EVALUATIONS <= evaluations <= MAX_EVALUATIONS:
            allowed = f"{MIN_EVALUATIONS} to {MAX_EVALUATIONS}"
            raise UsageError(f"Got {evaluations} steps for --scheduler fitted but expected {allowed}.")
        accuracies: dict[tuple[int, ...], float] = {}

        def accuracy(nodes: tuple[int, ...]) -> float:
            if nodes not in accuracies:
                accuracies[nodes] = self._accuracy(nodes)
                if tried is not None:
                    tried()
            return accuracies[nodes]

        best, choice = max(_starts(self.path.timesteps, evaluations), key=accuracy), random.Random(0)
        for _ in range(20 * trials):
            if len(accuracies) >= trials:
                break
            nodes = _changed(best, choice)
            if _fit_in(nodes, len(self.path.timesteps)) and accuracy(nodes) > accuracy(best):
                best = nodes
        return self.fit(best)

    def _accuracy(self, nodes: Sequence[int]) -> float:
        """Return the accuracy of a sampler fitted at some timesteps of the path, from an earlier search if known."""
        key = f"fit at {nodes}"
        if not self.known.get(key):
            self.known[key] = [self.fit(nodes).accuracy_db]
        return self.known[key][0]

    def fit(self, nodes: Sequence[int]) -> Fit:
        """Fit the coefficients of a sampler that evaluates the model at given timesteps of the path.

        Args:
            nodes: Indices of the timesteps in the path, ascending from 0.
        """
        timesteps = [as_written(self.path.timesteps[node]) for node in nodes]
        scheduler = FittingScheduler(timesteps, self.targets(nodes), self.pipe.scheduler)
        samples = self.run("fit", scheduler, timesteps)
        sampler = Sampler(FITTED, arguments={"coefficients": scheduler.rows}, timesteps=timesteps)
        return Fit(sampler, accuracy_db(self.pipe, samples, self.path.samples))

    def targets(self, nodes: Sequence[int]) -> list[torch.Tensor]:
        """Return the exact latents after each step of a sampler that evaluates the model at some nodes of the path."""
        return [*(self.path.states[node] for node in nodes[1:]), self.path.last]

    def _solve(self) -> ExactPath:
        """Return the exact solution at ``PATH_STEPS`` timesteps."""
        sampler, steps = exact_sampler(self.pipe, PATH_STEPS, self.settings), PATH_STEPS
        if sampler == Sampler():
            steps = FIRST_ORDER_STEPS
        scheduler = make_scheduler(sampler, self.pipe)
        interpose(scheduler, "step", _RecordedStep)
        record: _RecordedStep = scheduler.step
        samples = self.run("path", scheduler, range(steps))
        stride = steps // PATH_STEPS
        return ExactPath(record.timesteps[::stride], record.states[::stride], samples, record.last)

    def run(self, kind: str, scheduler, timesteps: Sequence[float]) -> Generated:
        """Sample the calibration samples with a scheduler."""
        if self.prefixes is not None:
            self.prefixes.begin(f"{kind} {self.conditions} {self.settings}", timesteps)
        settings = {**self.settings, "scheduler": scheduler, "num_inference_steps": len(timesteps)}
        if kind == "path":
            settings.pop("policy", None)
        return generate(self.pipe, self.conditions, advance=self.advance, **settings)


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


class FittingScheduler(FittedScheduler):
    """A fitted scheduler that fits each row of its coefficients when it comes to it.

    Args:
        timesteps: Descending.
        targets: The latents to reach after each denoising step.
        original: The pipeline's own scheduler.
    """

    def __init__(self, timesteps: Sequence[float], targets: Sequence[torch.Tensor], original: Any):
        super().__init__(len(original), flow=follows_flow(original))
        self.explicit, self.targets = timesteps, targets

    def row(self, index: int) -> Sequence[float]:
        """Fit and return the coefficients of a denoising step."""
        target = self.targets[index].flatten()
        stride = -(-len(target) // MAX_EQUATIONS)
        terms = torch.stack([term.flatten()[::stride] for term in self.terms], dim=1).double().cpu()
        solution = torch.linalg.lstsq(terms, target[::stride, None].double().cpu()).solution
        self.rows.append([as_written(c) for c in solution[:, 0].tolist()])
        return self.rows[index]

    def _check_rows(self) -> None:
        """Begin without rows, which are fitted one by one."""
        self.rows = []


def as_written(number: float) -> float:
    """Return a number as a plan writes it: the sampler of the plan is the very one that was fitted."""
    return float(f"{number:.9g}")


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
