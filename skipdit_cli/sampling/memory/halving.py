"""Batches that are halved when the device is out of memory: the same samples from the same seeds, in more batches."""

from __future__ import annotations

import gc
import logging
import traceback
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from skipdit_cli.errors import SkipditError, is_out_of_memory
from skipdit_cli.families.pipeline_parts import transformers_of
from skipdit_cli.formats import GIB
from skipdit_cli.sampling.device import memory_figures

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Halving:
    """A batch that did not fit into memory, and the smaller batches in its place.

    Args:
        batch_size: The most samples of every batch from here on.
        batches: Batches that the run has more than before.
        sentence: The sentence for the user, with the measured memory.
        lost_steps: Denoising steps of the attempt that failed.
    """

    batch_size: int
    batches: int
    sentence: str
    lost_steps: int = 0


class Attempt:
    """A context in which one batch is sampled, and which suppresses that the device runs out of memory.

    At its end the memory of a failed attempt is free: the frames of the error's traceback, which hold the tensors of
    the batch, what the caches remember, and the blocks that torch's allocator keeps.

    Args:
        pipe: The pipeline.
        caches: The caches of its transformers.
        suppresses: False lets the error pass.

    Attributes:
        figures: The memory in use when it ran out, in words; empty if it did not.
    """

    def __init__(self, pipe, caches: Sequence[Any], suppresses: bool):
        self.pipe, self.caches, self.suppresses, self.figures = pipe, caches, suppresses, ""

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: type | None, cause: BaseException | None, trace: TracebackType | None) -> bool:
        if cause is None or not self.suppresses or not is_out_of_memory(cause):
            return False
        self.figures = memory_figures(next(iter(transformers_of(self.pipe).values())).device)
        traceback.clear_frames(trace)
        for cache in self.caches:
            cache.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True


class Batches:
    """The batches of a run in their order, as slices of its conditions; ``halve`` puts a failed one back in halves."""

    def __init__(self, slices: Sequence[slice]):
        self.waiting = list(reversed(slices))

    def __iter__(self) -> Iterator[slice]:
        while self.waiting:
            yield self.waiting.pop()

    def halve(self, batch: slice, attempt: Attempt, lost_steps: int = 0) -> Halving:
        """Put a batch back in halves, and make all later batches as small.

        Args:
            batch: The batch that did not fit.
            attempt: The attempt at it.
            lost_steps: Denoising steps that the attempt had made.

        Raises:
            SkipditError: The batch is one sample.
        """
        samples = batch.stop - batch.start
        if samples == 1:
            raise SkipditError(_does_not_fit(attempt))
        size, before = (samples + 1) // 2, len(self.waiting) + 1
        whole = [batch, *reversed(self.waiting)]
        halves = [slice(at, min(at + size, b.stop)) for b in whole for at in range(b.start, b.stop, size)]
        self.waiting = halves[::-1]
        sentence = (
            f"a batch of {samples} does not fit into memory ({attempt.figures}): going on with batches of {size}, "
            "every sample from its own seed as before."
        )
        return Halving(size, len(halves) - before, sentence, lost_steps)


def noted_in(settings: MutableMapping[str, Any]) -> Callable[[Halving], None]:
    """Return an ``on_halved`` that logs the sentence, and sets the smaller ``batch_size`` for later runs."""

    def note(halving: Halving) -> None:
        logger.warning(halving.sentence)
        settings["batch_size"] = halving.batch_size

    return note


def _does_not_fit(attempt: Attempt) -> str:
    """Return the sentence for a single sample that does not fit."""
    parts = [part for part in attempt.pipe.components.values() if isinstance(part, torch.nn.Module)]
    weights = sum(p.nbytes for part in parts for p in part.parameters())
    return (
        f"The device ran out of memory at a batch of 1 sample ({attempt.figures}; the weights of the pipeline are "
        f"{weights / GIB:.1f} GiB); give --vae-tiling, --cpu-offload model, --dtype bfloat16, or a smaller --height, "
        "--width or --num-frames."
    )
