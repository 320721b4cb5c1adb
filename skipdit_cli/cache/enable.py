"""Enabling Skip-Cache on a transformer and its scheduler, and disabling it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from skipdit_cli.cache.generation.following import claim, follow, succeed, unfollow
from skipdit_cli.cache.live_ends import check_policy
from skipdit_cli.cache.policy import CachePolicy, check_depth
from skipdit_cli.cache.skip_cache import ONE_CACHE, SkipCache
from skipdit_cli.errors import UsageError
from skipdit_cli.families.protocols import Scheduler, Transformer
from skipdit_cli.trunk import (
    Interposed,
    Trial,
    attached_trunk,
    find,
    interpose,
    refuse_other_cache,
    restore,
    update_wrappers,
)


class CachedForward(Interposed):
    """A transformer's forward, before and after which the cache does its part.

    ``torch.compile`` does not trace it. The cache decides in plain Python, and what is compiled inside depends on one
    attribute, full or reused (two graphs). Compile the transformer before enabling the cache.
    """

    def __init__(self, inner, cache: SkipCache):
        super().__init__(inner)
        self.cache = cache

    @torch.compiler.disable(recursive=False)
    def __call__(self, *args, **kwargs):
        if not self.serving:
            return self.inner(*args, **kwargs)
        cache, finished = self.cache, False
        cache.ownership.begin_call(cache.in_generation)
        try:
            if cache.trunk is None:
                refuse_other_cache(cache.transformer, cache.transformer.modules(), ONE_CACHE)
                self._find_trunk(args, kwargs)
            cache.begin(args, kwargs)
            try:
                if cache.policy.forecasts_output and cache.call.slot is not None:
                    result = cache.call.output(lambda: self.inner(*args, **kwargs))
                else:
                    result = self.inner(*args, **kwargs)
                finished = True
            finally:
                cache.end(finished)
        finally:
            cache.ownership.end_call()
        return result

    def _find_trunk(self, args: tuple, kwargs: dict) -> None:
        """Find the trunk of a class that is not declared in the first forward, and verify it."""
        cache = self.cache
        forward = self.inner if cache.outer is cache.transformer else cache.transformer.forward
        arguments = {**dict(zip(cache.parameters, args)), **kwargs}
        cache.set_trunk(Trial(cache.transformer, arguments, forward).accept())
        update_wrappers(cache.transformer, cache.trunk)


class RefusedCache(Interposed):
    """A transformer's ``enable_cache`` while Skip-Cache is enabled: it refuses a second cache."""

    def __call__(self, config, *args, **kwargs):
        if not self.serving:
            return self.inner(config, *args, **kwargs)
        raise UsageError(
            f"Got {type(config).__name__} for a transformer whose Skip-Cache is on; a model takes one cache: first "
            "call disable_skip_cache(transformer)."
        )


class NamedContext(Interposed):
    """A transformer's ``cache_context(name)``, which pipelines open around each branch of guidance."""

    def __init__(self, inner, cache: SkipCache):
        super().__init__(inner)
        self.cache = cache

    def __call__(self, name: str, *args, **kwargs):
        return _CacheContext(self.cache, name, self.inner(name, *args, **kwargs))


class _CacheContext:
    """The context manager of diffusers, whose name the cache also knows while it is open."""

    def __init__(self, cache: SkipCache, name: str, inner):
        self.cache, self.name, self.inner = cache, name, inner

    def __enter__(self):
        ownership = self.cache.ownership
        self.outer_name, ownership.context = ownership.context, self.name
        return self.inner.__enter__()

    def __exit__(self, *exception):
        self.cache.ownership.context = self.outer_name
        return self.inner.__exit__(*exception)


WEIGHT_METHODS = (
    "load_lora_adapter", "add_adapter", "set_adapter", "set_adapters", "enable_adapters", "disable_adapters",
    "enable_lora", "disable_lora", "fuse_lora", "unfuse_lora", "unload_lora", "delete_adapters",
)  # fmt: skip
"""Methods of diffusers' transformers (``PeftAdapterMixin``) that change what a block computes."""


class WeightChange(Interposed):
    """A method that changes a transformer's weights: the cache forgets its memory afterwards."""

    def __init__(self, inner, cache: SkipCache):
        super().__init__(inner)
        self.cache = cache

    def __call__(self, *args, **kwargs):
        result = self.inner(*args, **kwargs)
        self.cache.forget()
        return result


