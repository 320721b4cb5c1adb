"""From a sample to the tensor a step sees: clip, crop, size, mirror."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from skipdit_cli.errors import SkipditError, first_line
from skipdit_cli.training.data.metadata import Condition
from skipdit_cli.training.data.order import Choice
from skipdit_cli.training.data.samples import SampleSet


class Batch(NamedTuple):
    """A micro-batch: ``pixels`` (B, C, H, W) or (B, C, F, H, W) in [-1, 1], and what each sample comes with; of joint
    training also ``images`` (B·I, C, 1, H, W), I for each video."""

    pixels: torch.Tensor
    conditions: list[Condition]
    images: torch.Tensor | None
    image_conditions: list[Condition]


class Pixels(Dataset):
    """Samples as tensors: a ``Choice`` gives (pixels, condition, images, their conditions), images or None.

    Args:
        size: Height and width, or one number for both; pictures are cropped to its shape and resized.
        channels: 1 (grey) or 3.
        num_frames: F of a clip; None for images, whose pixels are (C, H, W).
        frame_stride: Frames of the file from one frame of the clip to the next.
    """

    def __init__(
        self,
        samples: SampleSet,
        size: int | tuple[int, int],
        channels: int,
        num_frames: int | None = None,
        frame_stride: int = 1,
    ):
        size = (size, size) if isinstance(size, int) else size
        self.samples, self.size, self.mode = samples, size, {1: "L", 3: "RGB"}[channels]
        self.num_frames, self.frame_stride = num_frames, frame_stride

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, choice: Choice) -> tuple[torch.Tensor, Condition, torch.Tensor | None, list[Condition]]:
        still = self.num_frames is None
        clip = self.clip(choice, self.num_frames or 1)
        extra = [self.clip(image, 1) for image in choice.images]
        conditions = [self.samples.conditions[image.index] for image in choice.images]
        pixels = clip.squeeze(1) if still else clip
        return pixels, self.samples.conditions[choice.index], torch.stack(extra) if extra else None, conditions

    def clip(self, choice: Choice, count: int) -> torch.Tensor:
        """(C, count, H, W) float32 in [-1, 1]."""
        room = self.samples.lengths[choice.index] - (count - 1) * self.frame_stride
        first = int(choice.start * room)
        frames = [first + i * self.frame_stride for i in range(count)]
        pictures = [self.cut(picture, choice) for picture in self.samples.read(choice.index, frames)]
        return torch.stack(pictures, dim=1)

    def cut(self, picture: Image.Image, choice: Choice) -> torch.Tensor:
        """(C, H, W) in [-1, 1]."""
        cropped = crop(picture.convert(self.mode), self.size, choice.crop)
        pixels = torch.from_numpy(np.array(ImageOps.mirror(cropped) if choice.mirrored else cropped))
        return pixels.view(*self.size, -1).permute(2, 0, 1).float() / 127.5 - 1


def collate(items: list) -> Batch:
    """What ``Pixels`` gave, as a batch."""
    pixels, conditions, images, image_conditions = zip(*items)
    together = None if images[0] is None else torch.cat(images)
    return Batch(torch.stack(pixels), list(conditions), together, [c for own in image_conditions for c in own])


def crop(image: Image.Image, size: tuple[int, int], place: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """A part of the picture in the height and width of ``size``, as large a part as there is; halved while twice too
    large, then bicubic (ADM's image_datasets.py).

    Args:
        place: Of the part in the picture, (0, 0) left and top, (1, 1) right and bottom.
    """
    height, width = size
    if image.size == (width, height):
        return image
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC, centering=place)


def next_batch(batches: Iterator[Batch]) -> Batch:
    """The next micro-batch of a loader.

    Raises:
        SkipditError: A file can no longer be read, or a process that reads files died.
    """
    try:
        return next(batches)
    except SkipditError as cause:
        if not str(cause).startswith("Caught"):
            raise
        # A process of the loader sends its whole traceback as the message, whose last line is the error.
        raise SkipditError(str(cause).strip().splitlines()[-1].split(": ", 1)[-1]) from cause
    except RuntimeError as cause:
        if "DataLoader worker" not in str(cause):
            raise
        why = first_line(cause)
        raise SkipditError(
            f"A process that reads the data died ({why}); try a smaller --dataloader-num-workers."
        ) from cause
