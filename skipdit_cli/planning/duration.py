"""How long a calibration takes, and the effort that a time limit leaves room for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skipdit_cli.planning.exact import usual_steps
from skipdit_cli.planning.fit_branch import branch_samples
from skipdit_cli.planning.fit_sampler import PATH_STEPS
from skipdit_cli.planning.searching.effort import EFFORTS, Effort
from skipdit_cli.sampling.generate import generate
from skipdit_cli.sampling.schedulers import full_run_sampler

SHARE_OF_TRY = 0.7
"""The forwards of a try, of those of all its samples: some share their beginning, some end at the first look."""
STEPS, SAMPLES, RUNS, SLOW = 2, 8, 3, 5.0
"""What is timed: the denoising steps, the samples, the runs, and the seconds above which one sample is enough."""
ACCURACY_BUDGETS = 4
"""About how many budgets are tried for an accuracy."""


@dataclass(frozen=True)
class Duration:
    """About how long a calibration takes.

    Args:
        effort: How much it tries.
        forwards: Forwards of one sample.
        seconds_per_forward: As it was timed on this machine.
    """

    effort: Effort
    forwards: float
    seconds_per_forward: float

    @property
    def minutes(self) -> float:
        """The time of all forwards."""
        return self.forwards * self.seconds_per_forward / 60


def within(
    minutes: float,
    pipe,
    conditions: Sequence,
    held_out: int,
    costs: Sequence[float],
    output_branch: bool = False,
    **settings: Any,
) -> Duration:
    """Return the duration of the greatest effort that takes no more than some minutes; of the least if all take more.

    Args:
        minutes: The time limit.
        pipe: The pipeline, which is timed.
        conditions: One per sample to search with.
        held_out: The number of held-out samples.
        costs: The budgets in full forwards; none where an accuracy is asked for.
        output_branch: Whether output branches are fitted.
        settings: As for ``generate``.
    """
    seconds = _time(pipe, conditions, settings)
    exact: float = usual_steps(pipe) * (len(conditions) + held_out)
    budgets = costs or [10.0] * ACCURACY_BUDGETS
    if output_branch:
        exact += branch_samples(pipe, len(conditions), settings) * (PATH_STEPS + sum(costs or [10.0]))
    for effort in EFFORTS:
        searched = sum(effort.tries * cost * len(conditions) * SHARE_OF_TRY for cost in budgets)
        duration = Duration(effort, exact + searched, seconds)
        if duration.minutes <= minutes:
            break
    return duration


def _time(pipe, conditions: Sequence, settings: dict[str, Any]) -> float:
    """Return the seconds of a forward of one sample: the least of some runs, after one that warms up, as another
    program may slow one of them many times."""
    seconds = _time_once(pipe, conditions[:1], settings)
    for _ in range(RUNS):
        if seconds > SLOW:
            break
        seconds = min(seconds, _time_once(pipe, conditions[:SAMPLES], settings))
    return seconds


def _time_once(pipe, conditions: Sequence, settings: dict[str, Any]) -> float:
    """Return the seconds of a forward of one sample in a short run."""
    sampler = full_run_sampler(pipe, None)
    began = time.perf_counter()
    generate(pipe, conditions, num_inference_steps=STEPS, scheduler=sampler, decode=False, **settings)
    return (time.perf_counter() - began) / STEPS / len(conditions)
