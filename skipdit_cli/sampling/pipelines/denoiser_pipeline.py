"""The pipeline of a lone text-conditional transformer, to time it without text encoders and VAE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from skipdit_cli.families.example import example_inputs
from skipdit_cli.families.pipeline_parts import unwrap_compiled


class DenoiserPipeline(DiffusionPipeline):
    """Denoise without guidance, with seeded noise in the place of encoded prompts.

    The size is that of the transformer's config, or of its family's pipeline. The latents are no images.
    """

    scheduler: Any
    transformer: Any
    model_cpu_offload_seq: Any = "transformer"
    _optional_components = ["vae"]

    def __init__(self, transformer, scheduler, vae=None):
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler, vae=vae)

    @torch.no_grad()
    def __call__(
        self,
        prompt: Sequence[None],
        num_inference_steps: int = 50,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback_on_step_end: Callable | None = None,
        return_dict: bool = False,
    ) -> tuple[torch.Tensor]:
        """Denoise a batch, and return its latents (B, ...), in the layout of the transformer's input.

        Args:
            prompt: One None per sample.
            generator: One, or one per sample.
            callback_on_step_end: As in the pipelines of diffusers.
        """
        device, generators = self._execution_device, generator if isinstance(generator, list) else [generator]
        noise = torch.Generator().manual_seed(0)
        model = unwrap_compiled(self.transformer)
        inputs = example_inputs(model, len(prompt), device, model.dtype, generator=noise)
        sample, time = next(iter(inputs)), "timestep" if "timestep" in inputs else "t"
        is_list = isinstance(inputs[sample], list)
        latents = torch.stack(
            [torch.randn(each.shape, generator=one) for each, one in zip(inputs[sample], generators)]
        )
        latents = latents.to(device)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        for step, t in enumerate(self.scheduler.timesteps):
            x = self.scheduler.scale_model_input(latents, t).to(self.transformer.dtype)
            inputs |= {sample: list(x) if is_list else x, time: t.to(inputs[time].dtype).expand(inputs[time].shape)}
            output = self.transformer(**inputs, return_dict=False)[0]
            output = torch.stack(output) if isinstance(output, list) else output
            # the part of the output that is noise, not a variance; the part of the input that is not a condition
            part = tuple(slice(min(sides)) for sides in zip(latents.shape, output.shape))
            denoised = self.scheduler.step(output[part].float(), t, latents[part], return_dict=False)[0]
            latents = latents.clone()
            latents[part] = denoised
            if callback_on_step_end is not None:
                callback_on_step_end(self, step, t, {"latents": latents})
        return (latents,)
