"""Refusals of a sampling run: everything that a pipeline, or its outline without weights, shows it cannot do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from skipdit_cli.cache import CachePolicy
from skipdit_cli.cache.policy import check_depth
from skipdit_cli.errors import UsageError, nearest, reading
from skipdit_cli.families.labels import check_labels, null_label
from skipdit_cli.families.pipeline_parts import transformers_of
from skipdit_cli.families.registry import pipelines_by_class
from skipdit_cli.sampling.by_class import sample_shape
from skipdit_cli.sampling.pipelines.call_arguments import (
    FLAGS,
    FRAMES,
    accepts_no_prompt,
    call_default,
    call_parameters,
    encodes_prompts_singly,
    frames_argument,
    guidance_argument,
    is_reserved,
    is_text_conditional,
    needs_image,
    pipeline_type,
)
from skipdit_cli.sampling.run_settings import RunSettings, default_guidance
from skipdit_cli.sampling.schedulers import as_sampler
from skipdit_cli.trunk import known_trunk

SCALES = ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor")
"""The names of the pixels per latent along a side, by pipeline."""


def check_unloaded(
    outline, conditions: Sequence[int | str | None], policy: CachePolicy | None = None, **settings
) -> None:
    """Refuse what ``generate`` would refuse, as far as a model shows without its weights.

    Args:
        outline: The outline of the pipeline (``models.outline``).
        settings: Fields of ``RunSettings``.
    Raises:
        UsageError: See ``check_run``; or the cache is too deep for one of the transformers.
    """
    run = RunSettings(**settings)
    if run.guidance_scale is None:
        run = replace(run, guidance_scale=default_guidance(outline))
    check_run(outline, conditions, run)
    for transformer in transformers_of(outline).values():
        trunk = known_trunk(transformer) if policy is not None else None
        if policy is not None and trunk is not None:
            check_depth(policy.layers, len(trunk), trunk.needs_sources)


def check_run(pipe, conditions: Sequence[int | str | None], run: RunSettings) -> None:
    """Refuse conditions and settings that the model does not support.

    Args:
        pipe: The pipeline, or its outline.
        conditions: One class label or prompt per sample, or None.
        run: The settings, with the guidance scale in force.
    Raises:
        UsageError: A condition is of another kind or out of range, or the model does not take a setting.
    """
    _check_type(pipe)
    if is_text_conditional(pipe):
        if run.cfg_channels != "all":
            scope = "a text-conditional pipeline does not take"
            raise UsageError(f"Got --cfg-channels {run.cfg_channels}, which {scope}; leave it out.")
        _check_text_run(pipe, conditions, run)
        return
    check_labels(conditions, pipe.transformer.config.get("num_embeds_ada_norm"))
    for name, flag in run.call_flags().items():
        if name != "num_frames":
            raise UsageError(f"Got {flag}, which only a text-conditional pipeline takes; leave the flag out.")
    scale: Any = run.guidance_scale
    if scale < 1:
        raise UsageError(f"Got --guidance-scale {scale:g} but expected 1 (off) or more.")
    check_null_class(pipe.transformer.config, scale, "--guidance-scale")
    sample_shape(pipe, run.num_frames)


def check_null_class(config, guidance_scale: float, name: str) -> None:
    """Refuse guidance of a model that has no null class to guide away from.

    Args:
        config: The config of the transformer.
        name: The name of the guidance scale, for the message.
    Raises:
        UsageError: The scale is above 1, and the model has no null class.
    """
    if guidance_scale > 1 and null_label(config) is None:
        absent = "no classes" if config.get("num_embeds_ada_norm") is None else "no null class"
        raise UsageError(f"Got {name} {guidance_scale:g}, but this model has {absent}; leave it out.")


def check_steps(run: RunSettings, scheduler) -> None:
    """Refuse denoising steps that the noise schedule does not have.

    Args:
        scheduler: As ``make_scheduler`` makes it for the run; its timesteps are set.

    Raises:
        UsageError: There are more steps than timesteps, another number than of explicit timesteps, two steps of one
            noise level (of which a multistep solver makes NaN), or the scheduler cannot space them.
    """
    steps, explicit = run.num_inference_steps, as_sampler(run.scheduler).timesteps
    timesteps = scheduler.config.get("num_train_timesteps", steps)
    if steps > timesteps:
        raise UsageError(f"Got --num-inference-steps {steps}, but the model has {timesteps} timesteps.")
    if explicit is not None and steps != len(explicit):
        raise UsageError(f"Got --num-inference-steps {steps} and {len(explicit)} --timesteps; leave the number out.")
    if explicit is not None and run.strength is not None:
        raise UsageError("Got --strength and --timesteps, which both say where a run starts; give one of the two.")
    if scheduler.config.get("use_dynamic_shifting"):  # by the size of the image, which the pipeline passes
        return
    kind = type(scheduler).__name__
    with reading(f"Got --num-inference-steps {steps}, for which a {kind}", failed="finds no timesteps"):
        scheduler.set_timesteps(steps)
    levels = getattr(scheduler, "sigmas", None)
    repeats = levels is not None and bool((levels[:-1].diff() == 0).any())
    # A scheduler of diffusers takes the first of two equal timesteps for the second, and so starts too late.
    repeats |= len(scheduler.timesteps) > 1 and bool(scheduler.timesteps[0] == scheduler.timesteps[1])
    if repeats and getattr(scheduler, "order", 1) == 1:  # Heun evaluates the model twice at a timestep
        raise UsageError(
            f"Got --num-inference-steps {steps}, of which a {kind} gives two the same timestep; give fewer, or "
            f"another --scheduler-spacing."
        )


def _check_type(pipe) -> None:
    """Refuse a pipeline that makes sound alone, or that takes neither prompts nor class labels."""
    kind, parameters = pipeline_type(pipe).__name__, call_parameters(pipe)
    if not is_text_conditional(pipe):
        if kind not in pipelines_by_class():
            raise UsageError(f"A {kind} takes neither prompts nor class labels, so it cannot be sampled here.")
    elif not ({"height", "image", *FRAMES} & set(parameters) or accepts_no_prompt(pipe)):
        raise UsageError(f"A {kind} makes no pictures or videos, so it cannot be sampled here.")


def _check_text_run(pipe, prompts: Sequence[int | str | None], run: RunSettings) -> None:
    """Refuse what a text-conditional pipeline, or its outline, cannot sample."""
    for prompt in prompts:
        if isinstance(prompt, int):
            raise UsageError(
                f"Got --class-labels {prompt}, but this is a text-conditional pipeline; give --prompt instead."
            )
    if not prompts or (prompts[0] is None and not accepts_no_prompt(pipe)):
        raise UsageError("Got no --prompt but expected one or more.")
    if {*prompts, run.negative_prompt} != {None}:
        _check_text_encoder(pipe)
    if run.num_frames is not None and frames_argument(pipe) is None:
        raise UsageError(f"Got --num-frames {run.num_frames}, but this model makes images; leave the flag out.")
    _check_arguments(pipe, run)
    if run.image is None and needs_image(pipe):
        raise UsageError(f"Got no --image, but a {pipeline_type(pipe).__name__} starts from one; give --image FILE.")
    if run.negative_prompt is not None:
        _check_guided(pipe, run)
    _check_size(pipe, run)


def _check_text_encoder(pipe) -> None:
    encoders = [list(value) for name, value in pipe.config.items() if name.startswith("text_encoder")]
    if not encoders or any(encoder != [None, None] for encoder in encoders):
        return
    raise UsageError(
        "This model has no text encoder to read a --prompt with; make its folder again with "
        "'skipdit convert CHECKPOINT -o FOLDER --text-from maxin-cn/Latte-1'."
        if encodes_prompts_singly(pipe)
        else "This model has no text encoder to read a --prompt with; give the folder of the whole pipeline."
    )


def _check_arguments(pipe, run: RunSettings) -> None:
    """Refuse arguments that the pipeline's ``__call__`` does not take, and the lack of one that it requires."""
    kind, parameters = pipeline_type(pipe).__name__, call_parameters(pipe)
    for name, flag in run.call_flags().items():
        if name not in parameters and name != "num_frames":
            hint = "; leave it out."
            if name in run.arguments:
                choices = [each for each in parameters if each not in FLAGS and not is_reserved(each)]
                hint = "." + (nearest(name, choices) or f" It takes {', '.join(choices)}.")
            raise UsageError(f"Got {flag}, which a {kind} does not take{hint}")
    if run.guidance_scale is not None and guidance_argument(pipe) is None:
        raise UsageError(f"Got --guidance-scale {run.guidance_scale:g}, which a {kind} does not take; leave it out.")
    for name, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
        if required and name not in (*FLAGS, *run.arguments, "self"):
            raise UsageError(
                f"A {kind} wants {name}, which has no flag; give it with --pipeline-arg if text can say it."
            )


