"""Following schedulers: the one a cache was given, its copies, and the one of the pipeline that is running."""

from __future__ import annotations

import copy
import inspect
import sys
from functools import partial
from types import FrameType
from weakref import WeakSet

import torch

from skipdit_cli.families.pipeline_parts import unwrap_compiled
from skipdit_cli.trunk import Interposed, find, interpose, restore

EVENTS = ("set_timesteps", "step")
"""The methods of a scheduler that a cache follows: they begin a generation, and end a step."""


class Followed(Interposed):
    """A scheduler's ``set_timesteps`` or ``step``, which takes each cache that follows it for the calling thread
    before, and calls ``callback`` for it afterwards.

    The caches are weak references, so that a scheduler keeps no model alive. A copy of a scheduler is followed as
    well, for a pipeline may step with copies only (SkyReels-V2, one per frame) or with one beside the original (LTX-2,
    for its sound); it does not copy the model.

    Args:
        inner: The method.
        scheduler: Its scheduler.
        begins: Whether the method begins a generation; the other one is of a thread whose generation goes on.
        callback: Is called with the cache, the scheduler, whether a transformer whose cache follows the scheduler has
            run since its last step, and the timestep among the method's arguments, or None.
    """

    def __init__(self, inner, scheduler, begins, callback):
        super().__init__(inner)
        self.scheduler, self.begins, self.callback = scheduler, begins, callback
        self.caches: WeakSet = WeakSet()
        self.parameters = list(inspect.signature(inner).parameters)

    def __call__(self, *args, **kwargs):
        caches = [cache for cache in self.caches if cache.enabled and not self._serves_another_model(cache)]
        for cache in caches:
            take(cache) if self.begins else cache.ownership.check_step()
        result = self.inner(*args, **kwargs)
        ran = any(cache.ran for cache in caches)
        timestep = {**dict(zip(self.parameters, args)), **kwargs}.get("timestep")
        for cache in caches:
            self.callback(cache, self.scheduler, ran, timestep)
        return result

    def _serves_another_model(self, cache) -> bool:
        """Whether the scheduler is a copy that a pipeline of another transformer than the cache's steps with."""
        pipe = None if cache.scheduler is self.scheduler else _running_pipeline(cache)
        models = _models_of(pipe)
        return bool(models) and cache.transformer not in models

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "caches"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, caches=WeakSet())

    def __deepcopy__(self, memo: dict):
        """Copy it with the caches that are not copied too; those follow the copy by themselves (``claim``)."""
        copied = memo[id(self)] = object.__new__(type(self))
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        copied.caches.update(cache for cache in self.caches if id(cache.transformer) not in memo)
        return copied


def follow(scheduler, cache) -> None:
    """Have a scheduler call ``cache.callbacks``, one for each of ``EVENTS``."""
    for event, callback in zip(EVENTS, cache.callbacks):
        make = partial(Followed, scheduler=scheduler, begins=event == EVENTS[0], callback=callback)
        interpose(scheduler, event, make, Followed).caches.add(cache)


def take(cache) -> None:
    """Take a cache for a generation of this thread. One of another thread is over, whether its first call has been
    made or not.

    Raises:
        UsageError: A call of another thread is under way.
    """
    cache.ownership.begin_generation(cache.in_generation or cache.pending_scheduler is not None)


def succeed(cache, former) -> None:
    """Let a cache take the place of a former one of its transformer, or of None: a thread in the midst of a generation
    of that is refused from then on.

    Raises:
        UsageError: A call of another thread is under way.
    """
    if former is not None:
        take(former)
        cache.ownership = former.ownership


def unfollow(scheduler, cache) -> None:
    """Undo ``follow``."""
    for event in EVENTS:
        followed = find(scheduler, event, Followed)
        if followed is not None:
            followed.caches.discard(cache)
            if not followed.caches:
                restore(scheduler, event, Followed)


def claim(cache) -> None:
    """Follow the cache's own scheduler. Caches that followed it as a copy of theirs stop."""
    for event in EVENTS:
        followed = find(cache.scheduler, event, Followed)
        if followed is not None:
            followed.caches = WeakSet(other for other in followed.caches if other.scheduler is cache.scheduler)
            followed.caches.add(cache)


def exchange(cache, scheduler) -> None:
    """Follow another scheduler in the place of the one so far."""
    unfollow(cache.scheduler, cache)
    follow(scheduler, cache)
    cache.scheduler = scheduler


def follow_running_pipeline(cache) -> bool:
    """Follow the scheduler of the pipeline that is calling the transformer, if the cache follows no scheduler of that
    pipeline; returns whether it was so. The caches of the pipeline's other transformers do the same, for they share
    its steps. A pipeline is any object with a ``scheduler`` that is in one of its methods."""
    pipe = _running_pipeline(cache)
    parts = () if pipe is None else (pipe.scheduler, *getattr(pipe, "__dict__", {}).values())
    if pipe is None or any(_follows(cache, part) for part in parts):
        return False
    scheduler, models = pipe.scheduler, _models_of(pipe)
    followed = find(cache.scheduler, "step", Followed)
    others = [] if followed is None else [each for each in followed.caches if each.transformer in models]
    for each in others:
        if each is not cache and each.scheduler is cache.scheduler:
            exchange(each, scheduler)
            take(each)
            each.callbacks[0](each, scheduler, False, None)
    exchange(cache, scheduler)
    cache.begin_generation(scheduler)
    return True


def _models_of(pipe) -> list[torch.nn.Module]:
    """The models among the parts of a pipeline, without the wrappers of ``torch.compile``."""
    parts = getattr(pipe, "__dict__", {}).values()
    return [unwrap_compiled(part) for part in parts if isinstance(part, torch.nn.Module)]


def _running_pipeline(cache):
    """The innermost pipeline that is in one of its methods, or None."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        scheduler = None if owner is cache or isinstance(owner, Followed) else getattr(owner, "scheduler", None)
        if all(callable(getattr(scheduler, event, None)) for event in EVENTS):
            return owner
        frame = frame.f_back
    return None


def _follows(cache, scheduler) -> bool:
    has_steps = hasattr(scheduler, "step") and hasattr(scheduler, "__dict__")
    followed = find(scheduler, "step", Followed) if has_steps else None
    return followed is not None and cache in followed.caches
