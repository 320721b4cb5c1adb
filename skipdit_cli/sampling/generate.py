"""Sampling with any pipeline: seeded noise, the sampler that fits the pipeline, the cache, and decoding to pixels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch

from skipdit_cli.cache import CachePolicy, CacheReport, disable_skip_cache, enable_skip_cache
from skipdit_cli.cache.generation.ownership import taken
from skipdit_cli.errors import NotFiniteError
from skipdit_cli.families.pipeline_parts import transformer_of, transformers_of
from skipdit_cli.families.protocols import Pipeline
from skipdit_cli.finite import is_finite
from skipdit_cli.media import Sound
from skipdit_cli.sampling import diagnosis
from skipdit_cli.sampling.by_class import ByClass, sample_shape
from skipdit_cli.sampling.by_text import ByText, decodes_apart
from skipdit_cli.sampling.device import Stopwatch
from skipdit_cli.sampling.latents import check_scaling
from skipdit_cli.sampling.memory.halving import Attempt, Batches, Halving
from skipdit_cli.sampling.pipelines.call_arguments import encodes_prompts_singly, is_text_conditional
from skipdit_cli.sampling.pixels import to_pixels
from skipdit_cli.sampling.refusals import check_run, check_steps
from skipdit_cli.sampling.run_settings import RunSettings, default_guidance
from skipdit_cli.sampling.schedulers import as_sampler, make_scheduler, policy_for
from skipdit_cli.sampling.schedulers.make_scheduler import scheduled
from skipdit_cli.skip.output_branch import output_branch


@dataclass(frozen=True)
class Generated:
    """The samples of a run, and what they cost.

    Args:
        images: uint8 (N, H, W, 3), or (N, F, H, W, 3) of a video model; None if not decoded.
        latents: float32 (N, C, [F,] h, w) on the CPU; of a text-conditional pipeline in its own layout.
        report: Counts of the cache in the last batch (with a threshold in all of them, for they differ), summed over
            two transformers; None without a cache.
        denoise_seconds: Seconds in the denoising steps of all batches.
        total_seconds: Seconds of the whole call.
        cache_bytes: The largest size of the cache.
        sounds: One per video of a pipeline that makes sound and decodes.
        steps: Denoising steps of the last batch.
        calls: Calls of the transformers in the last batch.
        full_steps: Indices of the full steps of the last batch; all steps without a cache.
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
    full_steps: tuple[int, ...] = ()

    def without_samples(self) -> Generated:
        """Return the costs alone, for a run whose samples are written as they are made."""
        return replace(self, images=None, latents=self.latents.new_empty(0), sounds=[])


def generate(
    pipe: Pipeline,
    conditions: Sequence[int | str | None],
    *,
    policy: CachePolicy | None = None,
    decode: bool = True,
    advance: Callable[[], None] | None = None,
    **settings: Any,
) -> Generated:
    """Sample one image or video per condition.

    Args:
        pipe: A pipeline of a class-conditional or unconditional model (``sampling/pipelines/``), which is denoised
            here, or a text-conditional pipeline of diffusers, which is called as it is.
        conditions: A class label or a prompt per sample; None for an unconditional model. None for a text-conditional
            pipeline puts seeded noise in the place of the encoded prompt, to time it without a text encoder.
        policy: Turns the cache on for this call, on each transformer of the pipeline.
        decode: Decode the latents to images or videos.
        advance: Called after each denoising step of each batch.
        settings: Fields of ``RunSettings``, such as ``num_inference_steps``, ``guidance_scale`` and ``seed``.
    Raises:
        TypeError: A setting is not a field of ``RunSettings``.
        UsageError: The model does not support a condition, a setting, the scheduler or the policy; or the latents of
            its VAE are scaled in an unknown way; or another thread is sampling with its transformer.
        NotFiniteError: The samples are NaN or infinite; the error holds them, without images.
    """
    began, parts = time.perf_counter(), []
    try:
        for _, part in generate_batches(pipe, conditions, policy=policy, decode=decode, advance=advance, **settings):
            parts.append(part)
    except NotFiniteError as cause:
        if cause.made is not None:
            parts.append(cause.made)
            cause.made = replace(join(parts, policy), total_seconds=time.perf_counter() - began)
        raise
    return replace(join(parts, policy), total_seconds=time.perf_counter() - began)


