"""Images and videos of a class, or of none: noise from seeds, the denoising loop with guidance, pixels."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from skipdit_cli.cache import CachePolicy, CacheReport, disable_skip_cache, enable_skip_cache
from skipdit_cli.errors import UsageError
from skipdit_cli.pipelines.pixels import is_video, to_pixels
from skipdit_cli.pipelines.schedulers import make_scheduler, predicts_sigma


@dataclass(frozen=True)
class Generated:
    """What a run made.

    Args:
        images: uint8 (N, H, W, 3), of a video model (N, F, H, W, 3); None where decoding was not asked for.
        latents: float32 (N, C, [F,] h, w) on the CPU, as the sampler left them.
        report: Counts of the last batch; None without a cache.
        denoise_seconds, total_seconds: The loop alone, and everything.
        cache_bytes: The most the cache held at once.
    """

    images: np.ndarray | None
    latents: torch.Tensor
    report: CacheReport | None
    denoise_seconds: float
    total_seconds: float
    cache_bytes: int = 0


def generate(
    pipe,
    class_labels: Sequence[int | None],
    *,
    num_frames: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 4.0,
    cfg_channels: str = "all",
    scheduler: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    policy: CachePolicy | None = None,
    decode: bool = True,
    advance: Callable[[], None] | None = None,
) -> Generated:
    """Sample one image or video per label of a ``DiTPipeline`` or ``LatteClassPipeline``, whose ``vae`` may be None: a
    pixel-space model.

    Sample i starts from noise of a CPU generator seeded ``seed + i``, whatever the batch size. Guidance runs as one
    doubled batch, conditional half first; it is off at a scale of 1, and for a model that has no classes.

    Args:
        class_labels: Class ids; of an unconditional model, None for each sample.
        num_frames: Of a video; as many as the model was trained on if not given.
        cfg_channels: ``all`` guides every noise channel (diffusers), ``3`` the first three (the DiT repository).
        scheduler: A name of ``schedulers.SCHEDULERS``; None for the pipeline's own.
        policy: Turns the cache on for this call.
        advance: Called after each denoising step of each batch.
    Raises:
        UsageError: A model that needs a text, a label out of range, more frames than the model has positions for, too
            many steps, an unknown scheduler, a policy that does not fit the run.
    """
    began = time.perf_counter()
    transformer, config = pipe.transformer, pipe.transformer.config
    if "caption_channels" in config:
        name = type(transformer).__name__
        raise UsageError(f"Got a {name}, which needs a text; sampled here are models of classes, or of nothing.")
    check_labels(class_labels, config.num_embeds_ada_norm)
    shape = _sample_shape(pipe, num_frames)
    sampler = make_scheduler(scheduler, pipe)
    trained = sampler.config.num_train_timesteps
    if num_inference_steps > trained:
        raise UsageError(f"Got --num-inference-steps {num_inference_steps}, but the model has {trained} timesteps.")
    cache = enable_skip_cache(transformer, policy, sampler) if policy else None
    latents, seconds, cache_bytes = [], 0.0, 0
    try:
        for first in range(0, len(class_labels), batch_size or len(class_labels)):
            labels = class_labels[first : first + (batch_size or len(class_labels))]
            generators = [torch.Generator().manual_seed(seed + first + i) for i in range(len(labels))]
            noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
            sampler.set_timesteps(num_inference_steps)
            started = _now(transformer.device)
            made = denoise(
                transformer,
                sampler,
                (noise * sampler.init_noise_sigma).to(transformer.device),
                None if labels[0] is None else torch.tensor(labels, device=transformer.device),
                guidance_scale=guidance_scale,
                guided_channels=3 if cfg_channels == "3" else config.in_channels,
                generators=generators,
                advance=advance,
            )
            seconds += _now(transformer.device) - started
            cache_bytes = max(cache_bytes, cache.peak_bytes) if cache else 0
            latents.append(made.cpu())
        report = cache.report() if cache else None
    finally:
        disable_skip_cache(transformer)
    latents = torch.cat(latents)
    images = to_pixels(pipe, latents, batch_size or len(latents)) if decode else None
    return Generated(images, latents, report, seconds, time.perf_counter() - began, cache_bytes)


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
        labels = torch.cat([labels, torch.full_like(labels, transformer.config.num_embeds_ada_norm)])
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


def _sample_shape(pipe, num_frames: int | None) -> tuple[int, ...]:
    """(C, h, w), of a video model (C, F, h, w)."""
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


def check_labels(class_labels: Sequence[int | None], num_classes: int | None) -> None:
    """Refuse labels the model was not trained on.

    Args:
        num_classes: None for an unconditional model, whose labels are None.
    Raises:
        UsageError: No label at all, one outside 0..num_classes-1, or one for an unconditional model.
    """
    if num_classes is None:
        for label in class_labels:
            if label is not None:
                raise UsageError(f"Got --class-labels {label}, but this model has no classes; leave the flag out.")
        return
    if not class_labels:
        raise UsageError(f"Got no --class-labels but expected one or more of 0..{num_classes - 1}.")
    for label in class_labels:
        if not 0 <= label < num_classes:
            raise UsageError(f"Got --class-labels {label} but the model has classes 0..{num_classes - 1}.")


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
