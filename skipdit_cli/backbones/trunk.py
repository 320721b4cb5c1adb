"""The trunk of one model instance: its units in running order, and what is attached to them."""

from __future__ import annotations

import inspect
import math
from functools import partial

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from skipdit_cli.backbones.declarations import backbone_of
from skipdit_cli.backbones.interpose import Interposed, interpose, restore

_ATTRIBUTE = "_skipdit_trunk"


class Trunk:
    """The units (blocks, or Latte's pairs of blocks) of one transformer.

    ``branches`` (a ``SkipBranches``) and ``cache`` (a ``SkipCache``) are each optional. While either is set, every
    block of this instance is interposed on; when both are gone the instance is as diffusers made it. Parameters
    keep their names throughout.
    """

    def __init__(self, transformer):
        self.model_class = type(transformer).__name__
        self.backbone = backbone = backbone_of(transformer)
        lists = [list(getattr(transformer, name)) for name in backbone.block_lists]
        self.units = list(zip(*lists)) if backbone.interleaved else [(block,) for blocks in lists for block in blocks]
        self.width = math.prod(transformer.config[key] for key in backbone.width)
        self.joined = backbone.streams.index(backbone.joined)
        self.branches = None
        self.cache = None
        self._forget()

    def __len__(self) -> int:
        return len(self.units)

    def __getstate__(self) -> dict:
        """Copies start without the tensors of a forward in flight."""
        return {key: value for key, value in self.__dict__.items() if key not in ("sources", "merged")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self.sources: dict[int, torch.Tensor] = {}
        self.merged = WeakTensorKeyDictionary()

    def update(self) -> None:
        """Interpose on every block if anything is attached, else give the blocks back. Idempotent."""
        wanted = self.branches is not None or self.cache is not None
        for index, unit in enumerate(self.units):
            for position, block in enumerate(unit):
                if wanted:
                    interpose(block, "forward", partial(InterposedBlock, trunk=self, index=index, position=position))
                else:
                    restore(block, "forward")
        self._forget()

    def enter(self, index: int, streams: list[torch.Tensor], opens_unit: bool) -> list[torch.Tensor] | None:
        """What the cache makes of the streams at the input of a block of unit ``index``; None where the unit is left
        out (the deep part of a reused step).

        Args:
            index: 0 to L-1.
            streams: The tensors that cross blocks, in the declared order, each (batch, tokens, width) or alike.
            opens_unit: Whether the block is the unit's first; only there a boundary is crossed.
        """
        if index == 0:
            self.sources.clear()
        if self.cache is None:
            return streams
        if not self.cache.leaves_out(index):
            return self.cache.cross(index, streams) if opens_unit else streams
        if opens_unit and index == self.cache.layers:
            self._keep_source(index, streams[self.joined])
        return None

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
        if self.branches is not None and 1 <= index <= self.branches.num_pairs:
            self.sources[index - 1] = x


class InterposedBlock(Interposed):
    """The forward of one block of a unit, with the trunk asked first."""

    def __init__(self, inner, trunk: Trunk, index: int, position: int):
        super().__init__(inner)
        self.trunk, self.index, self.opens_unit = trunk, index, position == 0
        parameters = list(inspect.signature(inner).parameters)
        self.positions = [(name, parameters.index(name)) for name in trunk.backbone.streams]

    def __call__(self, *args, **kwargs):
        if not self.active:
            return self.inner(*args, **kwargs)
        trunk, args = self.trunk, list(args)
        given = [kwargs[name] if name in kwargs else args[at] for name, at in self.positions]
        streams = trunk.enter(self.index, given, self.opens_unit)
        if streams is None:
            return given[0] if len(given) == 1 else tuple(given)
        source = trunk.source_for(self.index, streams[trunk.joined]) if self.opens_unit else None
        if source is not None:
            streams = list(streams)
            pair = len(trunk) - 1 - self.index
            streams[trunk.joined] = trunk.branches(streams[trunk.joined], source, pair)
        for (name, at), stream in zip(self.positions, streams):
            if name in kwargs:
                kwargs[name] = stream
            else:
                args[at] = stream
        return self.inner(*args, **kwargs)


def trunk_of(transformer) -> Trunk:
    """The trunk of a model, made at first use and kept on the instance (``torch.compile`` is looked through)."""
    transformer = getattr(transformer, "_orig_mod", transformer)
    if _ATTRIBUTE not in transformer.__dict__:
        transformer.__dict__[_ATTRIBUTE] = Trunk(transformer)
    return transformer.__dict__[_ATTRIBUTE]
