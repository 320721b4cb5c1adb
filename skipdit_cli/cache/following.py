"""How caches follow schedulers: the one they were given, its copies, and the one of the pipeline that is running."""

from __future__ import annotations

import copy
import inspect
import sys
from functools import partial
from weakref import WeakSet

import torch

from skipdit_cli.trunk import Interposed, find, interpose, restore

EVENTS = ("set_timesteps", "step")
"""Methods of a scheduler that a cache follows: they begin a generation, and end a step."""


class Followed(Interposed):
    """A scheduler's ``set_timesteps`` or ``step``: ``tell`` is called after it for each cache that follows.

    Caches are held weakly: a scheduler keeps no model alive. A copy of a scheduler is followed as well, for a pipeline
    may step with copies alone (SkyReels-V2, one a frame) or beside it (LTX-2, its sound); it takes no model along.

    Args:
        tell: Called with the cache, the scheduler, whether a transformer that follows it has run since its last step,
            and the timestep of the method's arguments, None without.
    """

    def __init__(self, inner, scheduler, tell):
        super().__init__(inner)
        self.scheduler, self.tell, self.caches = scheduler, tell, WeakSet()
        self.parameters = list(inspect.signature(inner).parameters)

    def __call__(self, *args, **kwargs):
        result = self.inner(*args, **kwargs)
        caches = [cache for cache in self.caches if cache.on and not self._is_of_another_model(cache)]
        ran = any(cache.ran for cache in caches)
        timestep = {**dict(zip(self.parameters, args)), **kwargs}.get("timestep")
        for cache in caches:
            self.tell(cache, self.scheduler, ran, timestep)
        return result

    def _is_of_another_model(self, cache) -> bool:
        """Whether this is a copy that went to a pipeline of another transformer than the cache's."""
        owner = None if cache.scheduler is self.scheduler else _pipeline_at_work(cache)
        models = [part for part in getattr(owner, "__dict__", {}).values() if isinstance(part, torch.nn.Module)]
        ours = (cache.outer, cache.transformer)
        return bool(models) and not any(part in ours or getattr(part, "_orig_mod", None) in ours for part in models)

    def __getstate__(self) -> dict:
        return {key: value for key, value in self.__dict__.items() if key != "caches"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, caches=WeakSet())

    def __deepcopy__(self, memo: dict):
        """A cache that is copied as well follows the copy on its own (``claim``), and this one does not."""
        copied = memo[id(self)] = object.__new__(type(self))
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        copied.caches.update(cache for cache in self.caches if id(cache.transformer) not in memo)
        return copied


def follow(scheduler, cache) -> None:
    """Tell a cache of a scheduler's events, by ``cache.tells``: one function each."""
    for event, tell in zip(EVENTS, cache.tells):
        interpose(scheduler, event, partial(Followed, scheduler=scheduler, tell=tell), Followed).caches.add(cache)


def unfollow(scheduler, cache) -> None:
    """Undo ``follow``."""
    for event in EVENTS:
        followed = find(scheduler, event, Followed)
        if followed is not None:
            followed.caches.discard(cache)
            if not followed.caches:
                restore(scheduler, event, Followed)


def claim(cache) -> None:
    """Follow the scheduler as the cache's own: caches that it is but a copy to then do no longer."""
    for event in EVENTS:
        followed = find(cache.scheduler, event, Followed)
        if followed is not None:
            followed.caches = WeakSet(own for own in followed.caches if own.scheduler is cache.scheduler)
            followed.caches.add(cache)


def exchange(cache, scheduler) -> None:
    """Follow another scheduler in the place of the one so far."""
    unfollow(cache.scheduler, cache)
    follow(scheduler, cache)
    cache.scheduler = scheduler


def scheduler_in_use(cache):
    """The scheduler of the pipeline that is calling the transformer, if a cache follows none of that pipeline's; else
    None. A pipeline is whatever has a ``scheduler`` in a method that is running."""
    owner = _pipeline_at_work(cache)
    parts = () if owner is None else (owner.scheduler, *getattr(owner, "__dict__", {}).values())
    return None if owner is None or any(_follows(cache, part) for part in parts) else owner.scheduler


def _pipeline_at_work(cache):
    """The innermost pipeline in a method that is running; None without."""
    frame = sys._getframe(1)
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
