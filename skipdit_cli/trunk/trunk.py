"""The trunk of one transformer: its units in running order, and the streams at the input of each."""

from __future__ import annotations

import inspect
import math
from operator import attrgetter
from typing import Any, Protocol

import torch

from skipdit_cli.errors import UsageError
from skipdit_cli.families import Backbone, BlockList, class_name_of
from skipdit_cli.families.pipeline_parts import unwrap_compiled
from skipdit_cli.trunk.first_pass import FirstPass
from skipdit_cli.trunk.forward_state import ForwardState, ForwardStates
from skipdit_cli.trunk.watch import TOKENS


class Merge(Protocol):
    """The skip branches of a trunk, as its blocks call them (``skip.merge.SkipMerge``).

    Attributes:
        former_time_embedding: The kind of time embedding that the model had before; None for a family with only one.
    """

    former_time_embedding: str | None

    @property
    def needs_sources(self) -> bool:
        """Whether a target cannot run without its source."""

    @property
    def branches(self) -> torch.nn.Module:
        """The ``SkipBranches``."""

    def keep(self, state: ForwardState, passed: int, index: int, streams: list) -> None:
        """Keep the input of unit ``index`` as the output of unit ``passed - 1``, if that is a source."""

    def join(self, state: ForwardState, index: int, streams: list) -> list:
        """Return the streams at the input of unit ``index``, with its source joined if it is a target."""

    def recompute(self, index: int, streams: list) -> list | None:
        """Return what ``join`` returned for these streams, or None if it did not see them."""


class LiveEnds(Protocol):
    """The units that run in every step (``cache.live_ends.LiveEnds``).

    Attributes:
        front: The first so many units run on every step.
        boundary: The unit at whose input the boundary lies; L if it is the output of the last one.
    """

    front: int
    boundary: int


class Cache(Protocol):
    """The cache of a trunk, as its blocks call it (``cache.SkipCache``)."""

    @property
    def ends(self) -> LiveEnds:
        """The units that run in every step."""

    def leaves_out(self, index: int) -> bool:
        """Return whether unit ``index`` does not run in this forward."""

    def cross(self, index: int, streams: list) -> list:
        """Return the streams at the input of unit ``index``, from memory at the boundary of a reused step."""


