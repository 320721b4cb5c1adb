"""How far the pictures of one run are from those of another at the same seeds: PSNR, SSIM, relative L2 of latents, and
of videos how far their motion is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from skipdit_cli.finite import is_finite


@dataclass(frozen=True)
class Quality:
    """A run against its reference.

    Args:
        psnr: dB, mean over the pictures that differ; None where none does (it would be infinite), or without pictures.
        ssim: Mean over the pictures, at most 1; None without pictures.
        latent_rel_l2: ``||a - b|| / ||b||`` over all latents; None where only b is 0.
        identical: Whether all latents and pictures are equal to the bit.
        temporal_difference: Of videos, see ``temporal_difference``; None of pictures, or where the reference stands.
    """

    psnr: float | None
    ssim: float | None
    latent_rel_l2: float | None
    identical: bool
    temporal_difference: float | None = None


def compare(
    images: np.ndarray | None, reference: np.ndarray | None, latents: torch.Tensor, latents_reference: torch.Tensor
) -> Quality:
    """Measure pictures, uint8 (N, [F,] H, W, 3) or None, and their latents (N, ...) against a reference.

    Of videos every frame is a picture. What is NaN or infinite has no quality: all is None.
    """
    if not (is_finite(latents) and is_finite(latents_reference)) or (images is None) != (reference is None):
        return Quality(None, None, None, False)
    distance, same = rel_l2(latents, latents_reference), torch.equal(latents, latents_reference)
    distance = distance if math.isfinite(distance) else None
    if images is None:
        return Quality(None, None, distance, same)
    a, b = (torch.from_numpy(x).flatten(0, -4).permute(0, 3, 1, 2).double() for x in (images, reference))
    same_pictures = torch.equal(a, b)
    motion = temporal_difference(images, reference) if images.ndim == 5 else None
    return Quality(None if same_pictures else psnr(a, b), ssim(a, b), distance, same and same_pictures, motion)


def psnr(a: torch.Tensor, b: torch.Tensor, data_range: float = 255.0) -> float:
    """Peak signal-to-noise ratio in dB of images (N, C, H, W), mean over those that differ; inf where none does, NaN
    where one holds NaN or infinity."""
    errors = (a - b).square().flatten(1).mean(1)
    if not is_finite(errors):
        return float("nan")
    errors = errors[errors > 0]
    return float((10 * torch.log10(data_range**2 / errors)).mean()) if len(errors) else float("inf")


def ssim(a: torch.Tensor, b: torch.Tensor, data_range: float = 255.0) -> float:
    """Structural similarity of images (N, C, H, W), mean over pixels, channels and images.

    Wang et al. 2004: 11x11 Gaussian window of sigma 1.5, K1 0.01, K2 0.03, whole windows only. Smaller images use
    the largest odd window that fits.
    """
    window = _gaussian(min(11, (min(a.shape[-2:]) - 1) // 2 * 2 + 1)).to(a)
    channels = a.shape[1]
    kernel = torch.outer(window, window).expand(channels, 1, -1, -1)

    def blur(x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, kernel, groups=channels)

    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return float((likeness / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean())


def rel_l2(a: torch.Tensor, b: torch.Tensor) -> float:
    """``||a - b|| / ||b||`` over everything; 0 of two that are equal, whatever they are."""
    a, b = a.double(), b.double()
    return 0.0 if torch.equal(a, b) else float((a - b).norm() / b.norm())


def temporal_difference(videos: np.ndarray, reference: np.ndarray) -> float | None:
    """How much of the reference's motion is missed, or flicker put in its place: 0 where all frames change as the
    reference's do, whatever constant error they carry; 1 for a still picture.

    ``||dv - dr|| / ||dr||`` over everything, where d is each frame minus the one before it, v the videos and r the
    reference: uint8 (N, F, H, W, 3). None where no frame of the reference differs from the one before it.
    """
    change, expected = (np.diff(x.astype(np.float32), axis=1) for x in (videos, reference))
    moved = np.linalg.norm(expected)
    return float(np.linalg.norm(change - expected) / moved) if moved else None


def _gaussian(size: int, sigma: float = 1.5) -> torch.Tensor:
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    weights = torch.exp(-(places**2) / (2 * sigma**2))
    return weights / weights.sum()
