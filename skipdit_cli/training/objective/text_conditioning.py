"""How the pipeline that is trained is conditioned on captions: its family's ``TextConditioning``."""

from __future__ import annotations

from skipdit_cli.families import TextConditioning, class_named, family_of
from skipdit_cli.families.pipeline_parts import transformer_of


def as_trained(pipe):
    """Return the pipeline that the transformer of ``pipe`` is trained in, on the same parts.

    It is another one where ``pipe`` starts from an image or a video, say, and ``pipe`` itself otherwise.
    """
    transformer = transformer_of(pipe)
    name = family_of(transformer).training.siblings.get(type(pipe).__name__)
    return pipe if name is None else class_named(name).from_pipe(pipe, dtype=transformer.dtype)


def text_conditioning_of(pipe) -> TextConditioning | None:
    """Return how a text-conditional pipeline is conditioned on captions; None for any other pipeline."""
    training = family_of(transformer_of(pipe)).training
    return None if training is None or training.captions is None else training.captions(pipe)


def patch_of(pipe) -> tuple[int, int]:
    """Return height and width, in latents, of the tokens of a pipeline's transformer."""
    transformer = transformer_of(pipe)
    training = family_of(transformer).training
    if training is not None and training.packing != (1, 1):
        return training.packing
    patch = transformer.config.patch_size
    return (patch, patch) if isinstance(patch, int) else tuple(patch)[-2:]
