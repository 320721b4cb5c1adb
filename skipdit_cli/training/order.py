"""Which images a step sees and what is drawn for them, computed from (seed, step) alone: resuming needs no replay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

ORDER, FLIP, NOISE, LATENT = range(4)


def generator(*key: int) -> torch.Generator:
    """A CPU generator of its own for each key of integers >= 0."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> torch.Tensor:
    return torch.randperm(count, generator=generator(seed, ORDER, epoch))


@dataclass(frozen=True)
class Order:
    """The endless sequence of micro-batches of one process; epochs follow each other without a short batch.

    Args:
        count: Images in the set.
        batch_size: Images in one micro-batch of one process.
        accumulation: Micro-batches to an optimizer step.
        rank, world: This process of how many.
        start: The optimizer step to begin at.
    """

    seed: int
    count: int
    batch_size: int
    accumulation: int = 1
    rank: int = 0
    world: int = 1
    start: int = 0
    random_flip: bool = False

    def __iter__(self) -> Iterator[list[tuple[int, bool]]]:
        """Each micro-batch as a list of (image, mirrored)."""
        micro = self.start * self.accumulation
        while True:
            first = (micro * self.world + self.rank) * self.batch_size
            mirrored = torch.rand(self.batch_size, generator=generator(self.seed, FLIP, micro, self.rank)) < 0.5
            yield [(self._image(first + i), self.random_flip and bool(mirrored[i])) for i in range(self.batch_size)]
            micro += 1

    def _image(self, position: int) -> int:
        epoch, at = divmod(position, self.count)
        return int(_permutation(self.seed, epoch, self.count)[at])


@dataclass(frozen=True)
class Draws:
    """What is drawn for a micro-batch: noise (B, C, H, W), t (B,) in 0..T-1, labels (B,) with some made null."""

    noise: torch.Tensor
    t: torch.Tensor
    labels: torch.Tensor


def draw(key: tuple[int, ...], labels, shape, num_timesteps: int, label_dropout: float, null_label: int) -> Draws:
    """Noise, timesteps and label dropout for one micro-batch, on the CPU.

    Labels are dropped here, once for the whole model: diffusers' DiT would draw anew in each of its blocks.
    """
    source = generator(*key)
    noise = torch.randn(shape, generator=source)
    t = torch.randint(num_timesteps, (shape[0],), generator=source)
    dropped = torch.rand(shape[0], generator=source) < label_dropout
    return Draws(noise, t, torch.where(dropped, null_label, labels))
