"""The forward of one block of a trunk, with the trunk asked first."""

from __future__ import annotations

import inspect

import torch

from skipdit_cli.trunk.interpose import Interposed
from skipdit_cli.trunk.watch import TOKENS

COMPILED = "_compiled_call_impl"
"""Where ``torch.nn.Module.compile`` keeps what a module is called by from then on."""


class InterposedBlock(Interposed):
    """The forward of one block of a unit, with the trunk asked first.

    Of a block that is compiled by itself (``compile_repeated_blocks``) it stands before what was compiled: which block
    it is, its source and the cache are then no business of the compiler, which compiles the plain block once.
    """

    def __init__(self, inner, trunk, index: int, position: int):
        super().__init__(inner)
        self.trunk, self.index, self.opens_unit = trunk, index, position == 0
        self.listing = trunk.listings[index][position]
        parameters = list(parameters_of(trunk.units[index][position]))
        self.positions = [(name, parameters.index(name)) for name in self.listing.names]

    def __call__(self, *args, **kwargs):
        if not self.serving:
            return self.inner(*args, **kwargs)
        trunk, index, args = self.trunk, self.index, list(args)
        given = [kwargs[name] if name in kwargs else args[at] for name, at in self.positions]
        at = trunk.joined_at(index) if self.opens_unit else 0
        streams, source, looking = given, None, None
        # Gradient checkpointing runs blocks again in backward, in any thread and in reverse, on the same tensors: that
        # is of no forward under way.
        recorded = trunk.recorded(index, given[at]) if self.opens_unit else None
        if recorded is not None:
            (source,) = recorded
        else:
            state = trunk.state_at(index, self.opens_unit)
            streams = trunk.enter(state, index, given, self.opens_unit)
            if streams is None:
                return self._handed_through(given)
            looking = None if torch.compiler.is_compiling() else state.first_pass
            if looking is not None:
                looking.entered(self.listing, given)
            if self.opens_unit:
                source = trunk.source_for(state, index, streams[at])
        if source is not None:
            streams = list(streams)
            streams[at] = self._merged(streams[at], source)
        for (name, place), stream in zip(self.positions, streams):
            if name in kwargs:
                kwargs[name] = stream
            else:
                args[place] = stream
        inner = self.inner if self.below is None else self.call_inner
        result = inner(*args, **kwargs)
        if looking is not None:
            looking.left(self.listing, given, result)
            if index == len(trunk) - 1:
                trunk.first_pass = None
        return result

    def _merged(self, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        trunk, tokens = self.trunk, source.shape[TOKENS]
        start = trunk.start(self.index, x, tokens)
        part = x if tokens == x.shape[TOKENS] else x.narrow(TOKENS, start, tokens)
        return _put_into(x, trunk.branches(part, source, trunk.pair_of(self.index)), start)

    def _handed_through(self, given: list):
        """What the block would return if it changed nothing."""
        if self.listing.bare:
            return given[0]
        named = dict(zip(self.listing.names, given))
        return tuple(named.get(name) for name in self.listing.streams)


def called_by(block) -> str:
    """The attribute that a call of the block ends up in: ``forward``, or what was compiled of it."""
    return "forward" if block.__dict__.get(COMPILED) is None else COMPILED


def parameters_of(block):
    """Of the block's forward, looking through ``torch.compile``."""
    return inspect.signature(getattr(block, "_orig_mod", block).forward).parameters


def _put_into(x: torch.Tensor, part: torch.Tensor, start: int) -> torch.Tensor:
    """x with the tokens from ``start`` on replaced by ``part``."""
    end = start + part.shape[TOKENS]
    rest = x.shape[TOKENS] - end
    before = [x.narrow(TOKENS, 0, start)] if start else []
    after = [x.narrow(TOKENS, end, rest)] if rest else []
    return torch.cat([*before, part, *after], dim=TOKENS) if before or after else part
