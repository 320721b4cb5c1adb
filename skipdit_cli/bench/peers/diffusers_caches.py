"""The caches of diffusers: hooks on the blocks or attention modules of a transformer.

``enable_cache`` exists only on some classes (not on DiT), so the ``apply_*`` functions behind it are called, which
take any module.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from skipdit_cli.bench.peers.peer import PeerUnsupported, RunFacts
from skipdit_cli.families.pipeline_parts import transformers_of

BLOCKS = r"[^.]*(?:block|layer)[^.]*\.\d+"
"""The names of blocks in a transformer, as a pattern."""
HEADS = ("proj_out", "proj_out_2")
"""The names of a transformer's output projection: DiT has a first one for its modulation."""


@contextmanager
def first_block(pipe, run: RunFacts, knobs: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Enable FirstBlockCache: the other blocks are left out while the residual of the first changes little."""
    from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

    config = FirstBlockCacheConfig(threshold=knobs["threshold"])
    with _hooked(pipe, lambda transformer: apply_first_block_cache(transformer, config)) as reset:
        yield reset


@contextmanager
def taylorseer(pipe, run: RunFacts, knobs: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Enable TaylorSeer on the attention and feed-forward modules of each block, as in the paper (arXiv 2503.06923).

    They are named, because the default patterns of diffusers match no module of many classes, DiT among them; the
    knob "modules" leaves them out.
    """
    from diffusers.hooks._common import _ATTENTION_CLASSES, _FEEDFORWARD_CLASSES

    def identifiers(transformer) -> dict[str, Any]:
        if knobs.get("modules") == "default":
            return {}
        kinds = (*_ATTENTION_CLASSES, *_FEEDFORWARD_CLASSES)
        names = [name for name, module in transformer.named_modules() if isinstance(module, kinds)]
        return {"cache_identifiers": [re.escape(name) for name in names if re.match(BLOCKS, name)]}

    with _taylorseer(pipe, knobs, identifiers) as reset:
        yield reset


@contextmanager
def taylorseer_lite(pipe, run: RunFacts, knobs: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Enable TaylorSeer's lite mode: blocks are left out, and the output of the output projection is forecast.

    The modules are named, because ``use_lite_mode`` forecasts nothing on DiT, whose projection has another name.
    """

    def identifiers(transformer) -> dict[str, Any]:
        heads = [name for name in HEADS if hasattr(transformer, name)]
        if not heads:
            raise PeerUnsupported(f"{type(transformer).__name__} has no {' or '.join(HEADS)} to forecast.")
        return {"skip_predict_identifiers": [BLOCKS], "cache_identifiers": heads}

    with _taylorseer(pipe, knobs, identifiers) as reset:
        yield reset


@contextmanager
def magcache(pipe, run: RunFacts, knobs: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Enable MagCache with magnitude ratios that it measures on an uncached run from the same seeds."""
    from diffusers.hooks import MagCacheConfig, apply_mag_cache

    if "magcache" not in run.calibrations:
        run.calibrations["magcache"] = _measure_magnitudes(pipe, run)
    ratios, steps = run.calibrations["magcache"], len(run.timesteps)

    def apply(transformer) -> None:
        config = MagCacheConfig(
            threshold=knobs["threshold"],
            max_skip_steps=knobs["max skips"],
            retention_ratio=knobs["retention"],
            num_inference_steps=steps,
            mag_ratios=ratios,
        )
        apply_mag_cache(transformer, config)

    with _hooked(pipe, apply) as reset:
        yield reset


@contextmanager
def pyramid_attention_broadcast(pipe, run: RunFacts, knobs: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Enable Pyramid Attention Broadcast: attention of every kind is computed in every N-th step of a range."""
    from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

    kinds = ("spatial", "temporal", "cross")
    skips = {f"{kind}_attention_block_skip_range": knobs["skip range"] for kind in kinds}
    ranges = {f"{kind}_attention_timestep_skip_range": knobs["timesteps"] for kind in kinds}
    config = PyramidAttentionBroadcastConfig(**skips, **ranges, current_timestep_callback=lambda: int(run.timestep))
    if run.calls > 1:
        raise PeerUnsupported("It counts calls of an attention as steps, and guidance calls this transformer twice.")
    with _hooked(pipe, lambda transformer: apply_pyramid_attention_broadcast(transformer, config)) as reset:
        yield reset


@contextmanager
def fastercache(pipe, run: RunFacts, knobs: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Enable FasterCache: on most steps only the conditional branch runs, and it reuses attention outputs.

    It takes the second half of a doubled batch for the conditional one. Where that is the first, the halves are
    exchanged around the transformer.
    """
    from diffusers.hooks import FasterCacheConfig, apply_faster_cache
    from diffusers.hooks.faster_cache import _UNCOND_COND_INPUT_KWARGS_IDENTIFIERS

    if run.calls > 1:
        raise PeerUnsupported("It needs both branches of guidance in one call, and this pipeline makes two.")
    if run.doubled and run.dimensions < 4:
        raise PeerUnsupported("It takes the Fourier transform of images, and this transformer's are packed as tokens.")
    attention, guidance = knobs["attention skip range"], knobs["guidance skip range"]
    config = FasterCacheConfig(
        spatial_attention_block_skip_range=attention,
        temporal_attention_block_skip_range=attention,
        spatial_attention_timestep_skip_range=knobs["timesteps"],
        temporal_attention_timestep_skip_range=knobs["timesteps"],
        unconditional_batch_skip_range=guidance,
        unconditional_batch_timestep_skip_range=knobs["timesteps"],
        tensor_format="BCFHW" if run.dimensions == 5 else "BCHW",
        is_guidance_distilled=not run.doubled,
        current_timestep_callback=lambda: int(run.timestep),
        _unconditional_conditional_input_kwargs_identifiers=[*_UNCOND_COND_INPUT_KWARGS_IDENTIFIERS, "class_labels"],
    )
    with ExitStack() as stack:
        if run.doubled and run.by_class:
            stack.enter_context(_halves_exchanged(pipe))
        yield stack.enter_context(_hooked(pipe, lambda transformer: apply_faster_cache(transformer, config)))


@contextmanager
def _taylorseer(
    pipe, knobs: Mapping[str, Any], identifiers: Callable[[Any], dict[str, Any]]
) -> Iterator[Callable[[], None]]:
    from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

    def apply(transformer) -> None:
        config = TaylorSeerCacheConfig(
            cache_interval=knobs["interval"],
            max_order=knobs["order"],
            taylor_factors_dtype=transformer.dtype,
            **identifiers(transformer),
        )
        apply_taylorseer_cache(transformer, config)

    with _hooked(pipe, apply) as reset:
        yield reset


def _measure_magnitudes(pipe, run: RunFacts) -> list[float]:
    """Return the magnitude ratio of each step, which MagCache would print after a run with ``calibrate``."""
    from diffusers.hooks import MagCacheConfig, apply_mag_cache

    # One step more than there are, for it forgets what it measured after the last.
    config = MagCacheConfig(calibrate=True, num_inference_steps=len(run.timesteps) + 1)
    with _hooked(pipe, lambda transformer: apply_mag_cache(transformer, config)) as reset:
        reset()
        managers = {
            id(hook.state_manager): hook.state_manager
            for registry in _registries(pipe).values()
            for hook in registry.hooks.values()
        }
        states: list = []
        handle = next(iter(transformers_of(pipe).values())).register_forward_hook(
            lambda *_: states.__setitem__(slice(None), [s for m in managers.values() for s in m._state_cache.values()])
        )
        try:
            run.uncached()
        finally:
            handle.remove()
        ratios: list[float] = max((state.calibration_ratios for state in states), key=len, default=[])
    if not ratios:
        raise PeerUnsupported("Its calibration measured nothing.")
    return list(ratios)


@contextmanager
def _hooked(pipe, apply: Callable[[Any], None]) -> Iterator[Callable[[], None]]:
    """Apply hooks of diffusers to each transformer of a pipeline, and remove them at the end.

    The block gets a function that resets their state and opens a cache context, which stays open unless the pipeline
    opens its own: DiT's and Latte's open none.
    """
    from diffusers.hooks import HookRegistry
    from diffusers.models import CacheMixin

    transformers = list(transformers_of(pipe).values())
    before = {module: set(registry.hooks) for module, registry in _registries(pipe).items()}
    contexts = ExitStack()

    def reset() -> None:
        contexts.close()
        for transformer in transformers:
            HookRegistry.check_if_exists_or_initialize(transformer).reset_stateful_hooks()
            contexts.enter_context(CacheMixin.cache_context(transformer, "run"))

    try:
        for transformer in transformers:
            apply(transformer)
        _forget_children(pipe)
        yield reset
    finally:
        contexts.close()
        for module, registry in _registries(pipe).items():
            for name in [name for name in registry.hooks if name not in before.get(module, ())]:
                registry.remove_hook(name, recurse=False)
        _forget_children(pipe)


def _registries(pipe) -> dict:
    """Return the registry of hooks of each module that has one."""
    modules = [module for transformer in transformers_of(pipe).values() for module in transformer.modules()]
    return {module: module._diffusers_hook for module in modules if hasattr(module, "_diffusers_hook")}


def _forget_children(pipe) -> None:
    """Make each registry look again for those below it, which get its cache context."""
    for registry in _registries(pipe).values():
        registry._child_registries_cache = None


@contextmanager
def _halves_exchanged(pipe) -> Iterator[None]:
    """Exchange the halves of each transformer's batch, of its inputs and of its output."""
    import torch

    def exchange(value):
        return value.roll(len(value) // 2, 0) if isinstance(value, torch.Tensor) and value.ndim else value

    def before(module, args: tuple, kwargs: dict) -> tuple:
        return tuple(map(exchange, args)), {name: exchange(value) for name, value in kwargs.items()}

    def after(module, args: tuple, output):
        return (exchange(output[0]), *output[1:]) if isinstance(output, tuple) else exchange(output)

    handles = []
    for transformer in transformers_of(pipe).values():
        handles += [transformer.register_forward_pre_hook(before, with_kwargs=True)]
        handles += [transformer.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
