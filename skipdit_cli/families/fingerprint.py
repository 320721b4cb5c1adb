"""Fingerprints of the transformers of a pipeline: one of their architecture, and one of their weights."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from skipdit_cli.families.pipeline_parts import transformers_of, unwrap_compiled
from skipdit_cli.formats import to_json

DIGITS = 16
"""Hexadecimal digits of a fingerprint."""
VALUES = 8
"""The number of values of each parameter that the fingerprint of the weights reads."""
ONLY_IN_TRAINING = ("dropout", "attention_dropout", "gradient_checkpointing")
"""Keys of a config that change nothing in a forward of the trained model."""


def architecture_fingerprint(pipe: Any) -> str:
    """Return a hash of what the transformers of a pipeline compute, apart from their weights.

    It covers the class of each and its config, without paths, versions and what matters in training alone.

    Args:
        pipe: The pipeline, or its outline.
    """
    shapes = {}
    for part, transformer in transformers_of(pipe).items():
        transformer = unwrap_compiled(transformer)
        names = [name for name in transformer.config if not name.startswith("_") and name not in ONLY_IN_TRAINING]
        shapes[part] = [class_name(transformer), {name: transformer.config[name] for name in sorted(names)}]
    return _short_hash(to_json(shapes))


def weights_fingerprint(pipe: Any) -> str | None:
    """Return a hash of the names, the shapes and the first values of all parameters of the transformers.

    The values are read in bfloat16, so that a model in float32 and the same in bfloat16 have one fingerprint.

    Returns:
        The hash, or None if weights are on the meta device: of an outline, or while they are offloaded.
    """
    headers, values = [], []
    for part, transformer in transformers_of(pipe).items():
        for name, parameter in sorted(unwrap_compiled(transformer).named_parameters()):
            if parameter.is_meta:
                return None
            name = name.replace("_orig_mod.", "")  # a block that was compiled alone
            headers.append(f"{part}.{name} {list(parameter.shape)}")
            values.append(parameter.detach().reshape(-1)[:VALUES].to(torch.bfloat16).cpu())
    return _short_hash("\n".join(headers), torch.cat(values).view(torch.uint8).numpy().tobytes())


def class_name(transformer: Any) -> str:
    """Return the name of the class of a transformer, which may be compiled."""
    return type(unwrap_compiled(transformer)).__name__


def _short_hash(text: str, values: bytes = b"") -> str:
    return hashlib.sha256(text.encode() + values).hexdigest()[:DIGITS]
