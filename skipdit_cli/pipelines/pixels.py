"""From what the sampler leaves to pixels."""

from __future__ import annotations

import numpy as np
import torch

from skipdit_cli.media import to_uint8

FRAMES_AT_ONCE = 16


@torch.no_grad()
def to_pixels(pipe, latents: torch.Tensor, batch_size: int) -> np.ndarray:
    """uint8 (N, [F,] H, W, 3) from latents (N, C, [F,] h, w): through the VAE, or straight out of a pixel-space model.

    Latents of a model that has no VAE here are shown as they are: three channels, scaled to their spread.

    Args:
        batch_size: Pictures decoded at once; of videos it is ``FRAMES_AT_ONCE`` frames, each decoded alone.
    """
    if pipe.vae is not None:
        return _decode(pipe.vae, latents, batch_size)
    if is_pixel_space(pipe):
        return to_uint8(latents)
    preview = latents[:, :3] if latents.shape[1] > 3 else latents[:, :1]
    return to_uint8(preview / (3 * preview.std() + 1e-8))


def _decode(vae, latents: torch.Tensor, batch_size: int) -> np.ndarray:
    scaled = latents / vae.config.scaling_factor
    if latents.ndim == 5:
        frames = scaled.transpose(1, 2)
        pictures = _decode_pictures(vae, frames.flatten(0, 1), FRAMES_AT_ONCE)
        return pictures.reshape(*frames.shape[:2], *pictures.shape[1:])
    return _decode_pictures(vae, scaled, batch_size)


def _decode_pictures(vae, scaled: torch.Tensor, batch_size: int) -> np.ndarray:
    pieces = [x.to(vae.device, vae.dtype) for x in scaled.split(batch_size)]
    return np.concatenate([to_uint8(vae.decode(x).sample) for x in pieces])


def is_pixel_space(pipe) -> bool:
    """Whether the model makes pixels itself: no VAE, and one or three channels."""
    return pipe.vae is None and pipe.transformer.config.in_channels in (1, 3)


def pixel_size(pipe) -> int:
    """Height and width of what ``to_pixels`` makes."""
    enlarged = 1 if pipe.vae is None else 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    return enlarged * pipe.transformer.config.sample_size


def is_video(pipe) -> bool:
    """Whether the model makes frames rather than one picture."""
    return "video_length" in pipe.transformer.config
