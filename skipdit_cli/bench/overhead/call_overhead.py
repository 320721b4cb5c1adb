"""The microseconds that a cache adds to each call of a block and to each forward, ours beside FirstBlockCache."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import quantiles
from types import MethodType
from typing import Any

import torch
from diffusers import CacheMixin, DDIMScheduler, DiTTransformer2DModel
from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache

from skipdit_cli.cache import CachePolicy, enable_skip_cache

DEPTHS = (12, 24)
"""The numbers of blocks of the two models whose difference tells the time of a block from that of a forward."""
STEPS = 60
METHODS = ("skip-cache", "first-block-cache")


def measure_overhead(rounds: int = 10) -> list[dict]:
    """Return the CPU time that each cache adds to a model whose blocks compute nothing, one row per cache.

    A block costs the difference between the two depths, over the difference in blocks; what is left is the cost of the
    forward, its few tensor operations at the boundary included. The caches take turns within each round.

    Args:
        rounds: How often each kind of forward is timed ``STEPS`` times.

    Returns:
        Rows with ``method`` and, in microseconds, ``live_block``, ``left_out_block``, ``full_forward`` and
        ``reused_forward``.
    """
    kinds = [(method, is_reused) for method in METHODS for is_reused in (False, True)]
    keys = [*((depth, None) for depth in DEPTHS), *((depth, kind) for depth in DEPTHS for kind in kinds)]
    times: dict[tuple, list[float]] = {key: [] for key in keys}
    with torch.no_grad(), ExitStack() as contexts:
        runs = {(depth, kind): _prepare(depth, kind, contexts) for depth, kind in keys}
        for _ in range(rounds):
            for key, run in runs.items():
                times[key] += run()
    typical = {key: quantiles(values, n=3)[0] for key, values in times.items()}
    return [_row(method, typical) for method in METHODS]


def overhead_notes(rows: list[dict]) -> list[str]:
    """Return one sentence per row of ``measure_overhead``."""
    return [
        f"Overhead of {row['method']} in Python: {row['live_block']:.1f} µs per live block, "
        f"{row['left_out_block']:.1f} µs per left-out block; {row['full_forward']:.0f} µs per full forward and "
        f"{row['reused_forward']:.0f} µs per reused forward besides."
        for row in rows
    ]


def _row(method: str, typical: dict) -> dict:
    few, many = DEPTHS
    figures = {}
    for is_reused, block, forward in ((False, "live_block", "full"), (True, "left_out_block", "reused")):
        added = {depth: typical[depth, (method, is_reused)] - typical[depth, None] for depth in DEPTHS}
        figures[block] = (added[many] - added[few]) / (many - few)
        figures[f"{forward}_forward"] = added[few] - few * figures[block]
    return {"method": method, **figures}


def _prepare(depth: int, kind: tuple[str, bool] | None, contexts: ExitStack) -> Callable[[], list[float]]:
    """A function that returns the microseconds of ``STEPS`` forwards of a model of that depth, with a cache of that
    kind (method, reused) or none."""
    model: Any = _empty_model(depth)
    scheduler: Any = DDIMScheduler()
    method, is_reused = kind or (None, False)
    if method == "first-block-cache":
        apply_first_block_cache(model, FirstBlockCacheConfig(threshold=1e9 if is_reused else -1.0))
        contexts.enter_context(CacheMixin.cache_context(model, "cond"))
    first = 3 if is_reused and method == "skip-cache" else 0  # steps that are full: as many as the forecast uses
    full = tuple(range(first)) or tuple(range(STEPS))
    cache = enable_skip_cache(model, CachePolicy(1, full_steps=full), scheduler) if method == "skip-cache" else None
    x, labels = torch.zeros(2, 16, 16), torch.tensor([0, 1])

    def run() -> list[float]:
        scheduler.set_timesteps(STEPS)
        elapsed = []
        for t in scheduler.timesteps:
            start = time.thread_time_ns()
            model(x, timestep=t, class_labels=labels, return_dict=False)
            elapsed.append((time.thread_time_ns() - start) / 1000)
            if cache is not None:
                cache.advance(scheduler, t)
        return elapsed[first:]

    return run


def _empty_model(depth: int) -> Any:
    """A DiT whose forward is its list of blocks, which compute nothing. Only the first adds 1, for FirstBlockCache
    compares what the first block adds."""
    sizes = {"num_attention_heads": 1, "attention_head_dim": 8, "sample_size": 4, "in_channels": 1}
    model: Any = DiTTransformer2DModel(num_layers=depth, **sizes)
    model.eval()
    model.forward = MethodType(_forward, model)
    for index, block in enumerate(model.transformer_blocks):
        block.forward = MethodType(_block if index else _first_block, block)
    return model


def _forward(self, hidden_states, timestep=None, class_labels=None, cross_attention_kwargs=None, return_dict=True):
    """The loop over the blocks of ``DiTTransformer2DModel.forward``."""
    for block in self.transformer_blocks:
        hidden_states = block(
            hidden_states,
            attention_mask=None,
            encoder_hidden_states=None,
            encoder_attention_mask=None,
            timestep=timestep,
            cross_attention_kwargs=cross_attention_kwargs,
            class_labels=class_labels,
        )
    return (hidden_states,)


def _block(self, hidden_states, attention_mask=None, **others):
    return hidden_states


def _first_block(self, hidden_states, attention_mask=None, **others):
    return hidden_states + 1
