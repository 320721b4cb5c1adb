"""The similarity of each block's output from one denoising step to the next, which is what a cache relies on, and of a
cached run's to an uncached one's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from skipdit_cli.cache import CachePolicy
from skipdit_cli.families.pipeline_parts import transformer_of, transformers_of
from skipdit_cli.sampling.generate import batches, generate
from skipdit_cli.trunk import Trunk, known_trunk

SAMPLES = 4
"""The most samples of the run."""
MOST_VALUES = 1 << 22
"""Values of a block's output that are compared; of a larger one, as many at even distances."""
MOST_KEPT_VALUES = 1 << 16
"""The same, where the outputs of all steps of a run are kept."""


@dataclass(frozen=True)
class Similarity:
    """The similarity of the features of one model between successive denoising steps.

    Args:
        cosines: One tuple per block, with one entry per step from the second on: the cosine between the block's output
            in this step and in the step before, over all tokens of all samples as one vector. None where another
            transformer ran in the step before (Wan 2.2).
    """

    cosines: tuple[tuple[float | None, ...], ...]

    @property
    def mean(self) -> float:
        """The mean over all blocks and steps."""
        return fmean(value for block in self.cosines for value in block if value is not None)


def measure_similarity(pipe, conditions: Sequence[int | str | None], **arguments: Any) -> Similarity | None:
    """Measure the similarity of features in one uncached run of a pipeline.

    Args:
        pipe: The pipeline, with or without skip branches.
        conditions: As for ``generate``; the first batch of at most ``SAMPLES`` of them is sampled.
        arguments: As for ``generate``.

    Returns:
        The similarity; None for a transformer whose trunk is not known, and for a run of a single step.
    """
    alone = arguments.get("image") is not None
    conditions = conditions[batches(pipe, conditions[:SAMPLES], arguments.get("batch_size"), alone=alone)[0]]
    trunks = [known_trunk(transformer) for transformer in transformers_of(pipe).values()]
    if any(trunk is None for trunk in trunks):
        return None
    watch = _Watch()
    with watch.on(trunks):
        generate(pipe, conditions, **{**arguments, "decode": False, "advance": watch.end_step})
    has_values = any(value is not None for block in watch.cosines for value in block)
    return Similarity(tuple(map(tuple, watch.cosines))) if has_values else None


def measure_cached_similarity(pipe, conditions: Sequence[int | str | None], policy: CachePolicy, **arguments: Any):
    """Measure how similar the features of a cached run are to those of an uncached one from the same noise.

    Args:
        pipe: A pipeline with one transformer, whose trunk is known.
        conditions, arguments: As for ``measure_similarity``.
        policy: The settings of the cache.

    Returns:
        A ``Similarity`` with one entry per step, from the first on: the cosine of each block's output in the one run
        and in the other. None where a block did not run, as in the middle of a reused step.
    """
    conditions = conditions[batches(pipe, conditions[:SAMPLES], arguments.get("batch_size"))[0]]
    trunk = known_trunk(transformer_of(pipe))
    uncached = _Watch(MOST_KEPT_VALUES, history={})
    with uncached.on([trunk]):
        generate(pipe, conditions, **{**arguments, "decode": False, "advance": uncached.end_step})
    cached = _Watch(MOST_KEPT_VALUES, reference=uncached.history)
    with cached.on([trunk]):
        run = generate(pipe, conditions, policy=policy, **{**arguments, "decode": False, "advance": cached.end_step})
    front, back = policy.layers  # type: ignore[misc]  # a policy keeps both ends
    for at in range(front, len(cached.cosines) - back):
        steps = enumerate(cached.cosines[at])
        cached.cosines[at] = [value if step in run.full_steps else None for step, value in steps]
    return Similarity(tuple(map(tuple, cached.cosines)))


class _Watch:
    """The outputs of the blocks in the last step, and the cosines of successive ones, or of those of another run.

    Args:
        most_values: The values of an output that are compared.
        history: Where to keep the outputs of all steps; None to keep those of the last one.
        reference: The history of the run to compare with, step by step; None to compare with the step before.

    Attributes:
        step: The number of finished steps.
        cosines: One list per block, with one entry per step from the second on.
        outputs: The output of each call of a block in the last step it ran in: by trunk, block and number of the call.
        calls: The calls of each block in this step.
        found: The cosines of each block in this step, one per call.
    """

    def __init__(self, most_values: int = MOST_VALUES, history: dict | None = None, reference: dict | None = None):
        self.most_values, self.history, self.reference = most_values, history, reference
        self.step = 0
        self.cosines: list[list[float | None]] = []
        self.outputs: dict[tuple[int, int, int], torch.Tensor] = {}
        self.calls: Counter[tuple[int, int]] = Counter()
        self.found: dict[int, list[float]] = {}

    @contextmanager
    def on(self, trunks: Sequence[Any]) -> Iterator[None]:
        """Watch the last block of each unit of some trunks for a while."""
        handles = [
            unit[-1].register_forward_hook(self._hook(trunk, at))
            for trunk in trunks
            for at, unit in enumerate(trunk.units)
        ]
        self.cosines = [[] for _ in range(max(map(len, trunks)))]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, trunk: Trunk, at: int) -> Callable[..., None]:
        def compare(block, args, result) -> None:
            block_key = (id(trunk), at)
            key = (*block_key, self.calls[block_key])
            self.calls[block_key] += 1
            values = trunk.joined_output(at, result).detach().flatten()
            values = values[:: -(-values.numel() // self.most_values)].clone()
            step_key = (self.step, *key)
            former = self.outputs.get(key) if self.reference is None else self.reference.get(step_key)
            if former is not None and former.shape == values.shape:
                self.found.setdefault(at, []).append(_cosine(values, former))
            self.outputs[key] = values
            if self.history is not None:
                self.history[step_key] = values

        return compare

    def end_step(self) -> None:
        """Keep the cosines of a step, and forget the outputs of a transformer that did not run in it."""
        if self.step or self.reference is not None:
            for at, values in enumerate(self.cosines):
                values.append(fmean(self.found[at]) if at in self.found else None)
        self.outputs = {key: output for key, output in self.outputs.items() if key[2] < self.calls[key[:2]]}
        self.calls, self.found = Counter(), {}
        self.step += 1


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.float(), b.float(), dim=0))
