"""The settings of a cache: which blocks it leaves out, in which steps, and what it forecasts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

from skipdit_cli.cache.forecast import FORECASTS
from skipdit_cli.cache.schedule import explicit, late_dense, uniform, windowed
from skipdit_cli.errors import UsageError

TARGETS = ("boundary", "residual")


@dataclass(frozen=True)
class CachePolicy:
    """The settings of a cache. They are checked, and do not change.

    Args:
        layers: N. The first N and the last N blocks run in every step.
        interval: K. Every K-th step is full (the paper's n = K); 2 if no rule for the full steps is given.
        window: (start, end) timesteps. A step is reused only where t < start, and not after the first step with
            t <= end (the official "t >= 700 is full, t <= 50 ends it" is (700, 50)).
        full_steps: In the place of an interval: a number of full steps, placed by the late-dense rule, or a tuple of
            the indices of the full steps.
        forecast: How the boundary is predicted in a reused step: ``reuse``, ``linear`` or ``taylor2``.
        target: What is forecast: the ``boundary``, or its ``residual`` over the shallow output.

    Raises:
        UsageError: A value is out of range, or two rules for the full steps are given.
    """

    layers: int
    interval: int | None = None
    window: tuple[float, float] | None = None
    full_steps: int | tuple[int, ...] | None = None
    forecast: str = "reuse"
    target: str = "boundary"

    def __post_init__(self):
        self._check_types()
        if self.layers < 1:
            raise UsageError(f"Got --cache-layers {self.layers} but expected 1 or more blocks at each end.")
        if self.interval is not None and self.interval < 1:
            raise UsageError(f"Got --cache-interval {self.interval} but expected 1 (no reuse) or more.")
        if self.forecast not in FORECASTS:
            raise UsageError(f"Got --forecast '{self.forecast}' but expected one of {', '.join(FORECASTS)}.")
        if self.target not in TARGETS:
            raise UsageError(f"Got --cache-target '{self.target}' but expected one of {', '.join(TARGETS)}.")
        if self.window is not None:
            object.__setattr__(self, "window", tuple(self.window))
            start, end = self.window
            if not start > end >= 0:
                raise UsageError(
                    f"Got --cache-window {start:g}:{end:g} but expected START:END with START > END >= 0, "
                    "such as 700:50 (sampling runs from high timesteps to low)."
                )
        if self.full_steps is None:
            return
        if self.interval is not None or self.window is not None:
            raise UsageError("Got --full-steps together with --cache-interval or --cache-window; give one of the two.")
        if isinstance(self.full_steps, int):
            if self.full_steps < 1:
                raise UsageError(f"Got --full-steps {self.full_steps} but expected 1 or more.")
        else:
            object.__setattr__(self, "full_steps", tuple(sorted(set(self.full_steps))))
            if not self.full_steps or self.full_steps[0] < 0:
                raise UsageError(f"Got full steps {self.full_steps} but expected step indices from 0.")

    def _check_types(self) -> None:
        for flag, value in (("--cache-layers", self.layers), ("--cache-interval", self.interval or 1)):
            if not _whole(value):
                raise UsageError(f"Got {flag} {value!r} but expected a whole number.")
        window, steps = self.window, self.full_steps
        if window is not None:
            pair = isinstance(window, Sequence) and len(window) == 2 and all(isinstance(t, Real) for t in window)
            if not pair:
                raise UsageError(f"Got the cache window {window!r} but expected two timesteps, such as (700, 50).")
        several = isinstance(steps, Sequence) and all(map(_whole, steps))
        if not (steps is None or _whole(steps) or several):
            raise UsageError(f"Got full steps {steps!r} but expected a whole number, or a tuple of step indices.")

    def plan(self, timesteps: Sequence[float]) -> tuple[bool, ...]:
        """Return one bool per step, True where it is full; the first step always is.

        Args:
            timesteps: The timesteps of the run, in order. Only a window depends on their values.

        Raises:
            UsageError: The policy was made for a run of more steps.
        """
        steps = len(timesteps)
        if isinstance(self.full_steps, int):
            return late_dense(steps, self.full_steps)
        if self.full_steps is not None:
            return explicit(steps, self.full_steps)
        interval = 2 if self.interval is None else self.interval
        return uniform(steps, interval) if self.window is None else windowed(timesteps, interval, *self.window)

    def describe(self) -> str:
        """Return the schedule in a few words, as tables show it."""
        if isinstance(self.full_steps, int):
            return f"late-dense {self.full_steps}"
        if self.full_steps is not None:
            return "full at " + ",".join(map(str, self.full_steps))
        interval = f"every {2 if self.interval is None else self.interval}"
        return interval if self.window is None else f"{interval} in {self.window[0]:g}:{self.window[1]:g}"


def check_depth(layers: int, num_blocks: int) -> None:
    """Check that a cache depth leaves blocks to cache.

    Raises:
        UsageError: Nothing lies between the first and the last ``layers`` blocks.
    """
    limit = (num_blocks - 1) // 2
    if not 1 <= layers <= limit:
        has = f"the model has {num_blocks} block{'' if num_blocks == 1 else 's'}"
        valid = f"valid 1..{limit}" if limit else "and a cache needs 3 or more"
        raise UsageError(f"--cache-layers {layers} leaves nothing to cache: {has}, {valid}.")


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
