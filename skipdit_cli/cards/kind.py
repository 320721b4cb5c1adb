"""What a folder makes, and of what: told from its configs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from skipdit_cli.models.index import INDEX, is_part
from skipdit_cli.models.weights import read_json
from skipdit_cli.sampling.pipelines.call_arguments import frames_argument, needs_image


@dataclass(frozen=True)
class Kind:
    """
    Args:
        pipeline: Name of the pipeline's class; empty of a transformer alone, which makes nothing by itself.
        video: It makes videos, not pictures.
        text: It is given texts.
        classes: It is given class ids; without either it is given nothing.
        image: It is given a picture to start from, too.
        encodes: The parts that read texts are in the folder.
    """

    pipeline: str
    video: bool
    text: bool
    classes: bool
    image: bool
    encodes: bool

    @property
    def task(self) -> str | None:
        """The hub's name for it (PIPELINE_DATA in packages/tasks/src/pipelines.ts of huggingface.js), which it has not
        for videos of a class or of nothing. Images of a class count as ``unconditional-image-generation`` there.
        """
        if not self.pipeline:
            return None
        if self.text:
            return f"{'image' if self.image else 'text'}-to-{'video' if self.video else 'image'}"
        return None if self.video else "unconditional-image-generation"


def kind_of(folder: Path) -> Kind:
    """
    Raises:
        UsageError: A config is missing or damaged.
    """
    import diffusers

    if is_part(folder):
        return Kind(pipeline="", video=False, text=False, classes=False, image=False, encodes=False)
    index, config = read_json(folder / INDEX), read_json(folder / "transformer" / "config.json")
    name = str(index.get("_class_name"))
    pipeline = getattr(diffusers, name, None)
    reads = {name: value for name, value in index.items() if name.startswith(("text_encoder", "tokenizer"))}
    return Kind(
        pipeline=name,
        video="video_length" in config or (pipeline is not None and frames_argument(pipeline) is not None),
        text=bool(reads),
        classes=config.get("num_embeds_ada_norm") is not None,
        image=pipeline is not None and needs_image(pipeline),
        encodes=any(value != [None, None] for value in reads.values()),
    )
