"""DBCache of cache-dit, with and without its TaylorSeer calibrator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from skipdit_cli.bench.peers.peer import PeerUnsupported, RunFacts
from skipdit_cli.families.pipeline_parts import transformers_of

FIELDS = {
    "F": "Fn_compute_blocks",
    "B": "Bn_compute_blocks",
    "warm-up": "max_warmup_steps",
    "threshold": "residual_diff_threshold",
    "max skips": "max_continuous_cached_steps",
}
"""The fields of ``DBCacheConfig`` that the knobs set."""


@contextmanager
def dbcache(pipe, run: RunFacts, knobs: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Enable DBCache: the first F and last B blocks run; the residual between them is reused while F change little."""
    with _dbcache(pipe, run, knobs, {}) as reset:
        yield reset


@contextmanager
def dbcache_taylor(pipe, run: RunFacts, knobs: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Enable DBCache with the residual forecast by its TaylorSeer calibrator."""
    from cache_dit import TaylorSeerCalibratorConfig

    calibrator = {"calibrator_config": TaylorSeerCalibratorConfig(taylorseer_order=knobs["order"])}
    with _dbcache(pipe, run, knobs, calibrator) as reset:
        yield reset


@contextmanager
def _dbcache(pipe, run: RunFacts, knobs: Mapping[str, Any], calibrator: dict) -> Iterator[Callable[[], None]]:
    """Enable DBCache on a pipeline, or on the transformer alone where our own sampler calls it."""
    import cache_dit

    target = next(iter(transformers_of(pipe).values())) if run.by_class else pipe
    if not cache_dit.BlockAdapterRegister.is_supported(target):
        raise PeerUnsupported(f"cache-dit has no adapter for {type(target).__name__}.")

    steps = len(run.timesteps)
    values = {FIELDS[name]: value for name, value in knobs.items() if name in FIELDS}
    if "mask" in knobs:
        mask = cache_dit.steps_mask(mask_policy=knobs["mask"], total_steps=steps)
        values |= {"steps_computation_mask": mask, "steps_computation_policy": "static"}
    config = cache_dit.DBCacheConfig(num_inference_steps=steps, **values)

    def reset() -> None:
        if target is not pipe:  # a pipeline's own call begins with a fresh context
            cache_dit.refresh_context(target, cache_config=config, **calibrator)

    cache_dit.enable_cache(target, cache_config=config, **calibrator)
    try:
        yield reset
    finally:
        cache_dit.disable_cache(target)
