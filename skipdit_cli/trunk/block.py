"""The wrapper of one block's forward, in which the cache and the skip branches of a trunk take part."""

from __future__ import annotations

import torch

from skipdit_cli.trunk.forward_state import ForwardState
from skipdit_cli.trunk.interpose import Interposed
from skipdit_cli.trunk.trunk import Trunk, parameters_of


class InterposedBlock(Interposed):
    """The forward of one block: the cache decides whether it runs, and the skip branches join their source first.

    It wraps the compiled call of a block that is compiled by itself (``compile_repeated_blocks``). The compiler then
    sees neither the block's index nor its source nor the cache, and compiles the plain block once.

    Args:
        inner: The block's forward.
        trunk: The trunk that the block belongs to.
        index: Its unit, 0 to L-1.
        position: Its place in the unit: 0, or 1 for the temporal block of a Latte.
    """

    def __init__(self, inner, trunk: Trunk, index: int, position: int):
        super().__init__(inner)
        self.trunk, self.index, self.opens_unit = trunk, index, position == 0
        self.ends_trunk = index == len(trunk) - 1 and position == len(trunk.units[index]) - 1
        self.listing = trunk.listings[index][position]
        parameters = list(parameters_of(trunk.units[index][position]))
        self.places = [(name, parameters.index(name)) for name in self.listing.names]

    def __call__(self, *args, **kwargs):
        if not self.serving:
            return self.inner(*args, **kwargs)
        trunk, merge = self.trunk, self.trunk.merge if self.opens_unit else None
        inputs = [kwargs[name] if name in kwargs else args[place] for name, place in self.places]
        # Gradient checkpointing runs blocks again in backward, in any thread and in reverse order, on the same
        # tensors. Such a call belongs to no forward that is under way.
        streams, first_pass = None if merge is None else merge.recompute(self.index, inputs), None
        if streams is None:
            state = trunk.forwards.at(self.index, self.opens_unit, trunk.new_first_pass())
            streams = self._enter(state, inputs)
            if streams is None:
                return self._leave(self._unchanged(inputs)) if self.ends_trunk else self._unchanged(inputs)
            first_pass = None if torch.compiler.is_compiling() else state.first_pass
            if first_pass is not None:
                first_pass.check_inputs(self.listing, inputs)
            if merge is not None and not self._lacks_source():
                streams = merge.join(state, self.index, streams)
        inner = self.inner if self.below is None else self.call_inner
        result = inner(*self._with(streams, args, kwargs), **kwargs)
        if first_pass is not None:
            first_pass.check_outputs(self.listing, inputs, result)
            if self.index == len(trunk) - 1:
                trunk.first_pass = None
        return self._leave(result) if self.ends_trunk else result

    def _enter(self, state: ForwardState, streams: list) -> list | None:
        """The streams at the block's input: in a unit's first block, sources are kept and the cache takes or gives the
        boundary. None if the cache leaves the unit out (the deep part of a reused step)."""
        merge, index = self.trunk.merge, self.index
        cache = None if torch.is_grad_enabled() else self.trunk.cache
        if self.opens_unit:
            # The streams have passed units that the model itself left out (skip layer guidance) unchanged.
            for passed in range(state.last + 1, index + 1):
                if merge is not None and (cache is None or passed <= cache.ends.front or not cache.leaves_out(passed)):
                    merge.keep(state, passed, index, streams)
                if cache is not None:
                    streams = cache.cross(passed, streams)
            state.last = index
        return None if cache is not None and cache.leaves_out(index) else streams

    def _lacks_source(self) -> bool:
        """Whether the cache left out the unit whose output would join this one."""
        cache = None if torch.is_grad_enabled() else self.trunk.cache
        return cache is not None and cache.leaves_out(len(self.trunk) - 1 - self.index)

    def _leave(self, result):
        """What the last block of the trunk returns: the cache takes or gives the boundary if that is its output."""
        cache = None if torch.is_grad_enabled() else self.trunk.cache
        if cache is None or cache.ends.boundary != len(self.trunk):
            return result
        if self.listing.bare:
            return cache.cross(len(self.trunk), [result])[0]
        places = [place for place, name in enumerate(self.listing.streams) if name is not None]
        returned = list(result)
        for place, stream in zip(places, cache.cross(len(self.trunk), [result[place] for place in places])):
            returned[place] = stream
        return tuple(returned)

    def _with(self, streams: list, args: tuple, kwargs: dict) -> list:
        """The positional arguments of the block with these streams in their places; ``kwargs`` is changed in place."""
        positional = list(args)
        for (name, place), stream in zip(self.places, streams):
            if name in kwargs:
                kwargs[name] = stream
            else:
                positional[place] = stream
        return positional

    def _unchanged(self, streams: list):
        """What the block would return if it changed nothing."""
        if self.listing.bare:
            return streams[0]
        named = dict(zip(self.listing.names, streams))
        return tuple(named.get(name) for name in self.listing.streams)
