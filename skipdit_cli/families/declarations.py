"""Declarations of trunks, in plain data: which block lists a transformer has, and which streams run through them."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class BlockList:
    """One ``ModuleList`` of a trunk.

    Args:
        name: Attribute path of the list in the model.
        streams: Names of the block arguments that pass from block to block, in the order in which a block returns
            them. A single stream is returned as a tensor, not in a tuple. None stands for a returned value that is
            no stream.
        joins: For a list with one stream: the streams of the preceding lists that this stream concatenates along the
            tokens (the text and image streams before Flux.2's single blocks).
        wrapped: A block returns its single stream in a tuple.
    """

    name: str
    streams: tuple[str | None, ...] = ("hidden_states",)
    joins: tuple[str, ...] = ()
    wrapped: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the streams."""
        return tuple(name for name in self.streams if name is not None)

    @property
    def bare(self) -> bool:
        """Whether a block returns a tensor instead of a tuple."""
        return len(self.streams) == 1 and not self.wrapped


@dataclass(frozen=True)
class Backbone:
    """The declaration of a trunk: the block lists of one transformer class and the streams that run through them.

    Args:
        lists: The block lists of the trunk, in running order.
        interleaved: The lists run in turn, and one block of each makes a unit (a spatial and a temporal block of
            Latte). Otherwise one list follows the other, and every block is a unit.
        joined: Name of the image or video stream, which the skip branches join.
        width: D, the width of that stream: a number, or the config keys whose product it is.
        official_time: The class has only one spacing of timestep frequencies. False for a class whose weights may
            come from code that spaces them differently than diffusers does.
        native_skips: The class has long skips of its own and gets no skip branches.
    """

    lists: tuple[BlockList, ...]
    interleaved: bool = False
    joined: str = "hidden_states"
    width: tuple[str, ...] | int = ("num_attention_heads", "attention_head_dim")
    official_time: bool = True
    native_skips: bool = False

    def record(self) -> dict:
        """Return the declaration as JSON-compatible data, which ``from_record`` reads."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict) -> Backbone:
        """Return the declaration that ``record`` described.

        Raises:
            KeyError, TypeError, AttributeError: The data is no such record.
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


def one_list(name: str = "transformer_blocks", streams: tuple[str, ...] = HIDDEN, **options) -> Backbone:
    """Return the declaration of a trunk with one block list.

    Args:
        options: Further arguments of ``Backbone``.
    """
    return Backbone((BlockList(name, streams),), **options)


def double_and_single(
    double: tuple[str, ...],
    single: tuple[str, ...] = (),
    joins: tuple[str, ...] = (),
    names: tuple[str, str] = ("transformer_blocks", "single_transformer_blocks"),
) -> Backbone:
    """Return the declaration of a trunk whose dual-stream blocks are followed by single-stream blocks, as in Flux.

    Args:
        double: Streams of the dual-stream blocks.
        single: Streams of the single-stream blocks; those of the dual-stream blocks if empty.
        joins: Streams that the single stream concatenates, see ``BlockList``.
        names: Attribute paths of the two lists.
    """
    return Backbone((BlockList(names[0], double), BlockList(names[1], single or double, joins)))
