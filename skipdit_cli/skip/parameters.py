"""How many parameters a model has."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters.

    Args:
        model: Of the model without skip branches, as the DiT paper counts.
        copies: What diffusers holds beyond that: its DiT repeats the timestep and label embedders in every block.
        skip: Of the skip branches.
    """

    model: int
    copies: int
    skip: int


def count_parameters(transformer: nn.Module) -> ParameterCount:
    """Count on any device, meta included."""
    branches = getattr(transformer, "skip_branches", None)
    skip = _size(branches) if branches is not None else 0
    blocks = getattr(transformer, "transformer_blocks", ())
    embedders = [getattr(getattr(block, "norm1", None), "emb", None) for block in list(blocks)[1:]]
    copies = sum(_size(embedder) for embedder in embedders if embedder is not None)
    return ParameterCount(_size(transformer) - skip - copies, copies, skip)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
