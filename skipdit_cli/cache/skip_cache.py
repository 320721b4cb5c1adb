"""Skip-Cache: the state of one generation, and how it is put on a transformer and a scheduler.

On a full step every block runs and the boundary (the input of block L-N, before its merge) is remembered. On a
reused step only the N outermost blocks at each end run, and the boundary is forecast (Skip-DiT, arXiv 2411.17616,
section 3.3). It works on a model with skip branches, and as the honest control on a vanilla one.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from functools import partial

import torch

from skipdit_cli.backbones import Interposed, find, interpose, restore, trunk_of
from skipdit_cli.cache.policy import CachePolicy
from skipdit_cli.cache.slot import Slot
from skipdit_cli.errors import UsageError

MOST_CALLS_A_STEP = 8


@dataclass(frozen=True)
class CacheReport:
    """The counts of one generation; ``str()`` is the line every run ends with."""

    steps: int
    reused_steps: int
    blocks_run: int
    blocks_total: int

    def __str__(self) -> str:
        return f"{self.reused_steps} of {self.steps} steps reused, {self.blocks_run} of {self.blocks_total} blocks run"


class SkipCache:
    """The cache of one transformer. Made by ``enable_skip_cache``; its state belongs to one generation.

    ``trace`` holds "full" or "reused", one per forward call; ``peak_bytes`` is the most that was remembered at once.
    """

    def __init__(self, transformer, policy: CachePolicy, scheduler=None):
        self.policy, self.scheduler = policy, scheduler
        self.transformer = getattr(transformer, "_orig_mod", transformer)
        self.num_blocks = len(trunk_of(transformer))
        self.layers, self.boundary = policy.layers, self.num_blocks - policy.layers
        if 2 * policy.layers >= self.num_blocks:
            raise UsageError(
                f"--cache-layers {policy.layers} leaves nothing to cache: the model has {self.num_blocks} blocks, "
                f"valid 1..{(self.num_blocks - 1) // 2}."
            )
        if scheduler is None and isinstance(policy.full_steps, int):
            raise UsageError("A late-dense schedule needs the number of steps: pass the pipeline's scheduler.")
        self.parameters = list(inspect.signature(self.transformer.forward).parameters)
        self.context: str | None = None
        self.reset()

    def reset(self) -> None:
        """Begin a new generation: nothing remembered, step 0, an empty trace."""
        self.trace: list[str] = []
        self.steps: list[int] = []
        self.step = 0
        self.timesteps: list[float] = []
        self.plan: tuple[bool, ...] | None = None
        self.peak_bytes = 0
        self.release()

    def release(self) -> None:
        """Let every remembered tensor go; the counts stay."""
        self.slots: dict[str | int, Slot] = {}
        self.called: set[str | int] = set()
        self.slot: Slot | None = None
        self.reusing = self.capturing = False
        self.base: list[torch.Tensor] = []
        self.shallow: list[torch.Tensor] | None = None
        self.captured: list[torch.Tensor] | None = None

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
        return self.reusing and self.layers <= index < self.boundary

    def cross(self, index: int, streams: list[torch.Tensor]) -> list[torch.Tensor]:
        """At the input of a unit that runs: capture on a full step, put in the forecast on a reused one."""
        if self.capturing and index == self.layers and self.policy.target == "residual":
            self.shallow = list(streams)
        if index == self.boundary:
            if self.reusing and self.shallow is None:
                return self.base
            if self.reusing:  # nothing ran in between: the streams still are the fresh shallow output
                return [base + (x - last) for base, x, last in zip(self.base, streams, self.shallow)]
            if self.capturing:
                self.captured = list(streams)
        return streams

    # Around one call of the transformer

    @torch.compiler.disable
    def begin(self, args: tuple, kwargs: dict) -> None:
        """Decide the kind of this call, before any block runs."""
        if torch.is_grad_enabled() or self.transformer.training:
            self.slot, self.reusing, self.capturing = None, False, False
            return
        arguments = {**dict(zip(self.parameters, args)), **kwargs}
        self._follow_schedule(arguments.get("timestep"))
        tensors = {name: value for name, value in arguments.items() if isinstance(value, torch.Tensor)}
        signature = tuple((name, value.shape, value.dtype, value.device) for name, value in tensors.items())
        own = (self.parameters[0], "timestep")
        condition = [value for name, value in tensors.items() if name not in own]
        key, slot = self._find_slot(condition)
        if slot is None or slot.signature != signature:
            slot = self.slots[key] = Slot(self.policy.forecast, condition, signature)
        slot.condition = condition
        self.called.add(key)
        self.slot = slot
        self.reusing = bool(slot.times) and self.step < len(self.plan) and not self.plan[self.step]
        self.capturing = not self.reusing
        self.captured = None
        self.shallow = slot.shallow if self.reusing else None
        self.base = slot.base(self._time()) if self.reusing else []

    @torch.compiler.disable
    def end(self, finished: bool) -> None:
        """Remember what a full step left; after an exception, nothing of this generation."""
        if not finished:
            self.release()
            return
        self.trace.append("reused" if self.reusing else "full")
        self.steps.append(self.step)
        if self.capturing and self.captured is not None:
            self.slot.remember(self._time(), self.captured, self.shallow)
            self.peak_bytes = max(self.peak_bytes, self._held_bytes())
        if self.scheduler is None and self.slot is not None:
            self.step += 1
            self.called.clear()
        self.slot, self.reusing, self.capturing = None, False, False
        self.base, self.shallow, self.captured = [], None, None

    def advance(self) -> None:
        """The scheduler has made its step."""
        self.step += 1
        self.called.clear()
        if self.plan is not None and self.step >= len(self.plan):
            self._warn_if_inert()
            self.release()

    def _follow_schedule(self, timestep) -> None:
        if self.scheduler is not None:
            if self.plan is None:
                first = getattr(self.scheduler, "begin_index", None) or 0
                self.timesteps = self.scheduler.timesteps[first:].tolist()
                self.plan = self.policy.plan(self.timesteps)
            return
        # One call is one step. Only a window needs t then, and reading it is the one place that waits for a device.
        if self.policy.window is None:
            self.timesteps.append(-float(self.step))
        else:
            self.timesteps.append(float(torch.as_tensor(timestep).flatten()[0]))
        if isinstance(self.policy.full_steps, tuple):
            self.plan = (*(s == 0 or s in self.policy.full_steps for s in range(self.step + 1)),)
        else:
            self.plan = self.policy.plan(self.timesteps)

    def _time(self) -> float:
        """Where the current step lies on the axis of the forecast."""
        return self.timesteps[self.step] if self.step < len(self.timesteps) else -float(self.step)

    def _find_slot(self, condition: list[torch.Tensor]) -> tuple[str | int, Slot | None]:
        """The memory of this branch of guidance: by context name, else by what it is conditioned on.

        With one call a step there is nothing to tell apart and nothing is compared.
        """
        if self.context is not None:
            return self.context, self.slots.get(self.context)
        open_slots = {key: slot for key, slot in self.slots.items() if key not in self.called}
        if len(self.slots) > 1 or not open_slots:
            open_slots = {key: slot for key, slot in open_slots.items() if slot.matches(condition)}
        if open_slots:
            return next(iter(open_slots.items()))
        if len(self.called) >= MOST_CALLS_A_STEP:
            raise UsageError(
                f"The transformer was called {len(self.called) + 1} times within one step of its scheduler; "
                "was the scheduler replaced after enable_skip_cache? Enable the cache again with the one in use."
            )
        return len(self.slots), None

    def _warn_if_inert(self) -> None:
        if "reused" not in self.trace and not all(self.plan):
            warnings.warn(
                f"Skip-Cache reused none of {len(set(self.steps))} steps; its schedule leaves out "
                f"{self.plan.count(False)}.",
                stacklevel=2,
            )


class CachedForward(Interposed):
    """A transformer's forward, with the cache told when a call begins and ends.

    Not traced by ``torch.compile``: the decision is made in plain Python, and what is compiled inside sees one
    attribute, full or reused (two graphs). Compile the transformer before enabling the cache.
    """

    def __init__(self, inner, cache: SkipCache):
        super().__init__(inner)
        self.cache = cache

    @torch.compiler.disable(recursive=False)
    def __call__(self, *args, **kwargs):
        if not self.active:
            return self.inner(*args, **kwargs)
        finished = False
        self.cache.begin(args, kwargs)
        try:
            result = self.inner(*args, **kwargs)
            finished = True
        finally:
            self.cache.end(finished)
        return result


class NamedContext(Interposed):
    """A transformer's ``cache_context(name)``, which pipelines open around each branch of guidance."""

    def __init__(self, inner, cache: SkipCache):
        super().__init__(inner)
        self.cache = cache

    def __call__(self, name: str, *args, **kwargs):
        return _Named(self.cache, name, self.inner(name, *args, **kwargs))


