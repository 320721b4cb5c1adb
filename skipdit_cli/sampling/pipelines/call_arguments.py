"""The arguments of a diffusers pipeline's ``__call__``, read off its signature."""

from __future__ import annotations

from skipdit_cli.errors import UsageError
from skipdit_cli.families.pipeline_parts import call_parameters, pipeline_type
from skipdit_cli.sampling.pipelines.denoiser_pipeline import DenoiserPipeline

FRAMES = ("num_frames", "video_length")
"""The names of the number of frames, by pipeline."""
RATES = ("frame_rate", "fps")
"""The names of the frames per second, on which the motion and the length of the sound depend."""
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
RESERVED = ("self", "output_type", "return_dict", "latents", "callback", "callback_steps", "mask_feature")
"""Arguments that ``by_text`` sets or that a command line cannot express; so are embeddings, masks and callbacks."""


def call_default(pipe, name: str | None):
    """Return the default of an argument of the pipeline's ``__call__``; None if ``name`` is None."""
    return None if name is None else call_parameters(pipe)[name].default


def is_text_conditional(pipe) -> bool:
    """Return whether the pipeline takes prompts."""
    return "prompt" in call_parameters(pipe)


def frames_argument(pipe) -> str | None:
    """Return the name of the number of frames, or None if the pipeline takes none."""
    return next((name for name in FRAMES if name in call_parameters(pipe)), None)


def rate_argument(pipe) -> str | None:
    """Return the name of the frames per second, or None if the pipeline takes none."""
    return next((name for name in RATES if name in call_parameters(pipe)), None)


def default_fps(pipe) -> float:
    """Return the frames per second of a video: the default of the pipeline's call, else 8 (Latte's ``sample.py``)."""
    return float(call_default(pipe, rate_argument(pipe)) or 8)


def guidance_argument(pipe) -> str | None:
    """Return the name of the argument that ``--guidance-scale`` sets, or None if the pipeline has none.

    It is ``true_cfg_scale`` where ``guidance_scale`` has no default: in Qwen-Image the latter is reserved for a
    distilled model that does not exist yet.
    """
    names = [name for name in ("guidance_scale", "true_cfg_scale") if name in call_parameters(pipe)]
    return next((name for name in names if call_default(pipe, name) is not None), names[0] if names else None)


def encodes_prompts_singly(pipe) -> bool:
    """Return whether the encoding of a prompt depends on the prompts beside it, so that each is encoded alone.

    A pipeline with ``mask_feature`` (Latte) gives its transformer no mask. It cuts a single prompt to its own tokens,
    but pads several prompts, or several videos of one, to 120 tokens with zeros that are attended to.
    """
    return "mask_feature" in call_parameters(pipe)


def accepts_no_prompt(pipe) -> bool:
    """Return whether seeded noise can take the place of an encoded prompt, to time the model without an encoder."""
    return encodes_prompts_singly(pipe) or isinstance(pipe, DenoiserPipeline)


def needs_image(pipe) -> bool:
    """Return whether the pipeline requires an image: it has no default for one, or is an image-to-image pipeline."""
    parameter = call_parameters(pipe).get("image")
    named = any(part in pipeline_type(pipe).__name__ for part in ("Img2Img", "ImageToVideo", "Inpaint"))
    return parameter is not None and (parameter.default is parameter.empty or named)


def is_reserved(name: str) -> bool:
    """Return whether ``--pipeline-arg`` cannot set an argument (see ``RESERVED``)."""
    return name in RESERVED or name.endswith(("_embeds", "_mask")) or name.startswith("callback_on")


def check_key(name: str) -> None:
    """Refuse an argument that ``--pipeline-arg`` cannot set, whatever the pipeline.

    Raises:
        UsageError: The argument has a flag of its own, or is reserved.
    """
    if name in FLAGS:
        raise UsageError(f"Got --pipeline-arg {name}, which has a flag of its own; give {FLAGS[name]}.")
    if is_reserved(name):
        raise UsageError(f"Got --pipeline-arg {name}, which no text can give; leave it out.")
