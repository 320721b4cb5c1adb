"""Caches of diffusers (``enable_cache``, ``apply_first_block_cache`` and alike) on a model, by their hooks."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from skipdit_cli.errors import UsageError


def refuse_other_cache(transformer, modules: Iterable[nn.Module], reason: str) -> None:
    """
    Args:
        transformer: The model.
        modules: Where its hooks are looked for: all that remember anything from call to call are of caches.
        reason: Why there may be none, and what comes after it was turned off.
    Raises:
        UsageError: A cache of diffusers is on; the sentence says which, and how it is turned off.
    """
    found = other_cache(modules)
    if found is None:
        return
    config = getattr(transformer, "_cache_config", None)
    name = found if config is None else type(config).__name__.removesuffix("Config")
    how = "transformer.disable_cache()" if config is not None else "remove_hook() of its hooks, or load the model anew"
    raise UsageError(f"Got {type(transformer).__name__} with diffusers' {name} on; {reason}: first call {how}.")


def other_cache(modules: Iterable[nn.Module]) -> str | None:
    """The name (``first_block_cache``) of a cache that has a hook on one of these; None without."""
    for module in modules:
        registry = module.__dict__.get("_diffusers_hook")
        for hook in () if registry is None else registry.hooks.values():
            if getattr(hook, "_is_stateful", False):
                return type(hook).__module__.rpartition(".")[2]
    return None
