"""How Skip-Cache is put on a transformer and a scheduler, and taken off again."""

from __future__ import annotations

from functools import partial

import torch

from skipdit_cli.cache.following import claim, follow, unfollow
from skipdit_cli.cache.policy import CachePolicy, check_depth
from skipdit_cli.cache.skip_cache import SkipCache
from skipdit_cli.errors import UsageError
from skipdit_cli.trunk import (
    Interposed,
    Trial,
    attached_trunk,
    check_class,
    find,
    interpose,
    keep_trunk,
    known_trunk,
    refuse_other_cache,
    restore,
)

ONE_CACHE = "a model takes one cache, and Skip-Cache is one"


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
        if not self.serving:
            return self.inner(*args, **kwargs)
        cache, finished = self.cache, False
        refuse_other_cache(cache.transformer, cache.modules, ONE_CACHE)
        cache.turn.take(cache.midway)
        try:
            if cache.trunk is None:
                self._find_trunk(args, kwargs)
            cache.begin(args, kwargs)
            try:
                result = self.inner(*args, **kwargs)
                finished = True
            finally:
                cache.end(finished)
        finally:
            cache.turn.give_back()
        return result

    def _find_trunk(self, args: tuple, kwargs: dict) -> None:
        """The first real forward of a class that is not declared: its trunk is found in it, and tried out."""
        cache = self.cache
        alone = self.inner if cache.outer is cache.transformer else cache.transformer.forward
        arguments = {**dict(zip(cache.parameters, args)), **kwargs}
        cache.set_trunk(Trial(cache.transformer, arguments, alone).accept())
        keep_trunk(cache.transformer, cache.trunk)


class OtherCache(Interposed):
    """A transformer's ``enable_cache``, which would put a cache of diffusers beside ours."""

    def __call__(self, config, *args, **kwargs):
        if not self.serving:
            return self.inner(config, *args, **kwargs)
        raise UsageError(
            f"Got {type(config).__name__} for a transformer whose Skip-Cache is on; a model takes one cache: first "
            "call disable_skip_cache(transformer)."
        )


REWEIGHING = (
    "load_lora_adapter", "add_adapter", "set_adapter", "set_adapters", "enable_adapters", "disable_adapters",
    "enable_lora", "disable_lora", "fuse_lora", "unfuse_lora", "unload_lora", "delete_adapters",
)  # fmt: skip
"""Methods of diffusers' transformers (``PeftAdapterMixin``) after which a block computes something else."""


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
        turn = self.cache.turn
        self.before, turn.context = turn.context, self.name
        return self.inner.__enter__()

    def __exit__(self, *exception):
        self.cache.turn.context = self.before
        return self.inner.__exit__(*exception)


class Reweighed(Interposed):
    """What changes a transformer's weights: the cache forgets after it."""

    def __init__(self, inner, cache: SkipCache):
        super().__init__(inner)
        self.cache = cache

    def __call__(self, *args, **kwargs):
        result = self.inner(*args, **kwargs)
        self.cache.forget()
        return result


def enable_skip_cache(
    transformer, policy: CachePolicy, scheduler=None, example_inputs: dict | None = None
) -> SkipCache:
    """Cache the deep part of a transformer's forward, with or without skip branches attached.

    Where the class is not declared, its trunk is found in the first forward, which then runs the model four times.

    Args:
        transformer: A diffusers transformer (or its ``torch.compile`` wrapper).
        policy: What is cached, and when.
        scheduler: The scheduler of the sampling loop: its ``set_timesteps`` begins a generation, its ``step`` ends
            a step in which the transformer ran. Copies of it are followed as well, and the one that the calling
            pipeline was given in its place. Without one every forward call of one branch of guidance (its cache
            context, else what it is conditioned on) is a step, and ``reset()`` begins a generation.
        example_inputs: Arguments of one forward, to find the trunk in, and to try it out, before the first real one.
    Returns:
        The cache, with ``.trace``, ``.report()`` and ``.reset()``. A second call replaces the first's.
    Raises:
        UsageError: The model has too few blocks for the policy, the policy needs a scheduler, the model has no
            transformer trunk, or a cache of diffusers is on.
    """
    trunk = known_trunk(transformer)
    cache = SkipCache(transformer, policy, scheduler, tells=(_begin, _end_step))
    refuse_other_cache(cache.transformer, cache.modules, ONE_CACHE)
    if example_inputs is not None:
        trunk = Trial(transformer, example_inputs).accept(exact=trunk is None or trunk.branches is None)
    if trunk is None:
        check_class(cache.transformer)
    else:
        check_depth(policy.layers, len(trunk))
    disable_skip_cache(transformer)
    if trunk is not None:
        cache.set_trunk(trunk)
    _put_on(cache)
    if scheduler is not None:
        follow(scheduler, cache)
        claim(cache)
    return cache


def disable_skip_cache(transformer) -> None:
    """Take the cache off; every step is full again. Does nothing where none is on."""
    cache, trunk = _cache_on(transformer), attached_trunk(transformer)
    if trunk is not None:
        trunk.cache = None
        keep_trunk(transformer, trunk)
    if cache is None:
        return
    restore(cache.outer, "forward", CachedForward)
    for name in ("cache_context", "enable_cache"):
        restore(cache.transformer, name)
    for name in REWEIGHING:
        restore(cache.transformer, name)
    cache.finish()
    cache.on = False
    if cache.scheduler is not None:
        unfollow(cache.scheduler, cache)


def _cache_on(transformer) -> SkipCache | None:
    """The cache that is on a transformer, also where its trunk is still to be found."""
    trunk = attached_trunk(transformer)
    if trunk is not None and trunk.cache is not None:
        return trunk.cache
    forward = find(transformer, "forward", CachedForward)
    return None if forward is None else forward.cache


def _put_on(cache: SkipCache) -> None:
    """Stand before the blocks and around the forward. Idempotent."""
    if cache.trunk is not None:
        keep_trunk(cache.transformer, cache.trunk)
    interpose(cache.outer, "forward", partial(CachedForward, cache=cache), CachedForward)
    if hasattr(cache.transformer, "cache_context"):
        interpose(cache.transformer, "cache_context", partial(NamedContext, cache=cache))
    if hasattr(cache.transformer, "enable_cache"):
        interpose(cache.transformer, "enable_cache", OtherCache)
    for name in REWEIGHING:
        if hasattr(cache.transformer, name):
            interpose(cache.transformer, name, partial(Reweighed, cache=cache)).cache = cache


def _begin(cache: SkipCache, scheduler, ran: bool, timestep) -> None:
    """A generation begins. Offload hooks that a pipeline took off after the last one may have taken ours along."""
    cache.turn.begin_generation(cache.midway)
    _put_on(cache)
    cache.renew(scheduler)


def _end_step(cache: SkipCache, scheduler, ran: bool, timestep) -> None:
    """A step ends where a transformer has run in it: Cosmos 1 steps twice, and LTX-2 its sound beside its pictures."""
    if ran:
        cache.advance(scheduler, timestep)
