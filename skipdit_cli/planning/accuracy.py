"""How close the samples of two runs at the same seeds are, in dB."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch

from skipdit_cli.finite import is_finite
from skipdit_cli.sampling.pixels import is_pixel_space


class Samples(Protocol):
    """The samples of a run, such as ``Generated`` and ``Exact``."""

    @property
    def latents(self) -> torch.Tensor:
        """The latents, float32."""

    @property
    def images(self) -> np.ndarray | None:
        """The images, uint8, or None if not decoded."""


def accuracy_db(pipe, samples: Samples, reference: Samples) -> float:
    """Return the PSNR in dB of the final samples of a run to those of a reference, mean over the samples that differ.

    It is that of the latents, clamped to [-1, 1], for a model of pixels; else of the decoded images, where it is a few
    dB too low above about 55, for they have 8 bits; else of the latents, over the range of the reference's.

    Returns:
        Infinity if no sample differs, NaN if one is not finite.
    """
    finite = [each for each in each_accuracy_db(pipe, samples, reference) if not math.isinf(each) or each < 0]
    return sum(finite) / len(finite) if finite else float("inf")


def each_accuracy_db(pipe, samples: Samples, reference: Samples) -> list[float]:
    """Return the PSNR in dB of each sample to that of a reference, as ``accuracy_db`` averages it."""
    if is_pixel_space(pipe):
        a, b, span = samples.latents.clamp(-1, 1), reference.latents.clamp(-1, 1), 2.0
    elif samples.images is not None and reference.images is not None:
        a, b = (torch.from_numpy(each.images).double() for each in (samples, reference))
        span = 255.0
    else:
        a, b, span = samples.latents, reference.latents, float(reference.latents.max() - reference.latents.min())
    return [psnr(one, other, span) for one, other in zip(a.split(1), b.split(1))]


def psnr(a: torch.Tensor, b: torch.Tensor, data_range: float = 255.0) -> float:
    """Return the peak signal-to-noise ratio in dB of images (N, C, H, W), mean over those that differ.

    It is infinite if none differs, and NaN if an image holds NaN or infinity.
    """
    errors = (a - b).square().flatten(1).mean(1)
    if not is_finite(errors):
        return float("nan")
    errors = errors[errors > 0]
    return float((10 * torch.log10(data_range**2 / errors)).mean()) if len(errors) else float("inf")
