"""The pipeline of class-conditional and unconditional Latte, which diffusers lacks."""

from __future__ import annotations

from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers import KarrasDiffusionSchedulers

from skipdit_cli.families.latte_class_model import LatteClassTransformer3DModel
from skipdit_cli.sampling.pipelines.class_pipeline import ClassPipelineCall


class LatteClassPipeline(ClassPipelineCall, DiffusionPipeline):
    """A class-to-video pipeline, or an unconditional one.

    Args:
        transformer: Predicts the noise.
        vae: The VAE of its latents, image by image or temporal; None for a pixel-space model.
        scheduler: Has the noise schedule of the training.
        id2label: Names of the classes by label, as in ``DiTPipeline``.
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
        """Return the ``model_index.json``, with the module that holds the transformer's class now."""
        config = super().load_config(*arguments, **options)
        index = config[0] if isinstance(config, tuple) else config
        if index.get("transformer", [None, None])[1] == LatteClassTransformer3DModel.__name__:
            index["transformer"] = [LatteClassTransformer3DModel.__module__, LatteClassTransformer3DModel.__name__]
        return config
