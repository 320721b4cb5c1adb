"""What a model asks of its training data."""

from __future__ import annotations

from dataclasses import dataclass

from skipdit_cli.errors import UsageError


@dataclass(frozen=True)
class Trained:
    """
    Args:
        pipelines: Whose transformers are trained; others of the same class want more than noise and a condition.
        captions, videos: What samples are.
    """

    pipelines: tuple[str, ...]
    captions: bool = True
    videos: bool = False


TRAINED = {
    "DiTTransformer2DModel": Trained(("DiTPipeline",), captions=False),
    "LatteClassTransformer3DModel": Trained(("LatteClassPipeline",), captions=False, videos=True),
    "LatteTransformer3DModel": Trained(("LattePipeline",), videos=True),
    "PixArtTransformer2DModel": Trained(("PixArtAlphaPipeline", "PixArtSigmaPipeline")),
    "SD3Transformer2DModel": Trained(("StableDiffusion3Pipeline",)),
    "FluxTransformer2DModel": Trained(("FluxPipeline",)),
    "HunyuanDiT2DModel": Trained(("HunyuanDiTPipeline",)),
    "WanTransformer3DModel": Trained(("WanPipeline",), videos=True),
}
USUAL_LENGTH = {"WanTransformer3DModel": 81}
"""Frames of a clip for models of any number, as their pipelines have it."""


@dataclass(frozen=True)
class Demand:
    """
    Args:
        num_classes: The classes that labels are of; None for a model without.
        captions: Every sample comes with a text.
        video_length: The most frames the model has positions for; None for a model of images.
        joined_frames: A video's frames after the first become one latent in groups of so many, and there is no most;
            None where a frame is a latent.
    """

    num_classes: int | None = None
    captions: bool = False
    video_length: int | None = None
    joined_frames: int | None = None

    @property
    def kind(self) -> str:
        return "images" if self.video_length is None else "videos"


def demand_of(config: dict, where, pipeline: dict | None = None, vae: dict | None = None) -> Demand:
    """
    Args:
        config: Of the transformer, as its ``config.json`` holds it.
        where: What to call the model in an error.
        pipeline, vae: What ``model_index.json`` and the VAE's ``config.json`` hold, where there are such.
    Raises:
        UsageError: Models of this class, or pipelines of this kind, are not trained here.
    """
    name = config.get("_class_name")
    if name not in TRAINED:
        *most, last = TRAINED
        raise UsageError(f"{where} is of a {name}; what can be trained here is {', '.join(most)} or {last}.")
    trained = TRAINED[name]
    if pipeline is not None:
        _check_pipeline(pipeline, trained, name)
    if name in USUAL_LENGTH:
        return Demand(None, True, USUAL_LENGTH[name], (vae or {}).get("scale_factor_temporal") or 4)
    defaults = {"video_length": 16} if trained.videos else {"num_embeds_ada_norm": 1000}
    config = {**defaults, **config}
    classes = None if trained.captions else config.get("num_embeds_ada_norm")
    return Demand(classes, trained.captions, config["video_length"] if trained.videos else None)


def _check_pipeline(index: dict, trained: Trained, name: str) -> None:
    kind = index.get("_class_name")
    if kind not in trained.pipelines:
        raise UsageError(f"Got a {kind}, but of a {name} {' or '.join(trained.pipelines)} can be trained here.")
    if (index.get("transformer_2") or [None])[0] is not None:
        raise UsageError(f"Got a {kind} of two transformers, but only pipelines of one can be trained here.")
