"""measure.quality: PSNR and SSIM against torchmetrics, and where the two cannot be taken."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from skipdit_cli.measure.quality import compare, psnr, rel_l2, ssim


def pictures(size=24, seed=0, noise=20.0):
    """Two sets of 3 smooth pictures, uint8 (3, size, size, 3), that differ by noise."""
    generator = np.random.default_rng(seed)
    base = np.linspace(0, 255, 3 * size * size * 3).reshape(3, size, size, 3)
    noisy = [base + generator.normal(0, spread, base.shape) for spread in (5.0, noise)]
    return tuple(np.clip(x, 0, 255).astype(np.uint8) for x in noisy)


def as_tensors(a, b):
    return (torch.from_numpy(x).permute(0, 3, 1, 2).double() for x in (a, b))


def test_psnr_is_the_mean_over_pictures():
    a, b = as_tensors(*pictures())
    expected = peak_signal_noise_ratio(a, b, data_range=255.0, dim=(1, 2, 3), reduction="elementwise_mean")
    assert psnr(a, b) == pytest.approx(float(expected), abs=1e-6)


def test_psnr_by_hand():
    black, grey = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 25.5)
    assert psnr(black, grey) == pytest.approx(20.0, abs=1e-5)


@pytest.mark.parametrize("size", [24, 11])
def test_ssim_is_that_of_torchmetrics_inside_the_borders(size):
    a, b = as_tensors(*pictures(size))
    _, full = structural_similarity_index_measure(a, b, data_range=255.0, return_full_image=True)
    inside = full[..., 5 : size - 5, 5 : size - 5]
    assert ssim(a, b) == pytest.approx(float(inside.mean()), abs=1e-6)


def test_ssim_of_pictures_smaller_than_the_window():
    a, b = as_tensors(*pictures(8))
    assert 0 < ssim(a, b) < 1
    assert ssim(a, a) == pytest.approx(1.0)


def test_identical_pictures_have_no_psnr():
    a, _ = pictures()
    quality = compare(a, a.copy(), torch.ones(3, 4), torch.ones(3, 4))
    assert (quality.psnr, quality.identical, quality.latent_rel_l2) == (None, True, 0.0)
    assert quality.ssim == pytest.approx(1.0)


def test_one_identical_picture_among_others_does_not_make_psnr_infinite():
    a, b = pictures()
    b[0] = a[0]
    quality = compare(a, b, torch.ones(3, 4), torch.full((3, 4), 2.0))
    assert 0 < quality.psnr < 100
    assert not quality.identical
    assert quality.latent_rel_l2 == pytest.approx(0.5)


def test_rel_l2_takes_half_precision():
    a = torch.tensor([3.0, 4.0], dtype=torch.bfloat16)
    assert rel_l2(torch.zeros(2), a) == pytest.approx(1.0)