def enable_skip_cache(
    transformer: Transformer,
    policy: CachePolicy,
    scheduler: Scheduler | None = None,
    example_inputs: dict[str, Any] | None = None,
    policy_for: Callable[[Any], CachePolicy] | None = None,
) -> SkipCache:
    """Cache the deep part of a transformer, with or without skip branches attached.

    The trunk of a class that is not declared is found in the first forward, which then runs the model four times.

    Args:
        transformer: A diffusers transformer, or its ``torch.compile`` wrapper.
        policy: What is cached, and when.
        scheduler: The scheduler of the sampling loop. Its ``set_timesteps`` begins a generation, and its ``step`` ends
            a step in which the transformer ran. Copies of it are followed as well, and the scheduler that the calling
            pipeline was given in its place. Without a scheduler every forward of one branch of guidance (its cache
            context, else its condition) is one step, and ``reset()`` begins a generation.
        example_inputs: The arguments of one forward, to find and verify the trunk now and not in the first forward.
        policy_for: Returns the policy of each generation in the place of ``policy``, given its scheduler.

    Returns:
        The cache, with ``.trace``, ``.report()`` and ``.reset()``. A second call replaces the cache of the first.

    Raises:
        UsageError: The model has too few blocks for the policy, the policy needs a scheduler, the model has no
            transformer trunk, a cache of diffusers is enabled, or a model that is compiled is given a threshold.
    """
    trunk = check_policy(transformer, policy)
    cache = SkipCache(transformer, policy, scheduler, callbacks=(_begin_generation, _end_step), policy_for=policy_for)
    refuse_other_cache(cache.transformer, cache.transformer.modules(), ONE_CACHE)
    if example_inputs is not None:
        trunk = Trial(transformer, example_inputs).accept(exact=trunk is None or trunk.branches is None)
        check_depth(policy.layers, len(trunk), trunk.needs_sources)
    succeed(cache, _cache_of(transformer))
    disable_skip_cache(transformer)
    if trunk is not None:
        cache.set_trunk(trunk)
    _interpose(cache)
    if scheduler is not None:
        follow(scheduler, cache)
        claim(cache)
    return cache


def disable_skip_cache(transformer: Transformer) -> None:
    """Disable the cache of a transformer; every step is full again. Without a cache it does nothing.
    In the middle of a call of the transformer it is refused."""
    cache, trunk = _cache_of(transformer), attached_trunk(transformer)
    if cache is not None:
        cache.ownership.check_idle()
    if trunk is not None:
        trunk.cache = None
        update_wrappers(transformer, trunk)
    if cache is None:
        return
    restore(cache.outer, "forward", CachedForward)
    for name in ("cache_context", "enable_cache", *WEIGHT_METHODS):
        restore(cache.transformer, name)
    cache.finish()
    cache.enabled = False
    if cache.scheduler is not None:
        unfollow(cache.scheduler, cache)


def _cache_of(transformer) -> SkipCache | None:
    """The cache that is enabled on a transformer, whose trunk may still have to be found."""
    trunk = attached_trunk(transformer)
    attached: Any = None if trunk is None else trunk.cache
    if attached is not None:
        return attached
    forward = find(transformer, "forward", CachedForward)
    return None if forward is None else forward.cache


def _interpose(cache: SkipCache) -> None:
    """Interpose on the transformer's methods and blocks. Idempotent."""
    if cache.trunk is not None:
        update_wrappers(cache.transformer, cache.trunk)
    interpose(cache.outer, "forward", partial(CachedForward, cache=cache), CachedForward)
    if hasattr(cache.transformer, "cache_context"):
        interpose(cache.transformer, "cache_context", partial(NamedContext, cache=cache))
    if hasattr(cache.transformer, "enable_cache"):
        interpose(cache.transformer, "enable_cache", RefusedCache)
    for name in WEIGHT_METHODS:
        if hasattr(cache.transformer, name):
            interpose(cache.transformer, name, partial(WeightChange, cache=cache)).cache = cache


def _begin_generation(cache: SkipCache, scheduler, ran: bool, timestep) -> None:
    """Begin a generation, after ``set_timesteps``. Offload hooks that a pipeline removed after the last generation may
    have taken our interpositions along, which are put back here."""
    _interpose(cache)
    cache.begin_generation(scheduler)


def _end_step(cache: SkipCache, scheduler, ran: bool, timestep) -> None:
    """End a step, after ``step``, if a transformer ran in it: Cosmos 1 calls ``step`` twice, and LTX-2 once more for
    its sound."""
    if ran:
        cache.advance(scheduler, timestep)
