"""The settings of a cache: which blocks it leaves out, in which steps, and what it forecasts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

from skipdit_cli.cache.forecast import FORECASTS
from skipdit_cli.cache.schedule import explicit, is_full_in_window, late_dense, mid_dense, uniform, windowed
from skipdit_cli.errors import UsageError, nearest

TARGETS = ("boundary", "residual")
PLACEMENTS = ("late-dense", "mid-dense")
LEVELS = {"fast": 1, "balanced": 2, "quality": 4}
"""Name to the number of full steps in every ten steps of a run beyond ``FEW_STEPS``."""
FEW_STEPS, FULL_STEPS_OF_FEW = 10, 8
"""Full steps of every level in a run of so many steps, of which a plain sampler with fewer steps is nearly as good."""
FULL_STEPS_OF_TAYLOR2 = 13
"""Full steps from which a level forecasts by ``taylor2``, which overshoots where they are few and far between."""
AXES = ("timestep", "sqrt")


@dataclass(frozen=True)
class CachePolicy:
    """The settings of a cache. They are checked, and do not change.

    Args:
        layers: N, or (front, back). The first ``front`` and the last ``back`` blocks run in every step; N is (N, N).
            With (0, 0) a reused step runs nothing at all: the output of the transformer itself is forecast.
        interval: K. Every K-th step is full (the paper's n = K); 2 if no rule for the full steps is given.
        window: (start, end) timesteps. A step is reused only where t < start, and not after the first step with
            t <= end (the official "t >= 700 is full, t <= 50 ends it" is (700, 50)).
        full_steps: In the place of an interval: a number of full steps, or a tuple of the indices of the full steps.
        forecast: How a reused step predicts the boundary: ``taylor2``, ``linear``, or the paper's ``reuse``.
        target: What is forecast: the ``boundary``, or its ``residual`` over the shallow output. By default the
            boundary for ``reuse`` and for the layers (0, 0), and the residual otherwise, where the streams of the
            model allow it.
        damping: D. A forecast takes its k-th divided difference D^k times; 1 is the plain polynomial, 0 ``reuse``.
        axis: On what axis a forecast extrapolates: over the ``timestep``, or over its square root, ``sqrt``, on which
            the noise itself (layers (0, 0)) is smoother.
        steps: The number of steps that ``full_steps`` was made for; a run of another number is refused. None for any.
        placement: Where a number of full steps lies: ``late-dense``, or ``mid-dense``, by the noise levels.
        threshold: In the place of an interval: a step is full where the relative change of the shallow output (the
            output of the first ``front`` blocks), its cube root for ``taylor2`` and its square root for ``linear``,
            passes it in the sum over the steps since the last full one; see ``cache/trigger.py``.

    Raises:
        UsageError: A value is out of range, or two rules for the full steps are given.
    """

    layers: int | tuple[int, int]
    interval: int | None = None
    window: tuple[float, float] | None = None
    full_steps: int | tuple[int, ...] | None = None
    forecast: str = "taylor2"
    target: str | None = None
    damping: float = 1.0
    axis: str = "timestep"
    steps: int | None = None
    placement: str = "late-dense"
    threshold: float | None = None

    @classmethod
    def level(cls, name: str, steps: int) -> CachePolicy:
        """Return the policy of a level, which needs no calibration.

        A reused step runs nothing: the output of the transformer is forecast. The full steps are placed by the noise
        levels of the scheduler, so that one rule serves all samplers and spacings. Of 50 steps 12, 16 or 24 are
        full, of 10 steps 8. Skip branches are not used, for they need live blocks.

        Args:
            name: ``fast``, ``balanced`` or ``quality``.
            steps: The number of denoising steps of a run.

        Raises:
            UsageError: The name is unknown, or the number of steps is not 1 or more.
        """
        if name not in LEVELS:
            raise UsageError(f"Got --cache '{name}' but expected one of {', '.join(LEVELS)}.{nearest(name, LEVELS)}")
        if not _whole(steps) or steps < 1:
            raise UsageError(f"Got a cache level for {steps!r} steps but expected a whole number of 1 or more.")
        return cls.output_forecast(min(steps, FULL_STEPS_OF_FEW + LEVELS[name] * max(steps - FEW_STEPS, 0) // 10))

    @classmethod
    def output_forecast(cls, count: int) -> CachePolicy:
        """Return the policy of a level with another number of full steps, at least 1."""
        forecast = "linear" if count < FULL_STEPS_OF_TAYLOR2 else "taylor2"
        return cls(0, full_steps=count, forecast=forecast, damping=0.8, axis="sqrt", placement="mid-dense")

    def with_live_block(self) -> CachePolicy:
        """Return the form of a level for a stochastic sampler, whose fresh noise only a live block sees, or the policy
        itself if it is no level."""
        if not (self.forecasts_output and self.reads_noise_levels):
            return self
        return replace(self, layers=(1, 0), forecast="taylor2", damping=1.0, axis="timestep")

    def __post_init__(self):
        object.__setattr__(self, "layers", both_ends(self.layers))
        self._check_types()
        if self.interval is not None and self.interval < 1:
            raise UsageError(f"Got --cache-interval {self.interval} but expected 1 (no reuse) or more.")
        if self.forecast not in FORECASTS:
            raise UsageError(f"Got --forecast '{self.forecast}' but expected one of {', '.join(FORECASTS)}.")
        if self.target not in (*TARGETS, None):
            raise UsageError(f"Got --cache-target '{self.target}' but expected one of {', '.join(TARGETS)}.")
        if self.placement not in PLACEMENTS:
            raise UsageError(f"Got the placement '{self.placement}' but expected one of {', '.join(PLACEMENTS)}.")
        if self.target == "residual" and self.layers == (0, 0):
            raise UsageError(
                "Got --cache-target residual with --cache-layers 0, which forecasts the output of the model; "
                "leave the target out."
            )
        if self.axis not in AXES:
            raise UsageError(f"Got --forecast-axis '{self.axis}' but expected one of {', '.join(AXES)}.")
        if not 0 <= self.damping <= 1:
            raise UsageError(f"Got --forecast-damping {self.damping:g} but expected a number from 0 to 1.")
        if self.window is not None:
            object.__setattr__(self, "window", tuple(self.window))
            start, end = self.window
            if not start > end >= 0:
                raise UsageError(
                    f"Got --cache-window {start:g}:{end:g} but expected START:END with START > END >= 0, "
                    "such as 700:50 (sampling runs from high timesteps to low)."
                )
        if self.threshold is not None:
            self._check_threshold(self.threshold)
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

    def _check_threshold(self, threshold: float) -> None:
        if not 0 < threshold < math.inf:
            raise UsageError(f"Got --cache-threshold {threshold:g} but expected a finite number above 0.")
        if (self.interval, self.window, self.full_steps) != (None, None, None):
            raise UsageError(
                "Got --cache-threshold together with --cache-interval, --cache-window or --full-steps; give one rule."
            )
        if not self.layers[0]:  # type: ignore[index]  # a pair by now
            raise UsageError(
                f"Got --cache-threshold with --cache-layers {write_layers(self.layers)}, but it measures the output "  # type: ignore[arg-type]
                "of the first blocks; give one or more at the front, such as 1:0."
            )

    def _check_types(self) -> None:
        if not _whole(self.interval or 1):
            raise UsageError(f"Got --cache-interval {self.interval!r} but expected a whole number.")
        if not isinstance(self.damping, Real) or isinstance(self.damping, bool):
            raise UsageError(f"Got --forecast-damping {self.damping!r} but expected a number from 0 to 1.")
        if self.threshold is not None and (not isinstance(self.threshold, Real) or isinstance(self.threshold, bool)):
            raise UsageError(f"Got --cache-threshold {self.threshold!r} but expected a finite number above 0.")
        window, steps = self.window, self.full_steps
        if window is not None:
            pair = isinstance(window, Sequence) and len(window) == 2 and all(isinstance(t, Real) for t in window)
            if not pair:
                raise UsageError(f"Got the cache window {window!r} but expected two timesteps, such as (700, 50).")
        several = isinstance(steps, Sequence) and all(map(_whole, steps))
        if not (steps is None or _whole(steps) or several):
            raise UsageError(f"Got full steps {steps!r} but expected a whole number, or a tuple of step indices.")

    @property
    def forecasts_output(self) -> bool:
        """Whether a reused step runs nothing, and the output of the transformer is forecast."""
        return self.layers == (0, 0)

    @property
    def reads_noise_levels(self) -> bool:
        """Whether the plan depends on the noise levels of the steps."""
        return isinstance(self.full_steps, int) and self.placement == "mid-dense"

    @property
    def target_or_default(self) -> str:
        """The target, by default the one that a model whose streams allow it gets."""
        if self.target is not None:
            return self.target
        return "boundary" if self.forecast == "reuse" or self.forecasts_output else "residual"

    def position(self, timestep: float) -> float:
        """Return the position of a timestep on the axis of the forecast. A negative one is the index of a step, where
        timesteps are not known."""
        return math.sqrt(timestep) if self.axis == "sqrt" and timestep > 0 else timestep

    def plan(self, timesteps: Sequence[float], levels: Sequence[float] | None = None) -> tuple[bool, ...]:
        """Return one bool per step, True where it is full; the first step always is. With a threshold, they are the
        steps that must be full whatever it measures.

        Args:
            timesteps: The timesteps of the run, in order. Only a window depends on their values.
            levels: log(alpha/sigma) at each, on which the mid-dense placement depends; it is even without them.

        Raises:
            UsageError: The policy was made for a run of more steps.
        """
        steps = len(timesteps)
        if self.steps is not None and steps != self.steps:
            raise UsageError(
                f"Got a plan made for {self.steps} steps but the run has {steps}; give --num-inference-steps "
                f"{self.steps}, or calibrate for {steps}."
            )
        if isinstance(self.full_steps, int):
            count = self.full_steps
            return mid_dense(steps, count, levels) if self.reads_noise_levels else late_dense(steps, count)
        if self.full_steps is not None:
            return explicit(steps, self.full_steps)
        if self.threshold is not None:
            return explicit(steps, (0,))
        interval = 2 if self.interval is None else self.interval
        return uniform(steps, interval) if self.window is None else windowed(timesteps, interval, *self.window)

    def is_full(self, step: int, t: float, is_over: bool) -> bool:
        """Return whether one step is full, where the steps to come are not known: by any rule but a number of full
        steps.

        Args:
            step: Its index.
            t: Its timestep.
            is_over: Whether an earlier step has ended the window.
        """
        if isinstance(self.full_steps, tuple):
            return step == 0 or step in self.full_steps
        if self.threshold is not None:
            return step == 0
        interval = 2 if self.interval is None else self.interval
        if self.window is None:
            return step % interval == 0
        return is_full_in_window(step, t, is_over, interval, self.window[0])

    def describe(self) -> str:
        """Return the schedule in a few words, as tables show it."""
        if isinstance(self.full_steps, int):
            return f"{self.placement} {self.full_steps}"
        if self.full_steps is not None:
            return "full at " + ",".join(map(str, self.full_steps))
        if self.threshold is not None:
            return f"threshold {self.threshold:g}"
        interval = f"every {2 if self.interval is None else self.interval}"
        return interval if self.window is None else f"{interval} in {self.window[0]:g}:{self.window[1]:g}"


def both_ends(layers) -> tuple[int, int]:
    """Return the live blocks at the front and at the back, of N or of the two numbers.

    Raises:
        UsageError: It is neither, or a number is negative.
    """
    ends = (layers, layers) if _whole(layers) else layers
    if not (isinstance(ends, Sequence) and len(ends) == 2 and all(map(_whole, ends))):
        raise UsageError(f"Got --cache-layers {layers!r} but expected a whole number, or two: FRONT:BACK.")
    if min(ends) < 0:
        raise UsageError(f"Got --cache-layers {write_layers(ends)} but expected 0 or more blocks at each end.")
    return ends[0], ends[1]


def write_layers(layers: Sequence[int]) -> str:
    """Return a cache depth as ``--cache-layers`` takes it: ``2`` for (2, 2), ``1:0`` for (1, 0)."""
    front, back = layers
    return str(front) if front == back else f"{front}:{back}"


def check_depth(layers: int | tuple[int, int], num_blocks: int, needs_sources: bool = False) -> None:
    """Check that a cache depth leaves blocks to cache, and that the live blocks have what they need.

    Args:
        layers: N, or (front, back).
        num_blocks: L.
        needs_sources: Whether a target block cannot run without its source: the merge is ``replace``, or the model
            has long skips of its own.

    Raises:
        UsageError: No block is left to cache, or a live target block has a source that is not live.
    """
    front, back = both_ends(layers)
    has = f"the model has {num_blocks} block{'' if num_blocks == 1 else 's'}"
    if front + back >= num_blocks:
        limit = (num_blocks - 1) // 2
        valid = f"valid 1..{limit}" if limit else "and a cache of both ends needs 3 or more"
        if front != back:
            valid = f"valid are FRONT + BACK of at most {num_blocks - 1}"
        raise UsageError(f"--cache-layers {write_layers((front, back))} leaves nothing to cache: {has}, {valid}.")
    if needs_sources and front < back:
        raise UsageError(
            f"Got --cache-layers {front}:{back}, but the last blocks of this model read the output of the first "
            f"{back}; give FRONT of at least BACK."
        )


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
