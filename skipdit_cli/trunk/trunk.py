"""The trunk of one model instance: its units in running order, and what is attached to them."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from skipdit_cli.errors import UsageError
from skipdit_cli.families import Backbone, BlockList, class_name
from skipdit_cli.trunk.block import COMPILED, InterposedBlock, called_by, parameters_of
from skipdit_cli.trunk.first_pass import FirstPass
from skipdit_cli.trunk.forward_state import ForwardState, ForwardStates
from skipdit_cli.trunk.interpose import find, interpose_outside, restore
from skipdit_cli.trunk.other_caches import other_cache
from skipdit_cli.trunk.watch import TOKENS


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
        self.model_class, self.backbone = class_of(transformer), backbone
        self.declared, self.accepted = declared, accepted
        self.units, self.listings = _units(transformer, backbone)
        self._check_parameters(self.units)
        width = backbone.width
        self.width = width if isinstance(width, int) else math.prod(transformer.config[key] for key in width)
        joins = [bool(unit[0].joins) for unit in self.listings]
        self.joining, self.only_joined = any(joins), all(joins)
        self.branches = None
        self.time_embedding: str | None = None  # of the model before the branches brought theirs
        self.cache = None
        self.held = False
        self.first_pass: FirstPass | None = FirstPass(self.model_class) if declared else None
        self._start_anew()

    def __len__(self) -> int:
        return len(self.units)

    def __getstate__(self) -> dict:
        """Copies start without the tensors of a forward in flight."""
        state = {key: value for key, value in self.__dict__.items() if key not in ("states", "merged")}
        return state | {"first_pass": self.first_look()}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._start_anew()

    def _start_anew(self) -> None:
        self.states = ForwardStates()
        self.merged = WeakTensorKeyDictionary()  # input of a unit to its index and the source that joined it

    @property
    def in_use(self) -> bool:
        return self.branches is not None or self.cache is not None or self.held

    def update(self) -> None:
        """Interpose on every block if anything is attached, else give the blocks back. Idempotent.

        Raises:
            UsageError: A cache of diffusers is on blocks that we would come to stand before.
        """
        inside = [block for unit in self.units for block in unit if not _stands_outside(block)]
        if self.in_use and (other := other_cache(inside)) is not None:
            raise UsageError(
                f"Got {self.model_class} with diffusers' {other} on blocks that skipdit has to stand before; turn it "
                "off (transformer.disable_cache()), and on again after branches are on and blocks are compiled."
            )
        for index, unit in enumerate(self.units):
            for position, block in enumerate(unit):
                place = called_by(block) if self.in_use else None
                for name in {"forward", COMPILED} - {place}:
                    restore(block, name, InterposedBlock)
                if place is not None:
                    make = partial(InterposedBlock, trunk=self, index=index, position=position)
                    interpose_outside(block, place, make)

    def settle(self, transformer) -> None:
        """See that a forward that is about to begin finds our hands at every block: others may have taken them away
        (offload hooks that go, a copy of compiled blocks), or have compiled the blocks since.

        Raises:
            UsageError: The model has other blocks than it had, in number or in what they take.
        """
        units, _ = _units(transformer, self.backbone)
        if units != self.units:
            if len(units) != len(self):
                raise UsageError(
                    f"Got {self.model_class} of {len(units)} blocks, which had {len(self)} when branches or a cache "
                    "were put on; put them on again."
                )
            for block in (block for unit in self.units for block in unit):
                restore(block, "forward", InterposedBlock)
                restore(block, COMPILED, InterposedBlock)
            self._check_parameters(units)
            self.units = units
        if not all(_stands_outside(block) for unit in units for block in unit):
            self.update()

    def _check_parameters(self, units: list[tuple]) -> None:
        """Not at each forward, for signatures take longer to read than blocks to find.

        Raises:
            UsageError: A block takes other arguments than those of its list are known to.
        """
        for block, listing in (pair for unit in zip(units, self.listings) for pair in zip(*unit)):
            missing = set(listing.names) - set(parameters_of(block))
            if missing:
                name = sorted(missing)[0]
                raise UsageError(
                    f"Got {self.model_class} whose {listing.name} take no {name}, which they are known to."
                )

    def first_look(self) -> FirstPass | None:
        """For one forward, as long as none has been looked at to its end."""
        return self.first_pass and FirstPass(self.model_class)

    def state_at(self, index: int, opens_unit: bool) -> ForwardState:
        """What is kept of the forward that has come to a block of unit ``index``."""
        return self.states.at(index, opens_unit, self.first_look())

    def enter(self, state: ForwardState, index: int, streams: list, opens_unit: bool) -> list | None:
        """What the cache makes of the streams at the input of a block of unit ``index``; None where the unit is left
        out (the deep part of a reused step).

        Args:
            state: Of this forward.
            index: 0 to L-1.
            streams: What crosses blocks, in the declared order, each (batch, tokens, width) or alike, or None.
            opens_unit: Whether the block is the unit's first; only there a boundary is crossed.
        """
        cache = None if torch.is_grad_enabled() else self.cache
        if opens_unit:
            # Units that the model itself left out (skip layer guidance) hand through what comes to them.
            for passed in range(state.last + 1, index + 1):
                if cache is None or passed <= cache.layers or not cache.leaves_out(passed):
                    self._keep_source(state, passed, index, streams)
                if cache is not None:
                    streams = cache.cross(passed, streams)
            state.last = index
        return None if cache is not None and cache.leaves_out(index) else streams

    def joined_at(self, index: int) -> int:
        """Which of the streams at the input of unit ``index`` the branches join; of joined ones the whole."""
        listing = self.listings[index][0]
        return 0 if listing.joins else listing.names.index(self.backbone.joined)

    def pair_of(self, index: int) -> int | None:
        """The i of the pair (i, L-1-i) that unit ``index`` is the target of; None if it is of none."""
        pair = len(self) - 1 - index
        return pair if self.branches is not None and pair < min(index, self.branches.num_pairs) else None

    def recorded(self, index: int, x: torch.Tensor) -> tuple[torch.Tensor | None] | None:
        """Of a unit that has run on this very x before: the source that was joined to it, None if none was."""
        if self.branches is None or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        record = self.merged.get(x, {}).get(index)
        return record if record is None or len(record) == 1 else (self._source_in(index, x, record[1]),)

    def source_for(self, state: ForwardState, index: int, x: torch.Tensor) -> torch.Tensor | None:
        """The source to join to x, the input of unit ``index``, if that unit is a target.

        Raises:
            UsageError: It is one, and ran without the units before it.
        """
        if self.branches is None:
            return None
        pair, source = self.pair_of(index), None
        if pair is not None:
            source = state.sources.pop(pair, None)
            if source is None:
                raise UsageError(
                    f"Block {index} of {self.model_class} ran without block {pair}, whose skip branch joins it: run "
                    "the whole transformer, and gradient checkpointing with use_reentrant=False."
                )
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # A source stays beside the input of its target for as long as that input lives: see ``recorded``. What is
            # that input itself, or a part of it, would keep it alive for good.
            itself = pair is not None and state.kept_at[pair] == index
            self.merged.setdefault(x, {})[index] = (None, state.tokens) if itself else (source,)
        return source

    def _keep_source(self, state: ForwardState, passed: int, index: int, streams: list) -> None:
        """Keep what comes to unit ``index`` as the output of the unit before ``passed``, if that is a source."""
        if self.branches is None:
            return
        x, joins = streams[self.joined_at(index)], self.listings[index][0].joins
        if self.joining and (not joins or self.only_joined):  # of a model without double blocks, all of them
            state.tokens = x.shape[TOKENS]
        if 1 <= passed <= self.branches.num_pairs:
            state.sources[passed - 1] = self._source_in(index, x, state.tokens)
            state.kept_at[passed - 1] = index

    def _source_in(self, index: int, x: torch.Tensor, tokens: int) -> torch.Tensor:
        """The part of x, the input of unit ``index``, that branches take: all of it, or so many tokens of it."""
        joins = self.listings[index][0].joins
        return x.narrow(TOKENS, self.start(index, x, tokens), tokens) if joins else x

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


def _stands_outside(block) -> bool:
    """Whether we stand before a block already, maybe under the hooks of others."""
    return find(block, called_by(block), InterposedBlock) is not None


def _units(transformer, backbone: Backbone) -> tuple[list[tuple], list[tuple]]:
    """The blocks of each unit, and the list that each of them lies in."""
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
        return list(transformer.get_submodule(listing.name))
    except (AttributeError, TypeError) as cause:
        raise UsageError(f"Got {name} without {listing.name}, where its trunk is known to be.") from cause


def class_of(transformer) -> str:
    return class_name(type(transformer).__name__, getattr(transformer, "config", {}))
