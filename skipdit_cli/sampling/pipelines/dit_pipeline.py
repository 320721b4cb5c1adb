"""The pipeline of DiT, for models of any number of classes, in pixels or latents."""

from __future__ import annotations

import diffusers
from diffusers import AutoencoderKL, DiTTransformer2DModel
from diffusers.schedulers import KarrasDiffusionSchedulers

from skipdit_cli.families.conditioned_dit_model import ConditionedDiTTransformer2DModel
from skipdit_cli.sampling.pipelines.class_pipeline import ClassPipelineCall


class DiTPipeline(ClassPipelineCall, diffusers.DiTPipeline):
    """A ``diffusers.DiTPipeline`` that follows its model in the null label, and needs no VAE.

    The class of diffusers takes 1000 as the null label of every model. Both classes have one name, so that diffusers
    loads what this one saves.
    """

    _optional_components = ["vae"]

    def __init__(
        self,
        transformer: DiTTransformer2DModel | ConditionedDiTTransformer2DModel,  # diffusers warns of any other class
        vae: AutoencoderKL | None,
        scheduler: KarrasDiffusionSchedulers,
        id2label: dict[int, str] | None = None,
    ):
        super().__init__(transformer, vae, scheduler, id2label)

    def get_label_ids(self, label: str | list[str]) -> list[int]:
        """Return the labels of class names; diffusers takes a single name for a list of letters."""
        return super().get_label_ids([label] if isinstance(label, str) else label)
