"""The rules that say which steps are full: one function each, which returns one bool per step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from skipdit_cli.cache.noise_levels import NoiseLevels
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
    if count > steps:
        raise UsageError(f"Got --full-steps {count} but the run has {steps} steps; expected 1..{steps}.")
    chosen = [round((steps - 1) * (1 - (1 - place / max(count - 1, 1)) ** 1.5)) for place in range(count)]
    for place in range(count - 2, -1, -1):  # rounding may put two on one step: the earlier one moves back
        chosen[place] = min(chosen[place], chosen[place + 1] - 1)
    return explicit(steps, chosen)


NOISE_CENTRE, FLOW_CENTRE = -0.2, 0.6
WIDTH, EVEN_SHARE = 1.2, 0.25
"""The density of full steps in ``mid_dense``, on the axis of log(alpha/sigma): its centre for models of noise and of
velocity, its width, and the share of an even density over the steps. They are fitted to the error of the final sample
on seven models, with DDIM, DPM-Solver++ in four spacings and Euler steps of a flow, at 10 to 100 steps."""


def mid_dense(steps: int, count: int, levels: NoiseLevels | None) -> tuple[bool, ...]:
    """Return the plan with ``count`` full steps, or with all where there are fewer, dense at middle noise levels.

    An error of the output counts most there: one that is made at a higher level is corrected by later steps, and at a
    lower level a step moves the sample little. The density is logistic in log(alpha/sigma), so that one rule serves
    all samplers and spacings.

    Args:
        steps: The number of steps.
        count: The number of full steps.
        levels: The noise level of each step; None where they are not known: the full steps are then even.
    """
    if count >= steps:
        return (True,) * steps
    places = even = [step / (steps - 1) for step in range(steps)]
    if levels is not None:
        centre = FLOW_CENTRE if levels.is_flow else NOISE_CENTRE
        below = [1 / (1 + math.exp((centre - level) / WIDTH)) for level in levels.log_ratio]
        dense = [(share - below[0]) / (1 - below[0]) for share in below]
        places = [EVEN_SHARE * e + (1 - EVEN_SHARE) * d for e, d in zip(even, dense)]
    wanted = [0.0, *((k - 0.5) / (count - 0.5) for k in range(1, count))]
    chosen = [min(range(steps), key=lambda step: abs(places[step] - place)) for place in wanted]
    for k in range(count - 2, -1, -1):  # of two on one step the earlier one moves back, and from the first step on
        chosen[k] = min(chosen[k], chosen[k + 1] - 1)
    for k in range(count):
        chosen[k] = max(chosen[k], k)
    return explicit(steps, chosen)


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
