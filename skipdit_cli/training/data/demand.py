"""What a model asks of its training data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from skipdit_cli.errors import UsageError
from skipdit_cli.families.labels import null_label

EXPERTS = {"high": "transformer", "low": "transformer_2"}
"""The two transformers of a pipeline that has two (Wan 2.2): for timesteps from ``boundary_ratio`` of all on, and for
those below."""


@dataclass(frozen=True)
class Trained:
    """
    Args:
        pipelines: Whose transformers are trained; others of the same class want more than noise and a condition.
        siblings: Pipelines that tell the same transformers no more than that, but start from a picture, say; and which
            one they are trained as.
        captions, videos: What samples are.
    """

    pipelines: tuple[str, ...]
    siblings: dict[str, str] = field(default_factory=dict)
    captions: bool = True
    videos: bool = False


TRAINED = {
    "DiTTransformer2DModel": Trained(("DiTPipeline", "SiTPipeline"), captions=False),
    "LatteClassTransformer3DModel": Trained(("LatteClassPipeline",), captions=False, videos=True),
    "LatteTransformer3DModel": Trained(("LattePipeline",), videos=True),
    "PixArtTransformer2DModel": Trained(
        ("PixArtAlphaPipeline", "PixArtSigmaPipeline"), {"PixArtSigmaPAGPipeline": "PixArtSigmaPipeline"}
    ),
    "SD3Transformer2DModel": Trained(
        ("StableDiffusion3Pipeline",),
        {
            "StableDiffusion3Img2ImgPipeline": "StableDiffusion3Pipeline",
            "StableDiffusion3InpaintPipeline": "StableDiffusion3Pipeline",
            "StableDiffusion3PAGPipeline": "StableDiffusion3Pipeline",
            "StableDiffusion3PAGImg2ImgPipeline": "StableDiffusion3Pipeline",
        },
    ),
    "FluxTransformer2DModel": Trained(
        ("FluxPipeline",), {"FluxImg2ImgPipeline": "FluxPipeline", "FluxInpaintPipeline": "FluxPipeline"}
    ),
    "HunyuanDiT2DModel": Trained(("HunyuanDiTPipeline",), {"HunyuanDiTPAGPipeline": "HunyuanDiTPipeline"}),
    "WanTransformer3DModel": Trained(("WanPipeline",), {"WanVideoToVideoPipeline": "WanPipeline"}, videos=True),
}
USUAL_LENGTH = {"WanTransformer3DModel": 81}
"""Frames of a clip for models of any number, as their pipelines have it."""


@dataclass(frozen=True)
class Demand:
    """
    Args:
        num_classes: The classes that labels are of; None for a model without.
        has_null: A label may be dropped, for guidance; one of a model that has no "no class" may not.
        captions: Every sample comes with a text.
        video_length: The most frames the model has positions for; None for a model of images.
        joined_frames: A video's frames after the first become one latent in groups of so many, and there is no most;
            None where a frame is a latent.
        expert: Which of two transformers is trained, a key of ``EXPERTS``; None where there is one.
        class_names: What the model calls its classes, and the labels of that name.
    """

    num_classes: int | None = None
    has_null: bool = True
    captions: bool = False
    video_length: int | None = None
    joined_frames: int | None = None
    expert: str | None = None
    class_names: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return "images" if self.video_length is None else "videos"


def demand_of(
    config: dict, where, pipeline: dict | None = None, vae: dict | None = None, expert: str | None = None
) -> Demand:
    """
    Args:
        config: Of the transformer, as its ``config.json`` holds it.
        where: What to call the model in an error.
        pipeline, vae: What ``model_index.json`` and the VAE's ``config.json`` hold, where there are such.
        expert: Which of the pipeline's transformers is to be trained, if it has two.
    Raises:
        UsageError: Models of this class, or pipelines of this kind, are not trained here; or which of two transformers
            is not said.
    """
    name = config.get("_class_name")
    if name not in TRAINED:
        *most, last = TRAINED
        raise UsageError(f"{where} is of a {name}; what can be trained here is {', '.join(most)} or {last}.")
    trained = TRAINED[name]
    if pipeline is not None:
        _check_pipeline(pipeline, trained, config, vae or {})
        _check_expert(pipeline, expert)
        if trained.captions:
            check_encoders(name for name, part in pipeline.items() if part == [None, None])
    if name in USUAL_LENGTH:
        joined = (vae or {}).get("scale_factor_temporal") or 4
        return Demand(captions=True, video_length=USUAL_LENGTH[name], joined_frames=joined, expert=expert)
    defaults = {"video_length": 16} if trained.videos else {"num_embeds_ada_norm": 1000}
    config = {**defaults, **config}
    classes = None if trained.captions else config.get("num_embeds_ada_norm")
    length = config["video_length"] if trained.videos else None
    has_null = trained.captions or null_label(config) is not None
    return Demand(classes, has_null, trained.captions, length, class_names=_class_names(pipeline or {}))


def _class_names(index: dict) -> dict[str, tuple[int, ...]]:
    """``id2label`` turned round; several names to one label lie between commas.

    Raises:
        UsageError: It is no such thing.
    """
    found: dict[str, tuple[int, ...]] = {}
    named = index.get("id2label") or {}
    if not isinstance(named, dict):
        raise UsageError(f"The model's id2label is a {type(named).__name__}; expected an object of labels to names.")
    for label, names in named.items():
        if not label.isdecimal() or not isinstance(names, str):
            raise UsageError(f"The model's id2label has {label!r}: {names!r}; expected labels to names.")
        for name in {names, *(each.strip() for each in names.split(","))}:
            found[name] = (*found.get(name, ()), int(label))
    return found


def _check_pipeline(index: dict, trained: Trained, config: dict, vae: dict) -> None:
    from skipdit_cli.sampling.latents import latent_channels  # with torch, which no --help waits for

    kind, name = index.get("_class_name"), config["_class_name"]
    taken, made = config.get("in_channels"), latent_channels(vae)
    packed = 4 if name == "FluxTransformer2DModel" else 1
    if trained.captions and taken is not None and made is not None and taken != made * packed:
        raise UsageError(
            f"Got a {kind} whose transformer takes {taken} channels where its VAE makes {made * packed}: it is told "
            "more than noise and a text, and such a model cannot be trained here."
        )
    if kind not in (*trained.pipelines, *trained.siblings):
        *most, last = *trained.pipelines, *trained.siblings
        allowed = f"{', '.join(most)} or {last}" if most else last
        raise UsageError(f"Got a {kind}, but of a {name} {allowed} can be trained here.")


def check_encoders(missing: Iterable[str]) -> None:
    """
    Args:
        missing: The parts that a pipeline of texts has not. SD3's third encoder may be one.
    Raises:
        UsageError: It reads no texts without.
    """
    found = sorted({"text_encoder", "text_encoder_2"}.intersection(missing))
    if found:
        raise UsageError(
            f"The model's folder has no {found[0]} to read captions with; give one that 'skipdit convert' made "
            "of a whole pipeline, or with --text-from."
        )


def _check_expert(index: dict, expert: str | None) -> None:
    kind, boundary = index.get("_class_name"), index.get("boundary_ratio")
    if (index.get(EXPERTS["low"]) or [None])[0] is None:
        if expert is not None:
            raise UsageError(f"Got --expert {expert}, but this {kind} has one transformer; leave it out.")
    elif not isinstance(boundary, (int, float)) or not 0 < boundary < 1:
        raise UsageError(
            f"Got a {kind} of two transformers with boundary_ratio {boundary}, by which it never uses one of them; "
            "expected a number between 0 and 1 in its model_index.json."
        )
    elif expert is None:
        raise UsageError(
            f"Got a {kind} of two transformers, of which one run trains one: give --expert high (from "
            f"{boundary:g} of the timesteps on) or --expert low (below)."
        )
