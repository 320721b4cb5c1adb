"""The distance between the samples of two runs at the same seeds: PSNR and SSIM of images, relative L2 of latents, and
the difference in motion of videos."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from skipdit_cli.finite import is_finite
from skipdit_cli.planning.accuracy import psnr


@dataclass(frozen=True)
class Quality:
    """The quality of a run against its reference.

    Args:
        psnr: PSNR in dB, mean over the images that differ; None if none differs (it would be infinite) or there are
            no images.
        ssim: SSIM, mean over the images, at most 1; None without images.
        latent_rel_l2: ``||a - b|| / ||b||`` over all latents; None if b alone is 0.
        identical: Whether all latents and images are bitwise equal.
        temporal_difference: The difference in motion of videos (see the function of that name); None for images, and
            for a reference in which nothing moves.
    """

    psnr: float | None
    ssim: float | None
    latent_rel_l2: float | None
    identical: bool
    temporal_difference: float | None = None


def compare(
    images: np.ndarray | None, reference: np.ndarray | None, latents: torch.Tensor, latents_reference: torch.Tensor
) -> Quality:
    """Return the quality of images, uint8 (N, [F,] H, W, 3) or None, and of their latents (N, ...).

    Each frame of a video counts as one image. Where latents are NaN or infinite, every measure is None.
    """
    if not (is_finite(latents) and is_finite(latents_reference)) or (images is None) != (reference is None):
        return Quality(None, None, None, False)
    error, equal_latents = rel_l2(latents, latents_reference), torch.equal(latents, latents_reference)
    distance = error if math.isfinite(error) else None
    if images is None or reference is None:
        return Quality(None, None, distance, equal_latents)
    a, b = (torch.from_numpy(x).flatten(0, -4).permute(0, 3, 1, 2).double() for x in (images, reference))
    equal_images = torch.equal(a, b)
    motion = temporal_difference(images, reference) if images.ndim == 5 else None
    return Quality(None if equal_images else psnr(a, b), ssim(a, b), distance, equal_latents and equal_images, motion)


def ssim(a: torch.Tensor, b: torch.Tensor, data_range: float = 255.0) -> float:
    """Return the structural similarity of images (N, C, H, W): the mean over pixels, channels and images.

    Wang et al. 2004 with an 11x11 Gaussian window of sigma 1.5, K1 = 0.01 and K2 = 0.03, at the places where the whole
    window lies inside the image. Images smaller than the window use the largest odd window that fits.
    """
    return float(torch.stack([_ssim_map(*pair, data_range).mean() for pair in zip(a.split(1), b.split(1))]).mean())


def _ssim_map(a: torch.Tensor, b: torch.Tensor, data_range: float) -> torch.Tensor:
    """Return the structural similarity at each place of two images (1, C, H, W)."""
    channels = a.shape[1]
    row = _gaussian(min(11, (min(a.shape[-2:]) - 1) // 2 * 2 + 1)).to(a).expand(channels, 1, 1, -1)

    def blur(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(x, row, groups=channels), row.transpose(2, 3), groups=channels)

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return similarity / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def rel_l2(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return ``||a - b|| / ||b||`` over all elements; 0 if the two are equal, even if both are 0."""
    a, b = a.double(), b.double()
    return 0.0 if torch.equal(a, b) else float((a - b).norm() / b.norm())


def temporal_difference(videos: np.ndarray, reference: np.ndarray) -> float | None:
    """Return the error of the change from frame to frame, relative to that change in the reference.

    It is 0 if all frames change as those of the reference do, whatever constant error they carry, and 1 for a still
    video. With d the difference between consecutive frames of the videos v and of the reference r, it is
    ``||dv - dr|| / ||dr||`` over all elements; None if the reference does not change.

    Args:
        videos, reference: uint8 (N, F, H, W, 3).
    """
    change, expected = (np.diff(x.astype(np.float32), axis=1) for x in (videos, reference))
    norm = np.linalg.norm(expected)
    return float(np.linalg.norm(change - expected) / norm) if norm else None


def _gaussian(size: int, sigma: float = 1.5) -> torch.Tensor:
    offsets = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    return weights / weights.sum()
