"""The rules that say which steps are full: one function each, which returns one bool per step."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise

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
    plan, is_over = [], False
    for step, t in enumerate(timesteps):
        plan.append(is_full_in_window(step, t, is_over, interval, start))
        is_over = is_over or t <= end
    return tuple(plan)


def is_full_in_window(step: int, t: float, is_over: bool, interval: int, start: float) -> bool:
    """Return whether one step is full by the rule of ``windowed``.

    Args:
        step: Its index.
        t: Its timestep.
        is_over: Whether an earlier step had t <= end.
        interval: Every ``interval``-th step is full.
        start: The window's first timestep.
    """
    return step % interval == 0 or t >= start or is_over


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


CENTRE, WIDTH, EVEN_SHARE = -0.5, 1.4, 0.25
"""The density of full steps in ``mid_dense``, on the axis of log(alpha/sigma): its centre, its width, and the share of
an even density over the steps. They are fitted to the error of the final sample on models of digits and moving digits
whose output is forecast, with DDIM and DPM-Solver++ in two spacings, at 10 to 50 steps; a flow needs no other."""


def mid_dense(steps: int, count: int, levels: Sequence[float] | None) -> tuple[bool, ...]:
    """Return the plan with ``count`` full steps, or with all where there are fewer, dense at middle noise levels.

    An error of the output counts most there: one that is made at a higher level is corrected by later steps, and at a
    lower level a step moves the sample little. The density is logistic in log(alpha/sigma), so that one rule serves
    all samplers and spacings. The first gap is half as long as the density says, for the forecast has no slope in it.

    Args:
        steps: The number of steps.
        count: The number of full steps.
        levels: log(alpha/sigma) before each step; None where it is not known: the full steps are then even.
    """
    if count >= steps:
        return (True,) * steps
    places = even = [step / (steps - 1) for step in range(steps)]
    if levels is not None:
        below = [1 / (1 + math.exp((CENTRE - level) / WIDTH)) for level in levels]
        dense = [(share - below[0]) / (1 - below[0]) for share in below]
        places = [EVEN_SHARE * e + (1 - EVEN_SHARE) * d for e, d in zip(even, dense)]
    wanted = [_step_at(places, max(k - 0.5, 0) / (count - 0.5)) for k in range(count)]
    return explicit(steps, [0, *accumulate(_whole_gaps([later - step for step, later in pairwise(wanted)]))])


def _step_at(places: Sequence[float], place: float) -> float:
    """Return the step, between two whole ones, at which a rising list of places has this one; the last if none has."""
    after = bisect_left(places, place)
    if after in (0, len(places)):
        return min(after, len(places) - 1.0)
    return after - (places[after] - place) / (places[after] - places[after - 1])


def _whole_gaps(gaps: Sequence[float]) -> list[int]:
    """Return whole gaps of 1 or more with the same sum, in proportion to these (the method of Sainte-Laguë).

    A longer gap never becomes a shorter one, so that gaps which shrink and then grow still do. Rounding each full step
    by itself makes short and long gaps alternate, across which a forecast overshoots.
    """
    whole = [1] * len(gaps)
    for _ in range(round(sum(gaps)) - len(gaps)):
        whole[max(range(len(gaps)), key=lambda k: gaps[k] / (whole[k] + 0.5))] += 1
    return whole


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
