"""The steps of one generation: their timesteps, which of them are full, and which one is next."""

from __future__ import annotations

from itertools import pairwise

import torch

from skipdit_cli.cache.noise_levels import noise_levels
from skipdit_cli.cache.policy import CachePolicy
from skipdit_cli.errors import UsageError


class Steps:
    """The denoising steps of one generation.

    Args:
        policy: Decides which steps are full.
        scheduler: The scheduler that makes the steps, or None.

    Attributes:
        timesteps: The timesteps of the planned steps, in order.
        plan: One bool per step, True where full; None until the steps are planned.
        next: Index of the next step.
    """

    def __init__(self, policy: CachePolicy, scheduler=None):
        self.policy, self.scheduler = policy, scheduler
        self.timesteps: list[float] = []
        self.plan: tuple[bool, ...] | None = None
        self.next = 0

    @property
    def next_is_full(self) -> bool:
        """Whether the next step is full."""
        return self.are_over or self.plan is None or self.plan[self.next]

    @property
    def are_over(self) -> bool:
        """Whether all planned steps have been made."""
        return self.plan is not None and self.next >= len(self.plan)

    @property
    def time(self) -> float:
        """The position of the next step on the axis of the forecast."""
        return self.time_of(self.next)

    def time_of(self, step: int) -> float:
        """The position of a step on the axis of the forecast: that of its timestep, or its index where it has none."""
        return self.policy.position(self.timesteps[step]) if step < len(self.timesteps) else -float(step)


class ScheduledSteps(Steps):
    """The steps that a scheduler makes.

    Image-to-image begins in the middle of the timesteps. A scheduler without a ``begin_index`` shows only after its
    first step, which is full in any case, where it began; the steps that are left are then planned again.
    """

    def __init__(self, policy: CachePolicy, scheduler):
        super().__init__(policy, scheduler)
        self.start: int | None = None
        self.are_views = False
        self.step_index: int | None = None

    def make_plan(self, timestep) -> None:
        """Plan the steps, at the first call of the transformer.

        Args:
            timestep: The timestep of the call, or None.

        Raises:
            UsageError: The policy was made for another number of steps.
        """
        if self.plan is None:
            self.are_views = index_of_view(self.scheduler, timestep) is not None
            self.start = next_index(self.scheduler) if self.start is None and self.next == 0 else self.start
            self._plan_from(self.start or 0)

    def advance(self, scheduler, timestep) -> None:
        """Count a step.

        Args:
            scheduler: The scheduler that has made it, or a copy of it.
            timestep: The timestep it was made at.
        """
        is_original = scheduler is self.scheduler
        if self.next == 0 and self.start is None:
            # Only the original can tell: SkyReels-V2 has one copy per frame, and each begins elsewhere.
            copied_start = index_of_view(self.scheduler, timestep) or 0
            self.start = index_before(scheduler, timestep) if is_original else copied_start
            if self.plan is not None and self.start:
                self._plan_from(self.start)
        self.next += 1
        self.step_index = getattr(scheduler, "step_index", None) if is_original else None

    def begin_again(self, timestep, opens_step: bool) -> bool:
        """Return whether a call at this timestep belongs to another generation: the steps are over, or the timesteps
        went back, or they come from another list than before. It reads no tensor.

        Args:
            timestep: The timestep of the call.
            opens_step: Whether it is the first call of its step.
        """
        if self.are_over or (self.step_index is not None and self.scheduler.step_index is None):
            return True
        index = index_of_view(self.scheduler, timestep)
        if index is None:
            return self.are_views and opens_step
        return index < (self.start or 0) + self.next - 1

    def _plan_from(self, start: int) -> None:
        timesteps = timesteps_of(self.scheduler)
        start = start if start < len(timesteps) else 0  # a scheduler not set for this generation is past its last one
        levels = noise_levels(self.scheduler, timesteps) if self.policy.reads_noise_levels else None
        self.timesteps = timesteps[start:]
        self.plan = self.policy.plan(self.timesteps, levels and levels[start:])