def generate_batches(
    pipe: Pipeline,
    conditions: Sequence[int | str | None],
    *,
    policy: CachePolicy | None = None,
    decode: bool = True,
    advance: Callable[[], None] | None = None,
    skip: Callable[[slice], bool] = lambda batch: False,
    on_halved: Callable[[Halving], None] | None = None,
    **settings: Any,
) -> Iterator[tuple[slice, Generated]]:
    """Sample as ``generate`` does, and yield each batch when it is done, so that memory holds one batch.

    Args:
        skip: Returns whether a batch, a slice of ``conditions``, is left out, for a run that is resumed. The other
            batches are the same whether it is or not.
        on_halved: Called where a batch does not fit into memory, which is then sampled in halves, as all later ones
            are; None lets torch's error pass.

    Yields:
        The slice of ``conditions`` that the batch is, and its samples.
    """
    explicit = as_sampler(settings.get("scheduler")).timesteps
    run = RunSettings(**({} if explicit is None else {"num_inference_steps": len(explicit)}) | settings)
    run = run if run.guidance_scale is not None else replace(run, guidance_scale=default_guidance(pipe))
    check_run(pipe, conditions, run)
    scheduler = make_scheduler(run.scheduler, pipe)
    check_steps(run, scheduler)
    pipe_decodes = decode and is_text_conditional(pipe) and not decodes_apart(pipe)
    vae = getattr(pipe, "vae", None)
    if decode and not pipe_decodes and vae is not None:
        check_scaling(vae)
    steps = _StepCounter(advance)
    sampler = _make_sampler(pipe, scheduler, run, pipe_decodes, steps)

    policy = policy and policy_for(policy, scheduler, run.arguments)
    branch = output_branch(transformer_of(pipe), scheduler)
    with taken(transformers_of(pipe).values()), branch, _caches(pipe, policy, scheduler) as caches:
        waiting = Batches(batches(pipe, conditions, run.batch_size, alone=run.image is not None))
        for batch in waiting:
            if skip(batch):
                continue
            began, steps.count = time.perf_counter(), 0
            for cache in caches:
                cache.reset()
            with Attempt(pipe, caches, on_halved is not None) as attempt:
                with scheduled(pipe, scheduler), diagnosis.translated_errors(pipe), Stopwatch(pipe) as watch:
                    output = sampler.run(conditions[batch], _generators(run.seed, batch))
                part = _batch_result(output, watch, caches, steps.count)
                if (broken := _broken_part(part, pipe_decodes)) is not None:

                    def run_again(step: Callable[[], None], batch: slice = batch) -> tuple:
                        return replace(sampler, advance=step).run(conditions[batch], _generators(run.seed, batch))

                    with scheduled(pipe, scheduler):
                        message = diagnosis.explain(pipe, broken, run_again)
                    raise NotFiniteError(message, replace(part, images=None))
                if decode and not pipe_decodes:
                    part = _decode(pipe, part)
            if attempt.figures and on_halved is not None:
                on_halved(waiting.halve(batch, attempt, steps.count))
                continue
            yield batch, replace(part, total_seconds=time.perf_counter() - began)


def join(parts: Sequence[Generated], policy: CachePolicy | None = None) -> Generated:
    """Return the batches of a run as one; without images if a batch has none.

    Args:
        policy: That of the run.
    """
    last, reports = parts[-1], [part.report for part in parts if part.report is not None]
    has_threshold = policy is not None and policy.threshold is not None
    return Generated(
        images=None if any(part.images is None for part in parts) else np.concatenate([p.images for p in parts]),
        latents=torch.cat([part.latents for part in parts]),
        report=CacheReport.over(reports) if reports and has_threshold else last.report,
        denoise_seconds=sum(part.denoise_seconds for part in parts),
        total_seconds=sum(part.total_seconds for part in parts),
        cache_bytes=max(part.cache_bytes for part in parts),
        sounds=[sound for part in parts for sound in part.sounds],
        steps=last.steps,
        calls=last.calls,
        full_steps=last.full_steps,
    )


