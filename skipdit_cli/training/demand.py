"""What a model asks of its training data."""

from __future__ import annotations

from dataclasses import dataclass

from skipdit_cli.errors import UsageError

TRAINED = ("DiTTransformer2DModel", "LatteClassTransformer3DModel", "LatteTransformer3DModel")


@dataclass(frozen=True)
class Demand:
    """
    Args:
        num_classes: The classes that labels are of; None for a model without.
        captions: Every sample comes with a text.
        video_length: The most frames the model has positions for; None for a model of images.
    """

    num_classes: int | None = None
    captions: bool = False
    video_length: int | None = None

    @property
    def kind(self) -> str:
        return "images" if self.video_length is None else "videos"


def demand_of(config: dict, where) -> Demand:
    """
    Args:
        config: Of the transformer, as its ``config.json`` holds it.
        where: What to call the model in an error.
    Raises:
        UsageError: Models of this class are not trained here.
    """
    name = config.get("_class_name")
    if name not in TRAINED:
        raise UsageError(
            f"{where} is of a {name}; what can be trained here is {', '.join(TRAINED[:-1])} or {TRAINED[-1]}."
        )
    captions = name == "LatteTransformer3DModel"
    defaults = {"num_embeds_ada_norm": 1000} if name == "DiTTransformer2DModel" else {"video_length": 16}
    config = {**defaults, **config}
    return Demand(None if captions else config.get("num_embeds_ada_norm"), captions, config.get("video_length"))
