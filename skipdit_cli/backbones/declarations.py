"""Declarations of trunks as plain data: their block lists, and the streams through the blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class BlockList:
    """One ``ModuleList`` of a trunk.

    Args:
        name: Its attribute path in the model.
        streams: Names of the block arguments that a block returns for the next one, in the order of its outputs, with
            None for an output that is no stream. A single stream is returned bare, not in a tuple.
        joins: For a list with one stream: the streams of the lists before that it concatenates along the tokens
            (Flux.2 concatenates text and image before its single blocks).
        wrapped: Whether a single stream is returned in a tuple nevertheless.
    """

    name: str
    streams: tuple[str | None, ...] = ("hidden_states",)
    joins: tuple[str, ...] = ()
    wrapped: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the streams, without the outputs that are none."""
        return tuple(name for name in self.streams if name is not None)

    @property
    def bare(self) -> bool:
        """Whether a block returns a tensor and not a tuple."""
        return len(self.streams) == 1 and not self.wrapped


@dataclass(frozen=True)
class Backbone:
    """The trunk of one transformer class: the lists that its blocks lie in.

    Args:
        lists: The block lists, in the order they run.
        interleaved: Whether the lists alternate, so that one block of each makes a unit (Latte: spatial, temporal).
            Otherwise one list follows the other, and every block is a unit.
        joined: The stream that skip branches join: that of the image or video.
        width: D, the width of that stream: a number, or the config keys whose product it is.
        official_time: Whether the class spaces its timestep frequencies as the official code does, or has no weights
            of the official code.
        native_skips: Whether the class has long skips of its own; it gets no branches then.
    """

    lists: tuple[BlockList, ...]
    interleaved: bool = False
    joined: str = "hidden_states"
    width: tuple[str, ...] | int = ("num_attention_heads", "attention_head_dim")
    official_time: bool = True
    native_skips: bool = False

    def record(self) -> dict:
        """Return the declaration as JSON can hold it; ``from_record`` reads it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict) -> Backbone:
        """Return the declaration that ``record`` made a record of.

        Raises:
            KeyError, TypeError, AttributeError: It is no such record.
        """
        lists = tuple(
            BlockList(each["name"], tuple(each["streams"]), tuple(each["joins"]), each["wrapped"])
            for each in record["lists"]
        )
        width = record["width"]
        return cls(**{**record, "lists": lists, "width": width if isinstance(width, int) else tuple(width)})


HIDDEN = ("hidden_states",)
IMAGE_TEXT = ("hidden_states", "encoder_hidden_states")
TEXT_IMAGE = ("encoder_hidden_states", "hidden_states")


def _one(name: str = "transformer_blocks", streams: tuple[str, ...] = HIDDEN, **options) -> Backbone:
    return Backbone((BlockList(name, streams),), **options)


def _double_single(double: tuple[str, ...], single: tuple[str, ...] = (), joins: tuple[str, ...] = ()) -> Backbone:
    lists = BlockList("transformer_blocks", double), BlockList("single_transformer_blocks", single or double, joins)
    return Backbone(lists)


_LATTE = Backbone((BlockList("transformer_blocks"), BlockList("temporal_transformer_blocks")), interleaved=True)

BACKBONES: dict[str, Backbone] = {
    "DiTTransformer2DModel": _one(official_time=False),
    "LatteTransformer3DModel": _LATTE,
    "LatteClassTransformer3DModel": _LATTE,
    "HunyuanDiT2DModel": _one("blocks", native_skips=True),
    "PixArtTransformer2DModel": _one(),
    "SD3Transformer2DModel": _one(streams=TEXT_IMAGE),
    "FluxTransformer2DModel": _double_single(TEXT_IMAGE),
    "Flux2Transformer2DModel": _double_single(TEXT_IMAGE, HIDDEN, joins=TEXT_IMAGE),
    "ChromaTransformer2DModel": _double_single(TEXT_IMAGE, HIDDEN, joins=TEXT_IMAGE),
    "AuraFlowTransformer2DModel": Backbone(
        (
            BlockList("joint_transformer_blocks", TEXT_IMAGE),
            BlockList("single_transformer_blocks", HIDDEN, joins=TEXT_IMAGE),
        )
    ),
    "Lumina2Transformer2DModel": _one("layers", width=("hidden_size",)),
    "SanaTransformer2DModel": _one(),
    "QwenImageTransformer2DModel": _one(streams=TEXT_IMAGE),
    "ZImageTransformer2DModel": _one("layers", ("x",), joined="x", width=("dim",)),
    "CogVideoXTransformer3DModel": _one(streams=IMAGE_TEXT),
    "CogView4Transformer2DModel": _one(streams=IMAGE_TEXT),
    "WanTransformer3DModel": _one("blocks"),
    "LTXVideoTransformer3DModel": _one(),
    "LTX2VideoTransformer3DModel": _one(streams=("hidden_states", "audio_hidden_states")),
    "HunyuanVideoTransformer3DModel": _double_single(IMAGE_TEXT),
    "MochiTransformer3DModel": _one(streams=IMAGE_TEXT),
    "AllegroTransformer3DModel": _one(),
}

FORMER_NAMES = {
    "Transformer2DModel": {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
}
"""The former class name in the hub's configs of DiT and PixArt, to today's names by ``norm_type``. The other kinds of
that class (the attention of UNets, VQ-Diffusion) keep the name."""


def class_name(name: str, config: Mapping) -> str:
    """Return the name that diffusers has today for a transformer's class.

    Args:
        name: The name in its config or in ``model_index.json``.
        config: The config of the transformer.
    """
    return FORMER_NAMES.get(name, {}).get(str(config.get("norm_type")), name)
