"""Images and videos of a class, or of none: the denoising loop with guidance."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.families.labels import null_label
from skipdit_cli.sampling.pixels import is_video
from skipdit_cli.sampling.schedulers import predicts_sigma


@torch.no_grad()
def denoise(
    transformer,
    scheduler,
    latents: torch.Tensor,
    labels: torch.Tensor | None,
    *,
    guidance_scale: float = 1.0,
    guided_channels: int = 3,
    generators: list[torch.Generator] | None = None,
    advance: Callable[[], None] | None = None,
) -> torch.Tensor:
    """The sampling loop, over the timesteps ``scheduler`` was set to.

    Args:
        latents: (B, C, [F,] h, w) noise at the first timestep's scale.
        labels: (B,) int64 class ids; None for an unconditional model, which is not guided.
        guided_channels: How many of the C noise channels guidance moves; the rest stay conditional.
        generators: One a sample, for schedulers that add noise.
    Returns:
        As ``latents``, float32.
    """
    channels, guided = latents.shape[1], guidance_scale > 1 and labels is not None
    if guided:
        labels = torch.cat([labels, torch.full_like(labels, null_label(transformer.config))])
    takes_sigma = scheduler.config.get("variance_type") in ("learned", "learned_range")
    takes_sigma = takes_sigma and predicts_sigma(transformer)
    noise = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    latents = latents.float()
    for t, t_device in zip(scheduler.timesteps, scheduler.timesteps.to(latents.device)):
        x = scheduler.scale_model_input(latents, t).to(transformer.dtype)
        x = torch.cat([x, x]) if guided else x
        output = transformer(
            hidden_states=x, timestep=t_device.expand(len(x)), class_labels=labels, return_dict=False
        )[0].float()
        if guided:
            output, unconditional = output.chunk(2)
            moved, fixed = output.split([guided_channels, output.shape[1] - guided_channels], dim=1)
            base = unconditional[:, :guided_channels]
            output = torch.cat([base + guidance_scale * (moved - base), fixed], dim=1)
        output = output if takes_sigma else output[:, :channels]
        latents = scheduler.step(output, t, latents, return_dict=False, **noise)[0]
        if advance:
            advance()
    return latents


def first_latents(pipe, scheduler, generators: list[torch.Generator], num_frames: int | None) -> torch.Tensor:
    """Noise (B, C, [F,] h, w), float32, one sample of each generator, at the scale of the first timestep."""
    shape = sample_shape(pipe, num_frames)
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    return (noise * scheduler.init_noise_sigma).to(pipe.transformer.device)


def as_tensor(labels: Sequence[int | None], device) -> torch.Tensor | None:
    """(B,) int64; None of an unconditional model."""
    return None if labels[0] is None else torch.tensor(labels, device=device)


def sample_shape(pipe, num_frames: int | None) -> tuple[int, ...]:
    """(C, h, w), of a video model (C, F, h, w).

    Raises:
        UsageError: Frames of an image model, or more than the model has positions for.
    """
    config = pipe.transformer.config
    size = (config.sample_size, config.sample_size)
    if not is_video(pipe):
        if num_frames is not None:
            raise UsageError(f"Got --num-frames {num_frames}, but this model makes images; leave the flag out.")
        return config.in_channels, *size
    frames = config.video_length if num_frames is None else num_frames
    if not 1 <= frames <= config.video_length:
        raise UsageError(f"Got --num-frames {frames} but the model has positions for 1..{config.video_length}.")
    return config.in_channels, frames, *size
