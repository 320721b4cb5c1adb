"""The rules that say which steps are full: one function each, which returns one bool per step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from skipdit_cli.errors import UsageError


def uniform(steps: int, interval: int) -> tuple[bool, ...]:
    """Return the plan in which every ``interval``-th step from the first is full (Skip-DiT, section 3.3; FORA, arXiv
    2407.01425)."""
    return tuple(step % interval == 0 for step in range(steps))


def windowed(timesteps: Sequence[float], interval: int, start: float, end: float) -> tuple[bool, ...]:
    """Return the plan of ``uniform``, with all steps full where t >= start, and after the first step with t <= end.

    This is the official rule (``DiT_cache.forward`` in class-to-image/models.py): the interval is counted on through
    the steps outside the window, and the first step with t <= end may still be a reused one.

    Args:
        timesteps: The timesteps of the run, in order.
        interval: Every ``interval``-th step is full.
        start: The window's first timestep, which is the higher one.
        end: Its last timestep.
    """
    is_over = [any(t <= end for t in timesteps[:step]) for step in range(len(timesteps))]
    return tuple(
        step == 0 or step % interval == 0 or t >= start or over
        for step, (t, over) in enumerate(zip(timesteps, is_over))
    )


def late_dense(steps: int, count: int) -> tuple[bool, ...]:
    """Return the plan with ``count`` full steps at 1-(1-u)^1.5 of the way, u evenly spaced from the first step to the
    last. They are dense at the end, where the feature changes fastest and no later step corrects an error.

    Raises:
        UsageError: More full steps than steps.
    """
    _check_count(steps, count)
    chosen = [round((steps - 1) * (1 - (1 - place / max(count - 1, 1)) ** 1.5)) for place in range(count)]
    for place in range(count - 2, -1, -1):  # rounding may put two on one step: the earlier one moves back
        chosen[place] = min(chosen[place], chosen[place + 1] - 1)
    return explicit(steps, chosen)


MID_DENSE_WIDTH, MID_DENSE_EVEN = 1.2, 0.25
"""The width of mid-dense's logistic density on the axis of log(alpha/sigma), and the share of an even density."""


def mid_dense(steps: int, count: int, levels: Sequence[float] | None, centre: float) -> tuple[bool, ...]:
    """Return the plan with ``count`` full steps that are densest where the noise level is in the middle.

    There an error of the output reaches the sample: before, later steps correct it; after, a step moves the sample
    little. The density is a logistic one in log(alpha/sigma), so that it holds for every sampler and spacing, plus an
    even one over the steps.

    Args:
        steps: The number of steps.
        count: The number of full steps.
        levels: log(alpha/sigma) at each step, rising; None where it is not known: the full steps are then even.
        centre: The level at which the density is highest.

    Raises:
        UsageError: More full steps than steps.
    """
    _check_count(steps, count)
    even = [step / max(steps - 1, 1) for step in range(steps)]
    places = even
    if levels is not None:
        below = [1 / (1 + math.exp(min((centre - level) / MID_DENSE_WIDTH, 700))) for level in levels]
        dense = [(share - below[0]) / (1 - below[0]) for share in below]
        places = [MID_DENSE_EVEN * e + (1 - MID_DENSE_EVEN) * d for e, d in zip(even, dense)]
    wanted = [0.0, *((k - 0.5) / (count - 0.5) for k in range(1, count))]
    chosen = [min(range(steps), key=lambda step: abs(places[step] - place)) for place in wanted]
    return explicit(steps, _distinct(steps, chosen))


def _distinct(steps: int, chosen: list[int]) -> list[int]:
    """Return rising steps without the first 0 moving: of two on one step the earlier one moves back, or else all on."""
    for k in range(len(chosen) - 1, -1, -1):
        chosen[k] = min(chosen[k], steps - 1 if k == len(chosen) - 1 else chosen[k + 1] - 1)
    for k in range(len(chosen)):
        chosen[k] = max(chosen[k], 0 if k == 0 else chosen[k - 1] + 1)
    return chosen


def _check_count(steps: int, count: int) -> None:
    if count > steps:
        raise UsageError(f"Got --full-steps {count} but the run has {steps} steps; expected 1..{steps}.")


def explicit(steps: int, full: Sequence[int]) -> tuple[bool, ...]:
    """Return the plan in which exactly these steps are full, and the first, before which there is nothing to reuse.

    Raises:
        UsageError: An index lies beyond the run.
    """
    if max(full) >= steps:
        raise UsageError(
            f"Got a schedule with a full step {max(full)} but the run has {steps} steps (0..{steps - 1}); "
            "it was made for another --num-inference-steps."
        )
    return tuple(step == 0 or step in set(full) for step in range(steps))
