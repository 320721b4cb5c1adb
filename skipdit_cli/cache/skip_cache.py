"""Skip-Cache: the state of one generation.

In a full step every block runs, and the cache remembers the boundary (the input of block L-N, before its merge). In a
reused step only the outermost blocks run, and the boundary is forecast (Skip-DiT, arXiv 2411.17616, section 3.3, with
N blocks at each end). A model without skip branches can be cached as well, as the control.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from skipdit_cli.cache.forward_arguments import fills_other_cache, signature_and_condition, timestep_of
from skipdit_cli.cache.generation.call import Call
from skipdit_cli.cache.generation.following import claim, follow_running_pipeline, take
from skipdit_cli.cache.generation.ownership import Ownership
from skipdit_cli.cache.generation.report import CacheReport, Record
from skipdit_cli.cache.generation.slot import Key, Slot, find_slot
from skipdit_cli.cache.generation.steps import CountedSteps, ScheduledSteps, Steps, differ_in_time
from skipdit_cli.cache.live_ends import LiveEnds
from skipdit_cli.cache.policy import CachePolicy
from skipdit_cli.cache.trigger import Trigger, make_trigger
from skipdit_cli.errors import UsageError
from skipdit_cli.families.pipeline_parts import unwrap_compiled
from skipdit_cli.families.protocols import Scheduler, Transformer
from skipdit_cli.trunk import Trunk, refuse_other_cache

MAX_CALLS_PER_STEP = 8
ONE_CACHE = "a model takes one cache, and Skip-Cache is one"


class SkipCache:
    """The cache of one transformer, made by ``enable_skip_cache``. Its state belongs to one generation.

    Args:
        transformer: The model, or its ``torch.compile`` wrapper.
        policy: What is cached, and when.
        scheduler: The scheduler that is followed, or None.
        callbacks: What a followed scheduler calls after ``set_timesteps`` and ``step`` (see ``follow``).
        policy_for: Returns the policy of a generation, given its scheduler; None if one policy serves all.

    Attributes:
        peak_bytes: The most that was remembered at once.
        enabled: False after ``disable_skip_cache``.
        slots: The memory of each branch of guidance, by context name or number.
        ran: Whether the transformer has run since the scheduler's last step.

    Raises:
        UsageError: The policy needs a scheduler, and there is none.
    """

    def __init__(
        self,
        transformer: Transformer,
        policy: CachePolicy,
        scheduler: Scheduler | None = None,
        callbacks: Sequence[Callable] = (),
        policy_for: Callable[[Any], CachePolicy] | None = None,
    ):
        self.policy, self.scheduler, self.callbacks, self.policy_for = policy, scheduler, callbacks, policy_for
        self.outer, self.transformer = transformer, unwrap_compiled(transformer)
        self.ends, self.num_blocks, self.enabled = LiveEnds(policy), 0, True
        self.trunk: Trunk = None  # type: ignore[assignment]  # None until it is found, which no block runs before
        if scheduler is None and isinstance(policy.full_steps, int):
            raise UsageError(
                f"A {policy.placement} schedule needs the number of steps: pass the pipeline's scheduler."
            )
        self.parameters = list(inspect.signature(self.transformer.forward).parameters)
        self.ownership = Ownership()
        self.slots: dict[Key, Slot] = {}
        self.pending_scheduler = None
        self.reset()

    def __setstate__(self, state: dict) -> None:
        """A copy follows the copy of its scheduler, whichever of them was copied first."""
        self.__dict__.update(state)
        if self.scheduler is not None:
            claim(self)

    def set_trunk(self, trunk: Trunk) -> None:
        """Cache the deep part of this trunk.

        Raises:
            UsageError: It has too few blocks for the policy.
        """
        self.ends.set_trunk(trunk)
        self.trunk, self.num_blocks = trunk, len(trunk)
        trunk.cache = self

    def reset(self) -> None:
        """Begin a generation with empty memory, an empty trace and no counts.

        Raises:
            UsageError: Another thread is in a call of the transformer.
        """
        take(self)
        self.record, self.peak_bytes = Record(), 0
        self.pending_scheduler = None
        self._begin_steps(self.scheduler)

    @property
    def in_generation(self) -> bool:
        """Whether a generation is under way; always False without a scheduler."""
        return self.scheduler is not None and bool(self.slots)

    @property
    def trace(self) -> list[str]:
        """The kind of each forward, "full" or "reused": of the generation; of the latest ones without a scheduler."""
        return self.record.trace

    @property
    def changes(self) -> list[torch.Tensor | None]:
        """What the trigger of a threshold measured in each step of the trace, one number a sample, or None."""
        return self.record.changes

    @property
    def plan(self) -> tuple[bool, ...] | None:
        """One bool per step, True where it must be full; None without a scheduler, or before the first call."""
        return self.steps.plan if self.scheduler is not None else None

    def report(self) -> CacheReport:
        """Return the counts of all generations since the last report: a video in segments (FramePack) has several."""
        self.record.is_read = True
        return self.record.report(self.num_blocks, self.ends.left_out)

    def forget(self) -> None:
        """Forget all boundaries, for the weights have changed: the next call of each branch of guidance is full."""
        self.slots.clear()

    def release(self) -> None:
        """Release every remembered tensor; the counts stay."""
        self.slots = {}
        self.called_slots: set[Key] = set()  # in this step
        self.timestep, self.ran, self.call = None, False, Call()  # of this step
        self.trigger = make_trigger(self.policy, self.transformer)

    # Called by the blocks (the protocol ``Cache`` of trunk.py)

    def leaves_out(self, index: int) -> bool:
        """Return whether unit ``index`` does not run in this forward."""
        return self.call.is_reused and self.ends.front <= index < self.ends.boundary

    def cross(self, index: int, streams: list) -> list:
        """Return the streams at the input of unit ``index`` (L: after the last): the forecast at a reused boundary."""
        return streams if self.call.slot is None else self.ends.cross(self.call, index, streams)

    # Called around each forward of the transformer (``CachedForward``)

    @torch.compiler.disable
    def begin(self, args: tuple, kwargs: dict) -> None:
        """Decide whether a forward with these arguments is full or reused, before any block runs.

        Raises:
            UsageError: A cache of diffusers is on, the scheduler was replaced, or the policy does not fit the run.
        """
        arguments = {**dict(zip(self.parameters, args)), **kwargs}
        timestep = timestep_of(arguments)
        if self.ends.front < self.ends.back:  # branches that were added after the cache may need both ends
            self.ends.set_trunk(self.trunk)
        if self.scheduler is not None:
            self._begin_generation_if_due(timestep)
        if torch.is_grad_enabled() or self.transformer.training or fills_other_cache(arguments):
            refuse_other_cache(self.transformer, self.transformer.modules(), ONE_CACHE)
            return
        key, slot = self._slot_of(arguments, timestep)
        if isinstance(slot.steps, ScheduledSteps):
            slot.steps.make_plan(timestep)
        elif slot.steps.count_call(timestep, type(self.transformer).__name__):
            slot.forget()
        is_reused = bool(slot.times) and not slot.steps.next_is_full
        # Looking into the blocks takes microseconds for each: the first step of a generation does.
        is_later = is_reused or (self.scheduler is not None and bool(slot.times))
        refuse_other_cache(self.transformer, self.trunk.blocks if is_later else self.transformer.modules(), ONE_CACHE)
        if not self.called_slots:
            self.timestep = timestep
        if self.scheduler is None and key in self.called_slots:
            self.steps.next += 1
            self.called_slots.clear()
            self.record.shorten(self.num_blocks, self.ends.left_out)
        self.called_slots.add(key)
        if self.trigger is not None:
            self.call = self.trigger.begin_call(slot, is_reused, opens_step=len(self.called_slots) == 1)
        else:
            self.call = Call.reusing(slot) if is_reused else Call(slot)

    @torch.compiler.disable
    def end(self, finished: bool) -> None:
        """Remember the boundary of a full step that has finished; after an exception, forget the generation."""
        if not finished:
            self._begin_steps(self.steps.scheduler)
            return
        call, self.call, self.ran = self.call, Call(), True
        call.check_crossed(type(self.transformer).__name__, self.ends.back)
        self.record.add(call.is_reused, self.steps.next, call.decision)
        if call.slot is not None and call.boundary is not None:
            call.slot.remember(call.slot.steps.time, call.boundary, call.last_shallow)
            self.peak_bytes = max(self.peak_bytes, self._held_bytes())
        if self.scheduler is None and call.slot is not None:
            call.slot.steps.next += 1

    # Called by the scheduler (``Followed``)

    def begin_generation(self, scheduler) -> None:
        """Expect a new generation from the next forward on, for a scheduler's ``set_timesteps`` has run."""
        self.finish()
        if self.pending_scheduler is self.scheduler:  # a pipeline also sets the timesteps of its copies
            scheduler = self.scheduler
        self.pending_scheduler = scheduler
        self._begin_steps(scheduler)

    def advance(self, scheduler=None, timestep=None) -> None:
        """Count a step. A branch of guidance that was not called in it is forgotten.

        Args:
            scheduler: The scheduler that has made the step, or a copy of it; the one followed if not given.
            timestep: The timestep it was made at; that of the forward if not given.
        """
        steps, timestep = self.steps, self.timestep if timestep is None else timestep
        steps.advance(self.scheduler if scheduler is None else scheduler, timestep)
        if self.ran and steps.plan is None:  # the cache was bypassed, and the end of the steps has to be known
            steps.make_plan(None)
        if steps.next == 1:
            for slot in self.slots.values():
                slot.times = [steps.time_of(0) for _ in slot.times]  # the first timestep is known only now
        self.slots = {key: slot for key, slot in self.slots.items() if key in self.called_slots}
        self.called_slots.clear()
        self.ran = False
        if steps.are_over:
            self.finish()

    def finish(self) -> None:
        """End the generation, complete or not, and warn if no step of it was reused against its plan."""
        if self.plan is not None:
            self.record.warn_if_unused(self.plan, self.policy.threshold)
        self.record.begin_generation()
        self.release()

    def _begin_steps(self, scheduler) -> None:
        if self.policy_for is not None:
            self.policy = self.policy_for(scheduler)
            self.ends = LiveEnds(self.policy, self.trunk)
        self.steps: Any = Steps(self.policy) if scheduler is None else ScheduledSteps(self.policy, scheduler)
        self.record.begin_generation()
        self.release()

    def _begin_generation_if_due(self, timestep) -> None:
        """Begin the generation that the next forward is the first of, if it is."""
        is_pending, opens_step = self.pending_scheduler is not None, not self.called_slots
        begins = not is_pending and (self.plan is None or self.steps.begin_again(timestep, opens_step))
        # After a generation that was left, nothing else tells the first step of one with another scheduler.
        if begins or (not is_pending and opens_step and not self.steps.are_views):
            is_pending = follow_running_pipeline(self)
        if begins and not is_pending and self.plan is not None:
            self.finish()
            self._begin_steps(self.steps.scheduler)
        if is_pending:
            self.record.begin_trace(self.num_blocks, self.ends.left_out)
            self.pending_scheduler = None

    def _slot_of(self, arguments: dict, timestep) -> tuple[Key, Slot]:
        """The memory of the branch of guidance that a call belongs to, new if there is none that is valid for it."""
        signature, condition = signature_and_condition(arguments, self.parameters[0])
        key, slot = self._find_slot(condition, timestep)
        if slot is None or slot.signature != signature:
            steps = self.steps if self.scheduler is not None else slot.steps if slot else CountedSteps(self.policy)
            self.slots.pop(key, None)
            slot = self.slots[key] = Slot(self.policy, condition, signature, steps)
            if self.scheduler is None and len(self.slots) > MAX_CALLS_PER_STEP:  # nothing says which are out of use
                del self.slots[next(iter(self.slots))]
        slot.condition = condition
        return key, slot

    def _find_slot(self, condition: list[torch.Tensor], timestep) -> tuple[Key, Slot | None]:
        """Return the key of a branch of guidance, and its memory or None. Too many calls mean another scheduler."""
        called = self.called_slots if self.scheduler is not None else set()
        key, slot, repeated = find_slot(self.slots, called, self.ownership.context, condition)
        if slot is not None:
            return key, slot
        if len(called) >= MAX_CALLS_PER_STEP or (repeated and differ_in_time(self.timestep, timestep)):
            if not follow_running_pipeline(self):
                raise UsageError(
                    f"{type(self.transformer).__name__} was called {len(called) + 1} times within one step of its "
                    f"{type(self.scheduler).__name__}; was the scheduler replaced after enable_skip_cache? "
                    "Enable the cache again with the one in use, or with none where the loop calls no step."
                )
            self._begin_generation_if_due(timestep)
            return self._find_slot(condition, timestep)
        return key, None

    def _held_bytes(self) -> int:
        holders: list[Slot | Trigger] = [*self.slots.values(), *filter(None, [self.trigger])]
        return sum(tensor.nbytes for holder in holders for tensor in holder.tensors())
