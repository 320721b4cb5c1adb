"""Detecting the caches of diffusers (``enable_cache``, ``apply_first_block_cache`` and such) on a model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from skipdit_cli.errors import UsageError


def refuse_other_cache(transformer, modules: Iterable[nn.Module], reason: str) -> None:
    """Raise an error if a cache of diffusers is enabled on a model.

    Args:
        transformer: The model.
        modules: The modules whose hooks are examined: every hook with state from call to call belongs to a cache.
        reason: The part of the message that says why there may be none.

    Raises:
        UsageError: A cache is enabled; the message names it, and says how it is disabled.
    """
    cache = other_cache(modules)
    if cache is None:
        return
    config = getattr(transformer, "_cache_config", None)
    name = cache if config is None else type(config).__name__.removesuffix("Config")
    how = "remove_hook() of its hooks, or load the model again" if config is None else "transformer.disable_cache()"
    raise UsageError(f"Got {type(transformer).__name__} with diffusers' {name} on; {reason}: first call {how}.")


def other_cache(modules: Iterable[nn.Module]) -> str | None:
    """Return the name (``first_block_cache``) of a cache of diffusers that has a hook on one of the modules; None if
    there is none."""
    for module in modules:
        if (registry := module.__dict__.get("_diffusers_hook")) is None:
            continue
        for hook in registry.hooks.values():
            if getattr(hook, "_is_stateful", False):
                return type(hook).__module__.rpartition(".")[2]
    return None
