"""A pipeline of DiT and SiT that needs torch and diffusers alone; model folders hold a copy of this file.

Load it with ``DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)``, or from the
hub with ``custom_pipeline="pipeline"``. It samples models of any number of classes, in pixels or latents, which
diffusers' own ``DiTPipeline`` does not. Skip branches in the folder are attached if skipdit_cli is installed.
"""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.embeddings import Timesteps
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor

logger = logging.getLogger(__name__)


class TimeFromNoise(Timesteps):
    """The timestep frequencies of SiT, whose time runs from 0 for noise to 1 for data."""

    def forward(self, timesteps):
        return super().forward(1 - timesteps / 1000)


class ClassToImagePipeline(DiffusionPipeline):
    """A class-to-image or unconditional pipeline of DiT (arXiv 2212.09748) or SiT (arXiv 2401.08740).

    Args:
        transformer: A ``DiTTransformer2DModel``.
        scheduler: Has the noise schedule of the training, or flow matching.
        vae: The VAE of its latents; None for a pixel-space model.
        id2label: Names of the classes by label.
    """

    _optional_components = ["vae"]
    model_cpu_offload_seq: Any = "transformer->vae"
    transformer: Any
    scheduler: Any
    vae: Any

    def __init__(self, transformer, scheduler, vae=None, id2label: dict[int, str] | None = None):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)
        if id2label:
            self.register_to_config(id2label=id2label)
        self._set_time_embedding(transformer.config.get("_time_embedding") or "diffusers")
        self._attach_branches(Path(str(transformer.config.get("_name_or_path", ""))).parent)

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """Return the labels of class names; a class may have several names, separated by commas."""
        names_of = self.config.get("id2label") or {}
        labels = {name.strip(): int(key) for key, names in names_of.items() for name in names.split(",")}
        names = [label] if isinstance(label, str) else label
        for name in names:
            if name not in labels:
                some = ", ".join([*list(labels)[:10], *["..."] * (len(labels) > 10)])
                allowed = f"one of {some}" if labels else "numbers, as this model has no names of classes"
                raise ValueError(f"Got the class name '{name}' but expected {allowed}.")
        return [labels[name] for name in names]

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int | None],
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple:
        """Sample one image per class label.

        Args:
            class_labels: One per image; one None per image for an unconditional model.
            guidance_scale: Classifier-free guidance. By default 4, and 1 (off) for a model without a null label.
            generator: One, or one per image.
            output_type: ``pil``, ``np`` or ``pt``, or ``latent``.

        Returns:
            The images.
        """
        config, device = self.transformer.config, self._execution_device
        null = config.num_embeds_ada_norm if config.get("_null_class", True) else None
        scale = (1.0 if null is None else 4.0) if guidance_scale is None else guidance_scale
        if scale > 1 and null is None:
            raise ValueError(f"Got guidance_scale {scale}, but the model has no null label; expected 1.")
        labels = None if None in class_labels else torch.tensor(class_labels, device=device)
        shape = (len(class_labels), config.in_channels, config.sample_size, config.sample_size)
        latents = randn_tensor(shape, generator=generator, device=device, dtype=self.transformer.dtype).float()
        self._set_timesteps(num_inference_steps, device)
        latents = latents * getattr(self.scheduler, "init_noise_sigma", 1.0)
        for t in self.progress_bar(self.scheduler.timesteps):
            output = self._predict(latents, t, labels, null, scale)
            latents = self.scheduler.step(output, t, latents, return_dict=False)[0]
        images = latents if output_type == "latent" else self._decode(latents, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _predict(self, latents, t, labels, null: int | None, scale: float) -> torch.Tensor:
        """Return the model's prediction for a denoising step, guided away from the null label."""
        x, guided = latents, False
        if hasattr(self.scheduler, "scale_model_input"):
            x = self.scheduler.scale_model_input(x, t)
        if scale > 1 and labels is not None and null is not None:
            guided = True
            x, labels = torch.cat([x, x]), torch.cat([labels, torch.full_like(labels, null)])
        x, time = x.to(self.transformer.dtype), torch.as_tensor(t, device=x.device).expand(len(x))
        output = self.transformer(x, timestep=time, class_labels=labels, return_dict=False)[0].float()
        channels = latents.shape[1]
        if guided:
            conditional, unconditional = output.chunk(2)
            base = unconditional[:, :channels]
            guided_part = base + scale * (conditional[:, :channels] - base)
            output = torch.cat([guided_part, conditional[:, channels:]], dim=1)
        takes_variance = self.scheduler.config.get("variance_type") in ("learned", "learned_range")
        return output if takes_variance else output[:, :channels]

    def _set_timesteps(self, steps: int, device) -> None:
        if isinstance(self.scheduler, FlowMatchEulerDiscreteScheduler):  # steps of equal length, as in SiT
            self.scheduler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)], device=device)
        else:
            self.scheduler.set_timesteps(steps, device=device)

    def _decode(self, latents: torch.Tensor, output_type: str):
        if self.vae is not None:
            config = self.vae.config
            latents = latents / config.scaling_factor + (config.get("shift_factor") or 0)
            latents = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        images = latents.float() if latents.shape[1] == 3 else latents.float()[:, :1].expand(-1, 3, -1, -1)
        return VaeImageProcessor().postprocess(images, output_type)

    def _set_time_embedding(self, kind: str) -> None:
        """Set the timestep frequencies that the weights were trained with, which diffusers' class may not have."""
        for block in self.transformer.transformer_blocks:
            projection = block.norm1.emb.time_proj
            projection.downscale_freq_shift = 1 if kind == "diffusers" else 0
            projection.__class__ = TimeFromNoise if kind == "sit" else Timesteps

    def _attach_branches(self, folder: Path) -> None:
        """Attach the skip branches of a local folder, or warn that they are left out."""
        if not (folder / "skip" / "config.json").is_file():
            return
        try:
            load_skip_branches = importlib.import_module("skipdit_cli").load_skip_branches
        except ImportError:
            logger.warning("%s/skip is left out: it needs skipdit_cli; this is the vanilla model.", folder)
            return
        load_skip_branches(self.transformer, folder)
