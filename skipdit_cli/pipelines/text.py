"""Images and videos of a text: diffusers' own pipeline, called as it is, with our seeds and our scheduler.

What a pipeline takes is read off the signature of its ``__call__`` (``arguments``); none is known here by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps

import numpy as np
import torch

from skipdit_cli.backbones import example_inputs, unwrap_compiled
from skipdit_cli.errors import SkipditError, UsageError
from skipdit_cli.media import Sound
from skipdit_cli.pipelines.arguments import (
    Asked,
    encodes_alone,
    frames_argument,
    guidance_argument,
    rate_argument,
    takes,
)
from skipdit_cli.pipelines.fitting import tile_vae
from skipdit_cli.pipelines.sound import sounds_of

CLEANERS = ("ftfy", "bs4")


def decodes_here(pipe) -> bool:
    """Whether what the sampler leaves is made pixels by ``pixels.to_pixels``, not by the pipeline.

    So it is for a pipeline without its VAE, and for one that decodes a few frames at once (Latte), which would join
    those of two videos.
    """
    return ("vae" in pipe.components and pipe.vae is None) or "decode_chunk_size" in takes(pipe)


@torch.no_grad()
def sample_texts(
    pipe,
    scheduler,
    prompts: Sequence[str | None],
    generators: list[torch.Generator],
    asked: Asked,
    *,
    num_inference_steps: int,
    guidance_scale: float | None,
    decode: bool = True,
    advance: Callable[[], None] | None = None,
) -> tuple[torch.Tensor, np.ndarray | None, list[Sound]]:
    """One call of the pipeline.

    Captions are never "cleaned" (``clean_caption``), which diffusers does only where two more packages are installed.

    Args:
        prompts: One a sample, the same for all where the pipeline ``encodes_alone``. None: noise in place of a text.
        generators: One a sample.
        guidance_scale: None for the pipeline's own.
        decode: Have the pipeline make pixels, too.
        advance: Called after each denoising step.
    Returns:
        What the sampler left, float32, in the layout of the pipeline (of Latte (B, C, F, h, w), of Flux packed into
        (B, tokens, 4 C)); uint8 (B, [F,] H, W, 3), or None where it decodes none, or none that is finite; and the
        sound of each video where it makes any and decodes.
    Raises:
        UsageError: The pipeline refuses a setting.
        SkipditError: It makes no pictures.
    """
    config, own = pipe.transformer.config, None
    if "video_length" in config:  # a call of Latte alone takes some model's size, whichever model this is
        own = config.sample_size * getattr(pipe, "vae_scale_factor", 1)
    settings = {
        "num_inference_steps": num_inference_steps,
        guidance_argument(pipe): guidance_scale,
        "height": asked.height or own,
        "width": asked.width or own,
        frames_argument(pipe): asked.num_frames or config.get("video_length"),
        rate_argument(pipe): asked.fps,
        "image": asked.image,
        "strength": asked.strength,
        "clean_caption": False,
        "generator": generators if len(generators) > 1 else generators[0],
        "output_type": "np" if decode else "latent",
        "return_dict": False,
    }
    settings = {name: value for name, value in settings.items() if name in takes(pipe) and value is not None}
    settings |= asked.arguments
    steps = Steps(advance)
    told, refusals = steps.told_by(pipe, scheduler), _refusals(pipe, bool(asked.arguments))
    with _tiles(pipe) as finite, told as callback, refusals:
        guided = guidance_scale is not None and guidance_scale > 1
        texts = _texts(pipe, prompts, guided, asked.negative_prompt)
        result = pipe(**texts, **settings, **callback)
    latents = result[0] if steps.latents is None and not decode else steps.latents
    if not decode:
        return latents.float(), None, []
    pixels = _pixels(result[0], pipe) if all(finite) else None
    return latents.float(), pixels, sounds_of(pipe, result)


@contextmanager
def _refusals(pipe, typed: bool) -> Iterator[None]:
    """A pipeline's refusals, as ours.

    Args:
        typed: Whether it was given values of a type that was not looked at.
    """
    kind = type(pipe).__name__
    try:
        yield
    except UsageError:
        raise
    except (ValueError, TypeError) as cause:
        if isinstance(cause, TypeError) and not typed:
            raise
        why = (str(cause).splitlines() or ["no reason given"])[0].rstrip(".")
        raise UsageError(f"{kind} refuses what it was asked for: {why}.") from cause
    except AttributeError as cause:  # of a part that the model has not, such as a text encoder
        absent = [name for name, part in pipe.components.items() if part is None]
        if "'NoneType' object" not in str(cause) or not absent:
            raise
        raise UsageError(
            f"{kind} ended for want of a part; this model has no {', '.join(absent)}: give the folder of a whole one."
        ) from cause
    except NameError as cause:  # so diffusers ends where a package to clean texts with is missing
        if cause.name not in CLEANERS:
            raise
        raise UsageError(f"A {kind} reads texts with one more package; run pip install {cause.name}.") from cause


@contextmanager
def _tiles(pipe) -> Iterator[list[torch.Tensor]]:
    """A VAE that says, once it is to decode, that it does so in tiles alone (Allegro's) does so, and from then on.

    Gives whether each decoding is finite, left on its device: pipelines clip what they make of it to colours.
    """
    vae, finite = getattr(pipe, "vae", None), []
    if vae is None:
        yield finite
        return
    decode = vae.decode

    @wraps(decode)
    def tiled(*args, **kwargs):
        try:
            result = decode(*args, **kwargs)
        except NotImplementedError as cause:
            if "without tiling" not in str(cause):
                raise
            tile_vae(pipe)
            result = decode(*args, **kwargs)
        if isinstance(result[0], torch.Tensor):
            finite.append(result[0].isfinite().all())
        return result

    vae.decode = tiled
    try:
        yield finite
    finally:
        vae.decode = decode


def _pixels(result, pipe) -> np.ndarray | None:
    """uint8 (B, [F,] H, W, 3) from what a pipeline calls "np": floats of 0..1, rounded as its own PIL images are; None
    where one is NaN or infinite."""
    try:
        array = np.asarray(result)
    except ValueError:  # of several shapes
        array = np.empty(0)
    if array.dtype != np.uint8:
        if not np.isfinite(array).all():
            return None
        array = (array * 255).round().clip(0, 255).astype(np.uint8)
    array = array[None] if array.ndim == 4 and frames_argument(pipe) is not None else array
    if array.ndim not in (4, 5) or array.shape[-1] != 3:
        raise SkipditError(f"A {type(pipe).__name__} makes no pictures or videos of three colours; nothing was kept.")
    return array


def _texts(pipe, prompts: Sequence[str | None], guided: bool, negative_prompt: str | None) -> dict:
    """The arguments that say what is to be made."""
    if prompts[0] is None and encodes_alone(pipe):
        embeds, negative = _noise_texts(pipe.transformer)
    elif encodes_alone(pipe):
        told = {"negative_prompt": negative_prompt or "", "clean_caption": False}
        embeds, negative = pipe.encode_prompt(prompts[0], guided, **told)
    else:
        negatives = {} if negative_prompt is None else {"negative_prompt": [negative_prompt] * len(prompts)}
        return {"prompt": list(prompts), **negatives}
    given = {"prompt_embeds": embeds.expand(len(prompts), -1, -1), "negative_prompt": None}
    if guided:
        given["negative_prompt_embeds"] = negative.expand(len(prompts), -1, -1)
    return {**given, "mask_feature": False} if encodes_alone(pipe) else given


def _noise_texts(transformer) -> list[torch.Tensor]:
    """In place of an encoded text and of its negative, as long as the longest: seeded noise, to time a model by."""
    model, generator = unwrap_compiled(transformer), torch.Generator().manual_seed(0)
    shape = example_inputs(model)["encoder_hidden_states"].shape
    return [torch.randn(shape, generator=generator).to(transformer.device, transformer.dtype) for _ in range(2)]


class Steps:
    """What a pipeline tells of its steps as it goes: that one is done, and the latents after it.

    Attributes:
        latents: After the last step; None before the first.
    """

    def __init__(self, advance: Callable[[], None] | None):
        self.advance, self.latents = advance, None

    def _done(self, latents) -> None:
        self.latents = latents
        if self.advance is not None:
            self.advance()

    @contextmanager
    def told_by(self, pipe, scheduler) -> Iterator[dict]:
        """The arguments of a call that tells: its callback of the newer or the older form; of a pipeline that has
        neither, none, and its scheduler is listened to."""

        def tell(pipe, step, timestep, tensors):
            self._done(tensors["latents"])
            return tensors

        if "callback_on_step_end" in takes(pipe):
            yield {"callback_on_step_end": tell}
        elif "callback" in takes(pipe):
            yield {"callback": lambda step, timestep, latents: self._done(latents)}
        else:
            own = scheduler.step  # of the cache, perhaps, which is there until the run ends

            @wraps(own)
            def step(*args, **kwargs):
                result = own(*args, **kwargs)
                self._done(result[0])
                return result

            scheduler.step = step
            try:
                yield {}
            finally:
                scheduler.step = own