class CountedSteps(Steps):
    """The steps of one branch of guidance where no scheduler is followed: each call of the branch is one step.

    Each step is decided by itself: nothing is kept of those before it but their count and the end of the window.

    Attributes:
        t: The timestep of the next step, where the policy has a window; None before the first.
        is_over: Whether a step before it has ended the window.
    """

    def __init__(self, policy: CachePolicy):
        super().__init__(policy)
        self.t: float | None = None
        self.is_over = False

    @property
    def next_is_full(self) -> bool:
        """Whether the next step is full."""
        return self.policy.is_full(self.next, self.time, self.is_over)

    @property
    def time(self) -> float:
        """The position of the next step on the axis of the forecast."""
        return -float(self.next) if self.t is None else self.t

    def count_call(self, timestep, model_class: str) -> bool:
        """Take the timestep of the next step from its call.

        Only a window needs the timestep. Reading it is the one operation of the cache that waits for a device.

        Args:
            timestep: The timestep of the call, or None.
            model_class: The class name of the model, for messages.

        Returns:
            Whether the next run begins: after the end of a window the timestep rises, as in the official code.

        Raises:
            UsageError: The policy has a window, and the call no timestep.
        """
        if self.policy.window is None:
            return False
        if timestep is None:
            raise UsageError(f"Got a cache window, but {model_class} is called without a timestep; give an interval.")
        end, earlier = self.policy.window[1], self.t
        self.t = _first_value(timestep)
        begins_again = earlier is not None and earlier <= end < self.t
        if begins_again:
            self.next, self.is_over = 0, False
        elif earlier is not None and self.next:
            self.is_over = self.is_over or earlier <= end
        return begins_again


def timesteps_of(scheduler) -> list[float]:
    """Return the timesteps a scheduler steps from: its list, without a last one where it only arrives (SCM).

    Raises:
        UsageError: It has no timesteps yet.
    """
    if scheduler.timesteps is None or not len(scheduler.timesteps):
        raise UsageError(f"Got {type(scheduler).__name__} without timesteps; call its set_timesteps before the model.")
    timesteps = scheduler.timesteps.tolist()
    falling = all(later < t for t, later in pairwise(timesteps))
    arrives = falling and timesteps[-1] == 0 and len(timesteps) - 1 == getattr(scheduler, "num_inference_steps", None)
    return timesteps[:-1] if arrives else timesteps


def generation_timesteps(scheduler, timestep=None) -> list[float]:
    """Return the timesteps of a generation whose first step, at ``timestep``, has just been made."""
    start = getattr(scheduler, "begin_index", None)
    return timesteps_of(scheduler)[index_before(scheduler, timestep) if start is None else start :]


def next_index(scheduler) -> int | None:
    """Return the index of a scheduler's next step in its timesteps, or None if it does not know."""
    index = getattr(scheduler, "step_index", None)
    return getattr(scheduler, "begin_index", None) if index is None else index


def index_before(scheduler, timestep) -> int:
    """Return the index, in a scheduler's timesteps, of the step that it has made at ``timestep``.

    It reads the timestep, and so waits for a device, only where the scheduler counts no steps.
    """
    after = getattr(scheduler, "step_index", None)
    if after:
        return after - 1
    index = index_of_view(scheduler, timestep)
    if index is not None or timestep is None:
        return index or 0
    t, timesteps = _first_value(timestep), scheduler.timesteps.tolist()
    return timesteps.index(t) if t in timesteps else 0


def index_of_view(scheduler, timestep) -> int | None:
    """Return the index of a timestep that is a view of a scheduler's timesteps, as a loop over them gives; None for
    any other. It does not read the tensor."""
    timesteps = scheduler.timesteps
    if not (isinstance(timestep, torch.Tensor) and isinstance(timesteps, torch.Tensor)) or not timestep.numel():
        return None
    is_single = timestep.numel() == 1 or not any(timestep.stride())
    if not is_single or timestep.dtype != timesteps.dtype or timestep.device != timesteps.device or timestep.is_meta:
        return None
    index, rest = divmod(timestep.data_ptr() - timesteps.data_ptr(), timesteps.element_size())
    return index if not rest and 0 <= index < len(timesteps) else None


def differ_in_time(timestep, other) -> bool:
    """Return whether two calls are at different timesteps. It waits for a device.

    Returns:
        False where they cannot be told apart: a timestep per token, or one tensor that is written to.
    """
    if timestep is other or timestep is None or other is None:
        return False
    first, second = torch.as_tensor(timestep), torch.as_tensor(other)
    if first.ndim > 1 or second.ndim > 1 or first.device != second.device or not first.numel() or not second.numel():
        return False
    return bool(first.flatten()[0] != second.flatten()[0])


def _first_value(timestep) -> float:
    return float(torch.as_tensor(timestep).flatten()[0])