class _Named:
    def __init__(self, cache: SkipCache, name: str, inner):
        self.cache, self.name, self.inner = cache, name, inner

    def __enter__(self):
        self.before, self.cache.context = self.cache.context, self.name
        return self.inner.__enter__()

    def __exit__(self, *exception):
        self.cache.context = self.before
        return self.inner.__exit__(*exception)


class Watched(Interposed):
    """A scheduler's ``set_timesteps`` or ``step``: the caches bound to it are told after each call."""

    def __init__(self, inner, event: str):
        super().__init__(inner)
        self.event, self.caches = event, []

    def __call__(self, *args, **kwargs):
        result = self.inner(*args, **kwargs)
        for cache in self.caches:
            getattr(cache, self.event)()
        return result


def enable_skip_cache(transformer, policy: CachePolicy, scheduler=None) -> SkipCache:
    """Cache the deep part of a transformer's forward, with or without skip branches attached.

    Args:
        transformer: A diffusers transformer of a declared family (or its ``torch.compile`` wrapper).
        policy: What is cached, and when.
        scheduler: The scheduler of the sampling loop: its ``set_timesteps`` begins a generation, its ``step`` ends
            a step. Without one every forward call is a step, and ``reset()`` begins a generation.
    Returns:
        The cache, with ``.trace``, ``.report()`` and ``.reset()``. A second call replaces the first's.
    Raises:
        UsageError: The model has too few blocks for the policy, or the policy needs a scheduler.
    """
    cache = SkipCache(transformer, policy, scheduler)
    disable_skip_cache(transformer)
    trunk = trunk_of(transformer)
    trunk.cache = cache
    trunk.update()
    interpose(transformer, "forward", partial(CachedForward, cache=cache))
    if hasattr(cache.transformer, "cache_context"):
        interpose(cache.transformer, "cache_context", partial(NamedContext, cache=cache))
    if scheduler is not None:
        for name, event in _EVENTS:
            interpose(scheduler, name, partial(Watched, event=event)).caches.append(cache)
    return cache


def disable_skip_cache(transformer) -> None:
    """Take the cache off; every step is full again. Does nothing where none is on."""
    trunk = trunk_of(transformer)
    cache, trunk.cache = trunk.cache, None
    trunk.update()
    if cache is None:
        return
    restore(transformer, "forward")
    restore(cache.transformer, "forward")
    restore(cache.transformer, "cache_context")
    cache.release()
    for name, _ in _EVENTS:
        watched = None if cache.scheduler is None else find(cache.scheduler, name)
        if watched is not None:
            watched.caches = [other for other in watched.caches if other is not cache]
            if not watched.caches:
                restore(cache.scheduler, name)


_EVENTS = (("set_timesteps", "reset"), ("step", "advance"))
