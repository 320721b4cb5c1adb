"""Images and videos of a text: diffusers' own pipeline, called as it is, with our seeds and our scheduler.

What a pipeline takes is read off the signature of its ``__call__``; none is known here by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from skipdit_cli.backbones import example_inputs
from skipdit_cli.errors import UsageError

FRAMES = ("num_frames", "video_length")
"""What diffusers calls the number of frames, by pipeline."""


def takes(pipe) -> Mapping[str, inspect.Parameter]:
    """What the pipeline can be told when it is called."""
    return inspect.signature(type(pipe).__call__).parameters


def takes_text(pipe) -> bool:
    return "prompt" in takes(pipe)


def frames_argument(pipe) -> str | None:
    """The name of the number of frames; None for a pipeline that has none."""
    return next((name for name in FRAMES if name in takes(pipe)), None)


def encodes_alone(pipe) -> bool:
    """Whether what a text is encoded to depends on the texts beside it, so that each is encoded alone here.

    A pipeline with ``mask_feature`` (Latte) shows its transformer no mask: it cuts a single text to its own tokens,
    but fills several, or several videos of one, up to 120 with zeros that are attended to. That changes the video.
    """
    return "mask_feature" in takes(pipe)


@torch.no_grad()
def denoise_texts(
    pipe,
    scheduler,
    prompts: Sequence[str | None],
    generators: list[torch.Generator],
    *,
    num_inference_steps: int,
    guidance_scale: float,
    negative_prompt: str | None = None,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    advance: Callable[[], None] | None = None,
) -> torch.Tensor:
    """One call of the pipeline, up to its latents.

    Captions are never "cleaned" (``clean_caption``), which diffusers does only where two more packages are installed.

    Args:
        prompts: One a sample, the same for all where the pipeline ``encodes_alone``. None: noise in place of a text.
        generators: One a sample.
        num_frames, height, width: None for the model's own. Sizes are those of the pixels.
        advance: Called after each denoising step.
    Returns:
        (B, C, [F,] h, w), float32.
    Raises:
        UsageError: The pipeline refuses a setting.
    """
    config, own = pipe.transformer.config, None
    if "sample_size" in config:  # a call alone takes some model's size, whichever model this is
        own = config.sample_size * getattr(pipe, "vae_scale_factor", 1)
    settings = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "height": height or own,
        "width": width or own,
        frames_argument(pipe): num_frames or config.get("video_length"),
        "clean_caption": False,
        "generator": generators,
        "output_type": "latent",
        "return_dict": False,
    }
    settings = {name: value for name, value in settings.items() if name in takes(pipe) and value is not None}
    with _lent(pipe, scheduler):
        try:
            texts = _texts(pipe, prompts, guidance_scale > 1, negative_prompt)
            return pipe(**texts, **settings, **_stepwise(pipe, advance))[0].float()
        except UsageError:
            raise
        except ValueError as cause:
            why = str(cause).rstrip(".")
            raise UsageError(f"{type(pipe).__name__} refuses what it was asked for: {why}.") from cause


def _texts(pipe, prompts: Sequence[str | None], guided: bool, negative_prompt: str | None) -> dict:
    """The arguments that say what is to be made."""
    if prompts[0] is None:
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
    shape, generator = example_inputs(transformer)["encoder_hidden_states"].shape, torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(transformer.device, transformer.dtype) for _ in range(2)]


def _stepwise(pipe, advance: Callable[[], None] | None) -> dict:
    """The callback that tells of every step, in the form that the pipeline takes."""

    def tell(pipe, step, timestep, tensors):
        advance()
        return tensors

    if advance is None:
        return {}
    if "callback_on_step_end" in takes(pipe):
        return {"callback_on_step_end": tell}
    return {"callback": lambda *_: advance()} if "callback" in takes(pipe) else {}


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


def check_texts(
    pipe,
    prompts: Sequence[int | str | None],
    guidance_scale: float,
    negative_prompt: str | None,
    num_frames: int | None,
    height: int | None,
    width: int | None,
) -> None:
    """Refuse what a model of texts cannot make.

    Raises:
        UsageError: No text, a class, no text encoder, a negative prompt that does nothing, a size the model has not.
    """
    for prompt in prompts:
        if isinstance(prompt, int):
            raise UsageError(f"Got --class-labels {prompt}, but this is a model of texts; give --prompt instead.")
    if not prompts:
        raise UsageError("Got no --prompt but expected one or more.")
    if pipe.text_encoder is None and not {*prompts, negative_prompt} <= {None}:
        raise UsageError(
            "This model has no text encoder to read a --prompt with; make its folder again with "
            "'skipdit convert CHECKPOINT -o FOLDER --text-from maxin-cn/Latte-1'."
        )
    if negative_prompt is not None and guidance_scale <= 1:
        raise UsageError(f"Got --negative-prompt, but guidance is off at --guidance-scale {guidance_scale:g}.")
    told = {"--negative-prompt": negative_prompt, "--height": height, "--width": width}
    for flag, value in told.items():
        if value is not None and flag[2:].replace("-", "_") not in takes(pipe):
            raise UsageError(f"Got {flag} {value}, which a {type(pipe).__name__} does not take; leave it out.")
    _check_frames(pipe, num_frames)
    _check_size(pipe, {"--height": height, "--width": width})


def _check_frames(pipe, num_frames: int | None) -> None:
    if num_frames is None:
        return
    if frames_argument(pipe) is None:
        raise UsageError(f"Got --num-frames {num_frames}, but this model makes images; leave the flag out.")
    most = pipe.transformer.config.get("video_length")
    if most is not None and num_frames not in (1, most):  # it adds all its positions, or none to one frame
        raise UsageError(f"Got --num-frames {num_frames} but the model makes {most}, or 1.")


def _check_size(pipe, size: dict[str, int | None]) -> None:
    unit = getattr(pipe, "vae_scale_factor", 1) * pipe.transformer.config.get("patch_size", 1)
    for flag, pixels in size.items():
        if pixels is not None and (pixels < 1 or pixels % unit):
            raise UsageError(f"Got {flag} {pixels} but expected a multiple of {unit}.")
