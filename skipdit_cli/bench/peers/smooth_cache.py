"""SmoothCache (``dit-smoothcache``): the attention of diffusers' basic blocks on a calibrated schedule.

The package applies a schedule; the part of it that makes one is not in its wheel. The schedule is made here as the
paper does (arXiv 2411.10510, section 3.2): from relative L1 errors of the attention outputs of an uncached run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from skipdit_cli.bench.peers.peer import PeerUnsupported, RunFacts
from skipdit_cli.families.pipeline_parts import transformers_of

ATTENTION = "attn1"
LONGEST = 7
"""The most steps over which an output is compared with itself."""


@contextmanager
def smoothcache(pipe, run: RunFacts, knobs: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """Enable SmoothCache: attention outputs are reused while their error is below alpha, for a few steps at most."""
    from SmoothCache import DiffuserCacheHelper

    transformers = list(transformers_of(pipe).values())
    if run.calls > 1:
        raise PeerUnsupported("It counts calls of an attention as steps, and guidance calls this transformer twice.")
    if not _attentions(transformers[0]):
        name = type(transformers[0]).__name__
        raise PeerUnsupported(f"It takes diffusers' BasicTransformerBlock, and {name} has none.")
    if "smoothcache" not in run.calibrations:
        run.calibrations["smoothcache"] = _measure_errors(transformers[0], run)
    schedule = make_schedule(run.calibrations["smoothcache"], len(run.timesteps), knobs["alpha"], knobs["max skips"])
    helpers = [DiffuserCacheHelper(transformer, {ATTENTION: schedule}) for transformer in transformers]
    for helper in helpers:
        helper.enable()

    def reset() -> None:
        for helper in helpers:
            helper.reset_state()

    try:
        yield reset
    finally:
        for helper in helpers:
            helper.disable()


def make_schedule(errors: Mapping[tuple[int, int], float], steps: int, alpha: float, most: int) -> list[int]:
    """Return 1 for each step that computes and 0 for each that reuses.

    Args:
        errors: Relative L1 error of the output at a step if that of an earlier step takes its place, by (earlier
            step, step).
        steps: Number of steps.
        alpha: The error below which a step reuses.
        most: The most steps in a row that reuse.
    """
    schedule, last = [1], 0
    for step in range(1, steps):
        reuses = step - last <= most and errors.get((last, step), float("inf")) < alpha
        last = last if reuses else step
        schedule.append(int(not reuses))
    return schedule


def _attentions(transformer) -> dict:
    from diffusers.models.attention import BasicTransformerBlock

    blocks = [module for module in transformer.named_modules() if isinstance(module[1], BasicTransformerBlock)]
    return {name: getattr(block, ATTENTION) for name, block in blocks if hasattr(block, ATTENTION)}


def _measure_errors(transformer, run: RunFacts) -> dict[tuple[int, int], float]:
    """Return the relative L1 error over each gap of up to ``LONGEST`` steps, the mean over the blocks."""
    attentions = _attentions(transformer)
    outputs: dict[str, list] = {name: [] for name in attentions}
    sums: dict[tuple[int, int], float] = {}

    def record(name: str, output) -> None:
        earlier, step = outputs[name], len(outputs[name])
        norm = output.abs().sum()
        for start in range(max(0, step - LONGEST), step):
            error = float((output - earlier[start]).abs().sum() / norm)
            sums[start, step] = sums.get((start, step), 0.0) + error / len(attentions)
        earlier.append(output.clone())
        if step >= LONGEST:
            earlier[step - LONGEST] = None

    handles = [
        attention.register_forward_hook(lambda _module, _inputs, output, name=name: record(name, output))
        for name, attention in attentions.items()
    ]
    try:
        run.uncached()
    finally:
        for handle in handles:
            handle.remove()
    return {pair: error for pair, error in sums.items() if pair[1] < len(run.timesteps)}  # those of the first batch
