"""What a model generates, and from which conditions, as its configs tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skipdit_cli.models.index import INDEX, has_part, is_part
from skipdit_cli.models.weights import read_json
from skipdit_cli.sampling.pipelines.call_arguments import frames_argument, needs_image


@dataclass(frozen=True)
class Kind:
    """What a model generates, and from which conditions.

    Args:
        pipeline: The name of the pipeline's class; empty for a transformer alone, which generates nothing by itself.
        video: It generates videos, not images.
        text: It is text-conditional.
        classes: It is class-conditional. A model that is neither is unconditional.
        image: It starts from an image, too.
        encodes: Its text encoder and tokenizer are in the folder.
    """

    pipeline: str
    video: bool
    text: bool
    classes: bool
    image: bool
    encodes: bool

    @property
    def task(self) -> str | None:
        """The hub's name of the task; None where it has none, as for class-conditional and unconditional videos.

        Class-conditional images count as ``unconditional-image-generation`` there (PIPELINE_DATA in
        packages/tasks/src/pipelines.ts of huggingface.js).
        """
        if not self.pipeline:
            return None
        if self.text:
            return f"{'image' if self.image else 'text'}-to-{'video' if self.video else 'image'}"
        return None if self.video else "unconditional-image-generation"


def kind_of(folder: Path) -> Kind:
    """Read from the configs of a folder what its model generates.

    Raises:
        UsageError: A config is missing or damaged.
    """
    import diffusers

    if is_part(folder):
        return Kind(pipeline="", video=False, text=False, classes=False, image=False, encodes=False)
    index, config = read_json(folder / INDEX), read_json(folder / "transformer" / "config.json")
    name = str(index.get("_class_name"))
    pipeline = getattr(diffusers, name, None)
    encoders = [part for part in index if part.startswith(("text_encoder", "tokenizer"))]
    return Kind(
        pipeline=name,
        video="video_length" in config or (pipeline is not None and frames_argument(pipeline) is not None),
        text=bool(encoders),
        classes=config.get("num_embeds_ada_norm") is not None,
        image=pipeline is not None and needs_image(pipeline),
        encodes=any(has_part(index, part) for part in encoders),
    )
