"""What a pipeline folder makes, and of what: told from its configs."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path

from skipdit_cli.checkpoints.weights import read_json
from skipdit_cli.pipelines.arguments import FRAMES


@dataclass(frozen=True)
class Kind:
    """
    Args:
        pipeline: Name of the pipeline's class.
        video: It makes videos, not pictures.
        text: It is given texts.
        classes: It is given class ids; without either it is given nothing.
        encodes: The parts that read texts are in the folder.
    """

    pipeline: str
    video: bool
    text: bool
    classes: bool
    encodes: bool

    @property
    def task(self) -> str | None:
        """The hub's name for it (PIPELINE_DATA in packages/tasks/src/pipelines.ts of huggingface.js), which it has not
        for videos of a class or of nothing. Images of a class count as ``unconditional-image-generation`` there.
        """
        if self.text:
            return "text-to-video" if self.video else "text-to-image"
        return None if self.video else "unconditional-image-generation"


def kind_of(folder: Path) -> Kind:
    """
    Raises:
        UsageError: A config is missing or damaged.
    """
    index, config = read_json(folder / "model_index.json"), read_json(folder / "transformer" / "config.json")
    reads = {name: value for name, value in index.items() if name.startswith(("text_encoder", "tokenizer"))}
    return Kind(
        pipeline=str(index.get("_class_name")),
        video="video_length" in config or _makes_frames(str(index.get("_class_name"))),
        text=bool(reads),
        classes=config.get("num_embeds_ada_norm") is not None,
        encodes=bool(reads) and [None, None] not in reads.values(),
    )


def _makes_frames(pipeline: str) -> bool:
    """Whether diffusers' pipeline of a name takes a number of frames."""
    import diffusers

    kind = getattr(diffusers, pipeline, None)
    return kind is not None and any(name in inspect.signature(kind.__call__).parameters for name in FRAMES)
