"""The state of one forward of a trunk. It belongs to that call, and so to its thread."""

from __future__ import annotations

import threading
from typing import Any

import torch

from skipdit_cli.trunk.first_pass import FirstPass
from skipdit_cli.trunk.interpose import Interposed


class ForwardState:
    """What the units of one forward leave for those after them.

    Args:
        last: Index of the unit that was entered last; -1 before the first.
        first_pass: The check of a declared trunk in its first forward, or None.
        looks_ahead: Whether ``due`` is kept, so that most blocks of a forward have nothing to decide.

    Attributes:
        due: No unit before this one keeps, joins, takes or gives a stream; 0 where that is not known.
        leaves_out: Whether the cache leaves out the units up to ``due``.
        sources: What the skip branches keep in this forward (``skip.merge.Sources``); None until they keep something.
    """

    def __init__(self, last: int = -1, first_pass: FirstPass | None = None, looks_ahead: bool = False):
        self.first_pass, self.looks_ahead = first_pass, looks_ahead
        self.due, self.leaves_out = 0, False
        self.begin(last)

    def begin(self, last: int = -1) -> None:
        """Begin a forward: forget what the one before left."""
        self.last = last
        self.sources: Any = None


class _OfThread(threading.local):
    """The state of the forward that each thread is in."""

    state: ForwardState | None = None


class ForwardStates:
    """The forwards of one trunk that are under way: one per thread (a nested one takes the place of the outer one
    until it returns). A copy has none.

    ``torch.compile`` ignores thread-local state while it traces a forward; ``traced`` is the state of that forward.
    """

    def __init__(self):
        self.traced = ForwardState()
        self.of_thread = _OfThread()

    def __reduce__(self):
        return ForwardStates, ()

    @property
    def current(self) -> ForwardState | None:
        """The state of the forward that this thread is in, or None."""
        return self.traced if torch.compiler.is_dynamo_compiling() else self.of_thread.state

    @current.setter
    def current(self, state: ForwardState | None) -> None:
        self.of_thread.state = state

    def at(self, index: int, opens_unit: bool, first_pass: FirstPass | None) -> ForwardState:
        """Return the state of the forward that has come to a block of unit ``index``.

        Args:
            opens_unit: Whether it is the unit's first block.
            first_pass: The check for that forward, should it begin here.
        """
        if torch.compiler.is_dynamo_compiling():
            if index == 0 and opens_unit:
                self.traced.begin()
            return self.traced
        state = self.of_thread.state
        if state is None or (opens_unit and index <= state.last):  # not called through the transformer's own forward
            state = self.current = ForwardState(index - 1, first_pass)
        return state


class TrunkForward(Interposed):
    """A transformer's forward that gives each call a ``ForwardState``, until it returns or raises."""

    def __init__(self, inner, trunk):
        super().__init__(inner)
        self.trunk = trunk

    def __call__(self, *args, **kwargs):
        forwards = self.trunk.forwards
        if not self.serving:
            return self.inner(*args, **kwargs)
        if torch.compiler.is_dynamo_compiling():
            forwards.traced.begin()
            return self.inner(*args, **kwargs)
        first_pass = self.trunk.new_first_pass()
        outer, forwards.current = forwards.current, ForwardState(-1, first_pass, looks_ahead=first_pass is None)
        try:
            return self.inner(*args, **kwargs)
        finally:
            forwards.current = outer
