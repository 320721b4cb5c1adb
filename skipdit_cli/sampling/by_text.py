"""The sampler of text-conditional pipelines: a diffusers pipeline, called as it is with our seeds and scheduler.

The signature of a pipeline's ``__call__`` tells what it takes (``call_arguments``); no pipeline is known here by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from skipdit_cli.errors import SkipditError, UsageError, first_line
from skipdit_cli.families.example import example_inputs
from skipdit_cli.media import Sound
from skipdit_cli.sampling.fitting import tile_vae
from skipdit_cli.sampling.pipelines.call_arguments import (
    call_parameters,
    encodes_prompts_singly,
    frames_argument,
    guidance_argument,
    rate_argument,
)
from skipdit_cli.sampling.run_settings import RunSettings
from skipdit_cli.trunk import Interposed, interpose, restore

CLEANERS = ("ftfy", "bs4")
"""Packages with which diffusers cleans prompts, where they are installed."""


def decodes_apart(pipe) -> bool:
    """Return whether ``pixels.to_pixels`` decodes the latents of a text-conditional pipeline, not the pipeline itself.

    It does for a pipeline without its VAE, and for one that decodes a few frames at once (Latte), which would join the
    frames of two videos.
    """
    return ("vae" in pipe.components and pipe.vae is None) or "decode_chunk_size" in call_parameters(pipe)


@dataclass(frozen=True)
class ByText:
    """Sample batches with a text-conditional pipeline.

    Args:
        pipe: The pipeline, with ``scheduler`` as its scheduler.
        scheduler: The diffusers scheduler to step with.
        settings: The settings of the run.
        decode: Have the pipeline decode its latents, too.
        advance: Called after each denoising step.
    """

    pipe: Any
    scheduler: Any
    settings: RunSettings
    decode: bool = True
    advance: Callable[[], None] | None = None

    @torch.no_grad()
    def run(
        self, prompts: Sequence[str | None], generators: Sequence[torch.Generator]
    ) -> tuple[torch.Tensor, np.ndarray | None, list[Sound]]:
        """Sample one batch in one call of the pipeline.

        Args:
            prompts: One per sample, all equal where the pipeline ``encodes_prompts_singly``; None for seeded noise in
                the place of an encoded prompt.
            generators: One per sample.
        Returns:
            The latents, float32, in the layout of the pipeline (Latte's (B, C, F, h, w), Flux's packed
            (B, tokens, 4 C)); images, uint8 (B, [F,] H, W, 3), or None if not decoded or not finite; and one sound
            per video if the pipeline makes sound and decodes.
        Raises:
            UsageError: The pipeline refuses a setting.
            SkipditError: The pipeline makes neither images nor videos.
        """
        pipe, steps = self.pipe, _StepReports(self.advance)
        reports = steps.of(pipe, self.scheduler)
        with _checked_decoder(pipe) as finite, reports as callback, _refusals(pipe, self.settings):
            result = pipe(**self._encoded(prompts), **self._arguments(generators), **callback)
        if not self.decode:
            return (result[0] if steps.latents is None else steps.latents).float(), None, []
        images = _images(result[0], pipe) if all(finite) else None
        return steps.latents.float(), images, _sounds(pipe, result)

    def _arguments(self, generators: Sequence[torch.Generator]) -> dict:
        """Return the arguments of the call other than prompts, as far as the pipeline takes them."""
        run, config, size = self.settings, self.pipe.transformer.config, None
        if "video_length" in config:  # the call of Latte has the size of one model as its default, whatever the model
            size = config.sample_size * getattr(self.pipe, "vae_scale_factor", 1)
        arguments = {
            "num_inference_steps": run.num_inference_steps,
            guidance_argument(self.pipe): run.guidance_scale,
            "height": run.height or size,
            "width": run.width or size,
            frames_argument(self.pipe): run.num_frames or config.get("video_length"),
            rate_argument(self.pipe): run.fps,
            "image": run.image,
            "strength": run.strength,
            "clean_caption": False,  # diffusers cleans prompts only where two more packages are installed
            "generator": list(generators) if len(generators) > 1 else generators[0],
            "output_type": "np" if self.decode else "latent",
            "return_dict": False,
        }
        parameters = call_parameters(self.pipe)
        arguments = {name: value for name, value in arguments.items() if name in parameters and value is not None}
        return {**arguments, **run.arguments}

    def _encoded(self, prompts: Sequence[str | None]) -> dict:
        """Return the arguments of the call that hold the prompts, encoded here where prompts affect each other."""
        pipe, negative_prompt, scale = self.pipe, self.settings.negative_prompt, self.settings.guidance_scale
        if not encodes_prompts_singly(pipe):
            negatives = {} if negative_prompt is None else {"negative_prompt": [negative_prompt] * len(prompts)}
            return {"prompt": list(prompts), **negatives}
        guided = scale is not None and scale > 1
        if prompts[0] is None:
            embeds, negative = _noise_embeds(pipe.transformer)
        else:
            options = {"negative_prompt": negative_prompt or "", "clean_caption": False}
            embeds, negative = pipe.encode_prompt(prompts[0], guided, **options)
        encoded = {"prompt_embeds": embeds} | ({"negative_prompt_embeds": negative} if guided else {})
        encoded = {name: each.expand(len(prompts), -1, -1) for name, each in encoded.items()}
        return {**encoded, "negative_prompt": None, "mask_feature": False}


def _noise_embeds(transformer) -> list[torch.Tensor]:
    """Return seeded noise in the place of an encoded prompt and of a negative prompt, of the greatest length."""
    shape, generator = example_inputs(transformer)["encoder_hidden_states"].shape, torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(transformer.device, transformer.dtype) for _ in range(2)]


@contextmanager
def _refusals(pipe, settings: RunSettings) -> Iterator[None]:
    """Translate the refusals of a pipeline's call to ours."""
    kind = type(pipe).__name__
    try:
        yield
    except UsageError:
        raise
    except (ValueError, TypeError) as cause:
        if isinstance(cause, TypeError) and not settings.arguments:  # values of --pipeline-arg may be of any type
            raise
        raise UsageError(f"{kind} refuses a setting: {first_line(cause)}.") from cause
    except AttributeError as cause:  # the model lacks a part, such as a text encoder
        absent = [name for name, part in pipe.components.items() if part is None]
        if "'NoneType' object" not in str(cause) or not absent:
            raise
        raise UsageError(
            f"A {kind} needs a part, and this model has no {', '.join(absent)}; give the folder of the whole pipeline."
        ) from cause
    except NameError as cause:  # diffusers lacks a package to clean prompts with
        if cause.name not in CLEANERS:
            raise
        raise UsageError(f"A {kind} reads prompts with one more package; run pip install {cause.name}.") from cause


