"""What a pipeline of diffusers takes when it is called, read off the signature of its ``__call__``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from skipdit_cli.errors import UsageError, nearest
from skipdit_cli.families.registry import pipelines_by_class
from skipdit_cli.sampling.pipelines.denoiser_pipeline import DenoiserPipeline

FRAMES = ("num_frames", "video_length")
"""What diffusers calls the number of frames, by pipeline."""
RATES = ("frame_rate", "fps")
"""What diffusers calls the number of frames a second, of which the motion depends, and the length of a sound."""
FLAGS = {
    "prompt": "--prompt",
    "negative_prompt": "--negative-prompt",
    "height": "--height",
    "width": "--width",
    "num_frames": "--num-frames",
    "video_length": "--num-frames",
    "frame_rate": "--fps",
    "fps": "--fps",
    "num_inference_steps": "--num-inference-steps",
    "guidance_scale": "--guidance-scale",
    "image": "--image",
    "strength": "--strength",
    "generator": "--seed",
    "num_images_per_prompt": "--num-images",
    "num_videos_per_prompt": "--num-images",
    "scheduler": "--scheduler",
}
"""Arguments that have a flag of their own."""
KEPT = ("self", "output_type", "return_dict", "latents", "callback", "callback_steps", "mask_feature")
"""Arguments that we give, or that no text can say; so are embeddings, masks and callbacks of any name."""
SCALES = ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_spatial_scale_factor")
"""What diffusers calls the pixels of a latent, by pipeline."""


@dataclass(frozen=True)
class Asked:
    """What is asked of a text pipeline besides its texts; None and nothing for its own.

    Args:
        num_frames, height, width: Sizes are those of the pixels.
        fps: Frames a second; of a pipeline that is not told of it, its file's alone.
        image: A ``PIL.Image`` that it starts from, or makes a video of.
        strength: How much of the noise that image gets, over 0 and up to 1.
        arguments: More of its call, by name.
    """

    negative_prompt: str | None = None
    num_frames: int | None = None
    fps: float | None = None
    height: int | None = None
    width: int | None = None
    image: object = None
    strength: float | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)

    def given(self) -> dict[str, str]:
        """The names of those that were, with their flags as one gives them; not ``fps``, which any video has."""
        own = {name: value for name, value in vars(self).items() if value is not None}
        own = {name: value for name, value in own.items() if name not in ("arguments", "fps")}
        said = {name: FLAGS[name] + (f" {value}" if name != "image" else "") for name, value in own.items()}
        return {**said, **{name: f"--pipeline-arg {name}" for name in self.arguments}}


def kind_of(pipe) -> type:
    """The class of a pipeline, given itself, its class, or its outline (``models.outline``)."""
    return pipe if isinstance(pipe, type) else getattr(pipe, "kind", None) or type(pipe)


def takes(pipe) -> Mapping[str, inspect.Parameter]:
    """What the pipeline, or any of a class of pipelines, can be told when it is called."""
    return inspect.signature(kind_of(pipe).__call__).parameters


def takes_text(pipe) -> bool:
    return "prompt" in takes(pipe)


def frames_argument(pipe) -> str | None:
    """The name of the number of frames; None for a pipeline that has none."""
    return next((name for name in FRAMES if name in takes(pipe)), None)


def rate_argument(pipe) -> str | None:
    """The name of the number of frames a second; None for a pipeline that is not told of it."""
    return next((name for name in RATES if name in takes(pipe)), None)


def own_rate(pipe) -> float:
    """Frames a second of its videos where nothing else is asked: what its own call says, else those of Latte's
    sample.py."""
    name = rate_argument(pipe)
    return float((name and takes(pipe)[name].default) or 8)


def guidance_argument(pipe) -> str | None:
    """What ``--guidance-scale`` is: ``guidance_scale``, or ``true_cfg_scale`` where the call leaves the former out
    (Qwen-Image's is for a distilled model that does not exist yet); None for a pipeline that has neither."""
    names = [name for name in ("guidance_scale", "true_cfg_scale") if name in takes(pipe)]
    return next((name for name in names if takes(pipe)[name].default is not None), names[0] if names else None)


def own_guidance(pipe) -> float | None:
    """The scale that the pipeline's own call says; None where it says none."""
    name = guidance_argument(pipe)
    scale = None if name is None else takes(pipe)[name].default
    return None if scale is None else float(scale)


def encodes_alone(pipe) -> bool:
    """Whether what a text is encoded to depends on the texts beside it, so that each is encoded alone here.

    A pipeline with ``mask_feature`` (Latte) shows its transformer no mask: it cuts a single text to its own tokens,
    but fills several, or several videos of one, up to 120 with zeros that are attended to. That changes the video.
    """
    return "mask_feature" in takes(pipe)


def does_without_text(pipe) -> bool:
    """Whether noise can stand for a text, to time the model by."""
    return encodes_alone(pipe) or isinstance(pipe, DenoiserPipeline)


def check_key(name: str) -> None:
    """Refuse an argument that ``--pipeline-arg`` cannot set, of whatever pipeline.

    Raises:
        UsageError: It has a flag of its own, or is ours.
    """
    if name in FLAGS:
        raise UsageError(f"Got --pipeline-arg {name}, which has a flag of its own; give {FLAGS[name]}.")
    if _is_kept(name):
        raise UsageError(f"Got --pipeline-arg {name}, which no text can give; leave it out.")


def _is_kept(name: str) -> bool:
    return name in KEPT or name.endswith(("_embeds", "_mask")) or name.startswith("callback_on")


def check_texts(pipe, prompts: Sequence[int | str | None], guidance_scale: float | None, asked: Asked) -> None:
    """Refuse what a model of texts cannot make.

    Args:
        pipe: The pipeline, or its outline, of which alone its size is not known yet.
        guidance_scale: The one in force; None for the pipeline's own.
    Raises:
        UsageError: No text, a class, no text encoder, something that its call does not take or that would do nothing,
            a size the model has not.
    """
    for prompt in prompts:
        if isinstance(prompt, int):
            raise UsageError(f"Got --class-labels {prompt}, but this is a model of texts; give --prompt instead.")
    if not prompts or (prompts[0] is None and not does_without_text(pipe)):
        raise UsageError("Got no --prompt but expected one or more.")
    _check_encoder(pipe, {*prompts, asked.negative_prompt} <= {None})
    if asked.num_frames is not None and frames_argument(pipe) is None:
        raise UsageError(f"Got --num-frames {asked.num_frames}, but this model makes images; leave the flag out.")
    kind, own = kind_of(pipe).__name__, [name for name in takes(pipe) if name not in FLAGS and not _is_kept(name)]
    for name, said in asked.given().items():
        if name not in takes(pipe) and name != "num_frames":
            hint = "; leave it out."
            if name in asked.arguments:
                hint = "." + (nearest(name, own) or f" It takes {', '.join(own)}.")
            raise UsageError(f"Got {said}, which a {kind} does not take{hint}")
    if guidance_scale is not None and guidance_argument(pipe) is None:
        raise UsageError(f"Got --guidance-scale {guidance_scale:g}, which a {kind} does not take; leave it out.")
    _check_required(pipe, kind, asked)
    if asked.image is None and needs_image(pipe):
        raise UsageError(f"Got no --image, but a {kind} starts from one; give --image FILE.")
    if asked.negative_prompt is not None:
        _check_guided(pipe, guidance_scale, asked)
    _check_size(pipe, asked)


def _check_required(pipe, kind: str, asked: Asked) -> None:
    wanted = [name for name, parameter in takes(pipe).items() if parameter.default is parameter.empty]
    varied = [name for name, parameter in takes(pipe).items() if parameter.kind is parameter.VAR_KEYWORD]
    for name in wanted:
        if name not in (*FLAGS, *asked.arguments, *varied, "self"):
            raise UsageError(
                f"A {kind} wants {name}, which has no flag; give it with --pipeline-arg if text can say it."
            )


def check_sampled(pipe) -> None:
    """
    Raises:
        UsageError: The pipeline makes sound (it takes no size, image or frames), or is of neither texts nor classes.
    """
    kind = kind_of(pipe).__name__
    makes_pictures = {"height", "image", *FRAMES} & set(takes(pipe)) or does_without_text(pipe)
    if takes_text(pipe) and not makes_pictures:
        raise UsageError(f"A {kind} makes no pictures or videos, which alone are sampled here.")
    if not takes_text(pipe) and kind not in pipelines_by_class():
        raise UsageError(f"A {kind} is of neither texts nor classes, which alone are sampled here.")


def needs_image(pipe) -> bool:
    """Whether the pipeline makes nothing without an image: it takes none by default, or is one from image to image."""
    parameter = takes(pipe).get("image")
    named = any(part in kind_of(pipe).__name__ for part in ("Img2Img", "ImageToVideo", "Inpaint"))
    return parameter is not None and (parameter.default is parameter.empty or named)


def _check_encoder(pipe, nothing_to_read: bool) -> None:
    encoders = [list(value) for name, value in pipe.config.items() if name.startswith("text_encoder")]
    if nothing_to_read or not encoders or any(encoder != [None, None] for encoder in encoders):
        return
    raise UsageError(
        "This model has no text encoder to read a --prompt with; make its folder again with "
        "'skipdit convert CHECKPOINT -o FOLDER --text-from maxin-cn/Latte-1'."
        if encodes_alone(pipe)
        else "This model has no text encoder to read a --prompt with; give the folder of the whole pipeline."
    )


def _check_guided(pipe, guidance_scale: float | None, asked: Asked) -> None:
    """Flux guides away from a text by ``true_cfg_scale``; its ``guidance_scale`` is an input of the model."""
    name = guidance_argument(pipe)
    if name == "true_cfg_scale" or takes(pipe).get("true_cfg_scale") is None:
        scale, flag = guidance_scale, f"--guidance-scale {guidance_scale:g}" if guidance_scale is not None else ""
    else:
        scale = asked.arguments.get("true_cfg_scale", takes(pipe)["true_cfg_scale"].default)
        flag = f"true_cfg_scale {scale} (see --pipeline-arg)"
    if isinstance(scale, (int, float)) and scale <= 1:
        raise UsageError(f"Got --negative-prompt, but guidance is off at {flag}.")


def _check_size(pipe, asked: Asked) -> None:
    config = pipe.transformer.config
    most = config.get("video_length")
    if asked.num_frames is not None and most is not None and asked.num_frames not in (1, most):
        # it adds all its positions, or none to one frame
        raise UsageError(f"Got --num-frames {asked.num_frames} but the model makes {most}, or 1.")
    if not hasattr(pipe, "components"):  # an outline, which does not know what its parts will be asked for
        return
    unit = _size_unit(pipe)
    for flag, pixels in {"--height": asked.height, "--width": asked.width}.items():
        if pixels is not None and (pixels < 1 or pixels % unit):
            raise UsageError(f"Got {flag} {pixels} but expected a multiple of {unit}.")


def _size_unit(pipe) -> int:
    """Pixels that height and width are multiples of: what is one patch of latents. Of pipelines that put latents
    together themselves (Flux) their processor of pictures says it."""
    patch = pipe.transformer.config.get("patch_size") or 1
    patch = patch[-1] if isinstance(patch, (list, tuple)) else patch
    scale = next((getattr(pipe, name) for name in SCALES if getattr(pipe, name, None)), 1)
    processor = getattr(pipe, "image_processor", None) or getattr(pipe, "video_processor", None)
    return math.lcm(scale * patch, getattr(processor, "config", {}).get("vae_scale_factor") or 1)