class Trunk:
    """The units (blocks, or Latte's pairs of blocks) of one transformer.

    Args:
        transformer: A model of the class that ``backbone`` describes.
        backbone: The block lists and their streams.
        declared: Whether ``backbone`` is the declaration of the class, and was not found in a forward.
        verified: Whether the trunk is declared, or has passed ``Trial.accept``.

    Attributes:
        units: The blocks of each unit, a tuple per unit.
        blocks: All blocks of all units.
        listings: The ``BlockList`` of each of these blocks.
        width: D, the width of the stream that skip branches join.
        merge: The skip branches that are attached, or None.
        cache: The cache that is enabled, or None.
        always_wrapped: Whether blocks stay wrapped while nothing is attached (see ``keep_wrapped``).
        forwards: The forwards that are under way.
        first_pass: The check of a declared trunk; None once a forward has passed it.

    Raises:
        UsageError: The model does not have the blocks that ``backbone`` describes.
    """

    def __init__(self, transformer, backbone: Backbone, declared: bool = True, verified: bool = True):
        self.model_class, self.backbone = class_of(transformer), backbone
        self.declared, self.verified = declared, verified
        units, self.listings = _units(transformer, backbone)
        self.set_units(units)
        self._check_parameters(units)
        width = backbone.width
        self.width = width if isinstance(width, int) else math.prod(transformer.config[key] for key in width)
        firsts, joined = [unit[0] for unit in self.listings], backbone.joined
        self._joined_positions = [0 if first.joins else first.names.index(joined) for first in firsts]
        concatenated = [bool(first.joins) for first in firsts]
        self.concatenates, self.only_concatenated = any(concatenated), all(concatenated)
        self.merge: Merge | None = None
        self.cache: Cache | None = None
        self.always_wrapped = False
        self.forwards = ForwardStates()
        self.first_pass: FirstPass | None = FirstPass(self.model_class) if declared else None

    def __len__(self) -> int:
        return len(self.units)

    @property
    def branches(self) -> Any:
        """The ``SkipBranches`` that are attached, or None."""
        return None if self.merge is None else self.merge.branches

    @property
    def needs_sources(self) -> bool:
        """Whether a target unit cannot run without its source, by the merge of its branches or by native skips."""
        return self.backbone.native_skips or (self.merge is not None and self.merge.needs_sources)

    @property
    def in_use(self) -> bool:
        """Whether the blocks are to be wrapped."""
        return self.merge is not None or self.cache is not None or self.always_wrapped

    def set_units(self, units: list[tuple]) -> None:
        """Take the blocks of each unit."""
        self.units, self.blocks = units, [block for unit in units for block in unit]

    def new_first_pass(self) -> FirstPass | None:
        """Return the check for one forward, or None if an earlier forward has passed it."""
        return None if self.first_pass is None else FirstPass(self.model_class)

    def current_blocks(self, transformer) -> list:
        """Return the blocks that the model has now, list by list."""
        return [block for listing in self.backbone.lists for block in _blocks(transformer, listing)]

    def current_units(self, transformer) -> list[tuple]:
        """Return the units that the model has now, which differ from ``units`` where its blocks were replaced.

        Raises:
            UsageError: The model has another number of blocks, or they take other arguments.
        """
        units, _ = _units(transformer, self.backbone)
        if units != self.units:
            if len(units) != len(self):
                raise UsageError(
                    f"Got {self.model_class} of {len(units)} blocks, which had {len(self)} when branches or a cache "
                    "were attached; attach them again."
                )
            self._check_parameters(units)
        return units

    def _check_parameters(self, units: list[tuple]) -> None:
        """Check that each block takes the streams of its list as arguments. Reading signatures is too slow to do in
        each forward.

        Raises:
            UsageError: A block lacks such an argument.
        """
        for block, listing in (pair for unit in zip(units, self.listings) for pair in zip(*unit)):
            missing = set(listing.names) - set(parameters_of(block))
            if missing:
                name = sorted(missing)[0]
                raise UsageError(f"Got {self.model_class} whose {listing.name} take no {name}, a stream of its trunk.")

    def joined_position(self, index: int) -> int:
        """Return the position, among the streams at the input of unit ``index``, of the one that branches join. A
        stream that is concatenated of several counts as one."""
        return self._joined_positions[index]

    def tells_tokens(self, index: int) -> bool:
        """Return whether the length of the joined stream is read at the input of unit ``index``: in a model that
        concatenates it with others later on, while it is still alone."""
        return self.concatenates and (not self.listings[index][0].joins or self.only_concatenated)

    def first_token(self, index: int, x: torch.Tensor, tokens: int) -> int:
        """Return where in x, the input of unit ``index``, the ``tokens`` tokens of the joined stream begin."""
        joins = self.listings[index][0].joins
        return x.shape[TOKENS] - tokens if joins and joins[0] != self.backbone.joined else 0

    def joined_part(self, index: int, x: torch.Tensor, tokens: int) -> torch.Tensor:
        """Return the joined stream in x, the input of unit ``index``: all of x, or ``tokens`` tokens of it."""
        if not self.listings[index][0].joins:
            return x
        return x.narrow(TOKENS, self.first_token(index, x, tokens), tokens)

    def joined_output(self, index: int, result) -> torch.Tensor:
        """Return the stream that branches join, or the one that holds it, in what the last block of a unit returns."""
        listing, name = self.listings[index][-1], self.backbone.joined
        if listing.bare:
            return result
        return result[listing.streams.index(name if name in listing.names else listing.names[0])]

    def change_layout(self, streams: list, origin: int, index: int, like: list) -> list:
        """Return the streams at the input of unit ``origin`` in the layout that unit ``index`` takes.

        Args:
            index: A unit behind ``origin``, or L for the layout that the last unit returns.
            like: Streams in that layout, whose shapes are needed where blocks of two lists take turns.

        Raises:
            UsageError: The model does more between the two units than to concatenate streams.
        """
        here = self.listings[origin][0]
        for unit in self.listings[origin + 1 : index + 1]:
            there = unit[0]
            if there is here:
                continue
            named = dict(zip(here.names, streams))
            if there.joins:
                streams = [torch.cat([named[name] for name in there.joins], dim=TOKENS)]
            elif set(there.names) <= set(named):
                streams = [named[name] for name in there.names]
            else:
                raise UsageError(
                    f"Got a residual cache target, but {self.model_class} changes its streams on the way."
                )
            here = there
        if index == len(self) and self.backbone.interleaved:
            return [x if x is None else _swap_tokens(x, other) for x, other in zip(streams, like)]
        return streams


def _swap_tokens(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the spatial layout (B·F, tokens, D) of x in the temporal one of ``like``, (B·tokens, F, D). Where the two
    blocks of a unit share one layout, x is returned as it is."""
    if x.shape == like.shape or x.ndim != 3:
        return x
    return x.unflatten(0, (-1, like.shape[1])).transpose(1, 2).flatten(0, 1)


def class_of(transformer) -> str:
    """Return the name that diffusers has today for the transformer's class."""
    return class_name_of(transformer)


def parameters_of(block):
    """Return the parameters of the block's forward, by name."""
    return inspect.signature(unwrap_compiled(block).forward).parameters


def _units(transformer, backbone: Backbone) -> tuple[list[tuple], list[tuple]]:
    """The blocks of each unit, and the ``BlockList`` of each of these blocks."""
    pairs = [[(block, listing) for block in _blocks(transformer, listing)] for listing in backbone.lists]
    grouped = list(zip(*pairs)) if backbone.interleaved else [(pair,) for each in pairs for pair in each]
    return [tuple(block for block, _ in unit) for unit in grouped], [tuple(of for _, of in unit) for unit in grouped]


def _blocks(transformer, listing: BlockList) -> list:
    """The blocks of one list.

    Raises:
        UsageError: The model has no such list.
    """
    name = type(transformer).__name__
    try:
        return list(attrgetter(listing.name)(transformer))
    except (AttributeError, TypeError) as cause:
        raise UsageError(f"Got {name} without {listing.name}, where its trunk is known to be.") from cause