def _check_guided(pipe, run: RunSettings) -> None:
    """Refuse a negative prompt where guidance is off.

    The ``guidance_scale`` of Flux is an input of the model; a negative prompt works through its ``true_cfg_scale``.
    """
    scale: object = run.guidance_scale
    source = f"--guidance-scale {run.guidance_scale or 0:g}"
    if guidance_argument(pipe) != "true_cfg_scale" and call_parameters(pipe).get("true_cfg_scale") is not None:
        scale = run.arguments.get("true_cfg_scale", call_default(pipe, "true_cfg_scale"))
        source = f"true_cfg_scale {scale} (see --pipeline-arg)"
    if isinstance(scale, (int, float)) and scale <= 1:
        raise UsageError(f"Got --negative-prompt, but guidance is off at {source}.")


def _check_size(pipe, run: RunSettings) -> None:
    video_length = pipe.transformer.config.get("video_length")
    if run.num_frames is not None and video_length is not None and run.num_frames not in (1, video_length):
        # the model adds all its position embeddings, or none to a single frame
        raise UsageError(f"Got --num-frames {run.num_frames} but the model makes {video_length}, or 1.")
    if not hasattr(pipe, "components"):  # an outline, whose parts are not loaded
        return
    unit = _size_unit(pipe)
    for flag, pixels in {"--height": run.height, "--width": run.width}.items():
        if pixels is not None and (pixels < 1 or pixels % unit):
            raise UsageError(f"Got {flag} {pixels} but expected a multiple of {unit}.")


def _size_unit(pipe) -> int:
    """Return the pixels per patch along a side, of which heights and widths are multiples.

    Pipelines that pack latents themselves (Flux) tell it by the scale factor of their image processor.
    """
    patch = pipe.transformer.config.get("patch_size") or 1
    patch = patch[-1] if isinstance(patch, (list, tuple)) else patch
    scale = next((getattr(pipe, name) for name in SCALES if getattr(pipe, name, None)), 1)
    processor = getattr(pipe, "image_processor", None) or getattr(pipe, "video_processor", None)
    return math.lcm(scale * patch, getattr(processor, "config", {}).get("vae_scale_factor") or 1)
