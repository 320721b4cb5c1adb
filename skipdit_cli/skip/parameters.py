"""How many parameters a model has, and how many of them its skip branches."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers.models.modeling_utils import ModelMixin
from torch.nn import Module


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters.

    Args:
        model: Those of the model without skip branches, counted as the DiT paper counts.
        copies: Those that diffusers holds beyond that: its DiT repeats the timestep and label embedders in each block.
        skip: Those of the skip branches.
    """

    model: int
    copies: int
    skip: int


def count_parameters(transformer: ModelMixin) -> ParameterCount:
    """Count the parameters of a transformer, on any device, the meta device included."""
    branches = getattr(transformer, "skip_branches", None)
    skip = 0 if branches is None else branches.num_parameters()
    copies = sum(parameter.numel() for each in copied_embedders(transformer) for parameter in each.parameters())
    return ParameterCount(transformer.num_parameters() - skip - copies, copies, skip)


def copied_embedders(transformer: ModelMixin) -> list[Module]:
    """Return the timestep and label embedders that diffusers repeats in each block of a DiT after the first."""
    blocks = list(getattr(transformer, "transformer_blocks", ()))
    embedders = [getattr(getattr(block, "norm1", None), "emb", None) for block in blocks[1:]]
    return [each for each in embedders if each is not None]
