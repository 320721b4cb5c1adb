"""The pipeline of class-conditional and unconditional Latte, which diffusers has not."""

from __future__ import annotations

from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, DiffusionPipeline
from diffusers.schedulers import KarrasDiffusionSchedulers

from skipdit_cli.backbones.latte import LatteClassTransformer3DModel


class LatteClassPipeline(DiffusionPipeline):
    """The parts of a class-to-video model in one folder, as ``DiTPipeline`` holds those of a class-to-image one.

    Args:
        transformer: The denoiser.
        vae: The decoder of its latents, frame by frame or with a look at those around; None for a model of pixels.
        scheduler: How it was trained.
    """

    _optional_components = ["vae"]

    def __init__(
        self,
        transformer: LatteClassTransformer3DModel,
        vae: AutoencoderKL | AutoencoderKLTemporalDecoder | None,
        scheduler: KarrasDiffusionSchedulers,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
