"""The trunk of one model instance: its units in running order, and what is attached to them."""

from __future__ import annotations

import inspect
import math
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from skipdit_cli.backbones.declarations import BACKBONES, Backbone, BlockList, class_name
from skipdit_cli.backbones.discover import check_class
from skipdit_cli.backbones.first_pass import FirstPass
from skipdit_cli.backbones.interpose import Interposed, interpose_outside, restore
from skipdit_cli.backbones.watch import TOKENS
from skipdit_cli.errors import UsageError

_ATTRIBUTE = "_skipdit_trunk"
_found: WeakKeyDictionary = WeakKeyDictionary()
"""Model to the trunk that was found in it."""


class Trunk:
    """The units (blocks, or Latte's pairs of blocks) of one transformer.

    ``branches`` (a ``SkipBranches``) and ``cache`` (a ``SkipCache``) are each optional. While either is set, every
    block of this instance is interposed on; when both are gone the instance is as diffusers made it. Parameters
    keep their names throughout. While it is ``held`` the blocks stay interposed on, for what is compiled is bound to
    them: a bench puts caches on and takes them off.

    Args:
        transformer: A model of the class that ``backbone`` is of.
        backbone: Where its trunk lies.
        declared: Whether that is known by name, for every model of the class.
        accepted: Whether it is trusted: declared, or found and tried out.

    Raises:
        UsageError: The model has not what ``backbone`` says.
    """

    def __init__(self, transformer, backbone: Backbone, declared: bool = True, accepted: bool = True):
        self.model_class, self.backbone = _class_of(transformer), backbone
        self.declared, self.accepted = declared, accepted
        blocks = [_blocks(transformer, listing) for listing in backbone.lists]
        pairs = [list(zip(each, [listing] * len(each))) for each, listing in zip(blocks, backbone.lists)]
        grouped = list(zip(*pairs)) if backbone.interleaved else [(pair,) for each in pairs for pair in each]
        self.units = [tuple(block for block, _ in unit) for unit in grouped]
        self.listings = [tuple(listing for _, listing in unit) for unit in grouped]
        width = backbone.width
        self.width = width if isinstance(width, int) else math.prod(transformer.config[key] for key in width)
        joins = [bool(unit[0].joins) for unit in self.listings]
        self.joining, self.only_joined = any(joins), all(joins)
        self.tokens = 0  # of the stream that branches join, where it is alone
        self.branches = None
        self.time_embedding: str | None = None  # of the model before the branches brought theirs
        self.cache = None
        self.held = False
        self.first_pass: FirstPass | None = FirstPass(self.model_class) if declared else None
        self._forget()

    def __len__(self) -> int:
        return len(self.units)

    def __getstate__(self) -> dict:
        """Copies start without the tensors of a forward in flight."""
        state = {key: value for key, value in self.__dict__.items() if key not in ("sources", "merged")}
        return state | {"first_pass": self.first_pass and FirstPass(self.model_class)}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self.sources: dict[int, torch.Tensor] = {}
        self.merged = WeakTensorKeyDictionary()

    @property
    def in_use(self) -> bool:
        return self.branches is not None or self.cache is not None or self.held

    def update(self) -> None:
        """Interpose on every block if anything is attached, else give the blocks back. Idempotent."""
        wanted = self.in_use
        for index, unit in enumerate(self.units):
            for position, block in enumerate(unit):
                if wanted:
                    make = partial(InterposedBlock, trunk=self, index=index, position=position)
                    interpose_outside(block, "forward", make)
                else:
                    restore(block, "forward")
        self._forget()

    def enter(self, index: int, streams: list, opens_unit: bool) -> list | None:
        """What the cache makes of the streams at the input of a block of unit ``index``; None where the unit is left
        out (the deep part of a reused step).

        Args:
            index: 0 to L-1.
            streams: What crosses blocks, in the declared order, each (batch, tokens, width) or alike, or None.
            opens_unit: Whether the block is the unit's first; only there a boundary is crossed.
        """
        if index == 0:
            self.sources.clear()
        if self.cache is None:
            return streams
        if opens_unit:
            streams = self.cache.cross(index, streams)
        if not self.cache.leaves_out(index):
            return streams
        if opens_unit and index == self.cache.layers:
            self._keep_source(index, streams[self.joined_at(index)])
        return None

    def joined_at(self, index: int) -> int:
        """Which of the streams at the input of unit ``index`` the branches join; of joined ones the whole."""
        listing = self.listings[index][0]
        return 0 if listing.joins else listing.names.index(self.backbone.joined)

    def source_for(self, index: int, x: torch.Tensor) -> torch.Tensor | None:
        """The source to join to x, the input of unit ``index``, if that unit is a target; x is kept as the output of
        the unit before, if that is a source."""
        if self.branches is None:
            return None
        training = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if training and x in self.merged:
            return self.merged[x]
        self._keep_source(index, x)
        source = self.sources.pop(len(self) - 1 - index, None) if 2 * index >= len(self) else None
        if training:
            # Gradient checkpointing runs blocks again in backward, in reverse and on the same input tensors: a
            # source stays beside the input of its target for as long as that input lives.
            self.merged[x] = source
        return source

    def _keep_source(self, index: int, x: torch.Tensor) -> None:
        if self.branches is None:
            return
        joins = self.listings[index][0].joins
        if self.joining and (not joins or self.only_joined):  # of a model without double blocks, all of them
            self.tokens = x.shape[TOKENS]
        if 1 <= index <= self.branches.num_pairs:
            start = self.start(index, x, self.tokens)
            self.sources[index - 1] = x.narrow(TOKENS, start, self.tokens) if joins else x

    def start(self, index: int, x: torch.Tensor, tokens: int) -> int:
        """Where in x, the input of unit ``index``, the ``tokens`` tokens begin that branches join."""
        joins = self.listings[index][0].joins
        return x.shape[TOKENS] - tokens if joins and joins[0] != self.backbone.joined else 0

    def carry(self, streams: list, origin: int, index: int) -> list:
        """Streams as they are at the input of unit ``origin``, in the layout they have at that of unit ``index``.

        Raises:
            UsageError: The model does more between the two than lay streams end to end.
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
        return streams


class InterposedBlock(Interposed):
    """The forward of one block of a unit, with the trunk asked first."""

    def __init__(self, inner, trunk: Trunk, index: int, position: int):
        super().__init__(inner)
        self.trunk, self.index, self.opens_unit = trunk, index, position == 0
        self.listing = trunk.listings[index][position]
        parameters = list(inspect.signature(inner).parameters)
        self.positions = [(name, parameters.index(name)) for name in self.listing.names]

    def __call__(self, *args, **kwargs):
        if not self.active:
            return self.inner(*args, **kwargs)
        trunk, index, args = self.trunk, self.index, list(args)
        given = [kwargs[name] if name in kwargs else args[at] for name, at in self.positions]
        streams = trunk.enter(index, given, self.opens_unit)
        if streams is None:
            return self._handed_through(given)
        looking = None if torch.compiler.is_compiling() else trunk.first_pass
        if looking is not None:
            looking.entered(self.listing, given)
        at = trunk.joined_at(index) if self.opens_unit else 0
        source = trunk.source_for(index, streams[at]) if self.opens_unit else None
        if source is not None:
            x, streams = streams[at], list(streams)
            tokens = source.shape[TOKENS]
            start = trunk.start(index, x, tokens)
            part = x if tokens == x.shape[TOKENS] else x.narrow(TOKENS, start, tokens)
            part = trunk.branches(part, source, len(trunk) - 1 - index)
            streams[at] = _put_into(x, part, start)
        for (name, at), stream in zip(self.positions, streams):
            if name in kwargs:
                kwargs[name] = stream
            else:
                args[at] = stream
        result = self.call_inner(*args, **kwargs)
        if looking is not None:
            looking.left(self.listing, given, result)
            trunk.first_pass = looking if index < len(trunk) - 1 else None
        return result

    def _handed_through(self, given: list):
        """What the block would return if it changed nothing."""
        if self.listing.bare:
            return given[0]
        named = dict(zip(self.listing.names, given))
        return tuple(named.get(name) for name in self.listing.streams)


def _put_into(x: torch.Tensor, part: torch.Tensor, start: int) -> torch.Tensor:
    """x with the tokens from ``start`` on replaced by ``part``."""
    end = start + part.shape[TOKENS]
    rest = x.shape[TOKENS] - end
    before = [x.narrow(TOKENS, 0, start)] if start else []
    after = [x.narrow(TOKENS, end, rest)] if rest else []
    return torch.cat([*before, part, *after], dim=TOKENS) if before or after else part


def _blocks(transformer, listing: BlockList) -> list:
    """The blocks of one list.

    Raises:
        UsageError: The model has no such list, or its blocks take other arguments.
    """
    name = type(transformer).__name__
    try:
        blocks = list(transformer.get_submodule(listing.name))
    except (AttributeError, TypeError) as cause:
        raise UsageError(f"Got {name} without {listing.name}, where its trunk is known to be.") from cause
    for block in blocks:
        missing = set(listing.names) - set(inspect.signature(block.forward).parameters)
        if missing:
            raise UsageError(f"Got {name} whose {listing.name} take no {sorted(missing)[0]}, which they are known to.")
    return blocks


def _class_of(transformer) -> str:
    return class_name(type(transformer).__name__, getattr(transformer, "config", {}))


def attached_trunk(transformer) -> Trunk | None:
    """The trunk that something is attached to (``torch.compile`` is looked through)."""
    return getattr(transformer, "_orig_mod", transformer).__dict__.get(_ATTRIBUTE)


def known_trunk(transformer) -> Trunk | None:
    """The trunk of a model, if its class is declared or it has been found before.

    Raises:
        UsageError: It is no model, or not of the shape that is declared for its class.
    """
    transformer = getattr(transformer, "_orig_mod", transformer)
    if not isinstance(transformer, torch.nn.Module):
        raise UsageError(f"Got {type(transformer).__name__} but expected a transformer, such as pipe.transformer.")
    trunk = attached_trunk(transformer) or _found.get(transformer)
    backbone = BACKBONES.get(_class_of(transformer))
    return Trunk(transformer, backbone) if trunk is None and backbone is not None else trunk


def keep_trunk(transformer, trunk: Trunk) -> None:
    """Keep a trunk on its model, which copies of the model then have too. Nothing is kept on a model that nothing is
    attached to; what was found of it is remembered elsewhere."""
    transformer = getattr(transformer, "_orig_mod", transformer)
    if trunk.in_use:
        transformer.__dict__[_ATTRIBUTE] = trunk
    else:
        transformer.__dict__.pop(_ATTRIBUTE, None)
    if trunk.accepted and not trunk.declared:
        _found[transformer] = trunk
    trunk.update()


def trunk_of(transformer) -> Trunk:
    """The trunk of a model.

    Raises:
        UsageError: It can have none, or its class is not declared and nothing has been found yet.
    """
    trunk = known_trunk(transformer)
    if trunk is None:
        check_class(getattr(transformer, "_orig_mod", transformer))
        name = type(getattr(transformer, "_orig_mod", transformer)).__name__
        raise UsageError(
            f"Got {name}, whose transformer trunk is not declared; give example_inputs, the arguments of a forward."
        )
    return trunk
