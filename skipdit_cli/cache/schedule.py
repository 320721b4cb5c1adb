"""Which steps are full: one function per rule, each returning one bool a step."""

from __future__ import annotations

from collections.abc import Sequence

from skipdit_cli.errors import UsageError


def uniform(steps: int, interval: int) -> tuple[bool, ...]:
    """Every ``interval``-th step, from the first (Skip-DiT section 3.3; FORA, arXiv 2407.01425)."""
    return tuple(step % interval == 0 for step in range(steps))


def windowed(timesteps: Sequence[float], interval: int, start: float, end: float) -> tuple[bool, ...]:
    """``uniform``, but full where t >= start, and for good once a step with t <= end has passed.

    The official rule (``DiT_cache.forward`` in class-to-image/models.py): the count of steps runs on through the
    forced steps, and the first step at or under ``end`` can still be a reused one.
    """
    over = [any(t <= end for t in timesteps[:step]) for step in range(len(timesteps))]
    return tuple(
        step == 0 or step % interval == 0 or t >= start or done for step, (t, done) in enumerate(zip(timesteps, over))
    )


def late_dense(steps: int, count: int) -> tuple[bool, ...]:
    """``count`` full steps at 1-(1-u)^1.5 of the way, u evenly spaced from the first step to the last: dense at the
    end, where the feature changes fastest and an error has no later step to be mended in.

    Raises:
        UsageError: More full steps than steps.
    """
    if count > steps:
        raise UsageError(f"Got --full-steps {count} but the run has {steps} steps; expected 1..{steps}.")
    chosen = [round((steps - 1) * (1 - (1 - place / max(count - 1, 1)) ** 1.5)) for place in range(count)]
    for place in range(count - 2, -1, -1):  # rounding may put two on one step: the earlier one moves forward
        chosen[place] = min(chosen[place], chosen[place + 1] - 1)
    return explicit(steps, chosen)


def explicit(steps: int, full: Sequence[int]) -> tuple[bool, ...]:
    """Exactly the given step indices (and the first, which nothing could be reused for).

    Raises:
        UsageError: An index lies beyond the run.
    """
    if max(full) >= steps:
        raise UsageError(
            f"Got a schedule with a full step {max(full)} but the run has {steps} steps (0..{steps - 1}); "
            "it was made for another --num-inference-steps."
        )
    return tuple(step == 0 or step in set(full) for step in range(steps))
