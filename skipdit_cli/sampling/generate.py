"""Sampling, whatever the model is of: noise from seeds, the denoising, pixels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import groupby

import numpy as np
import torch

from skipdit_cli.cache import CachePolicy, CacheReport, disable_skip_cache, enable_skip_cache
from skipdit_cli.cache.policy import check_depth
from skipdit_cli.errors import NotFiniteError, UsageError
from skipdit_cli.families.labels import check_labels, null_label
from skipdit_cli.finite import is_finite
from skipdit_cli.media import Sound
from skipdit_cli.sampling import diagnosis
from skipdit_cli.sampling.by_class import as_tensor, denoise, first_latents, sample_shape
from skipdit_cli.sampling.by_text import decodes_here, sample_texts
from skipdit_cli.sampling.call_arguments import (
    Asked,
    check_sampled,
    check_texts,
    encodes_alone,
    own_guidance,
    takes_text,
)
from skipdit_cli.sampling.device import Stopwatch, transformers_of
from skipdit_cli.sampling.latents import check_scaling
from skipdit_cli.sampling.pixels import to_pixels
from skipdit_cli.sampling.schedulers import make_scheduler
from skipdit_cli.trunk import known_trunk


@dataclass(frozen=True)
class Generated:
    """What a run made.

    Args:
        images: uint8 (N, H, W, 3), of a video model (N, F, H, W, 3); None where decoding was not asked for.
        latents: float32 (N, C, [F,] h, w) on the CPU, as the sampler left them; of a text pipeline in its own layout.
        report: Counts of the last batch, over both transformers where there are two; None without a cache.
        steps, calls: Of the last batch: how often its sampler stepped, and a transformer was called.
        denoise_seconds, total_seconds: The loop alone, and everything.
        cache_bytes: The most the cache held at once.
        sounds: One a video, of a pipeline that makes sound and was to decode.
    """

    images: np.ndarray | None
    latents: torch.Tensor
    report: CacheReport | None
    denoise_seconds: float
    total_seconds: float
    cache_bytes: int = 0
    sounds: list[Sound] = field(default_factory=list)
    steps: int = 0
    calls: int = 0


def generate(
    pipe,
    conditions: Sequence[int | str | None],
    *,
    num_frames: int | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    cfg_channels: str = "all",
    scheduler: str | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    policy: CachePolicy | None = None,
    decode: bool = True,
    advance: Callable[[], None] | None = None,
    **asked,
) -> Generated:
    """Sample one image or video per condition of a ``DiTPipeline`` or ``LatteClassPipeline``, or of a text pipeline of
    diffusers. ``vae`` may be None: a pixel-space model.

    Sample i starts from noise of a CPU generator seeded ``seed + i``, whatever the batch size. Guidance of classes
    runs as one doubled batch, conditional half first; it is off at a scale of 1, and for a model that has no classes.
    A text pipeline is called as it is, and guides as it does.

    Args:
        conditions: Class ids; texts; None for each sample of an unconditional model. None for a model of texts stands
            for seeded noise in the place of one, to time it without a text encoder.
        num_frames: Of a video; as many as the model was trained on if not given.
        guidance_scale: ``default_guidance`` if not given.
        cfg_channels: ``all`` guides every noise channel (diffusers), ``3`` the first three (the DiT repository).
        scheduler: A name of ``schedulers.SCHEDULERS``; None for the pipeline's own.
        policy: Turns the cache on for this call, on each of the pipeline's transformers.
        advance: Called after each denoising step of each batch.
        asked: Of a model of texts, the rest of ``arguments.Asked``: negative_prompt, fps, height, ...
    Raises:
        UsageError: A condition or a setting that the model has not, too many steps, an unknown scheduler, a policy
            that does not fit the run, a VAE whose latents are scaled in a way that is not known.
        NotFiniteError: What was made is NaN or infinite; the error holds it, without pictures.
    """
    began = time.perf_counter()
    asked = Asked(num_frames=num_frames, **asked)
    scale = default_guidance(pipe) if guidance_scale is None else guidance_scale
    check_run(pipe, conditions, scale, cfg_channels, asked)
    sampler = make_scheduler(scheduler, pipe)
    trained = sampler.config.get("num_train_timesteps", num_inference_steps)
    if num_inference_steps > trained:
        raise UsageError(f"Got --num-inference-steps {num_inference_steps}, but the model has {trained} timesteps.")
    if decode and getattr(pipe, "vae", None) is not None and (not takes_text(pipe) or decodes_here(pipe)):
        check_scaling(pipe.vae)
    steps, settings = _Counted(advance), {"guidance_scale": scale}
    if takes_text(pipe):
        settings |= {"num_inference_steps": num_inference_steps, "decode": decode and not decodes_here(pipe)}
    else:
        settings["guided_channels"] = 3 if cfg_channels == "3" else pipe.transformer.config.in_channels

    def prepared(batch: slice, advance: Callable[[], None]) -> Callable:
        """The call that samples a batch."""
        generators = [torch.Generator().manual_seed(seed + i) for i in range(batch.start, batch.stop)]
        told = {**settings, "advance": advance}
        if takes_text(pipe):
            return partial(sample_texts, pipe, sampler, conditions[batch], generators, asked, **told)
        sampler.set_timesteps(num_inference_steps)
        start = first_latents(pipe, sampler, generators, num_frames)
        labels = as_tensor(conditions[batch], pipe.transformer.device)
        return partial(denoise, pipe.transformer, sampler, start, labels, generators=generators, **told)

    transformers = list(transformers_of(pipe).values())
    caches, latents, pictures, sounds, seconds, cache_bytes = [], [], [], [], 0.0, 0
    calls = 0
    try:
        if policy is not None:
            caches = [enable_skip_cache(transformer, policy, sampler) for transformer in transformers]
        for batch in batches(pipe, conditions, batch_size, alone=asked.image is not None):
            steps.count = 0
            for cache in caches:
                cache.reset()
            with _lent(pipe, sampler), diagnosis.in_words(pipe), Stopwatch(pipe) as watch:
                result = prepared(batch, steps)()
            made, seen, heard = result if takes_text(pipe) else (result, None, [])
            latents.append(made.cpu())
            pictures += [] if seen is None else [seen]
            sounds += heard
            seconds, calls = seconds + watch.seconds, watch.calls
            cache_bytes = max(cache_bytes, sum(cache.peak_bytes for cache in caches))
            broken = _broken(latents[-1], seen, heard, settings.get("decode", False))
            if broken:
                break
        report = CacheReport.over([cache.report() for cache in caches]) if caches else None
        total = time.perf_counter() - began
        if broken:
            with _lent(pipe, sampler):
                why = diagnosis.explain(pipe, broken, lambda tell: prepared(batch, tell)())
    finally:
        for transformer in transformers:
            disable_skip_cache(transformer)
    made = Generated(None, torch.cat(latents), report, seconds, total, cache_bytes, sounds, steps.count, calls)
    if broken:
        raise NotFiniteError(why, made)
    if pictures:
        return replace(made, images=np.concatenate(pictures))
    if not decode:
        return made
    try:
        images = to_pixels(pipe, made.latents, batch_size or len(made.latents))
    except NotFiniteError as cause:
        raise NotFiniteError(str(cause), made) from cause
    return replace(made, images=images, total_seconds=time.perf_counter() - began)


def _broken(latents: torch.Tensor, pictures: np.ndarray | None, sounds: Sequence[Sound], decoded: bool) -> str | None:
    """What of a batch is not finite, as ``diagnosis.explain`` is told.

    Args:
        decoded: Whether the pipeline was to decode, which leaves no pictures where they are not finite.
    """
    if not is_finite(latents):
        return "latents"
    if decoded and pictures is None:
        return "pictures"
    return None if all(np.isfinite(sound.waves).all() for sound in sounds) else "sound"


class _Counted:
    """Counts how often it is called, and calls on."""

    def __init__(self, advance: Callable[[], None] | None):
        self.advance, self.count = advance, 0

    def __call__(self) -> None:
        self.count += 1
        if self.advance is not None:
            self.advance()


@contextmanager
def _lent(pipe, scheduler) -> Iterator[None]:
    """The pipeline with another scheduler, and without the progress bar of its own."""
    own, bar = pipe.scheduler, dict(getattr(pipe, "_progress_bar_config", {}))
    pipe.scheduler = scheduler
    pipe.set_progress_bar_config(**{**bar, "disable": True})
    try:
        yield
    finally:
        pipe.scheduler = own
        pipe.set_progress_bar_config(**bar)


def batches(
    pipe, conditions: Sequence[int | str | None], batch_size: int | None = None, alone: bool = False
) -> list[slice]:
    """Which samples are made at once: ``batch_size`` of them, or all; of one text each where a pipeline wants that.

    Args:
        alone: One at a time: those that start from an image, which pipelines do not all repeat for several.
    """
    if alone:
        return [slice(at, at + 1) for at in range(len(conditions))]
    runs, at = [len(conditions)], 0
    if takes_text(pipe) and encodes_alone(pipe):
        runs = [len(list(same)) for _, same in groupby(conditions)]
    found = []
    for count in runs:
        most = batch_size or count
        found += [slice(first, min(first + most, at + count)) for first in range(at, at + count, most)]
        at += count
    return found


def default_guidance(pipe) -> float | None:
    """4 for classes, as DiT's pipeline has it; off without an id for "no class"; for texts what the pipeline's own
    call says, None where it says nothing."""
    if takes_text(pipe):
        return own_guidance(pipe)
    return 1.0 if null_label(pipe.transformer.config) is None else 4.0


def check_unloaded(
    outline,
    conditions: Sequence[int | str | None],
    policy: CachePolicy | None = None,
    *,
    guidance_scale: float | None = None,
    cfg_channels: str = "all",
    **settings,
) -> None:
    """Refuse what ``generate`` would, as far as a model can tell without its weights.

    Args:
        outline: Of the pipeline (``models.outline``).
        settings: As for ``generate``.
    Raises:
        UsageError: As ``check_run``, or the cache is too deep for one of its transformers.
    """
    asked = Asked(**{part.name: settings[part.name] for part in fields(Asked) if part.name in settings})
    scale = default_guidance(outline) if guidance_scale is None else guidance_scale
    check_run(outline, conditions, scale, cfg_channels, asked)
    for transformer in transformers_of(outline).values() if policy is not None else ():
        trunk = known_trunk(transformer)
        if trunk is not None:
            check_depth(policy.layers, len(trunk))


def check_run(
    pipe,
    conditions: Sequence[int | str | None],
    guidance_scale: float | None,
    cfg_channels: str = "all",
    asked: Asked | None = None,
) -> None:
    """Refuse what the model cannot make.

    Args:
        pipe: The pipeline, or its outline.
        guidance_scale: The one in force; None for a text pipeline's own.
    Raises:
        UsageError: A condition of another kind or out of range, a setting that the model has no use for.
    """
    asked = asked or Asked()
    check_sampled(pipe)
    if takes_text(pipe):
        if cfg_channels != "all":
            raise UsageError(f"Got --cfg-channels {cfg_channels}, which a model of texts does not take; leave it out.")
        return check_texts(pipe, conditions, guidance_scale, asked)
    check_labels(conditions, pipe.transformer.config.get("num_embeds_ada_norm"))
    for name, said in asked.given().items():
        if name != "num_frames":
            raise UsageError(f"Got {said}, which only a model of texts takes; leave the flag out.")
    if guidance_scale < 1:
        raise UsageError(f"Got --guidance-scale {guidance_scale:g} but expected 1 (off) or more.")
    if guidance_scale > 1 and null_label(pipe.transformer.config) is None:
        lacks = "no classes" if pipe.transformer.config.get("num_embeds_ada_norm") is None else "no 'no class'"
        raise UsageError(f"Got --guidance-scale {guidance_scale:g}, but this model has {lacks}; leave the flag out.")
    sample_shape(pipe, asked.num_frames)
