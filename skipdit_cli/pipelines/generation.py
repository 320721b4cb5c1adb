"""Sampling, whatever the model is of: noise from seeds, the denoising, pixels."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from skipdit_cli.cache import CachePolicy, CacheReport, disable_skip_cache, enable_skip_cache
from skipdit_cli.errors import UsageError
from skipdit_cli.pipelines.classes import as_tensor, check_labels, denoise, first_latents, sample_shape
from skipdit_cli.pipelines.device import Stopwatch
from skipdit_cli.pipelines.pixels import to_pixels
from skipdit_cli.pipelines.schedulers import make_scheduler
from skipdit_cli.pipelines.text import check_texts, denoise_texts, encodes_alone, takes, takes_text


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
    conditions: Sequence[int | str | None],
    *,
    negative_prompt: str | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    cfg_channels: str = "all",
    scheduler: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    policy: CachePolicy | None = None,
    decode: bool = True,
    advance: Callable[[], None] | None = None,
) -> Generated:
    """Sample one image or video per condition of a ``DiTPipeline`` or ``LatteClassPipeline``, or of a text pipeline of
    diffusers. ``vae`` may be None: a pixel-space model.

    Sample i starts from noise of a CPU generator seeded ``seed + i``, whatever the batch size. Guidance of classes
    runs as one doubled batch, conditional half first; it is off at a scale of 1, and for a model that has no classes.
    A text pipeline is called as it is, and guides as it does.

    Args:
        conditions: Class ids; texts; None for each sample of an unconditional model. None for a model of texts stands
            for seeded noise in the place of one, to time it without a text encoder.
        negative_prompt: What guidance leads away from; of a model of texts.
        num_frames: Of a video; as many as the model was trained on if not given.
        height, width: In pixels, of a model of texts; the model's own if not given.
        guidance_scale: ``default_guidance`` if not given.
        cfg_channels: ``all`` guides every noise channel (diffusers), ``3`` the first three (the DiT repository).
        scheduler: A name of ``schedulers.SCHEDULERS``; None for the pipeline's own.
        policy: Turns the cache on for this call.
        advance: Called after each denoising step of each batch.
    Raises:
        UsageError: A condition or a setting that the model has not, too many steps, an unknown scheduler, a policy
            that does not fit the run.
    """
    began = time.perf_counter()
    transformer = pipe.transformer
    scale = default_guidance(pipe) if guidance_scale is None else guidance_scale
    size = {"num_frames": num_frames, "height": height, "width": width}
    check_run(pipe, conditions, scale, cfg_channels, negative_prompt, **size)
    sampler = make_scheduler(scheduler, pipe)
    trained = sampler.config.num_train_timesteps
    if num_inference_steps > trained:
        raise UsageError(f"Got --num-inference-steps {num_inference_steps}, but the model has {trained} timesteps.")
    settings = {"guidance_scale": scale, "advance": advance}
    if takes_text(pipe):
        settings |= {"num_inference_steps": num_inference_steps, "negative_prompt": negative_prompt, **size}
    else:
        settings["guided_channels"] = 3 if cfg_channels == "3" else transformer.config.in_channels
    cache = enable_skip_cache(transformer, policy, sampler) if policy else None
    latents, seconds, cache_bytes = [], 0.0, 0
    try:
        for batch in batches(pipe, conditions, batch_size):
            generators = [torch.Generator().manual_seed(seed + i) for i in range(batch.start, batch.stop)]
            with Stopwatch(transformer) as watch:
                if takes_text(pipe):
                    made = denoise_texts(pipe, sampler, conditions[batch], generators, **settings)
                else:
                    sampler.set_timesteps(num_inference_steps)
                    start = first_latents(pipe, sampler, generators, num_frames)
                    labels = as_tensor(conditions[batch], transformer.device)
                    made = denoise(transformer, sampler, start, labels, generators=generators, **settings)
            latents.append(made.cpu())
            seconds += watch.seconds
            cache_bytes = max(cache_bytes, cache.peak_bytes) if cache else 0
        report = cache.report() if cache else None
    finally:
        disable_skip_cache(transformer)
    latents = torch.cat(latents)
    images = to_pixels(pipe, latents, batch_size or len(latents)) if decode else None
    return Generated(images, latents, report, seconds, time.perf_counter() - began, cache_bytes)


def batches(pipe, conditions: Sequence[int | str | None], batch_size: int | None = None) -> list[slice]:
    """Which samples are made at once: ``batch_size`` of them, or all; of one text each where a pipeline wants that."""
    runs, at = [len(conditions)], 0
    if takes_text(pipe) and encodes_alone(pipe):
        runs = [len(list(same)) for _, same in groupby(conditions)]
    found = []
    for count in runs:
        most = batch_size or count
        found += [slice(first, min(first + most, at + count)) for first in range(at, at + count, most)]
        at += count
    return found


def default_guidance(pipe) -> float:
    """4 for classes, as DiT's pipeline has it; off without; for texts what the pipeline's own call says."""
    if takes_text(pipe):
        return float(takes(pipe)["guidance_scale"].default) if "guidance_scale" in takes(pipe) else 1.0
    return 1.0 if pipe.transformer.config.num_embeds_ada_norm is None else 4.0


def check_run(
    pipe,
    conditions: Sequence[int | str | None],
    guidance_scale: float,
    cfg_channels: str = "all",
    negative_prompt: str | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> None:
    """Refuse what the model cannot make.

    Raises:
        UsageError: A condition of another kind or out of range, a setting that the model has no use for.
    """
    if takes_text(pipe):
        if cfg_channels != "all":
            raise UsageError(f"Got --cfg-channels {cfg_channels}, which a model of texts does not take; leave it out.")
        return check_texts(pipe, conditions, guidance_scale, negative_prompt, num_frames, height, width)
    check_labels(conditions, pipe.transformer.config.num_embeds_ada_norm)
    for flag, value in {"--negative-prompt": negative_prompt, "--height": height, "--width": width}.items():
        if value is not None:
            raise UsageError(f"Got {flag} {value}, which only a model of texts takes; leave the flag out.")
    sample_shape(pipe, num_frames)