def _make_sampler(pipe, scheduler, run: RunSettings, pipe_decodes: bool, advance: Callable[[], None]):
    """Return the sampler of a pipeline: an object with ``run(conditions, generators)``."""
    if is_text_conditional(pipe):
        return ByText(pipe, scheduler, run, pipe_decodes, advance)
    guidance: Any = run.guidance_scale  # ``generate`` has filled it in
    guided_channels = 3 if run.cfg_channels == "3" else pipe.transformer.config.in_channels
    shape = sample_shape(pipe, run.num_frames)
    return ByClass(pipe.transformer, scheduler, guidance, guided_channels, run.num_inference_steps, shape, advance)


def _generators(seed: int, batch: slice) -> list[torch.Generator]:
    """Return one CPU generator per sample of a batch, seeded by the sample's index in the run."""
    return [torch.Generator().manual_seed(seed + i) for i in range(batch.start, batch.stop)]


def batches(
    pipe: Pipeline, conditions: Sequence[int | str | None], batch_size: int | None = None, alone: bool = False
) -> list[slice]:
    """Return the batches of a run, as slices of its conditions.

    A batch has equal prompts for a pipeline that ``encodes_prompts_singly``.

    Args:
        batch_size: The most samples in a batch; no limit if None.
        alone: One sample per batch, for runs from an image, which not all pipelines repeat for several samples.
    """
    if alone:
        return [slice(at, at + 1) for at in range(len(conditions))]
    counts, start = [len(conditions)], 0
    if is_text_conditional(pipe) and encodes_prompts_singly(pipe):
        counts = [len(list(equal)) for _, equal in groupby(conditions)]
    slices = []
    for count in counts:
        stop, size = start + count, batch_size or count
        slices += [slice(at, min(at + size, stop)) for at in range(start, stop, size)]
        start = stop
    return slices


@contextmanager
def _caches(pipe, policy: CachePolicy | None, scheduler) -> Iterator[list]:
    """Put a cache on each transformer of the pipeline, if there is a policy, and take it off at the end."""
    transformers = list(transformers_of(pipe).values())
    try:
        yield [enable_skip_cache(each, policy, scheduler) for each in transformers] if policy is not None else []
    finally:
        for transformer in transformers:
            disable_skip_cache(transformer)


class _StepCounter:
    """Count denoising steps, and report each to ``advance``."""

    def __init__(self, advance: Callable[[], None] | None):
        self.advance, self.count = advance, 0

    def __call__(self) -> None:
        self.count += 1
        if self.advance is not None:
            self.advance()


def _full_steps(caches: list, steps: int) -> tuple[int, ...]:
    """Return the indices of the full steps of the last batch; two transformers count the steps of one generation."""
    if not caches:
        return tuple(range(steps))
    return tuple(sorted({step for cache in caches for step in cache.record.full_steps}))


def _batch_result(output: tuple, watch: Stopwatch, caches: list, steps: int) -> Generated:
    """Return the output of one batch (see ``ByText.run``) with its cost."""
    latents, images, sounds = output
    return Generated(
        images=images,
        latents=latents.cpu(),
        report=CacheReport.over([cache.report() for cache in caches]) if caches else None,
        denoise_seconds=watch.seconds,
        total_seconds=watch.seconds,
        cache_bytes=sum(cache.peak_bytes for cache in caches),
        sounds=list(sounds),
        steps=steps,
        calls=watch.calls,
        full_steps=_full_steps(caches, steps),
    )


def _broken_part(part: Generated, decoded: bool) -> str | None:
    """Return the part of a batch that is NaN or infinite, as ``diagnosis.explain`` takes it, or None; a pipeline that
    decodes leaves no images where they are not finite."""
    if not is_finite(part.latents):
        return "latents"
    if decoded and part.images is None:
        return "pictures"
    return None if all(np.isfinite(sound.waves).all() for sound in part.sounds) else "sound"


def _decode(pipe, part: Generated) -> Generated:
    """Decode the latents of a batch."""
    try:
        return replace(part, images=to_pixels(pipe, part.latents, len(part.latents)))
    except NotFiniteError as cause:
        raise NotFiniteError(str(cause), part) from cause
