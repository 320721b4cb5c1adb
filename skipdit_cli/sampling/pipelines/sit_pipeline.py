"""The pipeline of SiT, a DiT trained by flow matching, which diffusers has not."""

from __future__ import annotations

from diffusers import AutoencoderKL, DiffusionPipeline, DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler


class SiTPipeline(DiffusionPipeline):
    """The parts of a SiT (arXiv 2401.08740) in one folder.

    It has a name of its own so that no program takes it for a ``DiTPipeline``, whose schedulers would make noise of
    its velocity.

    Args:
        transformer: Predicts the velocity noise - data; its timesteps run from 1000, noise, to 0, data.
        vae: The decoder of its latents; None for a model of pixels.
        scheduler: Flow matching.
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
