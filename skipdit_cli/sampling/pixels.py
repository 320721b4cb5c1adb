"""From what the sampler leaves to pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder

from skipdit_cli.errors import NotFiniteError, UsageError
from skipdit_cli.finite import is_finite
from skipdit_cli.media import to_uint8
from skipdit_cli.sampling.call_arguments import frames_argument, takes
from skipdit_cli.sampling.device import free_memory
from skipdit_cli.sampling.diagnosis import explain
from skipdit_cli.sampling.latents import shrinks, unscale

SAMPLE_BYTES = 1024
"""Of a sample besides its pixels: its condition, its generator, its latents."""
FRAMES_AT_ONCE = 14  # ``decode_chunk_size`` of diffusers' pipelines; a temporal decoder sees so far


@torch.no_grad()
def to_pixels(
    pipe, latents: torch.Tensor, batch_size: int, as_array: Callable[[torch.Tensor], np.ndarray] = to_uint8
) -> np.ndarray:
    """An array (N, [F,] H, W, 3) of latents (N, C, [F,] h, w), through the VAE, or straight out of a model of pixels.

    Latents of a model that has no VAE here are shown as they are: three channels, scaled to their spread.

    Args:
        batch_size: Pictures decoded at once; of videos it is ``FRAMES_AT_ONCE`` frames, never of two videos.
        as_array: Makes arrays of pictures (N, C, [F,] H, W) in [-1, 1]; of uint8 if not given.
    Raises:
        UsageError: There is no VAE, and the latents are tokens in a row; or it is not known how its own are scaled.
        NotFiniteError: The latents are NaN or infinite, or the decoder makes such pictures of them.
    """
    if not is_finite(latents):
        raise NotFiniteError("The latents are NaN or infinite, so they are no pictures.")
    if pipe.vae is not None:
        own = unscale(pipe.vae, latents)
        if latents.ndim == 4:
            return np.concatenate(list(map(as_array, _decoded(pipe, own, batch_size))))
        videos = (_decoded(pipe, video.transpose(0, 1), FRAMES_AT_ONCE, is_video=True) for video in own)
        return np.stack([np.concatenate(list(map(as_array, video))) for video in videos])
    if is_pixel_space(pipe):
        return as_array(latents)
    if latents.ndim == 3:
        raise UsageError("This model's latents are no pictures, and it has no VAE here; give --vae.")
    preview = latents[:, :3] if latents.shape[1] > 3 else latents[:, :1]
    return as_array(preview / (3 * preview.std() + 1e-8))


def _decoded(pipe, latents: torch.Tensor, at_once: int, is_video: bool = False) -> Iterator[torch.Tensor]:
    """(n, C, H, W) of some of (N, c, h, w): pictures, or the frames of a video, which a temporal decoder joins."""
    vae = pipe.vae
    where = pipe._execution_device  # not that of the weights, which offloading brings there when they are used
    for some in latents.to(where, vae.dtype).split(at_once):
        temporal = isinstance(vae, AutoencoderKLTemporalDecoder)
        joined = {"num_frames": len(some) if is_video else 1} if temporal else {}
        decoded = vae.decode(some, **joined).sample
        if not is_finite(decoded):
            raise NotFiniteError(explain(pipe, "pictures"))
        yield decoded


def is_pixel_space(pipe) -> bool:
    """Whether the model makes pixels itself: no VAE, and one or three channels."""
    return getattr(pipe, "vae", None) is None and pipe.transformer.config.in_channels in (1, 3)


def pixel_size(pipe, height: int | None = None, width: int | None = None) -> tuple[int, int] | None:
    """Height and width of what is made; None where the pipeline alone knows.

    Args:
        height, width: Those asked for, if any.
    """
    if "video_length" not in pipe.transformer.config and "height" in takes(pipe):
        sides = [
            takes(pipe)[name].default if given is None else given
            for name, given in {"height": height, "width": width}.items()
        ]
        return tuple(sides) if None not in sides else None
    enlarged = 1 if pipe.vae is None else shrinks(pipe.vae)
    shrunk = getattr(pipe, "vae_scale_factor", 1) if pipe.vae is None else 1  # sizes are asked for as with a VAE
    if "sample_size" not in pipe.transformer.config:
        return None
    own = enlarged * pipe.transformer.config.sample_size
    return tuple(own if size is None else size // shrunk for size in (height, width))


def check_memory(pipe, count: int, height=None, width=None, num_frames=None, drawn: int = 1) -> None:
    """Whether the samples fit into memory, before any of them is made.

    Args:
        pipe: The pipeline; or its outline, which knows no VAE, so that latents are taken for pixels: a lower bound.
        height, width, num_frames: Those asked for, if any.
        drawn: How many pixels are drawn for one of a sample: in a grid of all, enlarged where they are tiny.
    Raises:
        UsageError: There are too many, or they are too large.
    """
    config = pipe.transformer.config
    sides = pixel_size(pipe, height, width) if hasattr(pipe, "vae") else None
    own = config.get("sample_size")
    tall, wide = sides or [size or (own if isinstance(own, int) else 1) for size in (height, width)]
    named = frames_argument(pipe)
    frames = num_frames or config.get("video_length") or (named and takes(pipe)[named].default) or 1
    needed, free = count * (3 * tall * wide * frames * (1 + drawn) + SAMPLE_BYTES), free_memory()
    if needed > free:
        what = f"{count:,} sample{'s' * (count > 1)} of at least {wide}x{tall} pixels"
        what += f" and {frames:,} frames" if frames > 1 else ""
        raise UsageError(
            f"Got {what} to make, which take {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free; "
            "give a smaller --num-images, --batch-size, --height, --width or --num-frames."
        )


def is_video(pipe) -> bool:
    """Whether the model makes frames rather than one picture."""
    return "video_length" in pipe.transformer.config or frames_argument(pipe) is not None
