"""diffusers' pipeline of a DiT, for models of any number of classes, and of pixels."""

from __future__ import annotations

from collections.abc import Sequence

import diffusers
import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from skipdit_cli.errors import UsageError
from skipdit_cli.families.labels import check_labels, null_label
from skipdit_cli.sampling.by_class import denoise, sample_shape
from skipdit_cli.sampling.pixels import to_pixels

OUTPUTS = ("pil", "np", "pt")


class DiTPipeline(diffusers.DiTPipeline):
    """A ``DiTPipeline`` that goes by its model: diffusers' class takes 1000 for "no class" whatever the model, and
    a VAE for granted. Both have one name, so that diffusers loads what this one saves."""

    _optional_components = ["vae"]

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """The ids of classes by name; diffusers takes a single name for a list of letters."""
        return super().get_label_ids([label] if isinstance(label, str) else label)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Sample one image a label, as diffusers' ``DiTPipeline`` does.

        Args:
            guidance_scale: 4 if not given; of a model without an id for "no class" 1, which is off.
            output_type: ``pil``; ``np``, float32 (N, H, W, 3) in [0, 1]; or ``pt``, the same as a tensor (N, 3, H, W).
        Returns:
            Pictures as ``images``, or in a tuple. Of a latent model without a VAE they show its first channels.
        Raises:
            UsageError: A label that the model has not, guidance where it has no "no class", or another output.
        """
        config = self.transformer.config
        labels, null = [int(label) for label in class_labels], null_label(config)
        check_labels(labels, config.num_embeds_ada_norm)
        scale = (1.0 if null is None else 4.0) if guidance_scale is None else guidance_scale
        if scale > 1 and null is None:
            raise UsageError(f"Got guidance_scale {scale:g}, but this model has no 'no class'; leave it out.")
        if output_type not in OUTPUTS:
            raise UsageError(f"Got output_type {output_type} but expected one of {', '.join(OUTPUTS)}.")
        device = self._execution_device
        self.scheduler.set_timesteps(num_inference_steps)
        shape = (len(labels), *sample_shape(self, None))
        noise = randn_tensor(shape, generator=generator, device=device, dtype=self.transformer.dtype)
        with self.progress_bar(total=len(self.scheduler.timesteps)) as bar:
            latents = denoise(
                self.transformer,
                self.scheduler,
                noise * self.scheduler.init_noise_sigma,
                torch.tensor(labels, device=device),
                guidance_scale=scale,
                guided_channels=config.in_channels,
                generators=generator,
                advance=bar.update,
            )
        pictures = to_pixels(self, latents, len(labels), as_floats)
        self.maybe_free_model_hooks()
        if output_type == "pil":
            images = [Image.fromarray(picture) for picture in (255 * pictures).round().astype(np.uint8)]
        else:
            images = pictures if output_type == "np" else torch.from_numpy(pictures).movedim(-1, 1)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def as_floats(images: torch.Tensor) -> np.ndarray:
    """Tensor (N, C, H, W) in [-1, 1], C 1 or 3, to float32 (N, H, W, 3) in [0, 1]."""
    pixels = (images.float() / 2 + 0.5).clamp(0, 1).cpu()
    return pixels.expand(-1, 3, *pixels.shape[2:]).movedim(1, -1).numpy()
