"""Decoding: from latents to images and videos; their size, and the memory that they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from diffusers import AutoencoderKLTemporalDecoder

from skipdit_cli.console import count as counted
from skipdit_cli.console import size_text
from skipdit_cli.errors import NotFiniteError, UsageError
from skipdit_cli.finite import is_finite
from skipdit_cli.media import to_uint8
from skipdit_cli.sampling.device import free_memory
from skipdit_cli.sampling.diagnosis import explain
from skipdit_cli.sampling.latents import spatial_compression, unscale
from skipdit_cli.sampling.pipelines.call_arguments import call_default, call_parameters, frames_argument

SAMPLE_BYTES = 1024
"""Bytes that a sample takes beside its pixels: its condition, its generator, its latents."""
FRAMES_AT_ONCE = 14
"""Frames of a video that are decoded together: ``decode_chunk_size`` of diffusers' pipelines."""


@torch.no_grad()
def to_pixels(
    pipe, latents: torch.Tensor, batch_size: int, to_array: Callable[[torch.Tensor], np.ndarray] = to_uint8
) -> np.ndarray:
    """Return images (N, H, W, 3) or videos (N, F, H, W, 3) from latents (N, C, [F,] h, w).

    The VAE decodes them. Samples of a pixel-space model are images already. Latents of a model without its VAE are
    shown as they are: three channels, scaled to their spread.

    Args:
        batch_size: Images decoded at once. Of a video, ``FRAMES_AT_ONCE`` frames are.
        to_array: Converts images (N, C, [F,] H, W) in [-1, 1] to an array; to uint8 by default.
    Raises:
        UsageError: There is no VAE, and the latents are packed; or the scaling of the VAE's latents is unknown.
        NotFiniteError: The latents, or the decoded images, are NaN or infinite.
    """
    if not is_finite(latents):
        raise NotFiniteError("The latents are NaN or infinite, so there are no pictures.")
    if pipe.vae is not None:
        latents = unscale(pipe.vae, latents)
        if latents.ndim == 4:
            return np.concatenate(list(map(to_array, _decode(pipe, latents, batch_size))))
        videos = (_decode(pipe, video.transpose(0, 1), FRAMES_AT_ONCE, is_video=True) for video in latents)
        return np.stack([np.concatenate(list(map(to_array, video))) for video in videos])
    if is_pixel_space(pipe):
        return to_array(latents)
    if latents.ndim == 3:
        raise UsageError("This model's latents are no pictures, and it has no VAE here; give --vae.")
    preview = latents[:, :3] if latents.shape[1] > 3 else latents[:, :1]
    spread = preview.std(dim=tuple(range(1, preview.ndim)), keepdim=True)  # of each sample, whatever its batch holds
    return to_array(preview / (3 * spread + 1e-8))


def _decode(pipe, latents: torch.Tensor, batch_size: int, is_video: bool = False) -> Iterator[torch.Tensor]:
    """Yield images (n, C, H, W) from latents (N, c, h, w); a temporal decoder joins the frames of a video."""
    vae, device = pipe.vae, pipe._execution_device  # with offloading, the weights are elsewhere until they are used
    for batch in latents.to(device, vae.dtype).split(batch_size):
        temporal = isinstance(vae, AutoencoderKLTemporalDecoder)
        options = {"num_frames": len(batch) if is_video else 1} if temporal else {}
        images = vae.decode(batch, **options).sample
        if not is_finite(images):
            raise NotFiniteError(explain(pipe, "pictures"))
        yield images


def is_pixel_space(pipe) -> bool:
    """Return whether the model makes pixels rather than latents: it has no VAE, and one or three channels."""
    return getattr(pipe, "vae", None) is None and pipe.transformer.config.in_channels in (1, 3)


def is_video(pipe) -> bool:
    """Return whether the model makes videos rather than images."""
    return "video_length" in pipe.transformer.config or frames_argument(pipe) is not None


def pixel_size(pipe, height: int | None = None, width: int | None = None) -> tuple[int, int] | None:
    """Return the height and width of the samples, or None if only the pipeline knows.

    Args:
        height, width: The settings of the run, if any.
    """
    if "video_length" not in pipe.transformer.config and "height" in call_parameters(pipe):
        height = call_default(pipe, "height") if height is None else height
        width = call_default(pipe, "width") if width is None else width
        return None if height is None or width is None else (height, width)
    enlarged = 1 if pipe.vae is None else spatial_compression(pipe.vae)
    reduced = getattr(pipe, "vae_scale_factor", 1) if pipe.vae is None else 1  # settings count pixels behind a VAE
    if "sample_size" not in pipe.transformer.config:
        return None
    side = enlarged * pipe.transformer.config.sample_size
    return side if height is None else height // reduced, side if width is None else width // reduced


def check_memory(
    pipe, count: int, height=None, width=None, num_frames=None, drawn: int = 1, held: int | None = None
) -> None:
    """Refuse more samples than memory holds, before any is made.

    Args:
        pipe: The pipeline; or its outline, which has no VAE, so that pixels are counted like latents: a lower bound.
        height, width, num_frames: The settings of the run, if any.
        drawn: Pixels drawn per pixel of a sample: in a grid, enlarged if they are tiny.
        held: The most samples whose pixels memory holds at once; all of them if None.
    Raises:
        UsageError: There are too many samples, or they are too large.
    """
    config = pipe.transformer.config
    sides = pixel_size(pipe, height, width) if hasattr(pipe, "vae") else None
    default = config.get("sample_size")
    tall, wide = sides or [size or (default if isinstance(default, int) else 1) for size in (height, width)]
    frames = num_frames or config.get("video_length") or call_default(pipe, frames_argument(pipe)) or 1
    pixels, free = 3 * tall * wide * frames * (1 + drawn), free_memory()
    needed = min(count, held or count) * pixels + count * SAMPLE_BYTES
    if needed > free:
        samples = f"{counted(count, 'sample')} of at least {wide}x{tall} pixels"
        samples += f" and {frames:,} frames" if frames > 1 else ""
        raise UsageError(
            f"Got {samples} to make, which take {size_text(needed)} of memory, and {size_text(free)} are free; "
            "give a smaller --num-images, --batch-size, --height, --width or --num-frames."
        )