class _CheckedDecode(Interposed):
    """A VAE's ``decode``, which turns to tiles where it decodes in tiles alone (Allegro), and notes what is finite.

    Args:
        pipe: The pipeline of the VAE.
        finite: Receives one bool tensor per decoding, left on its device. The pipeline clips what it decodes to
            colours, so that NaN and infinity do not show in its images.
    """

    def __init__(self, inner, pipe, finite: list[torch.Tensor]):
        super().__init__(inner)
        self.pipe, self.finite = pipe, finite

    def __call__(self, *args, **kwargs):
        try:
            result = self.inner(*args, **kwargs)
        except NotImplementedError as cause:
            if "without tiling" not in str(cause):
                raise
            tile_vae(self.pipe)
            result = self.inner(*args, **kwargs)
        if isinstance(result[0], torch.Tensor):
            self.finite.append(result[0].isfinite().all())
        return result


@contextmanager
def _checked_decoder(pipe) -> Iterator[list[torch.Tensor]]:
    """Put ``_CheckedDecode`` on the pipeline's VAE, if it has one, and yield its list of bools."""
    finite: list[torch.Tensor] = []
    vae = getattr(pipe, "vae", None)
    if vae is None:
        yield finite
        return
    interpose(vae, "decode", partial(_CheckedDecode, pipe=pipe, finite=finite), _CheckedDecode)
    try:
        yield finite
    finally:
        restore(vae, "decode", _CheckedDecode)


class _ReportedStep(Interposed):
    """A scheduler's ``step``, which reports the latents after it."""

    def __init__(self, inner, report: Callable[[torch.Tensor], None]):
        super().__init__(inner)
        self.report = report

    def __call__(self, *args, **kwargs):
        result = self.inner(*args, **kwargs)
        self.report(result[0])
        return result


class _StepReports:
    """Follow the denoising steps of a pipeline's call.

    Attributes:
        latents: After the last step; None before the first.
    """

    def __init__(self, advance: Callable[[], None] | None):
        self.advance = advance
        self.latents: Any = None

    @contextmanager
    def of(self, pipe, scheduler) -> Iterator[dict]:
        """Yield the callback arguments of the call, or none of a pipeline without them, whose scheduler reports."""

        def report(latents: torch.Tensor) -> None:
            self.latents = latents
            if self.advance is not None:
                self.advance()

        def on_step_end(pipe, step, timestep, tensors):
            report(tensors["latents"])
            return tensors

        if "callback_on_step_end" in call_parameters(pipe):
            yield {"callback_on_step_end": on_step_end}
        elif "callback" in call_parameters(pipe):
            yield {"callback": lambda step, timestep, latents: report(latents)}
        else:
            interpose(scheduler, "step", partial(_ReportedStep, report=report), _ReportedStep)
            try:
                yield {}
            finally:
                restore(scheduler, "step", _ReportedStep)


def _images(result, pipe) -> np.ndarray | None:
    """Return uint8 (B, [F,] H, W, 3) from a pipeline's "np" output, or None if a value is NaN or infinite.

    Floats in [0, 1] are rounded as diffusers rounds them for PIL.
    """
    try:
        array = np.asarray(result)
    except ValueError:  # images of several shapes
        array = np.empty(0)
    if array.dtype != np.uint8:
        if not np.isfinite(array).all():
            return None
        array = (array * 255).round().clip(0, 255).astype(np.uint8)
    array = array[None] if array.ndim == 4 and frames_argument(pipe) is not None else array
    if array.ndim not in (4, 5) or array.shape[-1] != 3:
        raise SkipditError(f"A {type(pipe).__name__} makes no pictures or videos of three colours; nothing was kept.")
    return array


def _sounds(pipe, result: tuple) -> list[Sound]:
    """Return one sound per video from the second output of a pipeline with a vocoder (LTX-2, Kandinsky 6).

    The output is (B, samples) or (B, channels, samples). The vocoder's config (LTX-2) or the pipeline (Kandinsky 6)
    holds the sampling rate.
    """
    vocoder = getattr(pipe, "vocoder", None)
    if vocoder is None or len(result) < 2 or result[1] is None:
        return []
    rate = vocoder.config.get("output_sampling_rate") or pipe.audio_sample_rate
    waves = result[1] if isinstance(result[1], np.ndarray) else result[1].float().cpu().numpy()
    return [Sound(np.atleast_2d(wave).astype(np.float32), int(rate)) for wave in waves]
