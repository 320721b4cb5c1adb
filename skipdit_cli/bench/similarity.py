"""The similarity of each block's output from one denoising step to the next, which is what a cache relies on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from skipdit_cli.families.pipeline_parts import transformers_of
from skipdit_cli.sampling.generate import batches, generate
from skipdit_cli.trunk import Trunk, known_trunk

SAMPLES = 4
"""The most samples of the run."""


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
    return Similarity(tuple(map(tuple, watch.cosines))) if watch.step > 1 else None


class _Watch:
    """The outputs of the blocks in the last step, and their cosines with those of the step before."""

    def __init__(self) -> None:
        self.step = 0
        self.cosines: list[list[float | None]] = []
        self.former: dict[tuple, torch.Tensor] = {}
        self.current: dict[tuple, torch.Tensor] = {}

    @contextmanager
    def on(self, trunks: Sequence[Any]) -> Iterator[None]:
        """Watch the last block of each unit of some trunks for a while."""
        handles = [
            unit[-1].register_forward_hook(self._hook(trunk, at))
            for trunk in trunks
            for at, unit in enumerate(trunk.units)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, trunk: Trunk, at: int) -> Callable[..., None]:
        listing, name = trunk.listings[at][-1], trunk.backbone.joined
        place = listing.streams.index(name if name in listing.names else listing.names[0])

        def keep(block, args, output) -> None:
            call = sum(key[:2] == (id(trunk), at) for key in self.current)
            self.current[id(trunk), at, call] = (output if listing.bare else output[place]).detach()

        return keep

    def end_step(self) -> None:
        """Compare the outputs of a finished step with those of the step before."""
        cosines: dict[int, list[float]] = {}
        for key, output in self.current.items():
            former = self.former.get(key)
            if former is not None and former.shape == output.shape:
                cosines.setdefault(key[1], []).append(_cosine(output, former))
        blocks = 1 + max((key[1] for key in self.current), default=-1)
        if self.step:
            self.cosines += [[] for _ in range(blocks - len(self.cosines))]
            for at, values in enumerate(self.cosines):
                values.append(fmean(cosines[at]) if at in cosines else None)
        self.step += 1
        self.former, self.current = self.current, {}


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.float().flatten(), b.float().flatten()
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))
