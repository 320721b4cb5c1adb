"""How far a generation has come: when its steps are, which of them are full, and which is next."""

from __future__ import annotations

import torch

from skipdit_cli.cache.policy import CachePolicy
from skipdit_cli.errors import UsageError


class Course:
    """The steps of one generation. ``step`` is the next one, ``plan`` one bool a step, or None until it is laid."""

    def __init__(self, policy: CachePolicy, scheduler=None):
        self.policy, self.scheduler = policy, scheduler
        self.timesteps: list[float] = []
        self.plan: tuple[bool, ...] | None = None
        self.step = 0

    @property
    def full(self) -> bool:
        """Whether the next step is to be full."""
        return self.over or self.plan is None or self.plan[self.step]

    @property
    def over(self) -> bool:
        """Whether the steps that were planned have all been made."""
        return self.plan is not None and self.step >= len(self.plan)

    @property
    def time(self) -> float:
        """Where the next step lies on the axis of the forecast."""
        return self.timesteps[self.step] if self.step < len(self.timesteps) else -float(self.step)


class ScheduledCourse(Course):
    """The steps that a scheduler makes.

    Image-to-image begins in the middle of the timesteps. A scheduler that has not been told where (``begin_index``)
    says so after its first step, which is full in any case: then the plan is laid again, over what is run.
    """

    def __init__(self, policy: CachePolicy, scheduler):
        super().__init__(policy, scheduler)
        self.start: int | None = None
        self.viewing = False
        self.stepped_to: int | None = None

    def lay(self, timestep) -> None:
        """Plan the steps, at the first call of the transformer.

        Raises:
            UsageError: The policy was made for another number of steps.
        """
        if self.plan is None:
            self.viewing = viewed_place(self.scheduler, timestep) is not None
            self.start = next_place(self.scheduler) if self.start is None and self.step == 0 else self.start
            self._plan_from(self.start or 0)

    def advance(self, scheduler, timestep) -> None:
        """The scheduler, or a copy of it, has made its step at a timestep."""
        own = scheduler is self.scheduler
        if self.step == 0 and self.start is None:  # copies tell nothing: SkyReels-V2 has one a frame, each elsewhere
            self.start = place_before(scheduler, timestep) if own else viewed_place(self.scheduler, timestep) or 0
            if self.plan is not None and self.start:
                self._plan_from(self.start)
        self.step += 1
        self.stepped_to = getattr(scheduler, "step_index", None) if own else None

    def begun_again(self, timestep, opens_step: bool) -> bool:
        """Whether a call at this timestep is of another generation: the steps are over, or the timesteps went back to
        one that had passed, or come from another list than before. Reads no tensor.

        Args:
            opens_step: It is the first call of its step.
        """
        if self.over or (self.stepped_to is not None and self.scheduler.step_index is None):
            return True
        place = viewed_place(self.scheduler, timestep)
        if place is None:
            return self.viewing and opens_step
        return place < (self.start or 0) + self.step - 1

    def _plan_from(self, start: int) -> None:
        steps = steps_of(self.scheduler)
        self.timesteps = steps[start:] or steps  # it is past its last where it was not set for this generation
        self.plan = self.policy.plan(self.timesteps)


class CountedCourse(Course):
    """The steps of one branch of guidance where no scheduler is followed: each call of it is one."""

    def call(self, timestep, model_class: str) -> bool:
        """Plan as far as this call.

        Only a window needs the timestep then, and reading it is the one place that waits for a device.

        Args:
            timestep: The call's, None where it has none.
        Returns:
            Whether the next run has begun: past the end of a window the timestep rises, as in the official code.
        Raises:
            UsageError: The policy has a window, and the call no timestep.
        """
        again = False
        if self.policy.window is None:
            self.timesteps.append(-float(self.step))
        else:
            if timestep is None:
                raise UsageError(
                    f"Got a cache window, but {model_class} is called without a timestep; give an interval."
                )
            t = _value(timestep)
            again = bool(self.timesteps) and self.timesteps[-1] <= self.policy.window[1] < t
            if again:
                self.timesteps, self.step = [], 0
            self.timesteps.append(t)
        full = self.policy.full_steps
        if isinstance(full, tuple):
            self.plan = tuple(step == 0 or step in full for step in range(self.step + 1))
        else:
            self.plan = self.policy.plan(self.timesteps)
        return again


def steps_of(scheduler) -> list[float]:
    """The timesteps a scheduler steps from: all in its list, but for a last one where it only arrives (SCM's).

    Raises:
        UsageError: It has none yet.
    """
    if scheduler.timesteps is None or not len(scheduler.timesteps):
        raise UsageError(f"Got {type(scheduler).__name__} without timesteps; call its set_timesteps before the model.")
    steps = scheduler.timesteps.tolist()
    falling = all(later < t for t, later in zip(steps, steps[1:]))
    arrives = falling and steps[-1] == 0 and len(steps) - 1 == getattr(scheduler, "num_inference_steps", None)
    return steps[:-1] if arrives else steps


def steps_ahead(scheduler, timestep=None) -> list[float]:
    """The timesteps of a generation whose first step has just been made, at ``timestep``."""
    start = getattr(scheduler, "begin_index", None)
    return steps_of(scheduler)[place_before(scheduler, timestep) if start is None else start :]


def next_place(scheduler) -> int | None:
    """Where in its timesteps a scheduler's next step is, None where it does not say."""
    place = getattr(scheduler, "step_index", None)
    return getattr(scheduler, "begin_index", None) if place is None else place


def place_before(scheduler, timestep) -> int:
    """Where in its timesteps a scheduler was before the step it has made at ``timestep``. Where nothing else tells,
    the timestep is read: one wait for a device a generation."""
    after = getattr(scheduler, "step_index", None)
    if after:
        return after - 1
    place = viewed_place(scheduler, timestep)
    if place is not None or timestep is None:
        return place or 0
    t, steps = _value(timestep), scheduler.timesteps.tolist()
    return steps.index(t) if t in steps else 0


def viewed_place(scheduler, timestep) -> int | None:
    """Which of a scheduler's timesteps this is, if it is a view of its list (as of a loop over it), unread."""
    steps = scheduler.timesteps
    if not (isinstance(timestep, torch.Tensor) and isinstance(steps, torch.Tensor)) or not timestep.numel():
        return None
    one = timestep.numel() == 1 or not any(timestep.stride())
    if not one or (timestep.dtype, timestep.device) != (steps.dtype, steps.device) or timestep.is_meta:
        return None
    if timestep.untyped_storage().data_ptr() != steps.untyped_storage().data_ptr():
        return None
    place = timestep.storage_offset() - steps.storage_offset()
    return place if 0 <= place < len(steps) else None


def other_time(timestep, other) -> bool:
    """Whether two calls are at different timesteps; False where they cannot be told apart: a timestep for each token,
    or one tensor that is written to. Waits for a device."""
    if timestep is other or timestep is None or other is None:
        return False
    first, second = torch.as_tensor(timestep), torch.as_tensor(other)
    if first.ndim > 1 or second.ndim > 1 or first.device != second.device or not first.numel() or not second.numel():
        return False
    return bool(first.flatten()[0] != second.flatten()[0])


def _value(timestep) -> float:
    return float(torch.as_tensor(timestep).flatten()[0])
