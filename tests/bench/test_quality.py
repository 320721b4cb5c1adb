"""bench.quality: PSNR and SSIM against torchmetrics, and where the two cannot be taken."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from skipdit_cli.bench.quality import compare, psnr, rel_l2, ssim, temporal_difference


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


def test_ssim_of_wide_pictures_is_the_mean_over_them():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 256, (2, 3, 16, 40), generator=generator).double() for _ in range(2))
    _, full = structural_similarity_index_measure(a, b, data_range=255.0, return_full_image=True)
    assert ssim(a, b) == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-6)
    assert ssim(a, b) == pytest.approx((ssim(a[:1], b[:1]) + ssim(a[1:], b[1:])) / 2)


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


def videos():
    """Two squares that move, uint8 (2, 5, 16, 16, 3)."""
    made = np.full((2, 5, 16, 16, 3), 40, np.uint8)
    for at in range(5):
        made[0, at, 2:6, 2 * at : 2 * at + 4] = 200
        made[1, at, 2 * at : 2 * at + 4, 8:12] = 120
    return made


def test_temporal_difference_sees_motion_and_not_brightness():
    moving = videos()
    assert temporal_difference(moving, moving) == 0
    assert temporal_difference(moving + 30, moving) == 0
    still = np.repeat(moving[:, :1], 5, axis=1)
    assert temporal_difference(still, moving) == pytest.approx(1)
    flickering = moving.copy()
    flickering[:, 1::2] += 20
    change = (np.diff(x.astype(float), axis=1) for x in (flickering, moving))
    a, b = change
    assert temporal_difference(flickering, moving) == pytest.approx(np.sqrt(((a - b) ** 2).sum() / (b**2).sum()))
    assert temporal_difference(moving, moving[:, ::-1]) > 1


def test_temporal_difference_is_none_where_nothing_moves_or_nothing_could():
    moving = videos()
    still = np.repeat(moving[:, :1], 5, axis=1)
    assert temporal_difference(moving, still) is None and temporal_difference(moving[:, :1], moving[:, :1]) is None
    latents = torch.ones(2, 4)
    assert compare(moving, videos(), latents, latents).temporal_difference == 0
    assert compare(moving[:, 0], moving[:, 1], latents, latents).temporal_difference is None
    assert compare(None, None, latents, latents).temporal_difference is None
