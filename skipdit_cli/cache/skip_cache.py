"""Skip-Cache: the state of one generation.

On a full step every block runs and the boundary (the input of block L-N, before its merge) is remembered. On a
reused step only the N outermost blocks at each end run, and the boundary is forecast (Skip-DiT, arXiv 2411.17616,
section 3.3). It works on a model with skip branches, and as the honest control on a vanilla one.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass, field

import torch

from skipdit_cli.backbones import Trunk, find
from skipdit_cli.cache.arguments import condition_of, fills_other_cache, signature_of, timestep_of
from skipdit_cli.cache.policy import CachePolicy, check_depth
from skipdit_cli.cache.schedule import steps_ahead
from skipdit_cli.cache.slot import Slot, each
from skipdit_cli.errors import UsageError

MOST_CALLS_A_STEP = 8
EVENTS = ("set_timesteps", "step")
"""Methods of a scheduler that a cache follows: they begin a generation, and end a step."""


@dataclass(frozen=True)
class CacheReport:
    """The counts of one generation; ``str()`` is the line every run ends with."""

    steps: int
    reused_steps: int
    blocks_run: int
    blocks_total: int

    @classmethod
    def over(cls, reports: list[CacheReport]) -> CacheReport:
        """The counts of transformers that took turns (Wan 2.2)."""
        return cls(*(sum(counts) for counts in zip(*(vars(report).values() for report in reports))))

    def __str__(self) -> str:
        return f"{self.reused_steps} of {self.steps} steps reused, {self.blocks_run} of {self.blocks_total} blocks run"


@dataclass
class Call:
    """One forward call of the transformer.

    Args:
        slot: The memory of its branch of guidance; None where the cache stands aside (training).
        reusing: The deep part is left out.
        base: On a reused step what the forecast makes of the slot: a stream each, (batch, tokens, width) or alike.
        shallow: The shallow output at the last full step, in the layout of the boundary; on a full step, of this one.
        fresh: The shallow output of this call.
        captured: On a full step the boundary.
    """

    slot: Slot | None = None
    reusing: bool = False
    base: list = field(default_factory=list)
    shallow: list | None = None
    fresh: list | None = None
    captured: list | None = None

    @property
    def capturing(self) -> bool:
        return self.slot is not None and not self.reusing


class SkipCache:
    """The cache of one transformer. Made by ``enable_skip_cache``; its state belongs to one generation.

    ``trace`` holds "full" or "reused", one per forward call; ``peak_bytes`` is the most that was remembered at once.
    """

    def __init__(self, transformer, policy: CachePolicy, scheduler=None):
        self.policy, self.scheduler = policy, scheduler
        self.outer, self.transformer = transformer, getattr(transformer, "_orig_mod", transformer)
        self.layers = policy.layers
        self.trunk: Trunk | None = None
        if scheduler is None and isinstance(policy.full_steps, int):
            raise UsageError("A late-dense schedule needs the number of steps: pass the pipeline's scheduler.")
        self.parameters = list(inspect.signature(self.transformer.forward).parameters)
        self.context: str | None = None
        self.num_blocks = 0
        self.reset()

    def __setstate__(self, state: dict) -> None:
        """A copy follows the copy of its scheduler, whichever of them was copied first."""
        self.__dict__.update(state)
        for event in EVENTS if self.scheduler is not None else ():
            watched = find(self.scheduler, event)
            if watched is not None and self not in watched.caches:
                watched.caches.append(self)

    def set_trunk(self, trunk: Trunk) -> None:
        """Cache the deep part of this trunk.

        Raises:
            UsageError: It has too few blocks for the policy.
        """
        check_depth(self.layers, len(trunk))
        self.trunk, self.num_blocks, self.boundary = trunk, len(trunk), len(trunk) - self.layers
        trunk.cache = self

    def reset(self) -> None:
        """Begin a new generation: nothing remembered, step 0, an empty trace."""
        self.trace: list[str] = []
        self.steps: list[int] = []
        self.step = self.begun = 0
        self.timesteps: list[float] = []
        self.plan: tuple[bool, ...] | None = None
        self.peak_bytes = 0
        self.release()

    def forget(self) -> None:
        """The weights have changed: the next call of each branch of guidance is full."""
        self.slots.clear()

    def release(self) -> None:
        """Let every remembered tensor go; the counts stay."""
        self.slots: dict[str | int, Slot] = {}
        self.called: set[str | int] = set()
        self.call = Call()

    def report(self) -> CacheReport:
        """How much of the generation so far was reused."""
        steps = set(self.steps)
        full = {step for step, kind in zip(self.steps, self.trace) if kind == "full"}
        reused_calls = self.trace.count("reused")
        left_out = reused_calls * (self.num_blocks - 2 * self.layers)
        total = len(self.trace) * self.num_blocks
        return CacheReport(len(steps), len(steps - full), total - left_out, total)

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
        if torch.is_grad_enabled() or self.transformer.training or fills_other_cache(arguments):
            return
        self._follow_schedule(timestep_of(arguments))
        signature = signature_of(arguments)
        condition = condition_of(arguments, self.parameters[0])
        key, slot = self._find_slot(condition)
        if slot is None or slot.signature != signature:
            self.slots.pop(key, None)
            slot = self.slots[key] = Slot(self.policy.forecast, condition, signature)
            if len(self.slots) > MOST_CALLS_A_STEP:  # without a scheduler nothing else tells which are over
                del self.slots[next(iter(self.slots))]
        slot.condition = condition
        self.called.add(key)
        reusing = bool(slot.times) and self.step < len(self.plan) and not self.plan[self.step]
        self.call = Call(slot, True, slot.base(self._time()), slot.shallow) if reusing else Call(slot)

    @torch.compiler.disable
    def end(self, finished: bool) -> None:
        """Remember what a full step left; after an exception, nothing of this generation."""
        if not finished:
            self.release()
            return
        call, self.call = self.call, Call()
        self.trace.append("reused" if call.reusing else "full")
        self.steps.append(self.step)
        if call.captured is not None:
            call.slot.remember(self._time(), call.captured, call.shallow)
            self.peak_bytes = max(self.peak_bytes, self._held_bytes())
        if self.scheduler is None and call.slot is not None:
            self.step += 1
            self.called.clear()

    def advance(self) -> None:
        """The scheduler has made its step. A branch of guidance that was not called in it is forgotten."""
        self.step += 1
        self.slots = {key: slot for key, slot in self.slots.items() if key in self.called}
        self.called.clear()
        if self.plan is not None and self.step >= len(self.plan):
            self._warn_if_inert()
            self.release()

    def _follow_schedule(self, timestep) -> None:
        if self.scheduler is not None:
            if self.plan is None:
                self.timesteps = steps_ahead(self.scheduler, timestep, self.step)
                self.plan = self.policy.plan(self.timesteps)
            return
        # One call is one step. Only a window needs t then, and reading it is the one place that waits for a device.
        if self.policy.window is None:
            self.timesteps.append(-float(self.step))
        else:
            if timestep is None:
                name = type(self.transformer).__name__
                raise UsageError(f"Got a cache window, but {name} is called without a timestep; give an interval.")
            t, end = float(torch.as_tensor(timestep).flatten()[0]), self.policy.window[1]
            if self.timesteps and self.timesteps[-1] <= end < t:  # the next run has begun, as in the official code
                self.begun = self.step
                self.slots.clear()
            self.timesteps.append(t)
        if isinstance(self.policy.full_steps, tuple):
            self.plan = (*(s == 0 or s in self.policy.full_steps for s in range(self.step + 1)),)
        else:
            self.plan = (True,) * self.begun + self.policy.plan(self.timesteps[self.begun :])

    def _time(self) -> float:
        """Where the current step lies on the axis of the forecast."""
        return self.timesteps[self.step] if self.step < len(self.timesteps) else -float(self.step)

    def _find_slot(self, condition: list[torch.Tensor]) -> tuple[str | int, Slot | None]:
        """The memory of this branch of guidance: by context name, else by what it is conditioned on."""
        if self.context is not None:
            return self.context, self.slots.get(self.context)
        open_slots = {key: slot for key, slot in self.slots.items() if key not in self.called}
        for same in (Slot.holds, Slot.matches):  # what is not held has to be compared, which waits for a device
            for key, slot in open_slots.items():
                if same(slot, condition):
                    return key, slot
        if len(self.called) >= MOST_CALLS_A_STEP:
            raise UsageError(
                f"The transformer was called {len(self.called) + 1} times within one step of its scheduler; "
                "was the scheduler replaced after enable_skip_cache? Enable the cache again with the one in use."
            )
        return 1 + max((key for key in self.slots if isinstance(key, int)), default=-1), None

    def _warn_if_inert(self) -> None:
        if self.trace and "reused" not in self.trace and not all(self.plan[step] for step in self.steps):
            warnings.warn(
                f"Skip-Cache reused none of {len(set(self.steps))} steps; its schedule leaves out "
                f"{self.plan.count(False)}.",
                stacklevel=2,
            )
