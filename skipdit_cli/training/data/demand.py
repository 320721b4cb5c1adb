"""What a model requires of its training data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from skipdit_cli.errors import UsageError
from skipdit_cli.families import FAMILIES, Training, family_of
from skipdit_cli.families.labels import null_label
from skipdit_cli.families.pipeline_parts import TRANSFORMERS
from skipdit_cli.families.registry import config_value

EXPERTS = dict(zip(("high", "low"), TRANSFORMERS))
"""The two transformers of a pipeline that has two (Wan 2.2), by value of ``--expert``: one for the timesteps from
``boundary_ratio`` of all on, and one for those below."""


@dataclass(frozen=True)
class Demand:
    """The requirements.

    Args:
        num_classes: Number of classes; None for a model that is not class-conditional.
        has_null: Labels may be dropped in training. False for a class-conditional model without a null label.
        captions: Every sample has a caption.
        video_length: Most frames that the model has positions for; None for an image model.
        joined_frames: Number of frames, after the first, that the VAE encodes to one latent frame, in which case the
            number of frames is not limited; None where each frame is a latent frame.
        expert: Which of two transformers is trained, a key of ``EXPERTS``; None if there is one.
        class_names: Class labels by class name.
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
        """What the samples are, in the plural."""
        return "images" if self.video_length is None else "videos"


def demand_of(
    config: dict, where, pipeline: dict | None = None, vae: dict | None = None, expert: str | None = None
) -> Demand:
    """Return what a model requires of its training data.

    Args:
        config: The config of the transformer, as its ``config.json`` holds it.
        where: Name of the model for an error.
        pipeline, vae: The content of ``model_index.json`` and of the VAE's ``config.json``, if there are any.
        expert: Which of the pipeline's transformers is trained, if it has two.
    Raises:
        UsageError: Models of this class, or pipelines of this kind, cannot be trained; or the pipeline has two
            transformers and ``expert`` is None.
    """
    name = config.get("_class_name")
    training = family_of(str(name)).training
    if training is None:
        *names, last = [each.name for each in FAMILIES.values() if each.training is not None]
        raise UsageError(f"{where} is of a {name}; what can be trained here is {', '.join(names)} or {last}.")
    has_captions = training.captions is not None
    if pipeline is not None:
        _check_pipeline(pipeline, training, config, vae or {})
        _check_expert(pipeline, expert)
        if has_captions:
            check_encoders(name for name, part in pipeline.items() if part == [None, None])
    if training.clip_frames is not None:
        joined = (vae or {}).get("scale_factor_temporal") or 4
        return Demand(captions=True, video_length=training.clip_frames, joined_frames=joined, expert=expert)
    classes = None if has_captions else config_value(config, "num_embeds_ada_norm")
    length = config_value(config, "video_length") if training.videos else None
    has_null = has_captions or null_label({**config, "num_embeds_ada_norm": classes}) is not None
    return Demand(classes, has_null, has_captions, length, class_names=_class_names(pipeline or {}))


def _class_names(index: dict) -> dict[str, tuple[int, ...]]:
    """The labels of ``id2label`` by name; a label has several names where they are separated by commas.

    Raises:
        UsageError: ``id2label`` is not an object of labels to names.
    """
    labels: dict[str, tuple[int, ...]] = {}
    named = index.get("id2label") or {}
    if not isinstance(named, dict):
        raise UsageError(f"The model's id2label is a {type(named).__name__}; expected an object of labels to names.")
    for label, names in named.items():
        if not label.isdecimal() or not isinstance(names, str):
            raise UsageError(f"The model's id2label has {label!r}: {names!r}; expected labels to names.")
        for name in {names, *(part.strip() for part in names.split(","))}:
            labels[name] = (*labels.get(name, ()), int(label))
    return labels


def _check_pipeline(index: dict, training: Training, config: dict, vae: dict) -> None:
    from skipdit_cli.sampling.latents import latent_channels  # imports torch, which --help does not wait for

    kind, name = index.get("_class_name"), config["_class_name"]
    channels, encoded = config.get("in_channels"), latent_channels(vae)
    packed = math.prod(training.packing)
    if training.captions and channels is not None and encoded is not None and channels != encoded * packed:
        raise UsageError(
            f"Got a {kind} whose transformer takes {channels} channels where its VAE makes {encoded * packed}: it has "
            "inputs besides noise and a caption, and such a model cannot be trained here."
        )
    if kind not in (*training.pipelines, *training.siblings):
        *others, last = *training.pipelines, *training.siblings
        allowed = f"{', '.join(others)} or {last}" if others else last
        raise UsageError(f"Got a {kind}, but of a {name} {allowed} can be trained here.")


def check_encoders(missing: Iterable[str]) -> None:
    """Refuse a text-conditional pipeline without its text encoders.

    Args:
        missing: The parts that the pipeline lacks, of which SD3's third text encoder may be one.
    Raises:
        UsageError: It lacks its first or second text encoder.
    """
    encoders = sorted({"text_encoder", "text_encoder_2"}.intersection(missing))
    if encoders:
        raise UsageError(
            f"The model's folder has no {encoders[0]} to read captions with; give one that 'skipdit convert' made "
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
