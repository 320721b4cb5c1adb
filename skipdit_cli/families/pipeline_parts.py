"""The transformers of a pipeline, compiled or not, and the parameters of its call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

TRANSFORMERS = ("transformer", "transformer_2")
"""The names of a pipeline's transformers, of which most have one and Wan 2.2 has two."""
FIRST, SECOND = TRANSFORMERS


def transformers_of(pipe) -> dict:
    """Return the transformers of a pipeline by the names of their parts: one, or two that take turns (Wan 2.2)."""
    parts = {part: getattr(pipe, part, None) for part in TRANSFORMERS}
    return {part: transformer for part, transformer in parts.items() if transformer is not None}


def transformer_of(pipe):
    """Return the first transformer of a pipeline that is loaded; the two of Wan 2.2 have the same shape."""
    return next(iter(transformers_of(pipe).values()))


def unwrap_compiled(module):
    """Return the module that ``torch.compile`` has wrapped, or the module itself if it is not wrapped."""
    return getattr(module, "_orig_mod", module)


def pipeline_type(pipe) -> type:
    """Return the class of a pipeline, given the pipeline, its class or its outline (``models.outline``)."""
    return pipe if isinstance(pipe, type) else getattr(pipe, "kind", None) or type(pipe)


def call_parameters(pipe) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of the ``__call__`` of a pipeline, by name."""
    return inspect.signature(pipeline_type(pipe).__call__).parameters
