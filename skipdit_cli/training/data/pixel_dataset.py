"""From a sample to a tensor of pixels: pick the clip, crop, resize, mirror."""

from __future__ import annotations

from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from skipdit_cli.training.data.metadata import Condition
from skipdit_cli.training.data.order import Choice
from skipdit_cli.training.data.samples import SampleSet


class Batch(NamedTuple):
    """A micro-batch.

    Args:
        pixels: (B, C, H, W) or (B, C, F, H, W) in [-1, 1]; moments of the VAE's posterior where latents are cached.
        conditions: The class label or caption of each sample, or None.
        images: Of joint training on videos and images, (B·I, C, 1, H, W): I images for each video.
        image_conditions: The class label or caption of each of ``images``.
    """

    pixels: torch.Tensor
    conditions: list[Condition]
    images: torch.Tensor | None
    image_conditions: list[Condition]


class Pixels(Dataset):
    """A data set of samples as tensors; its indices are ``Choice`` objects.

    Args:
        size: Height and width, or one number for both, that images are cropped and resized to.
        channels: 1 (grey) or 3.
        num_frames: The number F of frames in a clip; None for images.
        frame_stride: The step from one frame of a clip to the next, in frames of the file.
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
        """Return pixels (C, [F,] H, W), their condition, images (I, C, 1, H, W) or None, and their conditions."""
        clip = self.clip(choice, self.num_frames or 1)
        pixels = clip.squeeze(1) if self.num_frames is None else clip
        images = [self.clip(image, 1) for image in choice.images]
        conditions = [self.samples.conditions[image.index] for image in choice.images]
        return pixels, self.samples.conditions[choice.index], torch.stack(images) if images else None, conditions

    def clip(self, choice: Choice, count: int) -> torch.Tensor:
        """Return ``count`` frames of a sample, float32 (C, count, H, W) in [-1, 1]."""
        room = self.samples.lengths[choice.index] - (count - 1) * self.frame_stride
        first = int(choice.start * room)
        frames = [first + i * self.frame_stride for i in range(count)]
        images = [self.crop(image, choice) for image in self.samples.read(choice.index, frames)]
        return torch.stack(images, dim=1)

    def crop(self, image: Image.Image, choice: Choice) -> torch.Tensor:
        """Return a crop of one image, float32 (C, H, W) in [-1, 1]."""
        cropped = crop(image.convert(self.mode), self.size, choice.crop)
        pixels = torch.from_numpy(np.array(ImageOps.mirror(cropped) if choice.mirrored else cropped))
        return pixels.view(*self.size, -1).permute(2, 0, 1).float() / 127.5 - 1


def collate(items: list) -> Batch:
    """Return the items of ``Pixels`` or ``Latents`` as one batch."""
    pixels, conditions, images, image_conditions = zip(*items)
    joint = None if images[0] is None else torch.cat(images)
    return Batch(torch.stack(pixels), list(conditions), joint, list(chain.from_iterable(image_conditions)))


def crop(image: Image.Image, size: tuple[int, int], position: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """Return the largest part of an image with the shape of ``size``, resized to it.

    It is halved while it is at least twice too large, then resized bicubically (image_datasets.py of ADM).

    Args:
        size: Height and width.
        position: Where the part lies in the image: (0, 0) left and top, (1, 1) right and bottom.
    """
    height, width = size
    if image.size == (width, height):
        return image
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC, centering=position)
