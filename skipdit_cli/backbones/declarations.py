"""What is known by name about a family of diffusers transformers: its block lists and its streams."""

from __future__ import annotations

from dataclasses import dataclass

from skipdit_cli.errors import UsageError


@dataclass(frozen=True)
class Backbone:
    """Where the trunk of one diffusers class lies and what flows through it.

    Args:
        block_lists: Attribute names of the trunk's ``ModuleList``s, in the order they run.
        interleaved: The lists run in turn, one block of each makes a unit (Latte: spatial, temporal);
            otherwise one list follows the other and every block is a unit.
        streams: Names of the block arguments that cross from block to block, in the order a block returns them.
        joined: The stream that skip branches join.
        width: The config keys whose product is D, the width of the joined stream.
        official_time: The class itself spaces its timestep frequencies as the official code does.
    """

    block_lists: tuple[str, ...]
    interleaved: bool = False
    streams: tuple[str, ...] = ("hidden_states",)
    joined: str = "hidden_states"
    width: tuple[str, ...] = ("num_attention_heads", "attention_head_dim")
    official_time: bool = True


LATTE_LISTS = ("transformer_blocks", "temporal_transformer_blocks")  # spatial, temporal

BACKBONES: dict[str, Backbone] = {
    "DiTTransformer2DModel": Backbone(("transformer_blocks",), official_time=False),
    "LatteTransformer3DModel": Backbone(LATTE_LISTS, interleaved=True),
    "LatteClassTransformer3DModel": Backbone(LATTE_LISTS, interleaved=True),
}


def backbone_of(transformer) -> Backbone:
    """The declaration for a model.

    Raises:
        UsageError: There is none for its class.
    """
    name = type(transformer).__name__
    if name not in BACKBONES:
        raise UsageError(f"Got a {name}, which has no declared trunk; known are {', '.join(sorted(BACKBONES))}.")
    return BACKBONES[name]
