"""The pipeline of class-conditional and unconditional Latte, which diffusers has not."""

from __future__ import annotations

from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder, DiffusionPipeline
from diffusers.schedulers import KarrasDiffusionSchedulers

from skipdit_cli.families.latte_class_model import LatteClassTransformer3DModel


class LatteClassPipeline(DiffusionPipeline):
    """The parts of a class-to-video model in one folder, as ``DiTPipeline`` holds those of a class-to-image one.

    Args:
        transformer: The denoiser.
        vae: The decoder of its latents, frame by frame or with a look at those around; None for a model of pixels.
        scheduler: How it was trained.
        id2label: What its classes are called, by label, as ``DiTPipeline`` takes it.
    """

    _optional_components = ["vae"]

    def __init__(
        self,
        transformer: LatteClassTransformer3DModel,
        vae: AutoencoderKL | AutoencoderKLTemporalDecoder | None,
        scheduler: KarrasDiffusionSchedulers,
        id2label: dict[int, str] | None = None,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        if id2label:
            self.register_to_config(id2label={str(label): names for label, names in id2label.items()})

    @classmethod
    def load_config(cls, *arguments, **options):
        """Read ``model_index.json``, whichever version of skipdit wrote it: the transformer's class has one home."""
        config = super().load_config(*arguments, **options)
        index = config[0] if isinstance(config, tuple) else config
        if index.get("transformer", [None, None])[1] == LatteClassTransformer3DModel.__name__:
            index["transformer"] = [LatteClassTransformer3DModel.__module__, LatteClassTransformer3DModel.__name__]
        return config
