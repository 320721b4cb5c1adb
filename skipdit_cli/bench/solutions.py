"""The exact solutions that a bench measures accuracy against, and the plain samplers that a cache has to beat."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from skipdit_cli.planning.accuracy import accuracy_db
from skipdit_cli.planning.exact import Exact, solve_exactly, usual_accuracy
from skipdit_cli.sampling.generate import Generated
from skipdit_cli.sampling.schedulers import (
    SCHEDULERS,
    Sampler,
    log_snr_timesteps,
    make_scheduler,
    usable_samplers,
)

MARGIN = 10.0
"""How many dB the exact solution is to be more accurate than the samples that are compared with it."""
LEAST_GAIN = 2.0
"""The gain in dB of twice the steps below which the precision of the model is what limits the solution."""
EXPLICIT = "unipc"
"""The scheduler that is tried at timesteps evenly spaced in the log of the signal-to-noise ratio."""


class Solutions:
    """The exact solution of each model of a bench.

    Attributes:
        exact: The solutions, by the name of the model: "vanilla", "skip".
        reason: Why there is none; empty before it was tried, and where there is one.
        tried: The names of the plain samplers that were compared.
        best: The most accurate of them, by the number of steps.
    """

    def __init__(self) -> None:
        self.exact: dict[str, Exact] = {}
        self.reason = ""
        self.tried: list[str] = []
        self.best: dict[int, Sampler] = {}
        self._full_runs: dict[str, Generated] = {}

    def solve(
        self,
        name: str,
        pipe,
        conditions: Sequence[int | str | None],
        trials: Sequence[Generated],
        advance: Callable[[], None] | None,
        arguments: Mapping[str, Any],
    ) -> None:
        """Compute the exact solution of a model, ``MARGIN`` more accurate than any of the trials, if it converges.

        Args:
            name: "vanilla" or "skip".
            pipe, conditions, advance, arguments: As for ``solve_exactly``.
            trials: Samples of the model at the same seeds; the first are those of the uncached run.

        Raises:
            UsageError, NotFiniteError: As for ``solve_exactly``.
        """
        self._full_runs[name] = trials[0]
        for other, run in self._full_runs.items():
            if other in self.exact and torch.equal(run.latents, trials[0].latents):
                self.exact[name] = self.exact[other]  # branches that change nothing yet
                return
        need = usual_accuracy(pipe)
        exact: Exact | None = None
        for _ in range(2):
            settings = {**arguments, "least_gain_db": LEAST_GAIN, "advance": advance}
            exact = solve_exactly(pipe, conditions, accuracy_db=need, begin=exact, **settings)
            self.exact[name] = exact
            best = max((self.measure(name, pipe, trial) or 0 for trial in trials), default=0)
            converged = exact.agreement_db >= need
            need = best + MARGIN
            if exact.agreement_db >= need or not converged:
                return

    def measure(self, name: str, pipe, samples: Generated) -> float | None:
        """Return the accuracy of samples in dB; None without an exact solution, or where it is not finite."""
        if name not in self.exact:
            return None
        accuracy = accuracy_db(pipe, samples, self.exact[name])
        return accuracy if math.isfinite(accuracy) else None

    def choose(self, pipe, trials: Mapping[int, Sequence[tuple[Sampler, Generated]]]) -> None:
        """Choose the most accurate plain sampler of vanilla for each number of steps.

        Args:
            pipe: The pipeline of vanilla.
            trials: The samples of each sampler, by the number of steps.
        """
        for steps, runs in trials.items():
            accuracies = [self.measure("vanilla", pipe, samples) or -math.inf for _, samples in runs]
            self.best[steps] = runs[accuracies.index(max(accuracies))][0]
            self.tried += [describe(sampler, pipe) for sampler, _ in runs]
        self.tried = list(dict.fromkeys(name.split(" at ")[0] for name in self.tried))

    def record(self) -> dict[str, dict] | None:
        """Return what ``bench --json`` says of the solutions, by the name of the model; None if there is none."""
        return {
            name: {"steps": exact.steps, "agreement_db": exact.agreement_db, "sampler": exact.sampler.describe()}
            for name, exact in self.exact.items()
        } or None


def plain_samplers(pipe, own: Sampler, steps: int) -> list[Sampler]:
    """Return a short list of deterministic samplers that a pipeline can take, without two equal ones.

    They are its own, DDIM, DPM-Solver++ of order 2 and 3 with lu spacing (arXiv 2206.00927, section 3.3), and UniPC at
    the same kind of timesteps; for a flow, those of them that can sample one, as its scheduler spaces it.

    Args:
        own: The sampler of the bench, without explicit timesteps.
        steps: The number of steps.
    """
    orders: list[dict[str, object]] = [{"solver_order": order} for order in (2, 3)]
    proposals = [own, Sampler(), Sampler("ddim"), *(Sampler("dpm++", "lu", order) for order in orders)]
    solver = make_scheduler(None, pipe)
    if hasattr(solver, "alphas_cumprod"):
        proposals.append(Sampler(EXPLICIT, timesteps=log_snr_timesteps(solver.alphas_cumprod, steps)))
    else:
        proposals += [Sampler("dpm++"), Sampler(EXPLICIT)]
    return usable_samplers(proposals, pipe)


def describe(sampler: Sampler, pipe) -> str:
    """Return the name of a sampler on a pipeline: "ddim", "dpm++ lu order 2"; that of the class if it has no other."""
    text = sampler.describe()
    if sampler.name is not None:
        return text
    kind = type(make_scheduler(sampler, pipe))
    names = [name for name, (scheduler, _) in SCHEDULERS.items() if scheduler is kind]
    return text.replace("own scheduler", names[0] if names else kind.__name__.removesuffix("Scheduler"), 1)
