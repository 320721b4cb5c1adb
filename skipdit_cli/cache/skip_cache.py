"""Skip-Cache: the state of one generation.

On a full step every block runs and the boundary (the input of block L-N, before its merge) is remembered. On a
reused step only the N outermost blocks at each end run, and the boundary is forecast (Skip-DiT, arXiv 2411.17616,
section 3.3). It works on a model with skip branches, and as the honest control on a vanilla one.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence

import torch

from skipdit_cli.cache.call import Call
from skipdit_cli.cache.course import CountedCourse, Course, ScheduledCourse, other_time
from skipdit_cli.cache.following import claim, exchange, scheduler_in_use
from skipdit_cli.cache.forward_arguments import condition_of, fills_other_cache, signature_of, timestep_of
from skipdit_cli.cache.policy import CachePolicy, check_depth
from skipdit_cli.cache.report import CacheReport, Record
from skipdit_cli.cache.slot import Slot, each
from skipdit_cli.cache.turn import Turn
from skipdit_cli.errors import UsageError
from skipdit_cli.trunk import Trunk

MOST_CALLS_A_STEP = 8


class SkipCache:
    """The cache of one transformer. Made by ``enable_skip_cache``; its state belongs to one generation.

    ``trace`` holds "full" or "reused", one per forward call since the scheduler's last ``set_timesteps``;
    ``peak_bytes`` is the most that was remembered at once. ``tells`` hear of what the scheduler does (``follow``).
    """

    def __init__(self, transformer, policy: CachePolicy, scheduler=None, tells: Sequence = ()):
        self.policy, self.scheduler, self.tells = policy, scheduler, tells
        self.outer, self.transformer = transformer, getattr(transformer, "_orig_mod", transformer)
        self.layers = policy.layers
        self.trunk: Trunk | None = None
        if scheduler is None and isinstance(policy.full_steps, int):
            raise UsageError("A late-dense schedule needs the number of steps: pass the pipeline's scheduler.")
        self.parameters = list(inspect.signature(self.transformer.forward).parameters)
        self.turn = Turn()
        self.modules = list(self.transformer.modules())
        self.num_blocks = 0
        self.on = True
        self.slots: dict[str | int | tuple, Slot] = {}
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
        check_depth(self.layers, len(trunk))
        self.trunk, self.num_blocks, self.boundary = trunk, len(trunk), len(trunk) - self.layers
        trunk.cache = self

    def reset(self) -> None:
        """Begin anew: nothing remembered, step 0, an empty trace, no counts.

        Raises:
            UsageError: Another thread is in a call of the transformer.
        """
        self.turn.begin_generation(self.midway)
        self.record = Record()
        self.peak_bytes = 0
        self.announced = None
        self._begin_generation(self.scheduler)

    @property
    def midway(self) -> bool:
        """Whether a generation is under way; without a scheduler nothing tells."""
        return self.scheduler is not None and bool(self.slots)

    @property
    def trace(self) -> list[str]:
        return self.record.trace

    @property
    def plan(self) -> tuple[bool, ...] | None:
        """One bool a step of the generation, True where full; None before its first call, and without a scheduler."""
        return self.course.plan if self.scheduler is not None else None

    def report(self) -> CacheReport:
        """How much was reused: in this generation, and in those before it back to the last report. A pipeline that
        makes its video in segments (WanAnimate, FramePack) runs through several."""
        self.record.read = True
        return self.record.report(self.num_blocks, self.num_blocks - 2 * self.layers)

    def forget(self) -> None:
        """The weights have changed: the next call of each branch of guidance is full."""
        self.slots.clear()

    def release(self) -> None:
        """Let every remembered tensor go; the counts stay."""
        self.slots = {}
        self.called: set[str | int | tuple] = set()
        self.at, self.ran = None, False
        self.call = Call()

    def _held_bytes(self) -> int:
        held = [tensor for slot in self.slots.values() for tensor in slot.tensors()]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    # What the blocks ask (see Trunk.enter)

    def leaves_out(self, index: int) -> bool:
        return self.call.reusing and self.layers <= index < self.boundary

    def cross(self, index: int, streams: list) -> list:
        """At the input of a unit: capture on a full step, put in the forecast on a reused one."""
        call = self.call
        if call.slot is None:
            return streams
        residual = self.policy.target == "residual"
        if residual and index == self.layers:
            call.fresh = list(streams)
        if index != self.boundary:
            return streams
        call.crossed = True
        fresh = self.trunk.carry(call.fresh, self.layers, index) if residual else None
        if call.capturing:
            if fresh is not None and any(each(lambda x, last: x.shape != last.shape, streams, fresh)):
                name = self.trunk.model_class
                raise UsageError(f"Got --cache-target residual, but the streams of {name} change; take 'boundary'.")
            call.captured, call.shallow = list(streams), fresh
            return streams
        if fresh is None:
            return call.base
        return each(lambda base, x, last: base + (x - last), call.base, fresh, call.shallow)

    # Around one call of the transformer

    @torch.compiler.disable
    def begin(self, args: tuple, kwargs: dict) -> None:
        """Decide the kind of this call, before any block runs."""
        self.call = Call()
        arguments = {**dict(zip(self.parameters, args)), **kwargs}
        timestep = timestep_of(arguments)
        if self.scheduler is not None:
            self._keep_up(timestep)
        if torch.is_grad_enabled() or self.transformer.training or fills_other_cache(arguments):
            return
        signature = signature_of(arguments)
        condition = condition_of(arguments, self.parameters[0])
        key, slot = self._find_slot(condition, timestep)
        if slot is None or slot.signature != signature:
            course = self.course if self.scheduler is not None else slot.course if slot else CountedCourse(self.policy)
            self.slots.pop(key, None)
            slot = self.slots[key] = Slot(self.policy.forecast, condition, signature, course)
            if self.scheduler is None and len(self.slots) > MOST_CALLS_A_STEP:  # nothing else tells which are over
                del self.slots[next(iter(self.slots))]
        if self.scheduler is not None:
            slot.course.lay(timestep)
        elif slot.course.call(timestep, type(self.transformer).__name__):
            slot.forget()
        if not self.called:
            self.at = timestep
        if self.scheduler is None and key in self.called:
            self.course.step += 1
            self.called.clear()
        slot.condition = condition
        self.called.add(key)
        reusing = bool(slot.times) and not slot.course.full
        self.call = Call(slot, True, slot.base(slot.course.time), slot.shallow) if reusing else Call(slot)

    @torch.compiler.disable
    def end(self, finished: bool) -> None:
        """Remember what a full step left; after an exception, nothing of this generation."""
        if not finished:
            self._begin_generation(self.course.scheduler)
            return
        call, self.call, self.ran = self.call, Call(), True
        call.check_crossed(type(self.transformer).__name__, self.layers)
        self.record.add(call.reusing, self.course.step)
        if call.captured is not None:
            call.slot.remember(call.slot.course.time, call.captured, call.shallow)
            self.peak_bytes = max(self.peak_bytes, self._held_bytes())
        if self.scheduler is None and call.slot is not None:
            call.slot.course.step += 1

    def renew(self, scheduler) -> None:
        """A scheduler's ``set_timesteps`` has run: the next call of the transformer begins a generation."""
        self.finish()
        if self.announced is self.scheduler:  # a pipeline sets its copies' timesteps, too
            scheduler = self.scheduler
        self.announced = scheduler
        self._begin_generation(scheduler)

    def advance(self, scheduler=None, timestep=None) -> None:
        """A scheduler has made its step at a timestep. A branch of guidance that was not called in it is forgotten."""
        course = self.course
        timestep = self.at if timestep is None else timestep
        course.advance(self.scheduler if scheduler is None else scheduler, timestep)
        if self.ran and course.plan is None:  # it stood aside, of which a plan is needed to tell
            course.lay(None)
        if course.step == 1:
            for slot in self.slots.values():
                slot.times = [course.timesteps[0] for _ in slot.times]  # it is known only now which the first was
        self.slots = {key: slot for key, slot in self.slots.items() if key in self.called}
        self.called.clear()
        self.ran = False
        if course.over:
            self.finish()

    def finish(self) -> None:
        """The generation is over, or left."""
        steps = self.record.inert(self.plan) if self.plan is not None else 0
        if steps:
            warnings.warn(
                f"Skip-Cache reused none of {steps} steps; its schedule leaves out {self.plan.count(False)}.",
                stacklevel=2,
            )
        self.record.begin_generation()
        self.release()

    def _begin_generation(self, scheduler) -> None:
        self.course = Course(self.policy) if scheduler is None else ScheduledCourse(self.policy, scheduler)
        self.record.begin_generation()
        self.release()

    def _keep_up(self, timestep) -> None:
        """Before a call: begin the generation that it is the first call of."""
        if self.announced is None and (self.plan is None or self.course.begun_again(timestep, not self.called)):
            self._adopt()
            if self.announced is None and self.plan is not None:
                self.finish()
                self._begin_generation(self.course.scheduler)
        if self.announced is not None:
            self.record.begin_trace(self.num_blocks, self.num_blocks - 2 * self.layers)
            self.announced = None

    def _adopt(self) -> bool:
        """Follow the scheduler of the pipeline that is running, where it is another than the one followed so far."""
        scheduler = scheduler_in_use(self)
        if scheduler is not None:
            exchange(self, scheduler)
            self.renew(scheduler)
        return scheduler is not None

    def _find_slot(self, condition: list[torch.Tensor], timestep) -> tuple[str | int | tuple, Slot | None]:
        """The memory of this branch of guidance: by context name, else by what it is conditioned on. Of several calls
        of one branch within a step (tiles, say) each has its own."""
        called = self.called if self.scheduler is not None else set()
        if self.turn.context is not None:
            key, again = self.turn.context, 0
            while key in called:
                again += 1
                key = (self.turn.context, again)
            if key in self.slots:
                return key, self.slots[key]
        else:
            open_slots = {key: slot for key, slot in self.slots.items() if key not in called}
            for same in (Slot.holds, Slot.matches):  # what is not held has to be compared, which waits for a device
                for key, slot in open_slots.items():
                    if same(slot, condition):
                        return key, slot
            same = Slot.holds if len(called) < 2 else Slot.matches
            again = sum(same(self.slots[key], condition) for key in called if key in self.slots)
            key = 1 + max((key for key in self.slots if isinstance(key, int)), default=-1)
        if len(called) >= MOST_CALLS_A_STEP or (again and other_time(self.at, timestep)):
            if not self._adopt():
                raise UsageError(
                    f"{type(self.transformer).__name__} was called {len(called) + 1} times within one step of its "
                    f"{type(self.scheduler).__name__}; was the scheduler replaced after enable_skip_cache? "
                    "Enable the cache again with the one in use, or with none where the loop calls no step."
                )
            self._keep_up(timestep)
            return self._find_slot(condition, timestep)
        return key, None
