"""The pipeline of SiT, a DiT trained by flow matching, which diffusers lacks."""

from __future__ import annotations

from diffusers import AutoencoderKL, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from skipdit_cli.sampling.pipelines.class_pipeline import ClassPipelineCall
from skipdit_cli.sampling.schedulers import even_sigmas


class SiTPipeline(ClassPipelineCall, DiffusionPipeline):
    """A class-to-image pipeline of SiT (arXiv 2401.08740).

    Its name differs from ``DiTPipeline`` so that no program samples it with the schedulers of a DiT, which would take
    its velocity for noise.

    Args:
        transformer: Predicts the velocity noise - data; its timesteps run from 1000, noise, to 0, data.
        vae: The VAE of its latents; None for a pixel-space model.
        scheduler: Flow matching.
        id2label: Names of the classes by label, as in ``DiTPipeline``.
    """

    _optional_components = ["vae"]

    def __init__(
        self,
        transformer: DiTTransformer2DModel,
        vae: AutoencoderKL | None,
        scheduler: FlowMatchEulerDiscreteScheduler,
        id2label: dict[int, str] | None = None,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)

    def _set_timesteps(self, num_inference_steps: int) -> None:
        self.scheduler.set_timesteps(sigmas=even_sigmas(num_inference_steps))
