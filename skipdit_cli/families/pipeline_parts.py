"""The transformers of a pipeline, and the parameters of its call."""

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


def call_parameters(pipe) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a pipeline's call."""
    return inspect.signature(type(pipe).__call__).parameters
