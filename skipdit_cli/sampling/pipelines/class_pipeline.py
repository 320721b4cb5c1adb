"""The call of a pipeline of a class-conditional or unconditional model, as a mixin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from skipdit_cli.errors import UsageError
from skipdit_cli.families.labels import check_labels
from skipdit_cli.sampling.by_class import denoise, sample_shape
from skipdit_cli.sampling.pixels import to_pixels
from skipdit_cli.sampling.refusals import check_null_class
from skipdit_cli.sampling.run_settings import default_guidance

OUTPUTS = ("pil", "np", "pt")


@dataclass
class VideoPipelineOutput(BaseOutput):
    """The output of a class-to-video pipeline.

    Args:
        frames: A list of PIL images per video; or float32 in [0, 1], an array (N, F, H, W, 3) or a tensor
            (N, F, 3, H, W).
    """

    frames: list[list[Image.Image]] | np.ndarray | torch.Tensor


class ClassPipelineCall:
    """The ``__call__`` of a pipeline with ``transformer``, ``vae`` (or None) and ``scheduler``."""

    transformer: Any
    scheduler: Any

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int | None],
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | VideoPipelineOutput | tuple:
        """Sample one image or video per class label.

        Args:
            class_labels: One None per sample for an unconditional model.
            guidance_scale: Classifier-free guidance. By default 4, and 1 (off) for a model without a null class.
            generator: For the initial latents, and for schedulers that add noise; one, or one per sample.
            output_type: ``pil``; ``np`` for float32 (N, [F,] H, W, 3) in [0, 1]; or ``pt`` for the same as a tensor
                (N, [F,] 3, H, W).
        Returns:
            The samples as ``images`` or ``frames``, or in a tuple. Samples of a latent model without a VAE show its
            first channels.
        Raises:
            UsageError: The model lacks a class or a null class to guide with, or the output type is unknown.
        """
        config = self.transformer.config
        labels = [label if label is None else int(label) for label in class_labels]
        check_labels(labels, config.num_embeds_ada_norm)
        scale = default_guidance(self) if guidance_scale is None else guidance_scale
        check_null_class(config, scale, "guidance_scale")
        if output_type not in OUTPUTS:
            raise UsageError(f"Got output_type {output_type} but expected one of {', '.join(OUTPUTS)}.")
        device = self._execution_device
        self._set_timesteps(num_inference_steps)
        shape = (len(labels), *sample_shape(self, None))
        noise = randn_tensor(shape, generator=generator, device=device, dtype=self.transformer.dtype)
        with self.progress_bar(total=len(self.scheduler.timesteps)) as bar:
            latents = denoise(
                self.transformer,
                self.scheduler,
                noise * getattr(self.scheduler, "init_noise_sigma", 1.0),
                None if None in labels else torch.tensor(labels, device=device),
                guidance_scale=scale,
                guided_channels=config.in_channels,
                generators=generator,
                advance=bar.update,
            )
        samples = _convert(to_pixels(self, latents, len(labels), _as_floats), output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (samples,)
        is_video = len(shape) == 5
        return VideoPipelineOutput(frames=samples) if is_video else ImagePipelineOutput(images=samples)

    def _set_timesteps(self, num_inference_steps: int) -> None:
        self.scheduler.set_timesteps(num_inference_steps)


def _as_floats(images: torch.Tensor) -> np.ndarray:
    """Convert images (N, C, [F,] H, W) in [-1, 1], C 1 or 3, to float32 (N, [F,] H, W, 3) in [0, 1]."""
    pixels = (images.float() / 2 + 0.5).clamp(0, 1).cpu()
    return pixels.expand(-1, 3, *pixels.shape[2:]).movedim(1, -1).numpy()


def _convert(samples: np.ndarray, output_type: str) -> list | np.ndarray | torch.Tensor:
    """Convert float32 samples (N, [F,] H, W, 3) in [0, 1] to an output type."""
    if output_type == "np":
        return samples
    if output_type == "pt":
        return torch.from_numpy(samples).movedim(-1, -3)
    pixels = (255 * samples).round().astype(np.uint8)
    if pixels.ndim == 4:
        return [Image.fromarray(image) for image in pixels]
    return [[Image.fromarray(frame) for frame in video] for video in pixels]
