"""The settings of one sampling run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from skipdit_cli.families.labels import null_label
from skipdit_cli.families.protocols import Pipeline
from skipdit_cli.sampling.pipelines.call_arguments import FLAGS, call_default, guidance_argument, is_text_conditional

SHARED = ("num_inference_steps", "guidance_scale", "cfg_channels", "scheduler", "seed", "batch_size", "fps")
"""Settings that do not depend on the arguments of a pipeline's ``__call__``; any video has ``fps``."""


@dataclass(frozen=True)
class RunSettings:
    """The settings of one run of ``generate``, beside its conditions and its cache.

    Args:
        num_inference_steps: Denoising steps.
        guidance_scale: Classifier-free guidance, off at 1; ``default_guidance`` if None.
        cfg_channels: ``all`` guides every noise channel (diffusers), ``3`` the first three (the DiT repository).
        scheduler: A ``Sampler``, a name of ``schedulers.SCHEDULERS``, or a scheduler; the pipeline's own if None.
        seed: Sample i starts from noise of a CPU generator seeded ``seed + i``, whatever the batch size.
        batch_size: Samples per batch; all in one if None.
        num_frames: Frames of a video; as many as the model was trained on if None.
        fps: Frames per second, for pipelines whose motion or sound depends on it.
        height, width: In pixels; the pipeline's own if None. These and the rest are for text-conditional pipelines.
        image: A ``PIL.Image`` to start from, or to make a video of.
        strength: The share of the noise that ``image`` gets, over 0 and up to 1.
        arguments: Further arguments of the pipeline's ``__call__``, by name.
    """

    num_inference_steps: int = 50
    guidance_scale: float | None = None
    cfg_channels: str = "all"
    scheduler: Any = None
    seed: int = 0
    batch_size: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    height: int | None = None
    width: int | None = None
    negative_prompt: str | None = None
    image: object = None
    strength: float | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)

    def call_flags(self) -> dict[str, str]:
        """Return the arguments of a pipeline's ``__call__`` that are set, each with the flag that sets it."""
        values = {name: value for name, value in vars(self).items() if name not in (*SHARED, "arguments")}
        flags = {
            name: FLAGS[name] + ("" if name == "image" else f" {value}")
            for name, value in values.items()
            if value is not None
        }
        return {**flags, **{name: f"--pipeline-arg {name}" for name in self.arguments}}


def default_guidance(pipe: Pipeline) -> float | None:
    """Return the guidance scale of a pipeline where none is set.

    It is 4 for class-conditional models, as in diffusers' ``DiTPipeline``, and 1 (off) for models without a null
    class. For text-conditional pipelines it is the default of their ``__call__``, or None if that has none.
    """
    if is_text_conditional(pipe):
        scale = call_default(pipe, guidance_argument(pipe))
        return None if scale is None else float(scale)
    return 1.0 if null_label(pipe.transformer.config) is None else 4.0
