"""The wrapper of one block's forward, in which the cache and the skip branches of a trunk take part."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from skipdit_cli.trunk.first_pass import FirstPass
from skipdit_cli.trunk.forward_state import ForwardState
from skipdit_cli.trunk.interpose import Interposed
from skipdit_cli.trunk.trunk import Cache, Trunk, parameters_of


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
        self.last_unit = len(trunk) - 1
        self.ends_trunk = index == self.last_unit and position == len(trunk.units[index]) - 1
        self.listing = trunk.listings[index][position]
        self.is_bare = self.listing.bare
        parameters = list(parameters_of(trunk.units[index][position]))
        self.places = [(name, parameters.index(name)) for name in self.listing.names]

    def __call__(self, *args, **kwargs):
        if not self.serving:
            return self.inner(*args, **kwargs)
        state = self.trunk.forwards.current
        if state is not None and self.index < state.due:
            if state.leaves_out:  # which only a forward without gradients does
                return self._unchanged(args, kwargs)
            if not torch.is_grad_enabled():
                return self.inner(*args, **kwargs) if self.below is None else self.call_inner(*args, **kwargs)
        call = self._prepare(args, kwargs)
        if call is None:
            return self._leave(self.trunk.cache, self._unchanged(args, kwargs))
        args, kwargs, finish = call
        result = self.inner(*args, **kwargs) if self.below is None else self.call_inner(*args, **kwargs)
        return result if finish is None else finish(result)

    def _prepare(self, args: tuple, kwargs: dict) -> tuple[tuple, dict, Callable | None] | None:
        """Return the arguments that the block runs with, and what turns its result into its output, if anything does;
        None if the cache leaves it out. Streams are kept, joined, taken or given here."""
        trunk, merge = self.trunk, self.trunk.merge if self.opens_unit else None
        cache = None if torch.is_grad_enabled() else trunk.cache
        inputs = self._inputs(args, kwargs)
        # Gradient checkpointing runs blocks again in backward, in any thread and in reverse order, on the same
        # tensors. Such a call belongs to no forward that is under way.
        streams, first_pass = None if merge is None else merge.recompute(self.index, inputs), None
        if streams is None:
            state = trunk.forwards.at(self.index, self.opens_unit, trunk.new_first_pass())
            streams = self._enter(state, cache, inputs) if self.opens_unit else inputs
            if cache is not None and cache.leaves_out(self.index):
                return None
            first_pass = None if torch.compiler.is_compiling() else state.first_pass
            if first_pass is not None:
                first_pass.check_inputs(self.listing, inputs)
            if merge is not None and (cache is None or not cache.leaves_out(self.last_unit - self.index)):
                streams = merge.join(state, self.index, streams)
        if any(new is not old for new, old in zip(streams, inputs)):  # torch.compile compares lists by value
            args, kwargs = self._with(streams, args, kwargs)
        if first_pass is None and not self.ends_trunk:
            return args, kwargs, None
        return args, kwargs, partial(self._finish, cache, first_pass, inputs)

    def _finish(self, cache: Cache | None, first_pass: FirstPass | None, inputs: list, result):
        """Return what the block returns, after the check of a first forward."""
        if first_pass is not None:
            first_pass.check_outputs(self.listing, inputs, result)
            if self.index == self.last_unit:
                self.trunk.first_pass = None
        return self._leave(cache, result)

    def _enter(self, state: ForwardState, cache: Cache | None, streams: list) -> list:
        """The streams at the unit's input: sources are kept, and the cache takes or gives the boundary."""
        merge, index = self.trunk.merge, self.index
        # The streams have passed units that the model itself left out (skip layer guidance) unchanged.
        for passed in range(state.last + 1, index + 1):
            if merge is not None and (cache is None or passed <= cache.ends.front or not cache.leaves_out(passed)):
                merge.keep(state, passed, index, streams)
            if cache is not None:
                streams = cache.cross(passed, streams)
        state.last = index
        if state.looks_ahead:
            self._look_ahead(state, cache)
        return streams

    def _look_ahead(self, state: ForwardState, cache: Cache | None) -> None:
        """Note the next unit at which streams may be kept, joined, taken or given, and what the units before it do."""
        index, last = self.index, self.last_unit
        state.leaves_out = cache is not None and cache.leaves_out(index)
        if index == last:
            state.due = 0
            return
        if self.trunk.merge is not None and not state.leaves_out:
            state.due = index + 1
        elif cache is None or index >= cache.ends.boundary:
            state.due = last
        else:
            state.due = cache.ends.front if index < cache.ends.front else min(cache.ends.boundary, last)
        state.last = state.due - 1

    def _leave(self, cache: Cache | None, result):
        """What the block returns: behind the trunk's last one the cache may take or give the boundary."""
        if cache is None or not self.ends_trunk or cache.ends.boundary != len(self.trunk):
            return result
        if self.is_bare:
            return cache.cross(len(self.trunk), [result])[0]
        places = [place for place, name in enumerate(self.listing.streams) if name is not None]
        returned = list(result)
        for place, stream in zip(places, cache.cross(len(self.trunk), [result[place] for place in places])):
            returned[place] = stream
        return tuple(returned)

    def _inputs(self, args: tuple, kwargs: dict) -> list:
        """The streams among the arguments."""
        return [kwargs[name] if name in kwargs else args[place] for name, place in self.places]

    def _with(self, streams: list, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """The arguments of the block with these streams in their places."""
        positional, named = list(args), dict(kwargs)
        for (name, place), stream in zip(self.places, streams):
            if name in named:
                named[name] = stream
            else:
                positional[place] = stream
        return tuple(positional), named

    def _unchanged(self, args: tuple, kwargs: dict):
        """What the block would return if it changed nothing."""
        if self.is_bare:
            name, place = self.places[0]
            return kwargs[name] if name in kwargs else args[place]
        streams = dict(zip(self.listing.names, self._inputs(args, kwargs)))
        return tuple(streams.get(name) for name in self.listing.streams)
