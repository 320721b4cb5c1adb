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

    def enter(self, index: int, streams: list[torch.Tensor]) -> tuple[list[torch.Tensor], bool]:
        """What happens at the input of unit ``index``, before it runs.

        Args:
            index: 0 to L-1.
            streams: The tensors that cross blocks, in the declared order, each (batch, tokens, width) or alike.
        Returns:
            The streams to go on with, and whether the unit is left out (the deep part of a reused step).
        """
        if index == 0:
            self.sources.clear()
        x = streams[self.joined]
        if self.cache is not None:
            if self.cache.leaves_out(index):
                if index == self.cache.layers:
                    self._keep_source(index, x)
                return streams, True
            streams = self.cache.cross(index, streams)
        if self.branches is not None:
            streams = list(streams)
            streams[self.joined] = self._merge(index, streams[self.joined])
        return streams, False

    def _keep_source(self, index: int, x: torch.Tensor) -> None:
        """x is the output of unit index-1, which is a source if it lies in the first half."""
        if self.branches is not None and 1 <= index <= self.branches.num_pairs:
            self.sources.setdefault(index - 1, x)

    def _merge(self, index: int, x: torch.Tensor) -> torch.Tensor:
        """Join the branch whose target is unit ``index``, if there is one."""
        training = torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if training and x in self.merged:
            source = self.merged[x]
        else:
            self._keep_source(index, x)
            source = self.sources.pop(len(self) - 1 - index, None) if 2 * index >= len(self) else None
            if training:
                # Gradient checkpointing runs blocks again in backward, in reverse and on the same input tensors:
                # a source stays beside the input of its target for as long as that input lives.
                self.merged[x] = source
        return x if source is None else self.branches(x, source, len(self) - 1 - index)


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
        streams = [kwargs[name] if name in kwargs else args[at] for name, at in self.positions]
        if self.opens_unit:
            streams, left_out = trunk.enter(self.index, streams)
        else:
            left_out = trunk.cache is not None and trunk.cache.leaves_out(self.index)
        if left_out:
            return streams[0] if len(streams) == 1 else tuple(streams)
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
