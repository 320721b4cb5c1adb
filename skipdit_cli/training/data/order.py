"""The order of samples and the random numbers of a step, as functions of (seed, step): resuming needs no replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

ORDER, FLIP, NOISE, LATENT, POSITION, IMAGES = range(6)
"""Purposes of random numbers, a part of the key of their generator."""


def generator(*key: int) -> torch.Generator:
    """Return a CPU generator that is seeded by a key of integers >= 0."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) >> 1)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> torch.Tensor:
    return torch.randperm(count, generator=generator(seed, ORDER, epoch))


@dataclass(frozen=True)
class Choice:
    """A sample of a batch, with its clip, crop and mirroring.

    Args:
        start: Where the clip lies in the video, from 0 (its beginning) to 1 (excluded: its end).
        crop: Where the crop lies in the image: 0 left and top, 1 right and bottom.
        images: Single frames of other samples beside the clip, for joint training.
    """

    index: int
    mirrored: bool = False
    start: float = 0.5
    crop: tuple[float, float] = (0.5, 0.5)
    images: tuple[Choice, ...] = ()


class Rows(NamedTuple):
    """The rows of a micro-batch in a draw: random numbers of several samples from one generator.

    Args:
        draw: The number of the draw, counted from the beginning of the run.
        start, stop: The rows, from the first up to but not including the last.
        count: The rows of the whole draw.
    """

    draw: int
    start: int
    stop: int
    count: int

    def times(self, images: int) -> Rows:
        """Return the rows of the images beside each sample, of which there are so many."""
        return Rows(self.draw, self.start * images, self.stop * images, self.count * images)


@dataclass(frozen=True)
class Order:
    """The endless sequence of micro-batches of one process; epochs follow each other without a short batch.

    The samples of an optimizer step and their random numbers depend neither on the number of processes nor on the
    number of micro-batches, for equal ``draw_size``.

    Args:
        count: Samples in the set.
        batch_size: Samples in one micro-batch of one process.
        accumulation: Micro-batches to an optimizer step.
        rank, world: The number of this process, and the number of processes.
        start: The optimizer step to begin at.
        random_flip, random_clip, random_crop: Whether to draw at random instead of taking the centre, not mirrored.
        images: The number of single frames of other samples beside each sample.
        draw_size: The samples whose random numbers are drawn together, a divisor of those of a step; None for all of
            them, so that every split of a step trains alike.
    """

    seed: int
    count: int
    batch_size: int
    accumulation: int = 1
    rank: int = 0
    world: int = 1
    start: int = 0
    random_flip: bool = False
    random_clip: bool = False
    random_crop: bool = False
    images: int = 0
    draw_size: int | None = None

    def __iter__(self) -> Iterator[list[Choice]]:
        """Yield each micro-batch as a list of choices."""
        micro = self.start * self.accumulation
        while True:
            yield self.batch(micro)
            micro += 1

    def rows(self, micro: int) -> list[Rows]:
        """Return where the random numbers of micro-batch number ``micro`` lie in the draws of all processes."""
        size = self.draw_size or self.batch_size * self.accumulation * self.world
        first, rows = (micro * self.world + self.rank) * self.batch_size, []
        for draw in range(first // size, (first + self.batch_size - 1) // size + 1):
            start = first - draw * size
            rows.append(Rows(draw, max(start, 0), min(start + self.batch_size, size), size))
        return rows

    def batch(self, micro: int) -> list[Choice]:
        """Return micro-batch number ``micro`` of this process."""
        rows = self.rows(micro)

        def uniform(purpose: int, *shape: int) -> list:
            sources = [generator(self.seed, purpose, each.draw, 0) for each in rows]
            drawn = [torch.rand(each.count, *shape, generator=source) for each, source in zip(rows, sources)]
            return [row for each, values in zip(rows, drawn) for row in values[each.start : each.stop].tolist()]

        first = (micro * self.world + self.rank) * self.batch_size
        flips, positions, images = uniform(FLIP), uniform(POSITION, 3), uniform(IMAGES, self.images, 5)
        return [
            replace(
                self._choice(self._sample(first + i), flips[i], *positions[i], self.random_clip),
                images=tuple(self._choice(int(sample * self.count), *rest, True) for sample, *rest in images[i]),
            )
            for i in range(self.batch_size)
        ]

    def _choice(self, index: int, flip: float, start: float, x: float, y: float, random_clip: bool) -> Choice:
        return Choice(
            index,
            self.random_flip and flip < 0.5,
            start if random_clip else 0.5,
            (x, y) if self.random_crop else (0.5, 0.5),
        )

    def _sample(self, position: int) -> int:
        epoch, index = divmod(position, self.count)
        return int(_permutation(self.seed, epoch, self.count)[index])


@dataclass(frozen=True)
class Draws:
    """The random numbers of a micro-batch.

    Args:
        noise: (B, C, [F,] H, W).
        t: Timesteps (B,) in 0..T-1.
        dropped: (B,) bool, whether the label or caption is dropped.
    """

    noise: torch.Tensor
    t: torch.Tensor
    dropped: torch.Tensor

    def rows(self, start: int, stop: int) -> Draws:
        """Return the random numbers of some of the samples."""
        return Draws(self.noise[start:stop], self.t[start:stop], self.dropped[start:stop])


def join(parts: list[Draws]) -> Draws:
    """Return the random numbers of one draw after the other as one."""
    return Draws(*(torch.cat(list(each)) for each in zip(*((part.noise, part.t, part.dropped) for part in parts))))


def draw(
    key: tuple[int, ...],
    shape,
    num_timesteps: int,
    label_dropout: float,
    density: Callable[[int, torch.Generator], torch.Tensor] | None = None,
) -> Draws:
    """Draw noise, timesteps and condition dropout for one micro-batch, on the CPU.

    Labels are dropped here, once for the whole model; diffusers' DiT would draw anew in each of its blocks.

    Args:
        key: The key of the generator.
        shape: The shape of the noise.
        density: Draws (count,) positions of timesteps between 0 and 1 with a generator; None draws them uniformly.
    """
    source = generator(*key)
    noise = torch.randn(shape, generator=source)
    if density is None:
        t = torch.randint(num_timesteps, (shape[0],), generator=source)
    else:
        t = (density(shape[0], source) * num_timesteps).long().clamp(0, num_timesteps - 1)
    return Draws(noise, t, torch.rand(shape[0], generator=source) < label_dropout)
